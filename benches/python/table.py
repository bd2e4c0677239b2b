"""Results of many rounds, looked up by cell, with medians, ranges and ratios round by round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Row = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A median and its range over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Summarise *values*; None if there are none."""
        found = sorted(values)
        return cls(median(found), found[0], found[-1]) if found else None

    def show(self, form: Callable[[float], str]) -> str:
        """Return the median, and the range where there is one."""
        if self.low == self.high:
            return form(self.median)
        return f"{form(self.median)} ({form(self.low)} to {form(self.high)})"


class Table:
    """
    Look up results.

    Args:
        rows: What the cells answered; wrong ones are left out.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = [row for row in rows if "wrong" not in row]

    def contenders(self, workload: str, tasks: int) -> list[str]:
        """Return who took part in a cell."""
        found = (r for r in self.rows if (r["workload"], r["tasks"]) == (workload, tasks))
        return list(dict.fromkeys(row["contender"] for row in found))

    def by_round(self, workload: str, contender: str, tasks: int, field: str) -> dict[int, float]:
        """Return a figure for each round; the median where a round has several."""
        rounds: dict[int, list[float]] = {}
        for row in self.rows:
            key = (row["workload"], row["contender"], row["tasks"])
            if key == (workload, contender, tasks) and field in row:
                rounds.setdefault(row["round"], []).append(row[field])
        return {number: median(values) for number, values in rounds.items()}

    def spread(self, workload: str, contender: str, tasks: int, field: str) -> Spread | None:
        """Return a figure's median and range over the rounds."""
        return Spread.of(self.by_round(workload, contender, tasks, field).values())

    def facts(self, workload: str, contender: str, tasks: int) -> dict[str, Any]:
        """Return what the contender said about how it ran, the last time."""
        for row in reversed(self.rows):
            key = (row["workload"], row["contender"], row["tasks"])
            if key == (workload, contender, tasks):
                return dict(row.get("facts") or {})
        return {}


def ratio(above: dict[int, float], below: dict[int, float]) -> Spread | None:
    """Divide round by round, and summarise."""
    common = above.keys() & below.keys()
    return Spread.of(above[number] / below[number] for number in common if below[number])
