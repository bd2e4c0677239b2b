"""
What the smaller benchmarks share: a cell in a fresh process, and a page beside its raw figures.

A page says by itself which command wrote it, at which commit, when, on what machine, and how busy
that was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from millrace.cli.machine import facts

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "benches" / "report"


def options(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """
    Return what every benchmark understands.

    Args:
        doc: The docstring of the benchmark; its first line is shown.

        quick: What `--quick` makes of it.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[1])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--rounds", type=int, help="at least three for a report to be believed")
    parser.add_argument("--out", type=Path, default=REPORT)
    return parser


def spawn(argv: list[str], timeout_s: float) -> dict[str, Any]:
    """Run a cell in a fresh process and return what it answers; one that fails ends everything."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise SystemExit(f"a cell failed: {argv}\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def commit() -> str:
    """Return what is measured: the commit, and whether more than the report has changed since."""

    def ask(*words: str) -> str:
        git = ["git", "-C", str(ROOT), *words]
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None:
        return "unknown"
    changed = ask("status", "--porcelain", "--untracked-files=no", "--", ":!benches/report")
    return (ask("describe", "--always") or "unknown") + ("-dirty" if changed else "")


class Page:
    """
    A page of a report, begun before the first cell: the load of the machine is that of then.

    Args:
        title: Its headline.

        script: The benchmark that writes it.
    """

    def __init__(self, title: str, script: str) -> None:
        self._title = title
        self._script = Path(script).resolve().relative_to(ROOT)
        self._load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(dir=ROOT) as directory:
            self._machine = facts(Path(directory))
        self._commit = commit()

    def head(self, rounds: int, note: str = "") -> str:
        """Return the top of the page: what was run, where, and how."""
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        command = " ".join(["python", str(self._script), *sys.argv[1:]])
        machine = self._machine
        note = f"\n{note}" if note else ""
        return f"""# {self._title}

Written by `{command}` at commit {self._commit} on {day}.
{rounds} rounds, contenders interleaved, every cell in a fresh process. Medians over the rounds
with the range in brackets; ratios are taken within a round.{note}

- Machine: {machine["processors"]} x {machine["processor"]}, kernel {machine["kernel"]}, Python
  {machine["python"]}
- Load when it began: {self._load:.2f}; much above 0.5, others were busy here, and only ratios say
  something
"""

    def publish(self, out: Path, name: str, text: str, raw: dict[str, Any]) -> None:
        """Write `name.md` and `name.json` into *out*, and print the page."""
        out.mkdir(parents=True, exist_ok=True)
        document = {"machine": self._machine, "commit": self._commit, "load": self._load, **raw}
        raw_path, page_path = out / f"{name}.json", out / f"{name}.md"
        raw_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        page_path.write_text(text, encoding="utf-8")
        print(text)


def micro(value: float) -> str:
    """Show a short time."""
    return f"{value * 1e6:.2f} us"


def milli(value: float) -> str:
    """Show a longer time."""
    return f"{value * 1e3:.2f} ms"


def times(value: float) -> str:
    """Show a ratio."""
    return f"{value:.2f} x"
