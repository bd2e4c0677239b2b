"""The benchmarks' own arithmetic: ratios, verdicts, what is missing, and cells that check."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import uvloop

import timers
import ways
from figures import Figures
from report import write_report
from table import Spread, Table, ratio

# A busy machine is slow, and a test stopped half way leaves mounts and children behind.
pytestmark = pytest.mark.timeout(300)
BENCHES = Path(__file__).parents[3] / "benches" / "python"


def row(workload: str, contender: str, tasks: int, number: int, **figures: float) -> dict[str, Any]:
    usual = {"records_per_s": 1.0, "bytes_per_s": 1.0, "p50_s": 1.0, "p99_s": 1.0}
    rest = {"lag_p99_s": 0.001, "cpu_us_per_record": 1.0, "peak_bytes": 1.0, "open_s": 0.1}
    head = {"workload": workload, "contender": contender, "tasks": tasks, "round": number}
    return {**head, **usual, **rest, **figures}


def document(cells: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {
        "processors": 2,
        "processor": "a <fast> one",
        "memory_bytes": 1 << 30,
        "kernel": "6",
        "filesystem": "ext4",
        "device": "/dev/x",
        "python": "3.11",
        "io_uring": "allowed",
    }
    return {
        "began": 0.0,
        "elapsed_s": 60.0,
        "command": "run.py",
        "commit": "abc",
        "plan": {"rounds": 3, "scan_records": 10},
        "machine": machine,
        "versions": {"sqlite": "3"},
        "missing": {"LMDB": "not installed"},
        "cells": cells,
    }


def test_ratios_are_taken_round_by_round() -> None:
    # A slow round weighs on both sides, so the ratio does not see it.
    rows = [
        row("append", who, 256, number, records_per_s=speed * (0.5 if number == 1 else 1.0))
        for number in range(3)
        for who, speed in (("millrace", 90.0), ("asyncio limit", 100.0))
    ]
    table = Table(rows)
    ours = table.by_round("append", "millrace", 256, "records_per_s")
    limit = table.by_round("append", "asyncio limit", 256, "records_per_s")
    assert ratio(ours, limit) == Spread(0.9, 0.9, 0.9)
    (met,) = [f for f in Figures(table).all() if "own limit" in f.case]
    assert met.is_met


@pytest.mark.parametrize(("speed", "is_met"), [(79.0, False), (81.0, True)])
def test_an_aim_is_met_or_missed(speed: float, *, is_met: bool) -> None:
    # The table says which, and a figure just below its aim is missed.
    rows = [
        row("append", "millrace", 4096, 0, records_per_s=speed),
        row("append", "asyncio limit", 4096, 0, records_per_s=100.0),
    ]
    (figure,) = [f for f in Figures(Table(rows)).all() if "own limit" in f.case]
    assert figure.is_met is is_met


def test_the_report_says_where_we_lose(tmp_path: Path) -> None:
    # Who wins each cell and by how much, also when it is not us; limits do not compete.
    cells = [
        row("append", "millrace", 16, 0, records_per_s=50.0, p99_s=2.0),
        row("append", "RocksDB", 16, 0, records_per_s=100.0),
        row("append", "asyncio limit", 16, 0, records_per_s=999.0),
        row("append", "millrace", 256, 0, records_per_s=300.0),
        row("append", "RocksDB", 256, 0, records_per_s=100.0),
        {"workload": "bulk", "contender": "SQLite", "tasks": 1, "round": 0, "wrong": "lost 3"},
    ]
    text = write_report(document(cells), tmp_path).read_text()
    assert "**We lose**: RocksDB does 2.00 x what `millrace` does." in text
    assert "p99 is higher than that of RocksDB (2.00 x)" in text
    assert "`millrace` wins: 3.00 x the best peer, RocksDB." in text
    assert "LMDB: not installed" in text
    assert "lost 3" in text
    assert json.loads((tmp_path / "results.json").read_text())["commit"] == "abc"
    ET.parse(tmp_path / "append.svg")


def run_cell(directory: Path, **job: Any) -> dict[str, Any]:
    settings = {"directory": str(directory), "size": 128, "seconds": 0.1, "bytes": 3_000_000}
    settings["settle"] = False
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHES / "cell.py"),
            json.dumps({**settings, "records": 3000, **job}),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("contender", ["millrace", "asyncio limit", "hand-written group commit"])
def test_a_cell_of_appends(tmp_path: Path, contender: str) -> None:
    # A cell measures, reads back what it wrote, and answers with every figure.
    found = run_cell(tmp_path, workload="append", contender=contender, tasks=16)
    assert found["records"] > 0
    assert 0 < found["p50_s"] <= found["p99_s"]
    assert found["cpu_s"] > 0
    assert found["peak_bytes"] > 0
    assert "lag_p99_s" in found


@pytest.mark.parametrize("contender", ["millrace", "SQLite, batched"])
def test_a_cell_of_batches(tmp_path: Path, contender: str) -> None:
    # Batches are compared record by record with what was acknowledged.
    found = run_cell(tmp_path, workload="bulk", contender=contender, tasks=2)
    assert found["records"] == 2000


@pytest.mark.parametrize(
    ("store", "reader"),
    [
        ("millrace", "millrace read_batches"),
        ("millrace", "millrace async for"),
        ("hand-written group commit", "plain file"),
    ],
)
def test_a_cell_of_a_scan(tmp_path: Path, store: str, reader: str) -> None:
    # A scan reads everything; one that finds less than was written says so and is no result.
    run_cell(tmp_path, workload="fill", contender=store)
    found = run_cell(tmp_path, workload="scan", contender=reader)
    assert found["records"] == 3000
    assert found["records_per_s"] > 0
    assert "wrong" in run_cell(tmp_path, workload="scan", contender=reader, records=3001)


def test_a_missing_peer_is_a_missing_row(tmp_path: Path) -> None:
    # What cannot run here says why, and the others go on.
    settings = "import contenders, cell, sys; sys.modules['lmdb'] = None; cell.main()"
    job = {"workload": "append", "contender": "LMDB", "tasks": 1, "seconds": 0.1, "size": 128}
    done = subprocess.run(
        [sys.executable, "-c", settings, json.dumps({**job, "directory": str(tmp_path)})],
        capture_output=True,
        text=True,
        cwd=BENCHES,
        timeout=200,
        check=False,
    )
    assert "missing" in json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("loop", timers.LOOPS)
@pytest.mark.parametrize("contender", [timers.OURS, timers.THEIRS])
@pytest.mark.parametrize("workload", list(timers.WORKLOADS))
def test_cells_of_timers_run_and_check(workload: str, contender: str, loop: str) -> None:
    # Belief: every cell of the timer comparison does its work to the end and gives its figures.
    job = {"workload": workload, "contender": contender, "loop": loop, "count": 500}
    result = timers.run_cell({**job, "seconds": 0.05})
    assert "wrong" not in result
    assert result
    assert all(isinstance(value, float) for value in result.values())


def test_the_report_of_timers_has_every_aim() -> None:
    # Belief: five cases for each loop, and a missed aim is said.
    rows = [
        {
            **job,
            "workload": f"{job['workload']} on {job['loop']}",
            "round": number,
            **dict.fromkeys(("each_s", "bytes_each", "lag_p99_s"), 1.0),
        }
        for number in range(3)
        for group in timers.cells(timers.QUICK)
        for job in group
    ]
    lines = list(timers.lines(Table(rows), timers.QUICK))
    assert len(lines) == 10
    assert sum("missed" in line[-1] for line in lines) == 7


@pytest.mark.parametrize("loop", ways.LOOPS)
def test_a_round_of_ways_gives_every_row(loop: str) -> None:
    # Belief: both ways come back, for each number of tasks, and the report has a ratio for each.
    run = uvloop.run if loop == "uvloop" else asyncio.run
    rows = run(ways.one_round(0, ways.Plan(rounds=1, calls=512), loop))
    assert len(rows) == 2 * len(ways.TASKS)
    assert all(row["seconds"] > 0 for row in rows)
    lines = [line for line in ways.lines(Table(rows)) if line.startswith(f"| {loop} ")]
    assert all(line.count("|") == 6 and "| |" not in line for line in lines)
    assert len(lines) == len(ways.TASKS)
