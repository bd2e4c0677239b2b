"""`millrace log`: what goes in comes out, and what goes wrong is said in one sentence."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from millrace import Log

if TYPE_CHECKING:
    from pathlib import Path

    from millrace import LogSettings

# A busy machine is slow, and a test stopped half way leaves mounts and children behind.
pytestmark = pytest.mark.timeout(300)
KIB = 1024
_ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "error", "COLUMNS": "200"}


def run(*argv: object, data: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run the command; its exit code is part of what is promised."""
    done = subprocess.run(
        [sys.executable, "-m", "millrace", *map(str, argv)],
        input=data,
        capture_output=True,
        timeout=200,
        env=_ENVIRONMENT,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


def document(*argv: object, data: bytes = b"", code: int = 0) -> Any:
    return json.loads(run(*argv, "--json", data=data, code=code).stdout)


def test_lines_come_back_as_they_went_in(tmp_path: Path) -> None:
    # Every line is a record, empty ones too, and a last line needs no newline.
    said = run("log", "append", tmp_path / "log", data=b"one\n\nthree\r\nfour").stdout
    assert b"4 records" in said
    assert b"durable" in said
    assert run("log", "cat", tmp_path / "log").stdout == b"one\n\nthree\r\nfour\n"


def test_append_says_which_lsns(tmp_path: Path) -> None:
    # The summary names the range, and a second append goes on where the first ended.
    path = tmp_path / "log"
    first = document("log", "append", path, data=b"a\nb\n")
    assert (first["first_lsn"], first["last_lsn"], first["records"]) == (1, 2, 2)
    second = document("log", "append", path, data=b"c\n")
    assert (second["first_lsn"], second["last_lsn"], second["bytes"]) == (3, 3, 1)


def test_many_records_keep_their_order(tmp_path: Path) -> None:
    # With many batches in flight the order of the input is the order of the log.
    lines = b"".join(b"%d\n" % number for number in range(50_000))
    assert document("log", "append", tmp_path / "log", data=lines)["records"] == 50_000
    assert run("log", "cat", tmp_path / "log").stdout == lines


def test_length_prefixed_records_may_hold_anything(tmp_path: Path) -> None:
    # Newlines, zeros and nothing at all survive when the length stands in front.
    records = [b"a\nb", b"", bytes(range(256)), b"\0" * 10_000]
    stream = b"".join(struct.pack("<I", len(data)) + data for data in records)
    path = tmp_path / "log"
    run("log", "append", path, "--format", "length", data=stream)
    assert run("log", "cat", path, "--format", "length").stdout == stream


def test_ndjson_is_checked_and_kept_as_written(tmp_path: Path) -> None:
    # Blank lines are passed over, the text of each value is kept, a wrong line is named.
    path = tmp_path / "log"
    good = b'{"a": 1}\n\n  [1,2]  \n"x"\n'
    assert document("log", "append", path, "--format", "ndjson", data=good)["records"] == 3
    assert run("log", "cat", path, "--format", "ndjson").stdout == good.replace(b"\n\n", b"\n")
    failed = document("log", "append", path, "--format", "ndjson", data=b"1\n{oops\n2\n", code=1)
    assert "line 2" in failed["error"]["message"]
    assert failed["records"] == 1
    assert failed["last_lsn"] == 4


def test_an_input_that_ends_in_the_middle_is_refused(tmp_path: Path) -> None:
    # A cut length-prefixed stream is an error, and what was whole before it is durable.
    stream = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 9) + b"cut"
    path = tmp_path / "log"
    failed = run("log", "append", path, "--format", "length", data=stream, code=1)
    assert b"ends inside record 2" in failed.stderr
    assert run("log", "cat", path).stdout == b"abc\n"


def test_json_of_cat_has_lsn_time_and_bytes(tmp_path: Path) -> None:
    # Text is shown as text, other bytes in base64, one object to a line.
    path = tmp_path / "log"
    odd = b"\xff\xfe"
    stream = b"".join(struct.pack("<I", len(data)) + data for data in (b"text", odd))
    run("log", "append", path, "--format", "length", data=stream)
    lines = run("log", "cat", path, "--json").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert (first["lsn"], first["data"]) == (1, "text")
    assert abs(first["timestamp"] / 1e9 - time.time()) < 60
    assert base64.b64decode(second["data_base64"]) == odd


def test_cat_takes_a_range(tmp_path: Path) -> None:
    # --start is the first LSN, --stop the one before which it ends.
    path = tmp_path / "log"
    run("log", "append", path, data=b"1\n2\n3\n4\n5\n")
    assert run("log", "cat", path, "--start", 2, "--stop", 4).stdout == b"2\n3\n"
    assert run("log", "cat", path, "--start", 9).stdout == b""
    run("log", "cat", path, "--stop", 4, "--follow", code=2)
    run("log", "cat", path, "--start", 0, code=2)


def test_tail_shows_the_end(tmp_path: Path) -> None:
    # The last ten, or as many as asked for, or from an LSN on.
    path = tmp_path / "log"
    run("log", "append", path, data=b"".join(b"%d\n" % n for n in range(1, 21)))
    assert run("log", "tail", path).stdout.split() == [b"%d" % n for n in range(11, 21)]
    assert run("log", "tail", path, "-n", 2).stdout == b"19\n20\n"
    assert run("log", "tail", path, "-n", 0).stdout == b""
    assert run("log", "tail", path, "--start", 20).stdout == b"20\n"


def test_follow_sees_what_another_process_appends(tmp_path: Path) -> None:
    # `tail -f` runs beside a live owner, shows what becomes durable, and ends with Ctrl-C.
    path = tmp_path / "log"
    run("log", "append", path, data=b"before\n")
    argv = [sys.executable, "-m", "millrace", "log", "tail", "-f", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=_ENVIRONMENT) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"before\n"
            run("log", "append", path, data=b"after\n")
            assert follower.stdout.readline() == b"after\n"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 0
        finally:
            follower.kill()


@pytest.mark.parametrize("name", ["tail", "cat"])
def test_follow_says_that_it_came_too_late(tmp_path: Path, name: str, small: LogSettings) -> None:
    # What is truncated before a follower has seen it is one sentence and exit code 1.
    path = tmp_path / "log"
    argv = [sys.executable, "-m", "millrace", "log", name, "-f", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": _ENVIRONMENT}

    async def main() -> bytes:
        async with Log.open(path, settings=small) as log:
            await log.append(b"seen")
            with subprocess.Popen(argv, **pipes) as follower:  # type: ignore[call-overload]
                try:
                    assert follower.stdout.readline() == b"seen\n"
                    follower.send_signal(signal.SIGSTOP)
                    for _ in range(40):
                        await log.append(bytes(8 * KIB))
                    await log.truncate_before(30)
                    assert log.first_lsn > 2
                    follower.send_signal(signal.SIGCONT)
                    _, said = follower.communicate(timeout=100)
                    assert follower.returncode == 1, said
                    return bytes(said)
                finally:
                    follower.kill()

    said = asyncio.run(main())
    assert b"Traceback" not in said
    assert b"the records from LSN 2 on were truncated" in said


def test_a_pipe_that_trickles_is_appended_as_it_trickles(tmp_path: Path) -> None:
    # A record is durable soon after its line is complete, not when the input ends.
    path = tmp_path / "log"
    argv = [sys.executable, "-m", "millrace", "log", "append", str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, env=_ENVIRONMENT, **pipes) as source:  # type: ignore[call-overload]
        source.stdin.write(b"early\nunfinished")
        source.stdin.flush()
        end = time.monotonic() + 20
        while _cat(path) != b"early\n":
            assert time.monotonic() < end, "the line did not arrive"
        source.communicate(b" business\n", timeout=20)
        assert source.returncode == 0
    assert run("log", "cat", path).stdout == b"early\nunfinished business\n"


def _cat(path: Path) -> bytes:
    argv = [sys.executable, "-m", "millrace", "log", "cat", str(path)]
    return subprocess.run(argv, capture_output=True, check=False).stdout


def test_a_reader_that_goes_away_is_not_a_failure(tmp_path: Path) -> None:
    # `cat | head` ends quietly.
    path = tmp_path / "log"
    run("log", "append", path, data=b"x" * 100 + b"\n" + b"line\n" * 100_000)
    argv = [sys.executable, "-m", "millrace", "log", "cat", str(path)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENVIRONMENT
    ) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert len(cat.stdout.readline()) == 101
        cat.stdout.close()
        assert cat.stderr.read() == b""
        assert cat.wait(20) == 0


def test_stat_counts(tmp_path: Path) -> None:
    # stat shows what is there, on a closed log and as a document.
    path = tmp_path / "log"
    run("log", "append", path, data=b"a\nb\n")
    found = document("log", "stat", path)
    assert (found["first_lsn"], found["last_lsn"], found["records"]) == (1, 2, 2)
    assert found["files"]
    assert b"last_lsn" in run("log", "stat", path).stdout


def test_verify_finds_a_flipped_bit_and_repair_asks(tmp_path: Path) -> None:
    # verify says fine for a whole log and fails for a damaged one; repair needs a yes, copies
    # aside, and after it the log opens.
    path = tmp_path / "log"
    for number in range(3):
        run("log", "append", path, data=b"".join(b"%d-%d\n" % (number, n) for n in range(500)))
    assert not document("log", "verify", path)["damage"]
    segment = min(path.glob("*.log"))
    data = bytearray(segment.read_bytes())
    position = data.index(b"0-250")
    data[position] ^= 1
    segment.write_bytes(data)
    run("log", "verify", path, code=1)
    assert segment.read_bytes() == data
    run("log", "repair", path, code=2)
    assert segment.read_bytes() == data
    before = {item.name for item in path.iterdir()}
    run("log", "repair", path, "--yes")
    assert {item.name for item in path.iterdir()} - before, "nothing was copied aside"
    run("log", "append", path, data=b"afterwards\n")
    assert run("log", "tail", path, "-n", 1).stdout == b"afterwards\n"


@pytest.mark.parametrize("name", ["cat", "tail", "stat", "verify"])
def test_looking_creates_nothing(tmp_path: Path, name: str) -> None:
    # A directory that is not there is an error with exit code 1, and is not made.
    failed = run("log", name, tmp_path / "nowhere", code=1)
    assert failed.stderr.startswith(b"millrace: ")
    assert "error" in document("log", name, tmp_path / "nowhere", code=1)
    run("log", "repair", "--yes", tmp_path / "nowhere", code=1)
    assert not (tmp_path / "nowhere").exists()


def test_wrong_usage_has_its_own_exit_code(tmp_path: Path) -> None:
    # 2 is for the one who typed, 1 for what went wrong.
    run("log", code=2)
    run("log", "cat", code=2)
    run("no-such-command", code=2)
    run("log", "append", tmp_path, "--format", "xml", code=2)
    run("log", "cat", __file__, code=1)
