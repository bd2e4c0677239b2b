"""`millrace log`: append to a log, read it, follow it, look at it, check it, repair it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

import millrace.log as log_functions
from millrace import Damage, Log, Record
from millrace.cli.framing import FORMATS, Format, FramingError, as_json, frame, splitter_for
from millrace.cli.intake import Intake, read_stdin
from millrace.cli.output import Output, command, describe_error, describe_fields
from millrace.cli.units import bytes_text
from millrace.errors import Error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_RECORD_BYTES_MAX = 16 << 20

directory_argument = click.argument("directory", type=click.Path(path_type=Path))
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="lines",
    show_default=True,
    help="lines; ndjson: one JSON value per line; length: four bytes of length, "
    "little-endian, then the record.",
)


@click.group()
def log() -> None:
    """Work with the log in a directory."""


@log.command()
@directory_argument
@format_option
@command
def append(*, directory: Path, form: Format, out: Output) -> None:
    """Append records from standard input, many in flight; done means durable."""
    intake = Intake()

    async def run() -> None:
        async with Log.open(directory) as target:
            with out.progress("appending", None) as show:
                splitter = splitter_for(form, _RECORD_BYTES_MAX)
                await intake.run(target, read_stdin(), splitter, show)

    try:
        asyncio.run(run())
    except (Error, OSError, FramingError) as error:
        done = f"{intake.records:,} records before it are durable"
        where = f", through LSN {intake.last_lsn:,}" if intake.records else ""
        failure = {"error": describe_error(error), **intake.summary()}
        out.fail(f"{type(error).__name__}: {error}; {done}{where}", failure)
    summary = intake.summary()
    out.answer(summary)
    if intake.records == 0:
        out.say("appended nothing: the input was empty")
    else:
        out.say(
            f"appended {intake.records:,} records ({bytes_text(intake.bytes)}), "
            f"LSN {intake.first_lsn:,} to {intake.last_lsn:,}, "
            f"in {intake.elapsed_s:.2f} s: durable"
        )


def _emit(record: Record, form: Format, out: Output) -> None:
    if out.as_json:
        line = json.dumps(as_json(record.lsn, record.timestamp, record.data)).encode() + b"\n"
    else:
        line = frame(form, record.data)
    sys.stdout.buffer.write(line)


class TruncatedError(Error):
    """A follower was too late: look at what is left."""


@dataclass(frozen=True)
class Span:
    """Which records to print."""

    start: int
    stop: int | None = None
    follow: bool = False


async def _print_once(directory: Path, span: Span, form: Format, out: Output) -> int:
    """Print what is durable now; returns the LSN that would come next."""
    async with Log.open(directory, read_only=True) as source:
        next_lsn = max(span.start, source.first_lsn)
        if next_lsn > source.durable_lsn:
            return next_lsn
        async for batch in source.read_batches(next_lsn, span.stop):
            for record in batch:
                _emit(record, form, out)
            next_lsn = batch[-1].lsn + 1
    sys.stdout.flush()
    return next_lsn


async def _print_all(directory: Path, span: Span, form: Format, out: Output) -> None:
    """Print records, and wait for more if the span says so."""
    next_lsn = await _print_once(directory, span, form, out)
    if not span.follow:
        return
    async with Log.open(directory, read_only=True) as source:
        async for record in _following(source, next_lsn):
            _emit(record, form, out)
            sys.stdout.flush()


async def _following(source: Log, start: int) -> AsyncGenerator[Record]:
    """Follow, and say which records cannot be shown any more."""
    try:
        async for record in source.follow(start):
            yield record
            start = record.lsn + 1
    except ValueError as error:
        raise TruncatedError(
            f"the records from LSN {start:,} on were truncated before they were read; "
            "begin again without --start to see what is left"
        ) from error


def _stream(directory: Path, span: Span, form: Format, out: Output) -> None:
    try:
        asyncio.run(_print_all(directory, span, form, out))
    except KeyboardInterrupt:
        if not span.follow:
            raise


follow_option = click.option("-f", "--follow", is_flag=True, help="Then wait for more.")


@log.command()
@directory_argument
@click.option("--start", type=click.IntRange(min=1), default=1, help="First LSN.")
@click.option("--stop", type=click.IntRange(min=1), help="LSN to stop before.")
@follow_option
@format_option
@command
def cat(
    *, directory: Path, start: int, stop: int | None, follow: bool, form: Format, out: Output
) -> None:
    """Print records; with --json one object per line, with LSN and timestamp.

    Reads beside a live owner and shows only what is durable.
    """
    if follow and stop is not None:
        raise click.UsageError("--stop and --follow exclude each other")
    _stream(directory, Span(start, stop, follow), form, out)


@log.command()
@directory_argument
@click.option("-n", "--records", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("--start", type=click.IntRange(min=1), help="First LSN, instead of the last -n.")
@follow_option
@format_option
@command
def tail(
    *, directory: Path, records: int, start: int | None, follow: bool, form: Format, out: Output
) -> None:
    """Print the last records, and with -f those that are appended from now on."""

    async def first() -> int:
        async with Log.open(directory, read_only=True) as source:
            return max(1, source.last_lsn - records + 1)

    start = start or asyncio.run(first())
    _stream(directory, Span(start, follow=follow), form, out)


@log.command()
@directory_argument
@command
def stat(*, directory: Path, out: Output) -> None:
    """Show what the log holds and what opening it found."""

    async def run() -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
        async with Log.open(directory, read_only=True) as source:
            head: dict[str, object] = {
                "directory": str(directory),
                "first_lsn": source.first_lsn,
                "last_lsn": source.last_lsn,
                "durable_lsn": source.durable_lsn,
                "records": max(0, source.last_lsn - source.first_lsn + 1),
            }
            recovery, statistics = source.recovery, source.statistics()
            return head, describe_fields(recovery), describe_fields(statistics)

    head, recovery, statistics = asyncio.run(run())
    files = _files(directory)
    out.answer({**head, "recovery": recovery, "statistics": statistics, "files": files})
    out.facts("log", head)
    out.say("")
    out.facts("recovery", recovery)
    out.say("")
    out.facts("statistics", statistics)
    out.say("")
    out.table("files", ("name", "size", "on disk"), files)


def _files(directory: Path) -> list[tuple[str, int, int]]:
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sorted((name, stat.st_size, stat.st_blocks * 512) for name, stat in found)


@log.command()
@directory_argument
@command
def verify(*, directory: Path, out: Output) -> None:
    """Read every byte and check it; changes nothing. Exit code 1 if anything is damaged."""
    report = asyncio.run(log_functions.verify(directory))
    pairs = describe_fields(report)
    if not report.is_sound and out.as_json:
        out.fail("", pairs)
    out.answer(pairs)
    del pairs["segments"], pairs["damage"]
    out.facts("verify", pairs)
    out.say("")
    columns = ("segment", "first LSN", "records", "bytes", "")
    rows = [
        (part.file, part.first_lsn, part.records, part.bytes, "damaged" if part.damage else "fine")
        for part in report.segments
    ]
    out.table("segments", columns, rows)
    if not report.is_sound:
        out.say("")
        _show_damage(report.damage, out)
        out.fail("the log is damaged; `millrace log repair` makes it usable again")


@log.command()
@directory_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
def repair(*, directory: Path, yes: bool, out: Output) -> None:
    """Make a damaged log usable again; what is dropped is copied aside first."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("repair changes the log: pass --yes when nobody can be asked")
        question = f"Repair {directory}? It will end before the damage; the rest is copied aside"
        click.confirm(question, abort=True, err=True)
    report = asyncio.run(log_functions.repair(directory))
    pairs = describe_fields(report)
    out.answer(pairs)
    if not report.damage:
        out.say("nothing was damaged, nothing was done")
        return
    _show_damage(report.damage, out)
    out.say("")
    del pairs["damage"], pairs["copies"]
    out.facts("what is left", pairs)
    out.say("")
    out.table("copied aside", ("",), [(name,) for name in report.copies])


def _show_damage(damage: Sequence[Damage], out: Output) -> None:
    columns = ("what is wrong", "segment", "offset", "first LSN", "last LSN")
    rows = [(d.what, d.segment, d.offset, d.first_lsn, d.last_lsn) for d in damage]
    out.table("damage", columns, rows)
