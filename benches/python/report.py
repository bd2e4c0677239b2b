"""Turn the results of a run into one page, its plots and its raw figures."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from figures import LIMIT, OURS, Figures
from millrace.cli.units import bytes_text, seconds_text
from short import short
from svg import bar_chart
from table import Spread, Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Document = dict[str, Any]
_LIMITS = {LIMIT}
_WORKLOADS = (
    ("append", (1, 16, 256, 4096)),
    ("bulk", (1, 4)),
    ("recycled", (1, 4)),
    ("scan", (0,)),
)
_BULKY = ("bulk", "recycled")
_TITLES = {
    "append": "Durable appends of 128 bytes, awaited one by one by {tasks} task(s)",
    "bulk": "Batches of 1000 x 1 KiB from {tasks} task(s), durable as wholes",
    "recycled": "The same from {tasks} task(s) while a consumer truncates behind",
    "scan": "Scan of {records:,} records of 128 bytes, warm, from the first record",
}


def write_report(document: Document, out: Path) -> Path:
    """Write `report.md`, `results.json` and the plots into *out*; returns the page's path."""
    table = Table(document["cells"])
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sections = [
        _head(document),
        short(table, out),
        _figures(table),
        *(
            _cell(document, table, workload, tasks)
            for workload, all_tasks in _WORKLOADS
            for tasks in all_tasks
            if table.contenders(workload, tasks)
        ),
        _limits(table),
        _idle(table),
        _plots(table, out),
        _gaps(document),
    ]
    path = out / "report.md"
    path.write_text("\n".join(section for section in sections if section), encoding="utf-8")
    return path


def _head(document: Document) -> str:
    machine, plan = document["machine"], document["plan"]
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(document["began"]))
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    return f"""# Benchmarks

Written by `{document["command"].strip()}` at commit {document["commit"]} on {day}; it took
{document["elapsed_s"] / 60:.0f} minutes. {plan["rounds"]} rounds, contenders interleaved, every
cell in a fresh process. Figures are medians over the rounds, with the range in brackets; every
result was read back and compared, count and content.

- Machine: {machine["processors"]} x {machine["processor"]}, {bytes_text(machine["memory_bytes"])}
- Kernel {machine["kernel"]}, {machine["filesystem"]} on {machine["device"]}, Python
  {machine["python"]}, io_uring {machine["io_uring"]}
- Versions: {versions}
"""


def _figures(table: Table) -> str:
    rows = [
        (figure.case, figure.aim, figure.text(), figure.verdict) for figure in Figures(table).all()
    ]
    if not rows:
        return ""
    return "## What the log is held to\n\n" + _markdown(
        ("case", "aim", "measured", ""), rows, right=9
    )


def _cell(document: Document, table: Table, workload: str, tasks: int) -> str:
    names = _ranked(table, workload, tasks)
    records = document["plan"]["scan_records"]
    title = _TITLES[workload].format(tasks=tasks, records=records)
    best = _rate(table, workload, names[0], tasks)
    rows = [_row(table, workload, name, tasks, best) for name in names]
    columns = ["", "records/s", "of the best", "p50", "p99", "loop lag p99", "CPU us/rec", "peak"]
    if workload == "scan":
        columns[3:5] = ["MiB/s", "open"]
    if workload in _BULKY:
        columns[1:2] = ["MiB/s"]
    verdict = _verdict(table, workload, tasks, names)
    return f"## {title}\n\n{_markdown(columns, rows)}\n{verdict}\n"


def _rate(table: Table, workload: str, name: str, tasks: int) -> float:
    found = table.spread(workload, name, tasks, "records_per_s")
    return found.median if found else 0.0


def _ranked(table: Table, workload: str, tasks: int) -> list[str]:
    names = table.contenders(workload, tasks)
    return sorted(names, key=lambda name: -_rate(table, workload, name, tasks))


def _row(table: Table, workload: str, name: str, tasks: int, best: float) -> tuple[str, ...]:
    def shown(field: str, form: Any) -> str:
        found = table.spread(workload, name, tasks, field)
        return found.show(form) if found else "-"

    def middle(field: str, form: Any) -> str:
        found = table.spread(workload, name, tasks, field)
        return form(found.median) if found else "-"

    mib = lambda value: f"{value / (1 << 20):,.0f}"  # noqa: E731
    count = lambda value: f"{value:,.0f}"  # noqa: E731
    rate = shown("bytes_per_s", mib) if workload in _BULKY else shown("records_per_s", count)
    if workload == "scan":
        times = (middle("bytes_per_s", mib), middle("open_s", seconds_text))
    else:
        times = (middle("p50_s", seconds_text), middle("p99_s", seconds_text))
    share = _rate(table, workload, name, tasks) / best if best else 0.0
    return (
        f"**{name}**" if name.startswith(OURS) else name,
        rate,
        f"{share:.2f}",
        *times,
        middle("lag_p99_s", seconds_text),
        middle("cpu_us_per_record", lambda value: f"{value:.2f}"),
        middle("peak_bytes", bytes_text),
    )


def _verdict(table: Table, workload: str, tasks: int, names: list[str]) -> str:
    """Say who wins and by how much, also where it is not us."""
    ours = [n for n in names if n.startswith(OURS)]
    peers = [n for n in names if not n.startswith(OURS) and n not in _LIMITS]
    if not ours or not peers:
        return ""
    mine, theirs = ours[0], peers[0]
    factor = _rate(table, workload, mine, tasks) / max(_rate(table, workload, theirs, tasks), 1e-9)
    if factor >= 1.0:
        text = f"`{mine}` wins: {factor:.2f} x the best peer, {theirs}."
    else:
        text = f"**We lose**: {theirs} does {1 / factor:.2f} x what `{mine}` does."
    if abs(factor - 1) < 0.1:
        text += " The difference is within what this method can tell."
    facts = table.facts(workload, OURS, tasks)
    chosen = {k: facts[k] for k in ("backend", "driver", "commit_path") if k in facts}
    if chosen:
        parts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in chosen.items())
        text += f" Active in `{OURS}`: {parts}."
    slower = [
        f"{name} ({found.median:.2f} x)"
        for name in peers
        if workload == "append" and (found := _p99_ratio(table, name, tasks)) and found.median > 1
    ]
    if slower:
        text += f" Its p99 is higher than that of {', '.join(slower)}."
    return text


def _p99_ratio(table: Table, peer: str, tasks: int) -> Spread | None:
    ours = table.spread("append", OURS, tasks, "p99_s")
    theirs = table.spread("append", peer, tasks, "p99_s")
    if ours is None or theirs is None or not theirs.median:
        return None
    return Spread(ours.median / theirs.median, 0, 0)


def _limits(table: Table) -> str:
    rows = []
    for workload in ("raw", "sequential", "unwritten"):
        for name in table.contenders(workload, 0):
            spreads = [
                table.spread(workload, name, 0, f) for f in ("bytes_per_s", "p50_s", "p99_s")
            ]
            rate, p50, p99 = (spread or Spread(0, 0, 0) for spread in spreads)
            mib = rate.show(lambda value: f"{value / (1 << 20):,.1f}")
            rows.append((name, mib, p50.show(seconds_text), p99.show(seconds_text)))
    if not rows:
        return ""
    return "## The device itself\n\n" + _markdown(("", "MiB/s", "p50", "p99"), rows)


def _idle(table: Table) -> str:
    rows = []
    for name in table.contenders("idle", 0):
        cpu = table.spread("idle", name, 0, "cpu_s")
        switches = table.spread("idle", name, 0, "voluntary_switches")
        if cpu and switches:
            shown = cpu.show(lambda value: f"{value * 1e3:.2f} ms")
            label = "nothing open" if name == LIMIT else name
            rows.append((label, shown, switches.show(lambda value: f"{value:.0f}")))
    return "## Idle\n\n" + _markdown(("", "CPU", "voluntary switches"), rows) if rows else ""


def _plots(table: Table, out: Path) -> str:
    links = []
    for workload, all_tasks in _WORKLOADS:
        field, unit, divide = (
            ("bytes_per_s", "MiB/s", 1 << 20)
            if workload in _BULKY
            else ("records_per_s", "records/s", 1)
        )
        groups = {}
        for tasks in all_tasks:
            spreads = (
                (name, table.spread(workload, name, tasks, field))
                for name in _ranked(table, workload, tasks)
            )
            bars = [
                (name, found.median / divide, found.low / divide, found.high / divide)
                for name, found in spreads
                if found is not None
            ]
            if bars:
                groups[f"{tasks} task(s)" if tasks else "all records"] = bars
        if groups:
            (out / f"{workload}.svg").write_text(
                bar_chart(workload.capitalize(), unit, groups), encoding="utf-8"
            )
            links.append(f"![{workload}, {unit}]({workload}.svg)\n")
    return "## Plots\n\n" + "\n".join(links) if links else ""


def _gaps(document: Document) -> str:
    lines = [f"- {name}: {reason}" for name, reason in document["missing"].items()]
    for row in document["cells"]:
        if "wrong" in row:
            where = f"{row['workload']} {row['contender']} {row['tasks']} round {row['round']}"
            lines.append(f"- **wrong**: {where}: {row['wrong']}")
    return "## What is missing or went wrong\n\n" + "\n".join(lines) + "\n" if lines else ""


def _markdown(
    columns: tuple[str, ...] | list[str], rows: Sequence[tuple[str, ...]], right: int = 1
) -> str:
    rule = ["---:" if index >= right else "---" for index in range(len(columns))]
    lines = [f"| {' | '.join(row)} |" for row in (columns, rule, *rows)]
    return "\n".join(lines) + "\n"
