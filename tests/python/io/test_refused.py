"""Where the kernel refuses io_uring: the same results on threads, and words that help."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from denied import DENIED

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(DENIED in os.environ, reason="is denied already"),
]


def _denied(code: int, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "denied.py"), str(code), *argv],
        capture_output=True,
        text=True,
        cwd=HERE.parents[2],
        check=False,
    )


def test_every_behaviour_again_without_the_ring() -> None:
    # The whole folder in a child whose io_uring_setup answers EPERM, with `auto` on both drivers.
    argv = ["pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE)]
    done = _denied(errno.EPERM, *argv)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


_FEW = """
    import asyncio, os, resource, socket, sys
    import millrace

    settings = millrace.IoSettings(driver=sys.argv[1])

    async def use(io):
        # Refused before anything was accepted, or carried out.
        before = io.statistics().submitted
        try:
            call = io.stat("/")
        except (OSError, millrace.Error):
            assert io.statistics().submitted == before
            return 1
        await call
        return 0

    async def wait(io):
        # An await that is not answered at once: the loop has what it is called by.
        left, right = socket.socketpair()
        try:
            await io.recv(left, 1, timeout_s=0.001)
        except millrace.IoTimeout:
            pass
        left.close()
        right.close()

    loop = asyncio.new_event_loop()
    warm = millrace.IoEngine(settings=settings)
    loop.run_until_complete(use(warm))
    loop.run_until_complete(wait(warm))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = set()
    for spare in range(24):
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(spare):
            os.close(held.pop())
        try:
            io = millrace.IoEngine(settings=settings)
        except (OSError, millrace.Error):
            io = None
        refused = loop.run_until_complete(use(io)) if io else None
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if io:
            seen.add((io.backend.name, refused))
            assert loop.run_until_complete(use(io)) == 0
            loop.run_until_complete(io.close())
    loop.run_until_complete(warm.close())
    print(sorted(seen))
"""


@pytest.mark.parametrize("driver", ["thread", "loop"])
def test_an_engine_that_could_be_made_can_be_used(driver: str) -> None:
    # With so few descriptors left that the ring fails, the engine is refused or stands on threads;
    # what it has accepted is carried out, and what was refused at the call was not accepted.
    command = [sys.executable, "-c", textwrap.dedent(_FEW), driver]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "uring" in done.stdout


_ASK = """
    import json, millrace
    info = millrace.IoEngine().backend
    refused = []
    for backend in ("uring", "uring-plain"):
        try:
            millrace.IoEngine(settings=millrace.IoSettings(backend=backend))
        except millrace.BackendUnavailable as refusal:
            refused.append(str(refusal))
    print(json.dumps([info.name, info.reason, info.hint, refused]))
"""


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (errno.EPERM, "seccomp"),
        (errno.ENOSYS, "5.11"),
        (errno.ENOMEM, "locked memory"),
    ],
)
def test_each_refusal_has_one_hint(tmp_path: Path, code: int, word: str) -> None:
    # `auto` falls back and says why and what helps; what is forced is an error that says the same.
    script = tmp_path / "ask_backend.py"
    script.write_text("\n".join(line[4:] for line in _ASK.splitlines()))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "denied.py"), str(code), "ask_backend"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, reason, hint, refused = json.loads(done.stdout)
    assert name == "threads"
    assert "io_uring_setup" in reason
    assert word in hint
    assert len(refused) == 2
    assert all(word in one for one in refused)


def test_doctor_shows_rung_reason_and_hint(tmp_path: Path) -> None:
    # As a table and as JSON, with one hint for the refusal.
    done = _denied(errno.EPERM, "millrace", "doctor", str(tmp_path), "--json")
    assert done.returncode in {0, 1}, done.stderr
    document = json.loads(done.stdout)
    assert document["engine"]["name"] == "threads"
    (finding,) = [one for one in document["findings"] if one["name"] == "I/O engine"]
    assert finding["verdict"] == "note"
    assert "io_uring_setup" in finding["value"]
    assert "seccomp" in finding["advice"]
    assert document["engine"] == {
        "name": "threads",
        "reason": document["engine"]["reason"],
        "hint": finding["advice"],
    }
    shown = _denied(errno.EPERM, "millrace", "doctor", str(tmp_path))
    assert "I/O engine" in shown.stdout
    assert "seccomp" in shown.stdout
