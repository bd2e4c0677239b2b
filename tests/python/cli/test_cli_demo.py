"""`millrace demo` and `millrace doctor`, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.demo.events import Encoding, SourceChangedError, survey

# A busy machine is slow, and a test stopped half way leaves mounts and children behind.
pytestmark = pytest.mark.timeout(300)


def run(*argv: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "millrace", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with text, an empty file, a binary one, and odd names and bytes."""
    root = tmp_path / "source"
    (root / "below").mkdir(parents=True)
    for number in range(30):
        lines = "".join(f"file {number} line {n}\n" for n in range(200))
        (root / "below" / f"{number}.txt").write_text(lines)
    (root / "empty").touch()
    (root / "binary").write_bytes(bytes(range(256)) * 4)
    (root / "latin \u00e9").write_bytes(b"caf\xe9\nno newline")
    (root / "link").symlink_to(root / "empty")
    return root


@pytest.mark.parametrize("encoding", ["compact", "json"])
def test_events_follow_from_the_files(source: Path, encoding: Encoding, tmp_path: Path) -> None:
    # The same plan gives the same bytes, one by one or all in order, and knows its own events.
    plan = survey(source, encoding=encoding, lines_per_event=8, bytes_max=1 << 30)
    assert plan.count == 30 * 26 + 1 + 1 + 2
    events = list(plan.events())
    assert len(set(events)) == plan.count
    assert [plan.event(index) for index in range(plan.count)] == events
    assert [plan.index_of(event) for event in events] == list(range(plan.count))
    assert plan.index_of(b"something else") != 0
    plan.save(tmp_path / "plan")
    assert list(type(plan).load(tmp_path / "plan").events()) == events


def test_a_file_that_changes_is_noticed(source: Path) -> None:
    # A source that is no longer what was planned is said to be so, not taken for a loss.
    plan = survey(source, encoding="compact", lines_per_event=8, bytes_max=1 << 30)
    (source / "below" / "0.txt").write_text("shorter\n")
    with pytest.raises(SourceChangedError, match=r"0\.txt"):
        list(plan.events())


def test_the_survey_is_bounded(source: Path) -> None:
    # A directory of any size gives at most so much text.
    plan = survey(source, encoding="compact", lines_per_event=8, bytes_max=20_000)
    assert 0 < sum(map(len, plan.events())) < 40_000


@pytest.mark.parametrize("encoding", ["compact", "json"])
def test_the_demo_kills_recovers_and_loses_nothing(source: Path, encoding: str) -> None:
    # Everything is appended in spite of two kills, verified byte for byte, and compared.
    found: dict[str, Any] = json.loads(
        run(
            *("demo", "--json", "--directory", source, "--kills", 2, "--lines", 1),
            *("--tasks", 50, "--sample-seconds", 0.2, "--encoding", encoding, "--seed", 7),
        ).stdout
    )
    assert found["ok"] is True
    assert found["lost"] == 0
    assert found["appended"] == found["events"] == found["checks"][-1]["records"]
    assert len(found["checks"]) == 3
    assert 0 < found["checks"][0]["records"] < found["events"]
    assert found["millrace"]["records_per_s"] > 0
    assert 0 < found["millrace"]["p50_s"] <= found["millrace"]["p99_s"]
    assert [row["lost"] for row in found["usual"]] == [0, 0, 0]


def test_the_demo_speaks_plainly_into_a_pipe(source: Path, tmp_path: Path) -> None:
    # Without a terminal the table is plain text, and what was asked to be kept is kept.
    keep = tmp_path / "kept"
    argv = ("demo", "--directory", source, "--sample-seconds", 0, "--keep", keep)
    said = run(*argv).stdout
    assert "\x1b" not in said
    assert "lost 0, changed 0, invented 0" in said
    assert "after SIGKILL" in said
    assert (keep / "log").is_dir()
    run(*argv, code=2)


def test_the_demo_refuses_an_empty_directory(tmp_path: Path) -> None:
    # Nothing to read is a failure in words.
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing to read" in run("demo", "--directory", empty, code=1).stderr
    run("demo", "--directory", tmp_path / "missing", code=2)


def test_the_demo_exits_with_1_when_a_record_is_lost(source: Path) -> None:
    # A checker that cannot fail proves nothing: with a log that forgets, the demo says so.
    script = (
        "import millrace.cli.demo.run as r, sys\n"
        "from millrace.cli import main\n"
        "settle = r.Ledger.settle\n"
        "def lie(self, promised, *rest):\n"
        "    settle(self, promised, *rest)\n"
        "    promised[0] += 1\n"
        "r.Ledger.settle = lie\n"
        "sys.argv = ['millrace', 'demo', '--json', '--sample-seconds', '0', '--directory', "
        f"{str(source)!r}]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["lost"] > 0


def test_doctor_measures_and_leaves_nothing(tmp_path: Path) -> None:
    # The doctor names the filesystem and what a commit costs, and cleans up after itself.
    found = json.loads(run("doctor", tmp_path, "--json").stdout)
    names = {finding["name"] for finding in found["findings"]}
    assert {"filesystem", "kernel", "free space", "the log's commit"} <= names
    assert all(f["verdict"] in {"fine", "note", "warning", "not fine"} for f in found["findings"])
    assert list(tmp_path.iterdir()) == []
    said = run("doctor", tmp_path).stdout
    assert "filesystem" in said
    run("doctor", tmp_path / "missing", code=1)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a tmpfs to look at")
def test_doctor_warns_of_memory() -> None:
    # A place that forgets everything at a reboot is not fine, and the exit code says so.
    found = run("doctor", "/dev/shm", code=1)
    assert "nothing survives a reboot" in found.stdout


def test_the_command_line_asks_for_its_extra(tmp_path: Path) -> None:
    # Without click there is one sentence that says what to install, and no traceback.
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('no click', name='click')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "millrace", "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'millrace[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
