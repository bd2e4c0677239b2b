"""
What a command says: tables and facts for people, one JSON document for programs.

On a terminal tables are drawn by rich; into a pipe they are plain aligned text without colour;
with `--json` there is exactly one JSON document on standard output and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, ParamSpec, TypeVar, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from millrace.errors import Error

_P = ParamSpec("_P")
_R = TypeVar("_R")

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document; where records are printed, one for each.",
)


def describe(value: object) -> Any:  # noqa: ANN401 - JSON is anything
    """Turn *value* into what JSON can carry; objects become their public attributes."""
    found: Any
    match value:
        case None | bool() | int() | float() | str():
            found = value
        case bytes():
            found = value.decode("utf-8", "backslashreplace")
        case Path():
            found = str(value)
        case BaseException():
            found = describe_error(value)
        case Mapping():
            pairs = cast("Mapping[object, object]", value).items()
            found = {str(key): describe(item) for key, item in pairs}
        case Sequence() | AbstractSet():
            found = [describe(item) for item in cast("Iterable[object]", value)]
        case _:
            found = describe_fields(value) or str(value)
    return found


def describe_fields(value: object) -> dict[str, Any]:
    """Name the fields of a dataclass, or the public attributes of any other object."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = [name for name in dir(value) if not name.startswith("_")]
    found = {name: getattr(value, name) for name in names}
    return {name: describe(item) for name, item in found.items() if not callable(item)}


def describe_error(error: BaseException) -> dict[str, Any]:
    """Name an error, its sentence and the attributes that say where it happened."""
    facts = {k: v for k, v in vars(error).items() if not k.startswith("_")}
    return {"type": type(error).__name__, "message": str(error), **describe(facts)}


class Output:
    """
    Where a command's words go.

    Args:
        as_json: Keep everything for one JSON document.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty() and not as_json
        self._console = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """Print a sentence, unless the answer is JSON."""
        if not self.as_json:
            click.echo(text)

    def answer(self, document: object) -> None:
        """Print the JSON document, if one was asked for."""
        if self.as_json:
            click.echo(json.dumps(describe(document), indent=2, allow_nan=False))

    def facts(self, title: str, pairs: Mapping[str, object]) -> None:
        """Print names and values, one to a line."""
        self.table(title, ("", ""), [(name, _shown(value)) for name, value in pairs.items()])

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: int = 1
    ) -> None:
        """Print a table; columns from *right* on hold figures and are aligned to the right."""
        if self.as_json:
            return
        cells = [[_shown(cell) for cell in row] for row in rows]
        if not self.is_terminal:
            click.echo(_plain_table(title, columns, cells, right))
            return
        has_header = any(columns)
        table = Table(title=title, title_justify="left", show_header=has_header, box=None)
        table.padding, table.pad_edge = (0, 1, 0, 0), False
        for index, name in enumerate(columns):
            figures = index >= right and has_header
            justify: Literal["left", "right"] = "right" if figures else "left"
            table.add_column(name, justify=justify, no_wrap=index == 0 or figures)
        for row in cells:
            table.add_row(*(_colour(cell) for cell in row))
        self._console.print(table)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Generator[Callable[[int], None]]:
        """Show a bar on a terminal; yields a function that is told how much is done."""
        if not (sys.stderr.isatty() and not self.as_json):
            yield lambda _done: None
            return
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeElapsedColumn(), console=self._errors, transient=True
        ) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.update(task, completed=done)

    def fail(self, message: str, document: object = None) -> NoReturn:
        """End the command with exit code 1."""
        if self.as_json:
            body = {"error": {"message": message}} if document is None else document
            self.answer(body)
        else:
            click.echo(f"millrace: {message}", err=True)
        raise click.exceptions.Exit(1)


def command(body: Callable[_P, _R]) -> Callable[_P, _R]:
    """Give a command `--json`, and turn what goes wrong into one sentence and exit code 1."""

    @json_option
    @functools.wraps(body)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        out = Output(as_json=bool(kwargs.pop("as_json")))
        kwargs["out"] = out
        try:
            return body(*args, **kwargs)
        except BrokenPipeError:
            # The reader has gone, as in `cat DIR | head`: there is nobody left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None
        except (Error, OSError) as error:
            out.fail(_sentence(error), {"error": describe_error(error)})

    return wrapped


def _sentence(error: BaseException) -> str:
    cause = f" (because: {error.__cause__})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {error}{cause}"


def _shown(value: object) -> str:
    text = str(value)
    match value:
        case bool():
            text = "yes" if value else "no"
        case int():
            text = f"{value:,}"
        case float():
            text = f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
        case None:
            text = "-"
        case Mapping():
            pairs = cast("Mapping[object, object]", value).items()
            text = ", ".join(f"{key}: {_shown(item)}" for key, item in pairs) or "-"
        case list():
            text = "; ".join(_shown(item) for item in cast("list[object]", value)) or "-"
        case _:
            pass
    return text


_COLOURS = {"fine": "green", "note": "cyan", "warning": "yellow", "not fine": "bold red"}


def _colour(cell: str) -> str:
    from rich.markup import escape

    colour = _COLOURS.get(cell)
    return f"[{colour}]{cell}[/]" if colour else escape(cell)


def _plain_table(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], right: int
) -> str:
    has_header = any(columns)
    rows = [list(columns), *cells] if has_header else list(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))] if rows else []
    lines = [title]
    for row in rows:
        parts = [
            cell.rjust(width) if has_header and i >= right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
