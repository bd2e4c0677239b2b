//! Buffers for large frames, used again and again.
//!
//! A batch is copied once, at the call, to where it will be written from: the buffer goes through
//! the ring with it, is handed to the disk, and comes back here with the answer. Memory that the
//! allocator would give back to the kernel after each group and fault in again page by page costs
//! a caller more time than the copying does.
//!
//! Large buffers ask for huge pages. A megabyte in pages of 4 KiB is 256 places for the device to
//! fetch from; in one huge page it is one, and a direct write of it takes about two thirds of the
//! time (see decision 0014).
//!
//! # Always true
//!
//! 1. A buffer is here, or lent, or with the disk: it moves, and is never shared.
//! 2. What is kept is bounded, and so is what huge pages round up. Nothing is kept by a log that
//!    rests, from before its first group on, and nothing by one that is closed or has failed.
//! 3. Nothing is freed while the lock is held.

use std::ops::{Deref, DerefMut};

use crate::{
    codec::align_up,
    error::Result,
    fork::Origin as Process,
    io::{BLOCK, Buffer, HUGE},
    sync::{Arc, Mutex, lock},
};

/// From here on a buffer is made of huge pages.
const HUGE_FROM: usize = 512 << 10;
/// Bytes of huge pages that may be in use where a part of them is not needed.
const HUGE_BYTES_MAX: usize = 32 << 20;
/// Buffers kept at most.
const KEPT_MAX: usize = 16;
/// A kept buffer is lent for less if it is at most this large...
const LENT_BYTES_MIN: usize = 64 << 10;
/// ...or at most this many times what is wanted.
const WASTE_MAX: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stock {
    process: Process,
    /// Bytes kept at most.
    bytes_max: usize,
    state: Mutex<State>,
}

/// What becomes of a buffer that comes back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is freed: no group is under way whose rest would free it later.
    #[default]
    Resting,
    /// It is kept.
    Busy,
    /// It is freed, from now on.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Oldest first.
    kept: Vec<Buffer>,
    kept_bytes: usize,
    /// Bytes of huge pages, here and lent.
    huge_bytes: usize,
}

impl Stock {
    /// Keeps at most `bytes_max` bytes.
    pub(crate) fn new(process: Process, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            process,
            bytes_max,
            state: Mutex::default(),
        })
    }

    /// A buffer of at least `bytes`; what is in it is of former use. It comes back by itself.
    pub(crate) fn lend(self: &Arc<Self>, bytes: usize) -> Result<Lent> {
        Ok(Lent {
            buffer: self.take(bytes)?,
            stock: Arc::clone(self),
        })
    }

    /// A buffer of at least `bytes`; what is in it is of former use.
    pub(crate) fn take(&self, bytes: usize) -> Result<Buffer> {
        let wanted = align_up(bytes.max(1) as u64, BLOCK as u64) as usize;
        if wanted == BLOCK {
            return Buffer::try_zeroed(wanted);
        }
        let is_huge = match self.look(wanted) {
            Ok(kept) => return Ok(kept),
            Err(is_huge) => is_huge,
        };
        if is_huge {
            return self.huge_or_small(Buffer::try_huge(wanted), wanted);
        }
        Buffer::try_zeroed(wanted)
    }

    /// Small pages where the huge ones, which `look` has counted, were refused.
    pub(super) fn huge_or_small(&self, huge: Result<Buffer>, wanted: usize) -> Result<Buffer> {
        huge.or_else(|_| {
            lock(&self.state).uncount(wanted.next_multiple_of(HUGE));
            // Of a length that is never taken for huge pages.
            let is_whole = wanted.is_multiple_of(HUGE);
            Buffer::try_zeroed(if is_whole { wanted + BLOCK } else { wanted })
        })
    }

    /// A kept buffer, or whether one of huge pages should be made.
    fn look(&self, wanted: usize) -> std::result::Result<Buffer, bool> {
        let mut state = lock(&self.state);
        let most = LENT_BYTES_MIN.max(wanted.saturating_mul(WASTE_MAX));
        let fits = |kept: &Buffer| (wanted..=most).contains(&kept.len());
        // The one that was used last is the one that caches still know.
        if let Some(at) = state.kept.iter().rposition(fits) {
            let kept = state.kept.remove(at);
            state.kept_bytes -= kept.len();
            return Ok(kept);
        }
        let rounded = align_up(wanted as u64, HUGE as u64) as usize;
        let in_use = state.huge_bytes.saturating_add(rounded);
        let has_room = rounded == wanted || in_use <= HUGE_BYTES_MAX;
        let is_huge = wanted >= HUGE_FROM && has_room;
        if is_huge {
            state.huge_bytes = in_use;
        }
        Err(is_huge)
    }

    /// Takes a buffer back, and keeps it if there is room.
    pub(crate) fn keep(&self, buffer: Buffer) {
        // A child of a fork may find the lock taken by a thread that it does not have.
        if buffer.len() <= BLOCK || self.process.is_forked_child() {
            return;
        }
        let most = if planted!("stock_unbounded") {
            usize::MAX
        } else {
            self.bytes_max
        };
        let mut dropped = Vec::new();
        let mut state = lock(&self.state);
        if state.phase != Phase::Busy || buffer.len() > most {
            state.uncount(buffer.len());
            dropped.push(buffer);
        } else {
            state.kept_bytes += buffer.len();
            state.kept.push(buffer);
        }
        while state.kept.len() > KEPT_MAX || state.kept_bytes > most {
            dropped.push(state.forget(0));
        }
        drop(state);
    }

    /// A group goes to the disk: the log will rest once more, and free what is kept until then.
    pub(crate) fn rouse(&self) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Resting {
            state.phase = Phase::Busy;
        }
    }

    /// Frees what is kept, and what comes back before the next group.
    pub(crate) fn rest(&self) {
        self.empty(Phase::Resting);
    }

    /// Frees what is kept, and what comes back later.
    pub(crate) fn close(&self) {
        if !planted!("a_closed_log_keeps_the_stock") {
            self.empty(Phase::Closed);
        }
    }

    fn empty(&self, phase: Phase) {
        if self.process.is_forked_child() {
            return;
        }
        let mut state = lock(&self.state);
        if state.phase != Phase::Closed {
            state.phase = phase;
        }
        let dropped = std::mem::take(&mut state.kept);
        for buffer in &dropped {
            state.uncount(buffer.len());
        }
        state.kept_bytes = 0;
        drop(state);
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        lock(&self.state).kept_bytes
    }
}

impl State {
    fn forget(&mut self, at: usize) -> Buffer {
        let buffer = self.kept.remove(at);
        self.kept_bytes -= buffer.len();
        self.uncount(buffer.len());
        buffer
    }

    /// A buffer of this length is given up.
    fn uncount(&mut self, length: usize) {
        if length.is_multiple_of(HUGE) {
            self.huge_bytes -= length.min(self.huge_bytes);
        }
    }
}

/// A buffer that goes back to its stock.
#[derive(Debug)]
pub(crate) struct Lent {
    buffer: Buffer,
    stock: Arc<Stock>,
}

impl Lent {
    /// Takes it out; whoever has it gives it back.
    pub(crate) fn into_buffer(mut self) -> Buffer {
        std::mem::replace(&mut self.buffer, Buffer::zeroed(0))
    }

    /// Makes it hold at least `bytes`, and keeps the first `used`.
    pub(crate) fn grow(&mut self, used: usize, bytes: usize) -> Result<()> {
        let mut larger = self.stock.lend(bytes.max(self.buffer.len() * 2))?;
        larger[..used].copy_from_slice(&self.buffer[..used]);
        *self = larger;
        Ok(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::replace(&mut self.buffer, Buffer::zeroed(0));
        self.stock.keep(buffer);
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}
