//! A request owns its file and its buffers until it is finished.

use std::path::PathBuf;

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
    /// Asked for by the program we are a guest in, many at once. Never waited for by the thread
    /// that turns the backend: what the kernel cannot do at once or by itself goes to threads apart.
    Program,
}

/// What to do. Offsets and lengths are bytes. Names are relative to a directory handle and are
/// always ours; paths are a program's, and taken as it gave them.
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
    /// Open what is at `path`, with the flags of open(2); close-on-exec is added. With `O_NONBLOCK`
    /// among them the opening waits for no peer, what has no positions is refused with `ESPIPE`,
    /// and the flag is taken off again.
    OpenPath {
        /// Where it is.
        path: PathBuf,
        /// `O_RDONLY`, `O_CREAT` and their like.
        flags: i32,
        /// Permissions of a file that is made.
        mode: u32,
    },
    /// Close `file`. While other requests or handles hold it, it is closed with the last of them,
    /// and nobody is told what the kernel said.
    Close {
        /// The file.
        file: File,
    },
    /// Write all of `buffers`, one after the other, from `offset`; with `sync`, durable when
    /// answered. The buffers are not handed back.
    WriteMany {
        /// The file.
        file: File,
        /// Where to.
        offset: u64,
        /// The bytes.
        buffers: Vec<Buffer>,
        /// Wait for durability (data and what is needed to read it back).
        sync: bool,
    },
    /// Make the data of `file` durable, and of its metadata what is needed to read it back.
    SyncData {
        /// The file.
        file: File,
    },
    /// Make the names in the directory at `path` durable.
    SyncPath {
        /// The directory.
        path: PathBuf,
    },
    /// Rename, replacing what was at `to`.
    RenamePath {
        /// Old path.
        from: PathBuf,
        /// New path.
        to: PathBuf,
    },
    /// Remove the name of a file.
    UnlinkPath {
        /// The path.
        path: PathBuf,
    },
    /// What is known about an open file.
    Stat {
        /// The file.
        file: File,
    },
    /// What is known about a path; a symbolic link is followed.
    StatPath {
        /// The path.
        path: PathBuf,
    },
    /// Send all of `buffers`, one after the other. They are not handed back.
    Send {
        /// A connected socket.
        socket: File,
        /// The bytes.
        buffers: Vec<Buffer>,
    },
    /// Receive into `buffer`: all of it if `exact`, else what comes first. A peer that ended is
    /// `EndOfStream`, with the bytes that came before it as the fact `got`.
    Recv {
        /// A connected socket.
        socket: File,
        /// Where to.
        buffer: Buffer,
        /// Fill the buffer.
        exact: bool,
    },
}

impl Op {
    /// The buffer, if the operation has one.
    pub(crate) fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } | Self::Recv { buffer, .. } => {
                Some(buffer)
            }
            _ => None,
        }
    }

    /// Bytes of the buffers.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } | Self::Recv { buffer, .. } => {
                buffer.len() as u64
            }
            Self::WriteMany { buffers, .. } | Self::Send { buffers, .. } => total(buffers),
            _ => 0,
        }
    }

    /// Whether somebody waits for durability: such a request goes before bulk transfers.
    pub(crate) fn is_urgent(&self) -> bool {
        match self {
            Self::Write { sync, .. } | Self::WriteMany { sync, .. } => *sync,
            Self::Sync { .. }
            | Self::SyncData { .. }
            | Self::SyncDir { .. }
            | Self::SyncPath { .. } => true,
            _ => false,
        }
    }
}

/// Bytes of all `buffers` together.
pub(crate) fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).sum()
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
    /// What is known about a file.
    Status(Box<Status>),
}

/// What `stat` tells about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Kind and permissions.
    pub mode: u32,
    /// Inode.
    pub inode: u64,
    /// Device of the filesystem.
    pub device: u64,
    /// How many names it has.
    pub links: u64,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Bytes.
    pub length: u64,
    /// Units of 512 bytes that are allocated.
    pub blocks: u64,
    /// Last read, nanoseconds since 1970.
    pub accessed_ns: i64,
    /// Last write.
    pub modified_ns: i64,
    /// Last change of any of this.
    pub changed_ns: i64,
}

/// What became of [`Backend::cancel`](super::Backend::cancel).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// Taken back before the kernel knew it, or between two submissions: its answer is ready, and
    /// is `ECANCELED`.
    Taken,
    /// The kernel was asked; the request's own answer says what came of it.
    Asked,
    /// Nothing can be done but to wait for the answer: it is over, or cannot be interrupted.
    TooLate,
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
