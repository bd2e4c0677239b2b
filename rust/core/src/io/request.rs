//! A request owns its file and its buffer until it is finished.

use super::{Access, Buffer, File};
use crate::error::Result;

/// Chosen by the owner, handed back with the answer. Means nothing to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Which requests must not wait behind which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody waits for it: a group commit, a segment header. May be executed by the thread
    /// that turns the backend.
    Foreground,
    /// Prepared ahead of need (zero-filling the next segment). Never delays a foreground request.
    Background,
}

/// What to do. Offsets and lengths are bytes; names are relative to a directory handle and are
/// always ours, never a user's.
#[derive(Debug)]
pub enum Op {
    /// Open the directory at `path`; `create` makes it (mode 0700) and syncs its parent.
    OpenDir {
        /// Where it is.
        path: std::path::PathBuf,
        /// Make it if it is not there.
        create: bool,
    },
    /// Open a file in `dir`. Symbolic links are refused.
    Open {
        /// The directory.
        dir: File,
        /// Its name there.
        name: String,
        /// How.
        access: Access,
    },
    /// The names in `dir`, unsorted, without `.` and `..`.
    List {
        /// The directory.
        dir: File,
    },
    /// The length of `file`.
    Length {
        /// The file.
        file: File,
    },
    /// Fill `buffer[..length]` from `offset`. Ends early only at the end of the file.
    Read {
        /// The file.
        file: File,
        /// From where.
        offset: u64,
        /// How much of `buffer` to fill.
        length: usize,
        /// Where to.
        buffer: Buffer,
    },
    /// Write `buffer[..length]` at `offset`; with `sync`, durable when answered.
    Write {
        /// The file.
        file: File,
        /// Where to.
        offset: u64,
        /// How much of `buffer` to write.
        length: usize,
        /// The bytes.
        buffer: Buffer,
        /// Wait for durability (data and what is needed to read it back).
        sync: bool,
    },
    /// Make everything written to `file` durable, with its length.
    Sync {
        /// The file.
        file: File,
    },
    /// Reserve space for `length` bytes from the start. `Unsupported` where the filesystem has no
    /// such call.
    Allocate {
        /// The file.
        file: File,
        /// How much.
        length: u64,
    },
    /// Cut or extend `file` to `length`.
    Truncate {
        /// The file.
        file: File,
        /// Its new length.
        length: u64,
    },
    /// Rename within `dir`, replacing what was there.
    Rename {
        /// The directory.
        dir: File,
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// Remove a name.
    Unlink {
        /// The directory.
        dir: File,
        /// The name.
        name: String,
    },
    /// Make creates, renames and unlinks in `dir` durable.
    SyncDir {
        /// The directory.
        dir: File,
    },
    /// Forget cached pages of `file`, so that the next read comes from the device.
    DropCache {
        /// The file.
        file: File,
    },
    /// Take the exclusive advisory lock of `file`, or fail at once with `Locked`.
    Lock {
        /// The file.
        file: File,
    },
    /// Take the advisory lock of `file` together with others who share it, or fail at once with
    /// `Locked`.
    Share {
        /// The file.
        file: File,
    },
    /// Give the lock of `file` back, whoever else still holds the descriptor.
    Unlock {
        /// The file.
        file: File,
    },
}

impl Op {
    /// The buffer, if the operation has one.
    pub(crate) fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } => Some(buffer),
            _ => None,
        }
    }

    /// Bytes of the buffer.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } => buffer.len() as u64,
            _ => 0,
        }
    }
}

/// One operation with its token.
#[derive(Debug)]
pub struct Request {
    /// Handed back with the answer.
    pub token: Token,
    /// Its class.
    pub class: Class,
    /// What to do.
    pub op: Op,
}

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// It is done and there is nothing to say.
    Done,
    /// Bytes transferred. A read that met the end of the file has fewer than were asked for.
    Count(usize),
    /// The opened file or directory.
    File(File),
    /// Names in a directory.
    Names(Vec<String>),
    /// A length in bytes.
    Length(u64),
}

/// A finished request.
#[derive(Debug)]
pub struct Finished {
    /// The token it was submitted with.
    pub token: Token,
    /// Its buffer, if it had one, whatever the outcome.
    pub buffer: Option<Buffer>,
    /// The outcome.
    pub result: Result<Answer>,
}
