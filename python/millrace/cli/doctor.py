"""`millrace doctor`: is this a good place for a store, and if not, what would help?"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

import millrace
from millrace import BackendInfo, BackendUnavailable, IoEngine, Log
from millrace.cli import machine
from millrace.cli.output import Output, command, describe_fields
from millrace.cli.units import bytes_text, seconds_text
from millrace.testing import percentile

Verdict = Literal["fine", "note", "warning", "not fine"]

_RAW_BYTES = 4096
_RAW_FILE_BYTES = 4 << 20
_MEASURE_S = 1.0
_MEASURE_MAX = 400
_FREE_BYTES_MIN = 256 << 20
_MEMLOCK_BYTES_MIN = 1 << 20
_COMMIT_SLOW_S = 0.02
_RATIO_MAX = 1.5


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, whether it is fine, and what to do if not."""

    name: str
    verdict: Verdict
    value: str
    advice: str = ""


@click.command()
@click.argument(
    "directory", type=click.Path(file_okay=False, path_type=Path), default=Path(), required=False
)
@command
def doctor(*, directory: Path, out: Output) -> None:
    """Look at this machine and at DIRECTORY: what is fine, what is not, how to fix it.

    Writes a few hundred records to a temporary directory inside DIRECTORY and removes it.
    Exit code 1 if something is not fine.
    """
    if not directory.is_dir():
        out.fail(f"{directory} is not a directory; name the place where the store shall lie")
    with tempfile.TemporaryDirectory(prefix=".millrace-doctor-", dir=directory) as name:
        work = Path(name)
        with out.progress("measuring commits", None):
            raw = _raw_commits(work)
            measured, statistics = asyncio.run(_log_commits(work))
        engine = asyncio.run(_engine())
        findings = [
            *_software(),
            *_kernel(statistics),
            _rung(engine),
            *_place(directory, work),
            *_limits(),
            *_commits(raw, measured),
        ]
    is_fine = not any(finding.verdict == "not fine" for finding in findings)
    document = {
        "directory": str(directory),
        "ok": is_fine,
        "findings": findings,
        "engine": engine,
        "statistics": statistics,
    }
    if out.as_json and not is_fine:
        out.fail("", document)
    out.answer(document)
    rows = [(finding.name, finding.verdict, finding.value) for finding in findings]
    out.table(f"doctor: {directory.resolve()}", ("", "verdict", "found"), rows, right=9)
    for finding in findings:
        if finding.advice:
            out.say(f"- {finding.name}: {finding.advice}")
    if not is_fine:
        out.fail("not everything is fine here")


def _software() -> list[Finding]:
    facts = machine.facts(Path())
    version = getattr(millrace, "__version__", "unknown")
    return [
        Finding("millrace", "fine", f"{version} on Python {facts['python']}"),
        Finding("processor", "fine", f"{facts['processors']} x {facts['processor']}"),
    ]


def _kernel(statistics: dict[str, Any]) -> list[Finding]:
    switch = machine.io_uring_switch()
    is_off = switch == "switched off"
    advice = "sysctl kernel.io_uring_disabled=0; threads are used until then" if is_off else ""
    findings = [
        Finding("kernel", "fine", machine.kernel_release()),
        Finding("io_uring", "note" if is_off else "fine", switch, advice),
    ]
    findings += [
        Finding(name.replace("_", " "), "fine", str(statistics[name]))
        for name in ("driver", "commit_path")
        if statistics.get(name)
    ]
    paths: dict[str, float | str] = statistics.get("commit_paths") or {}
    for name, measured in paths.items():
        if isinstance(measured, float):
            findings.append(Finding(f"path {name}", "fine", seconds_text(measured)))
        else:
            findings.append(Finding(f"path {name}", "note", "not used", str(measured)))
    return findings


async def _engine() -> BackendInfo:
    """What an I/O engine would run on here."""
    try:
        async with IoEngine() as engine:
            return engine.backend
    except BackendUnavailable as refused:
        # MILLRACE_BACKEND forces what the kernel refuses.
        return BackendInfo(name="threads", reason=str(refused), hint="unset MILLRACE_BACKEND")


def _rung(engine: BackendInfo) -> Finding:
    name = "I/O engine"
    if not engine.reason:
        return Finding(name, "fine", engine.name)
    return Finding(name, "note", f"{engine.name}: {engine.reason}", engine.hint)


def _place(directory: Path, work: Path) -> list[Finding]:
    findings = [_filesystem(machine.mount_of(directory))]
    direct = machine.direct_io(work)
    findings.append(
        Finding("direct I/O", "fine", direct)
        if direct == "accepted"
        else Finding(
            "direct I/O", "note", direct, "commits go through the page cache and fdatasync instead"
        )
    )
    space = os.statvfs(directory)
    free = space.f_bavail * space.f_frsize
    findings.append(
        Finding("free space", "fine", bytes_text(free))
        if free >= _FREE_BYTES_MIN
        else Finding(
            "free space", "warning", bytes_text(free), "segments are 64 MiB each: make room"
        )
    )
    return findings


def _filesystem(mount: machine.Mount | None) -> Finding:
    name = "filesystem"
    if mount is None:
        return Finding(name, "warning", "unknown", "/proc/self/mountinfo could not be read")
    kind = mount.filesystem
    found = f"{kind} on {mount.device} at {mount.point}"
    if kind in machine.VOLATILE:
        return Finding(name, "not fine", found, "it lives in memory: nothing survives a reboot")
    if kind in machine.REMOTE:
        advice = "locks and syncs depend on a server: use a local disk"
        return Finding(name, "not fine", found, advice)
    if kind in machine.LAYERED or kind.startswith("fuse"):
        advice = "a layer decides what a sync means: mount a volume of the host for the store"
        return Finding(name, "warning", found, advice)
    return Finding(name, "fine", found)


def _limits() -> list[Finding]:
    findings: list[Finding] = []
    memlock = machine.limit_text(resource.RLIMIT_MEMLOCK)
    is_low = memlock.isdigit() and int(memlock) < _MEMLOCK_BYTES_MIN
    findings.append(
        Finding(
            "locked memory",
            "note" if is_low else "fine",
            bytes_text(int(memlock)) if memlock.isdigit() else memlock,
            "raise it (ulimit -l) for larger rings" if is_low else "",
        )
    )
    size = machine.limit_text(resource.RLIMIT_FSIZE)
    is_limited = size != "unlimited"
    findings.append(
        Finding(
            "file size limit",
            "warning" if is_limited else "fine",
            bytes_text(int(size)) if is_limited else size,
            "ulimit -f unlimited: a write beyond it fails and poisons the log"
            if is_limited
            else "",
        )
    )
    return findings


def _commits(raw: list[float], measured: list[float]) -> list[Finding]:
    raw_p50, log_p50 = percentile(raw, 50), percentile(measured, 50)
    is_slow = raw_p50 > _COMMIT_SLOW_S
    ratio = log_p50 / raw_p50 if raw_p50 else 0.0
    return [
        Finding(
            "the disk's own commit",
            "warning" if is_slow else "fine",
            f"p50 {seconds_text(raw_p50)}, p99 {seconds_text(percentile(raw, 99))} "
            "(pwrite of 4 KiB over zeros, fdatasync)",
            "every durable append waits for this: a faster disk helps most" if is_slow else "",
        ),
        Finding(
            "the log's commit",
            "fine" if ratio <= _RATIO_MAX else "note",
            f"p50 {seconds_text(log_p50)}, p99 {seconds_text(percentile(measured, 99))}, "
            f"{ratio:.2f} x the disk's own (one task, 128 bytes)",
            "" if ratio <= _RATIO_MAX else "busy machine? Measure again when it is quiet",
        ),
    ]


def _raw_commits(work: Path) -> list[float]:
    """Time `pwrite` and `fdatasync` over a zero-filled file."""
    times: list[float] = []
    path = work / "raw"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(fd, bytes(_RAW_FILE_BYTES), 0)
        os.fsync(fd)
        block = os.urandom(_RAW_BYTES)
        end = time.perf_counter() + _MEASURE_S
        while len(times) < _MEASURE_MAX and time.perf_counter() < end:
            offset = len(times) * _RAW_BYTES % _RAW_FILE_BYTES
            began = time.perf_counter()
            os.pwrite(fd, block, offset)
            os.fdatasync(fd)
            times.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        path.unlink()
    return times


async def _log_commits(work: Path) -> tuple[list[float], dict[str, Any]]:
    """Time durable appends by a single task; returns the times and the log's statistics."""
    times: list[float] = []
    async with Log.open(work / "log") as log:
        record = os.urandom(128)
        end = time.perf_counter() + _MEASURE_S
        while len(times) < _MEASURE_MAX and time.perf_counter() < end:
            began = time.perf_counter()
            await log.append(record)
            times.append(time.perf_counter() - began)
        statistics: dict[str, Any] = describe_fields(log.statistics())
    return times, statistics
