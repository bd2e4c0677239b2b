//! What the ring does for a request, and what is better done by somebody else.

use crate::io::{File, Op, total};

/// The longest read or write that is copied to or from the page cache by the thread that submits
/// it. A lone task waits longer for a worker than for such a copy; a longer one holds up all others.
pub(super) const COPY_MAX: usize = 256 << 10;

/// The same where that thread is an event loop's.
pub(super) const GUEST_COPY_MAX: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write {
        sync: bool,
    },
    /// All bytes of a write with `sync` are moved; this makes them durable.
    SyncData,
    Sync,
    Allocate,
    Send,
    Recv {
        exact: bool,
    },
    /// See [`names`](super::names).
    Name,
}

impl Work {
    pub(super) fn is_transfer(self) -> bool {
        matches!(
            self,
            Self::Read | Self::Write { .. } | Self::Send | Self::Recv { .. }
        )
    }

    /// Whether the kernel would hand this to one of its workers rather than begin it at once.
    pub(super) fn is_for_workers(self) -> bool {
        matches!(self, Self::Sync | Self::SyncData | Self::Allocate)
    }

    /// Whether this is a copy that takes so long that somebody else has to make it.
    pub(super) fn is_long_copy(self, file: &File, length: usize, guest: bool) -> bool {
        let copies = matches!(self, Self::Read | Self::Write { .. });
        let most = if guest { GUEST_COPY_MAX } else { COPY_MAX };
        copies && length > most && !file.is_direct() && !planted!("uring_copies_at_length")
    }
}

/// What the ring would do for `op`: the work, on what, from where, how much.
pub(super) fn plan(op: &Op) -> Option<(Work, File, u64, usize)> {
    let write = |sync, length| match (length, sync) {
        (0, true) => Work::SyncData,
        (_, sync) => Work::Write { sync },
    };
    let (work, file, offset, length) = match op {
        Op::Read {
            file,
            offset,
            length,
            ..
        } => (Work::Read, file, *offset, *length),
        Op::Write {
            file,
            offset,
            length,
            sync,
            ..
        } => (write(*sync, *length), file, *offset, *length),
        Op::WriteMany {
            file,
            offset,
            buffers,
            sync,
        } => {
            let length = total(buffers) as usize;
            (write(*sync, length), file, *offset, length)
        }
        Op::Sync { file } | Op::SyncDir { dir: file } => (Work::Sync, file, 0, 0),
        Op::SyncData { file } => (Work::SyncData, file, 0, 0),
        Op::Allocate { file, length } => {
            let length = usize::try_from(*length).ok()?;
            (Work::Allocate, file, 0, length)
        }
        Op::Send { socket, buffers } => (Work::Send, socket, 0, total(buffers) as usize),
        Op::Recv {
            socket,
            buffer,
            exact,
        } => (Work::Recv { exact: *exact }, socket, 0, buffer.len()),
        _ => return None,
    };
    Some((work, file.clone(), offset, length))
}
