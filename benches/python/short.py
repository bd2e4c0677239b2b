"""
What the README shows: the log beside what is used today, in one table and one plot.

Our own variants and the cells without a disk stay in the report; so do the aims, of which the
missed ones are named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import LIMIT, OURS, Figures
from millrace.cli.units import seconds_text
from svg import bar_chart

if TYPE_CHECKING:
    from pathlib import Path

    from table import Table

HEADING = "## Beside what is used today"
_PLOT = "overview.svg"
_TASKS = (1, 16, 256, 4096)


def short(table: Table, out: Path) -> str:
    """Return the section, and write its plot into *out*; empty without appends."""
    names = _ranked(table)
    if not names:
        return ""
    (out / _PLOT).write_text(_plot(table, names), encoding="utf-8")
    header = ["records/s (p99)", *(f"{tasks} task{'s'[: tasks > 1]}" for tasks in _TASKS)]
    rows = [[_label(name), *(_cell(table, name, tasks) for tasks in _TASKS)] for name in names]
    rule = ["---", *("---:" for _ in _TASKS)]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    return f"""{HEADING}

Durable appends of 128 bytes, each awaited: in every row, every one was synced to the device
before its await returned.

![Durable appends per second]({_PLOT})

{chr(10).join(lines)}

{_aims(table)}
"""


def _ranked(table: Table) -> list[str]:
    shown = {OURS}
    for tasks in _TASKS:
        shown.update(n for n in table.contenders("append", tasks) if not n.startswith(OURS))
    return sorted(shown - {LIMIT}, key=lambda name: -_rate(table, name, 256))


def _rate(table: Table, name: str, tasks: int) -> float:
    found = table.spread("append", name, tasks, "records_per_s")
    return found.median if found else 0.0


def _label(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _cell(table: Table, name: str, tasks: int) -> str:
    p99 = table.spread("append", name, tasks, "p99_s")
    if p99 is None:
        return "-"
    return f"{_rate(table, name, tasks):,.0f} ({seconds_text(p99.median)})"


def _plot(table: Table, names: list[str]) -> str:
    groups = {}
    for tasks in _TASKS:
        found = ((name, table.spread("append", name, tasks, "records_per_s")) for name in names)
        bars = [(name, one.median, one.low, one.high) for name, one in found if one is not None]
        label = "one task" if tasks == 1 else f"{tasks} tasks at once"
        groups[label] = sorted(bars, key=lambda bar: -bar[1])
    return bar_chart("Durable appends, each awaited", "records/s", groups)


def _aims(table: Table) -> str:
    figures = [figure for figure in Figures(table).all() if figure.aim != "reported"]
    missed = [figure for figure in figures if not figure.is_met]
    text = f"Of {len(figures)} aims the log is held to, {len(figures) - len(missed)} are met."
    if not missed:
        return text
    lines = [f"- {figure.case}: {figure.text()}, aim {figure.aim}" for figure in missed]
    return f"{text} Missed:\n\n" + "\n".join(lines)
