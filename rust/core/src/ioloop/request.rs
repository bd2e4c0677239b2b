//! What a program asks of the engine, what it gets, and what follows from the kind of the request.

use std::path::PathBuf;

use crate::{
    error::{Error, ErrorKind, Result},
    io::{Answer, Buffer, File, Finished, Op, Status, total},
};

/// Names one submission for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

/// What is asked for. Files and buffers are moved in and belong to the engine until the kernel's
/// last word.
#[derive(Debug)]
pub enum Ask {
    /// Open what is at `path`; `ESPIPE` if it has no positions, like a pipe.
    Open {
        /// Where it is.
        path: PathBuf,
        /// Flags of open(2); close-on-exec is added.
        flags: i32,
        /// Permissions of a file that is made.
        mode: u32,
    },
    /// Close a file; see [`Op::Close`].
    Close {
        /// The file.
        file: File,
    },
    /// Read `length` bytes from `offset`.
    Read {
        /// The file.
        file: File,
        /// From where.
        offset: u64,
        /// How much.
        length: usize,
        /// Fewer bytes at the end of the file are an answer, not a `ShortRead`.
        partial: bool,
    },
    /// Write all of `buffers`, one after the other, from `offset`.
    Write {
        /// The file.
        file: File,
        /// Where to.
        offset: u64,
        /// The bytes.
        buffers: Vec<Buffer>,
        /// Durable when answered.
        sync: bool,
    },
    /// Make what was written durable.
    Sync {
        /// The file.
        file: File,
        /// Leave out metadata that is not needed to read the data back.
        data_only: bool,
    },
    /// Reserve space for the first `length` bytes.
    Allocate {
        /// The file.
        file: File,
        /// How much.
        length: u64,
    },
    /// Cut or extend to `length`.
    Truncate {
        /// The file.
        file: File,
        /// New length.
        length: u64,
    },
    /// Rename, replacing what was at `to`.
    Rename {
        /// Old path.
        from: PathBuf,
        /// New path.
        to: PathBuf,
    },
    /// Remove the name of a file.
    Unlink {
        /// The path.
        path: PathBuf,
    },
    /// What is known about an open file.
    Stat {
        /// The file.
        file: File,
    },
    /// What is known about a path.
    StatPath {
        /// The path.
        path: PathBuf,
    },
    /// Make the names in a directory durable.
    SyncDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Send all of `buffers`.
    Send {
        /// A connected socket; see [`File::duplicate`].
        socket: File,
        /// The bytes.
        buffers: Vec<Buffer>,
    },
    /// Receive up to `length` bytes, or exactly as many.
    Recv {
        /// A connected socket; see [`File::duplicate`].
        socket: File,
        /// How much.
        length: usize,
        /// All of it, not what comes first.
        exact: bool,
    },
}

/// What a request is answered with.
#[derive(Debug)]
pub enum Reply {
    /// It is done and there is nothing to say.
    Done,
    /// Bytes written or sent.
    Count(u64),
    /// Bytes read or received: the first `length` of `buffer`.
    Bytes {
        /// Where they are.
        buffer: Buffer,
        /// How many.
        length: usize,
    },
    /// The opened file.
    File(File),
    /// What is known about a file.
    Status(Status),
}

/// Kinds of requests, as the metrics tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, with or without sync, and reservations.
    Write,
    /// Syncs of files and directories.
    Sync,
    /// Sends.
    Send,
    /// Receives.
    Recv,
    /// Everything about names and metadata.
    Name,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Send,
        Self::Recv,
        Self::Name,
    ];

    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::Name => "name",
        }
    }

    /// Whether only a device or a filesystem is waited for; a peer may take as long as it likes.
    pub(super) fn is_storage(self) -> bool {
        !matches!(self, Self::Send | Self::Recv)
    }
}

/// Which waiting requests must not wait behind which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Somebody waits for durability.
    Urgent,
    /// Everything else.
    Bulk,
}

/// What is kept of a request while its operation is with the backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traits {
    pub kind: Kind,
    pub lane: Lane,
    /// It changes something, so when nobody waits any more it goes on, and a timeout says nothing
    /// about whether it was done.
    pub changes: bool,
    /// A read or receive must bring this many bytes (a read: unless told otherwise).
    pub wanted: Option<u64>,
}

impl Ask {
    pub(super) fn traits(&self) -> Traits {
        let kind = match self {
            Self::Read { .. } => Kind::Read,
            Self::Write { .. } | Self::Allocate { .. } => Kind::Write,
            Self::Sync { .. } | Self::SyncDirectory { .. } => Kind::Sync,
            Self::Send { .. } => Kind::Send,
            Self::Recv { .. } => Kind::Recv,
            _ => Kind::Name,
        };
        let urgent = matches!(self, Self::Write { sync: true, .. }) || kind == Kind::Sync;
        let changes = !matches!(
            self,
            Self::Read { .. } | Self::Recv { .. } | Self::Stat { .. } | Self::StatPath { .. }
        );
        let wanted = match self {
            Self::Read {
                length,
                partial: false,
                ..
            } => Some(*length as u64),
            _ => None,
        };
        Traits {
            kind,
            lane: if urgent { Lane::Urgent } else { Lane::Bulk },
            changes,
            wanted,
        }
    }

    /// Refuses what no backend could do, before anything is queued.
    pub(super) fn check(&self) -> Result<()> {
        let (offset, length) = match self {
            Self::Read { offset, length, .. } => (*offset, *length as u64),
            Self::Write {
                offset, buffers, ..
            } => (*offset, total(buffers)),
            Self::Recv { length, .. } => (0, *length as u64),
            Self::Allocate { length, .. } | Self::Truncate { length, .. } => (0, *length),
            _ => return Ok(()),
        };
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(Error::invalid("beyond the end of any file")
                .with("offset", offset)
                .with("length", length));
        }
        Ok(())
    }

    /// The operation. Memory to read into is taken here, so that a request which waits for
    /// admission holds none.
    pub(super) fn into_op(self) -> Result<Op> {
        Ok(match self {
            Self::Open { path, flags, mode } => Op::OpenPath {
                path,
                // A pipe whose other end nobody opens would hold a thread for ever.
                flags: flags | libc::O_NONBLOCK,
                mode,
            },
            Self::Close { file } => Op::Close { file },
            Self::Read {
                file,
                offset,
                length,
                ..
            } => Op::Read {
                file,
                offset,
                length,
                buffer: Buffer::try_zeroed(length)?,
            },
            Self::Write {
                file,
                offset,
                mut buffers,
                sync,
            } => match (buffers.len(), buffers.pop()) {
                (1, Some(buffer)) => Op::Write {
                    file,
                    offset,
                    length: buffer.len(),
                    buffer,
                    sync,
                },
                (_, last) => {
                    buffers.extend(last);
                    Op::WriteMany {
                        file,
                        offset,
                        buffers,
                        sync,
                    }
                }
            },
            Self::Sync {
                file,
                data_only: true,
            } => Op::SyncData { file },
            Self::Sync { file, .. } => Op::Sync { file },
            Self::Allocate { file, length } => Op::Allocate { file, length },
            Self::Truncate { file, length } => Op::Truncate { file, length },
            Self::Rename { from, to } => Op::RenamePath { from, to },
            Self::Unlink { path } => Op::UnlinkPath { path },
            Self::Stat { file } => Op::Stat { file },
            Self::StatPath { path } => Op::StatPath { path },
            Self::SyncDirectory { path } => Op::SyncPath { path },
            Self::Send { socket, buffers } => Op::Send { socket, buffers },
            Self::Recv {
                socket,
                length,
                exact,
            } => Op::Recv {
                socket,
                buffer: Buffer::try_zeroed(length)?,
                exact,
            },
        })
    }
}

/// The file ended early.
pub fn short_read(got: u64, wanted: u64) -> Error {
    Error::new(
        ErrorKind::ShortRead,
        "the file ended before the bytes that were asked for",
    )
    .with("got", got)
    .with("wanted", wanted)
}

/// The backend's answer as the program gets it.
pub(super) fn reply(traits: &Traits, finished: Finished) -> Result<Reply> {
    let answer = finished.result?;
    match (answer, finished.buffer) {
        (Answer::Count(count), Some(buffer)) if !traits.changes => {
            let (got, wanted) = (count as u64, traits.wanted.unwrap_or(0));
            if got < wanted {
                return Err(short_read(got, wanted));
            }
            Ok(Reply::Bytes {
                buffer,
                length: count,
            })
        }
        (Answer::Count(count), _) => Ok(Reply::Count(count as u64)),
        (Answer::File(file), _) => Ok(Reply::File(file)),
        (Answer::Status(status), _) => Ok(Reply::Status(*status)),
        (Answer::Length(length), _) => Ok(Reply::Count(length)),
        (Answer::Done | Answer::Names(_), _) => Ok(Reply::Done),
    }
}
