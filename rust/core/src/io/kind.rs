//! Kinds of operations, as faults are ordered and traces are read.

use super::Op;

/// A kind of operation, as counted for faults and shown in traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Open or make a directory.
    OpenDir,
    /// Open or make a file.
    Open,
    /// Read a directory.
    List,
    /// Ask for a length.
    Length,
    /// Read.
    Read,
    /// Write without waiting for durability.
    Write,
    /// Write and make durable.
    WriteSync,
    /// Make a file durable.
    Sync,
    /// Reserve space.
    Allocate,
    /// Cut or extend.
    Truncate,
    /// Rename.
    Rename,
    /// Unlink.
    Unlink,
    /// Make a directory durable.
    SyncDir,
    /// Forget cached pages.
    DropCache,
    /// Lock.
    Lock,
    /// Give a lock back.
    Unlock,
}

impl Kind {
    /// Every kind, for loops over all faults.
    pub const ALL: [Self; 16] = [
        Self::OpenDir,
        Self::Open,
        Self::List,
        Self::Length,
        Self::Read,
        Self::Write,
        Self::WriteSync,
        Self::Sync,
        Self::Allocate,
        Self::Truncate,
        Self::Rename,
        Self::Unlink,
        Self::SyncDir,
        Self::DropCache,
        Self::Lock,
        Self::Unlock,
    ];

    /// The kind of `op`.
    pub fn of(op: &Op) -> Self {
        match op {
            Op::OpenDir { .. } => Self::OpenDir,
            Op::Open { .. } | Op::OpenPath { .. } => Self::Open,
            Op::List { .. } => Self::List,
            Op::Length { .. } | Op::Stat { .. } | Op::StatPath { .. } => Self::Length,
            Op::Read { .. } | Op::Recv { .. } => Self::Read,
            Op::Write { sync: false, .. } | Op::WriteMany { sync: false, .. } | Op::Send { .. } => {
                Self::Write
            }
            Op::Write { sync: true, .. } | Op::WriteMany { sync: true, .. } => Self::WriteSync,
            Op::Sync { .. } | Op::SyncData { .. } => Self::Sync,
            Op::Allocate { .. } => Self::Allocate,
            Op::Truncate { .. } => Self::Truncate,
            Op::Rename { .. } | Op::RenamePath { .. } => Self::Rename,
            Op::Unlink { .. } | Op::UnlinkPath { .. } => Self::Unlink,
            Op::SyncDir { .. } | Op::SyncPath { .. } => Self::SyncDir,
            Op::DropCache { .. } => Self::DropCache,
            Op::Lock { .. } | Op::Share { .. } => Self::Lock,
            Op::Unlock { .. } | Op::Close { .. } => Self::Unlock,
        }
    }

    /// Whether such an operation can change what a power cut leaves.
    pub const fn is_change(self) -> bool {
        !matches!(
            self,
            Self::List | Self::Length | Self::Read | Self::Lock | Self::Unlock
        )
    }

    /// Its name, for errors and traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenDir => "open_dir",
            Self::Open => "open",
            Self::List => "list",
            Self::Length => "length",
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteSync => "write_sync",
            Self::Sync => "sync",
            Self::Allocate => "allocate",
            Self::Truncate => "truncate",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::SyncDir => "sync_dir",
            Self::DropCache => "drop_cache",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
        }
    }
}
