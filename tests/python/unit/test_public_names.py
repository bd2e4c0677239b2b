"""What `import millrace` offers, and that it is documented."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import millrace
from millrace import _core

_NAMES = [
    "AbandonedError",
    "BackendInfo",
    "BackendUnavailable",
    "Backpressure",
    "CloseReport",
    "ClosedError",
    "CorruptionError",
    "Cursor",
    "Damage",
    "EndOfStream",
    "EngineBuffer",
    "Entry",
    "EpochGC",
    "EpochPin",
    "Error",
    "File",
    "FileStatus",
    "ForkedError",
    "FormatVersionError",
    "GcSettings",
    "GcStatistics",
    "Handle",
    "Histogram",
    "IoEngine",
    "IoError",
    "IoSettings",
    "IoStatistics",
    "IoTimeout",
    "LockedError",
    "Log",
    "LogPoisonedError",
    "LogSettings",
    "LogStatistics",
    "NamespaceLimitError",
    "NoSpaceError",
    "Operation",
    "OverloadedError",
    "PoisonedError",
    "Record",
    "RecoveryReport",
    "RepairReport",
    "Ring",
    "RingStatistics",
    "RingTicket",
    "SegmentReport",
    "ShortReadError",
    "Ticket",
    "Timeout",
    "TimeoutWheel",
    "TimerScope",
    "TooLargeError",
    "VerifyReport",
    "VersionMismatch",
    "WheelStatistics",
    "cleanup_statistics",
]


def test_the_public_names_are_these() -> None:
    # A name appears or goes only on purpose: this list is edited with it.
    modules = {name for name, value in vars(millrace).items() if inspect.ismodule(value)}
    offered = {name for name in vars(millrace) if not name.startswith("_")} - modules
    assert sorted(offered) == sorted(_NAMES)
    assert millrace.__version__.count(".") == 2


_LOG = [
    "append",
    "append_many",
    "append_sync",
    "close",
    "cursor",
    "durable_lsn",
    "first_lsn",
    "flush",
    "follow",
    "last_lsn",
    "open",
    "path",
    "read",
    "read_batches",
    "recovery",
    "statistics",
    "submit",
    "truncate_before",
]

_RING = [
    "append",
    "append_blocking",
    "capacity",
    "close",
    "drain",
    "is_closed",
    "statistics",
    "try_append",
    "wait",
]


def test_the_names_on_a_log_and_a_ring_are_these() -> None:
    # What the binding needs for itself is no promise to anybody, so it carries an underscore.
    for kind, names in ((millrace.Log, _LOG), (millrace.Ring, _RING)):
        assert [name for name in dir(kind) if not name.startswith("_")] == names


def test_everything_public_is_documented() -> None:
    # Whatever a user can call answers `help()`.
    bare = []
    for name in _NAMES:
        value = getattr(millrace, name)
        members = [value, *(m for key, m in vars(value).items() if not key.startswith("_"))]
        members = [member for member in members if callable(member) or inspect.isroutine(member)]
        bare += [f"{name}: {member}" for member in members if not inspect.getdoc(member)]
    assert bare == []


def test_stub_and_extension_say_the_same() -> None:
    # The documentation an editor shows is the one `help()` shows.
    stub = Path(_core.__file__).with_name("_core.pyi")
    differing = []
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            differing += _differing(node, getattr(_core, node.name))
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                    differing += _differing(child, getattr(getattr(_core, node.name), child.name))
    assert differing == []


def _differing(node: ast.FunctionDef | ast.ClassDef, value: object) -> list[str]:
    return [node.name] if ast.get_docstring(node) != inspect.getdoc(value) else []
