"""Plain data that calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Durability = Literal["durable", "committed", "appended"]
LogState = Literal["open", "read_only", "closed", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """
    Records that were durable and cannot be read any more.

    Args:
        segment: Number of the segment file.

        offset: Where in it the damage begins.

        first_lsn: The first record that is lost.

        last_lsn: The last one, or `None` if nobody can tell.

        what: What is wrong with the bytes.
    """

    segment: int
    offset: int
    first_lsn: int
    last_lsn: int | None
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryReport:
    """
    What an open found in the directory.

    Args:
        records: Records that can be read.

        bytes: Bytes of the log they lie in.

        segments: Segment files.

        cut_bytes: Bytes of a torn tail that was dropped. They were never acknowledged.

        is_clean: Whether the previous owner closed the log.

        elapsed_s: How long recovery took.

        damage: Records that were lost; only ever filled by `recovery="salvage"`.
    """

    records: int
    bytes: int
    segments: int
    cut_bytes: int
    is_clean: bool
    elapsed_s: float
    damage: tuple[Damage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogStatistics:
    """
    What a log did since it was opened.

    Args:
        state: `open`, `read_only`, `closed`, or `failed` after a failed write.

        records: Records written.

        bytes: Their bytes, headers included.

        groups: Groups written; `records / groups` is what one sync was worth.

        group_records_max: Records of the largest group.

        syncs: Synchronous writes.

        rotations: Segments begun, the first one not counted.

        first_lsn: The first record that can be read.

        appended_lsn: The last one in memory.

        committed_lsn: The last one in the file.

        durable_lsn: The last one that survives power loss.

        commit_path: How groups reach the disk; `None` if opened read-only.

        commit_paths: What each way cost in seconds when it was measured at the open, or why it
            was refused.

        driver: Who turns the engine; `None` if opened read-only.
    """

    state: LogState
    records: int
    bytes: int
    groups: int
    group_records_max: int
    syncs: int
    rotations: int
    first_lsn: int
    appended_lsn: int
    committed_lsn: int
    durable_lsn: int
    commit_path: str | None
    commit_paths: Mapping[str, float | str]
    driver: str | None
