"""`millrace log`: append to a log, read it, follow it, look at it, check it, repair it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import click
from millrace.errors import Error
from millrace.log import repair as repair_log
from millrace.log import verify as verify_log

from millrace import Log, Record
from millrace.cli.framing import FORMATS, Format, FramingError, as_json, frame, splitter_for
from millrace.cli.intake import Intake, read_stdin
from millrace.cli.output import Output, command, describe, describe_error
from millrace.cli.units import bytes_text

_RECORD_BYTES_MAX = 16 << 20

directory_argument = click.argument("directory", type=click.Path(path_type=Path))
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="lines",
    show_default=True,
    help="lines; ndjson: one JSON value per line; length: four bytes of length, then the record.",
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


async def _print_records(
    directory: Path, start: int, stop: int | None, follow: bool, form: Format, out: Output
) -> None:
    async with Log.open(directory, read_only=True) as source:
        next_lsn = max(start, source.first_lsn)
        async for batch in source.read_batches(next_lsn, stop):
            for record in batch:
                _emit(record, form, out)
            next_lsn = batch[-1].lsn + 1
        sys.stdout.flush()
        if not follow:
            return
        async for record in source.follow(next_lsn):
            _emit(record, form, out)
            sys.stdout.flush()


def _stream(
    directory: Path, start: int, stop: int | None, follow: bool, form: Format, out: Output
) -> None:
    try:
        asyncio.run(_print_records(directory, start, stop, follow, form, out))
    except KeyboardInterrupt:
        if not follow:
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
    _stream(directory, start, stop, follow, form, out)


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

    _stream(directory, start or asyncio.run(first()), None, follow, form, out)


@log.command()
@directory_argument
@command
def stat(*, directory: Path, out: Output) -> None:
    """Show what the log holds and what opening it found."""

    async def run() -> dict[str, object]:
        async with Log.open(directory, read_only=True) as source:
            return {
                "directory": str(directory),
                "first_lsn": source.first_lsn,
                "last_lsn": source.last_lsn,
                "durable_lsn": source.durable_lsn,
                "records": max(0, source.last_lsn - source.first_lsn + 1),
                "recovery": describe(source.recovery),
                "statistics": describe(source.statistics()),
            }

    found = asyncio.run(run())
    found["files"] = _files(directory)
    out.answer(found)
    files = found.pop("files")
    nested = {name: found.pop(name) for name in ("recovery", "statistics")}
    out.facts("log", found)
    for name, values in nested.items():
        out.say("")
        out.facts(name, values if isinstance(values, dict) else {name: values})
    out.say("")
    out.table("files", ("name", "size", "on disk"), files)  # type: ignore[arg-type]


def _files(directory: Path) -> list[tuple[str, int, int]]:
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sorted((name, stat.st_size, stat.st_blocks * 512) for name, stat in found)


@log.command()
@directory_argument
@command
def verify(*, directory: Path, out: Output) -> None:
    """Read every byte and check it; changes nothing. Exit code 1 if anything is damaged."""
    report = asyncio.run(verify_log(directory))
    _report("verify", report, out)


@log.command()
@directory_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
def repair(*, directory: Path, yes: bool, out: Output) -> None:
    """Make a damaged log usable again; a damaged segment is copied aside first."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("repair changes the log: pass --yes when nobody can be asked")
        click.confirm(
            f"Repair {directory}? Damaged segments are copied aside, then what cannot be read "
            "is dropped",
            abort=True,
            err=True,
        )
    report = asyncio.run(repair_log(directory))
    _report("repair", report, out, is_failed_by_damage=False)


def _report(title: str, report: object, out: Output, *, is_failed_by_damage: bool = True) -> None:
    found = describe(report)
    pairs = found if isinstance(found, dict) else {"report": found}
    damage = pairs.get("damage")
    if damage and is_failed_by_damage:
        if not out.as_json:
            out.facts(title, pairs)
        out.fail("the log is damaged", pairs)
    out.answer(pairs)
    out.facts(title, pairs)
