"""`millrace demo`: the options, and the table at the end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sysconfig
import tempfile
import time
from pathlib import Path

import click

from millrace.cli.demo.events import Encoding, Plan, SourceChangedError, survey
from millrace.cli.demo.run import Checked, Demo, DemoError, Options, Outcome
from millrace.cli.output import Output, command, describe
from millrace.cli.units import bytes_text, seconds_text

_COLUMNS = ("", "records", "bytes", "records/s", "p50", "p99", "lag p99", "lost")


@click.command()
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What to read; the running Python's standard library if left out.",
)
@click.option("--tasks", type=click.IntRange(1, 20_000), default=256, show_default=True)
@click.option("--encoding", type=click.Choice(["compact", "json"]), default="compact")
@click.option("--lines", type=click.IntRange(1), default=8, help="Lines in a batch.")
@click.option("--limit-bytes", type=click.IntRange(1), default=64 << 20, help="Most text to read.")
@click.option("--kills", type=click.IntRange(0, 20), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=12.0, help="Limit for each worker.")
@click.option("--sample-seconds", type=click.FloatRange(0.0), default=2.0, help="For comparison.")
@click.option("--seed", type=int, help="Chooses the moments of the kills.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Work in this new or empty directory and leave it there.",
)
@command
def demo(
    *,
    directory: Path | None,
    tasks: int,
    encoding: Encoding,
    lines: int,
    limit_bytes: int,
    kills: int,
    seconds: float,
    sample_seconds: float,
    seed: int | None,
    keep: Path | None,
    out: Output,
) -> None:
    """Append a real directory's files and lines, be killed in the middle, lose nothing.

    One event for each file and one for each batch of its lines, from hundreds of tasks in a
    worker process that reports what was acknowledged through a pipe. The worker is killed with
    SIGKILL, the log reopened, every acknowledged record compared with the files byte for byte,
    and the rest appended. Then a sample of the same events is written the usual ways.
    """
    if keep is not None and keep.is_dir() and any(keep.iterdir()):
        raise click.UsageError(f"{keep} is not empty")
    root = directory or Path(sysconfig.get_path("stdlib"))
    seed = secrets.randbits(32) if seed is None else seed
    options = Options(tasks, kills, seconds, sample_seconds, seed)
    began = time.monotonic()
    with out.progress("reading the directory", None) as show:
        plan = survey(
            root, encoding=encoding, lines_per_event=lines, bytes_max=limit_bytes, show=show
        )
    if not plan.count:
        out.fail(f"nothing to read in {root}")
    with contextlib.ExitStack() as stack:
        if keep is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-demo-")))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            work = keep
        try:
            outcome = asyncio.run(Demo(plan, work, options, out.progress).run())
        except (DemoError, SourceChangedError) as error:
            out.fail(str(error))
    elapsed_s = time.monotonic() - began
    document = _document(plan, options, outcome, elapsed_s)
    if not outcome.is_right and out.as_json:
        out.fail("records were lost", document)
    out.answer(document)
    _show(plan, options, outcome, elapsed_s, out)
    if not outcome.is_right:
        out.fail(f"records were lost or changed; repeat with --seed {seed}")


def _document(
    plan: Plan, options: Options, outcome: Outcome, elapsed_s: float
) -> dict[str, object]:
    return {
        "directory": plan.root,
        "files": len(plan.files),
        "files_bytes": plan.size_bytes,
        "events": plan.count,
        "appended": outcome.finished,
        "lost": sum(check.lost for check in outcome.checks),
        "ok": outcome.is_right,
        "options": describe(options),
        "millrace": outcome.log.as_dict(),
        "usual": [figures.as_dict() for figures in outcome.usual],
        "checks": [describe(check) for check in outcome.checks],
        "statistics": outcome.statistics,
        "elapsed_s": elapsed_s,
    }


def _show(plan: Plan, options: Options, outcome: Outcome, elapsed_s: float, out: Output) -> None:
    out.say(
        f"{plan.root}: {len(plan.files):,} files, {bytes_text(plan.size_bytes)}, "
        f"{plan.count:,} events from {options.tasks:,} tasks"
    )
    lost = sum(check.lost for check in outcome.checks)
    rows = [_row(outcome.log.as_dict(), lost)]
    rows += [_row(figures.as_dict(), figures.lost) for figures in outcome.usual]
    out.say("")
    out.table("durable appends, awaited one by one in every task", _COLUMNS, rows)
    out.say("")
    for check in outcome.checks[:-1]:
        out.say(_after_kill(check))
    if outcome.finished < plan.count:
        out.say(
            f"stopped at the limit of {options.seconds_max:.0f} s: "
            f"{outcome.finished:,} of {plan.count:,} events appended"
        )
    last = outcome.checks[-1]
    out.say(
        f"at the end: {last.records:,} records read back and compared with the files in "
        f"{seconds_text(last.verify_s)}; lost {lost}, changed {last.wrong}, "
        f"invented {last.invented}"
    )
    out.say(f"{elapsed_s:.1f} s in all")


def _after_kill(check: Checked) -> str:
    cut = check.recovery.get("cut_bytes")
    return (
        f"after SIGKILL: reopened in {seconds_text(check.open_s)}, {check.records:,} records, "
        f"{bytes_text(cut or 0)} of torn tail cut, {check.lost} of the acknowledged lost"
    )


def _row(figures: dict[str, object], lost: int) -> tuple[object, ...]:
    return (
        figures["name"],
        figures["records"],
        bytes_text(_number(figures["bytes"])),
        int(_number(figures["records_per_s"])),
        seconds_text(_number(figures["p50_s"])),
        seconds_text(_number(figures["p99_s"])),
        seconds_text(_number(figures["loop_lag_p99_s"])),
        lost,
    )


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0.0
