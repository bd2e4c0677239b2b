//! From a group to a frame, and where its memory comes from.
//!
//! A group that is one batch lies in a buffer already and is only given a header. Any other is
//! copied together, into a buffer that came back; large ones come from the stock, which lends to
//! callers as well.

use super::Committer;
use crate::{
    clock::Mono,
    codec::align_up,
    error::Result,
    io::{Backend, Buffer},
    wal::{
        frame::{self, Encoded, FrameKind},
        group::{Entry, in_place},
    },
};

/// From here on a batch is a group by itself where several groups may be in flight: it is written
/// from where it was laid, and costs the disk more time than a sync does.
const ALONE_FROM_BYTES: usize = 256 << 10;

/// Frames of this size are made in memory of the stock.
const STOCK_FROM_BYTES: usize = 256 << 10;

/// A spare buffer is reused for a smaller frame if it is at most this large...
const SPARE_BYTES_MIN: usize = 256 << 10;
/// ...or at most this many times the frame.
const SPARE_WASTE_MAX: usize = 4;

impl Committer {
    /// See [`ALONE_FROM_BYTES`].
    pub(super) fn alone_from(&self) -> usize {
        if self.window > 1 && !planted!("large_batches_share") {
            ALONE_FROM_BYTES
        } else {
            usize::MAX
        }
    }

    pub(super) fn submit_group(
        &mut self,
        backend: &mut dyn Backend,
        entries: Vec<Entry>,
        bytes: usize,
        now: Mono,
    ) {
        let count = entries.len();
        self.shared.stock.rouse();
        match self.encode(entries, bytes) {
            Ok((encoded, from_stock)) => {
                self.group_bytes = match self.group_bytes {
                    0 => encoded.length as u64,
                    known => (known * 7 + encoded.length as u64) / 8,
                };
                self.shared.counters.group(count, bytes);
                self.next = self.next.plus(count as u64);
                self.gathering_since = None;
                self.submitted_at = Some(now);
                self.submit_frame(backend, FrameKind::Records, encoded, bytes, from_stock);
            }
            Err(error) => self.fail(error),
        }
    }

    /// The frame of a group, and whether its buffer is the stock's.
    fn encode(&mut self, mut entries: Vec<Entry>, bytes: usize) -> Result<(Encoded, bool)> {
        let stamp = self.stamp(entries.len());
        let length = self.block_up(frame::FRAME_HEADER_BYTES + bytes);
        if let Some(buffer) = in_place(&mut entries, length) {
            let records = entries.len() as u32;
            let encoded = self.active.writer.laid(buffer, bytes, records, stamp)?;
            return Ok((encoded, true));
        }
        let from_stock = length >= STOCK_FROM_BYTES;
        let buffer = if from_stock {
            Some(self.shared.stock.take(length)?)
        } else {
            self.spare(length)
        };
        let encoded = self.active.writer.records(&entries, stamp, buffer)?;
        Ok((encoded, from_stock))
    }

    fn block_up(&self, bytes: usize) -> usize {
        let block = u64::from(self.active.writer.header().limits.block_bytes);
        align_up(bytes as u64, block) as usize
    }

    /// A buffer that came back and is large enough for a frame of `bytes`, without being wastefully
    /// large. What fits nothing lately goes, oldest first.
    pub(super) fn spare(&mut self, bytes: usize) -> Option<Buffer> {
        let wanted = self.block_up(bytes);
        let fits = |buffer: &Buffer| {
            buffer.len() >= wanted && buffer.len() <= SPARE_BYTES_MIN.max(SPARE_WASTE_MAX * wanted)
        };
        let found = self.spare.iter().position(fits);
        if found.is_none() && self.spare.len() >= self.window {
            self.spare.remove(0);
        }
        found.map(|at| self.spare.swap_remove(at))
    }

    /// What a frame was written from.
    pub(super) fn take_back(&mut self, buffer: Option<Buffer>, from_stock: bool) {
        match buffer {
            Some(buffer) if from_stock => self.shared.stock.keep(buffer),
            other => self.spare.extend(other),
        }
    }
}
