//! The numbers a log is opened with, checked against each other before anything moves.

use std::time::Duration;

use super::frame;
use crate::{
    codec::align_up,
    error::{Error, Result},
    io::{BLOCK, HUGE},
};

/// Each takes its place in memory when the log is opened.
const RING_ENTRIES_MAX: usize = 1 << 24;

/// What recovery does with a tail that a crash cut short.
pub use super::recovery::RecoveryMode;

/// How a group reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitPath {
    /// `pwrite`, then `fdatasync`, on the driver's thread.
    Pwrite,
    /// One ring write with `RWF_DSYNC` through the page cache.
    RingDsync,
    /// `O_DIRECT` writes with `RWF_DSYNC`, several groups in flight.
    Direct,
}

impl CommitPath {
    /// The name used in settings and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pwrite => "pwrite",
            Self::RingDsync => "ring_dsync",
            Self::Direct => "direct",
        }
    }

    /// Groups that may be in flight at once. Buffered paths gain nothing from a second one, since
    /// a data-sync covers the whole file; four direct writes keep a small machine's device busy.
    pub fn window(self) -> u32 {
        match self {
            Self::Pwrite | Self::RingDsync => 1,
            Self::Direct => 4,
        }
    }
}

/// Who turns the committer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Driver {
    /// A thread of its own.
    Thread,
    /// Whoever appends or waits: the threads of event loops above all.
    Loop,
    /// Callers while they are few, the thread while they are many.
    Either,
}

impl Driver {
    /// The name used in settings and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Loop => "loop",
            Self::Either => "auto",
        }
    }
}

/// Settings of a log. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Length of a segment file.
    pub segment_bytes: u64,
    /// Length of the first segment of an open; small, so that opening is quick.
    pub segment_first_bytes: u64,
    /// Largest record.
    pub record_bytes_max: usize,
    /// Largest group, and so the largest `append_many`.
    pub group_bytes_max: usize,
    /// Records that may wait for the disk.
    pub ring_entries: usize,
    /// Bytes that may wait for the disk.
    pub ring_bytes: usize,
    /// Unit that frames are padded to; no block is written twice.
    pub block_bytes: usize,
    /// How long a group may wait for company.
    pub linger: Duration,
    /// Longest moment that a group waits for writers who were just answered; zero switches it off.
    pub patience_max: Duration,
    /// Least time between two group submissions.
    pub sync_interval_min: Duration,
    /// What to do with a torn tail.
    pub recovery: RecoveryMode,
    /// How long to wait for the lock of a dead owner.
    pub lock_timeout: Duration,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segment_first_bytes: 4 << 20,
            record_bytes_max: 16 << 20,
            group_bytes_max: 32 << 20,
            ring_entries: 65_536,
            ring_bytes: 64 << 20,
            block_bytes: BLOCK,
            linger: Duration::ZERO,
            patience_max: Duration::ZERO,
            sync_interval_min: Duration::ZERO,
            recovery: RecoveryMode::Tail,
            lock_timeout: Duration::from_secs(30),
        }
    }
}

impl LogSettings {
    /// Refuses numbers that cannot work together, saying which and why.
    pub fn validate(&self) -> Result<()> {
        let block = self.block_bytes as u64;
        let checks = [
            (
                block.is_power_of_two() && (512..=65_536).contains(&block),
                "block_bytes must be a power of two from 512 to 65536",
            ),
            (
                self.record_bytes_max > 0,
                "record_bytes_max must be at least 1",
            ),
            (
                self.record_bytes_max <= self.group_bytes_max,
                "record_bytes_max must not be larger than group_bytes_max: a record lies in one group",
            ),
            (
                self.group_bytes_max <= 1 << 30,
                "group_bytes_max must be at most 1 GiB",
            ),
            (
                u32::try_from(self.segment_bytes).is_ok(),
                "segment_bytes must be below 4 GiB",
            ),
            (
                (1..=RING_ENTRIES_MAX).contains(&self.ring_entries),
                "ring_entries must lie between 1 and 16777216",
            ),
            (
                self.ring_bytes >= self.record_bytes_max,
                "ring_bytes must hold at least one record of record_bytes_max",
            ),
        ];
        if let Some((_, message)) = checks.iter().find(|(holds, _)| !holds) {
            return Err(Error::invalid(*message));
        }
        self.validate_segments()
    }

    fn validate_segments(&self) -> Result<()> {
        let block = self.block_bytes as u64;
        if self.largest_frame() + 2 * block > self.segment_bytes {
            return Err(Error::invalid(
                "group_bytes_max must be smaller than segment_bytes, by a few blocks for headers",
            ));
        }
        let first = self.segment_first_bytes;
        if first < 4 * block || first > self.segment_bytes {
            return Err(Error::invalid(
                "segment_first_bytes must lie between four blocks and segment_bytes",
            ));
        }
        if !self.segment_bytes.is_multiple_of(block) || !first.is_multiple_of(block) {
            return Err(Error::invalid(
                "segment_bytes and segment_first_bytes must be multiples of block_bytes",
            ));
        }
        Ok(())
    }

    /// Bytes kept for batches: a buffer for the largest, in whole huge pages, and another page.
    pub(crate) fn stock_bytes(&self) -> usize {
        align_up(self.largest_frame(), HUGE as u64) as usize + HUGE
    }

    /// The frame of a group of `group_bytes_max` bytes, record headers included.
    pub(crate) fn largest_frame(&self) -> u64 {
        let bytes = frame::FRAME_HEADER_BYTES + frame::RECORD_HEADER_BYTES + self.group_bytes_max;
        align_up(bytes as u64, self.block_bytes as u64)
    }
}
