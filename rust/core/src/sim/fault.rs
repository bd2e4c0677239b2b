//! Faults on order: the n-th operation of a kind fails, lies, or never answers.

use crate::io::Op;

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
            Op::Lock { .. } => Self::Lock,
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

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The operation fails with this errno. A failed write may have written some of its sectors;
    /// a failed sync leaves the bytes where they were.
    Fails(i32),
    /// A sync fails with this errno and drops the pages it could not write: cached reads still
    /// show the new bytes, later syncs succeed, and the device keeps the old ones.
    Drops(i32),
    /// The answer never comes.
    Stalls,
}

/// One fault on order.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which kind of operation.
    pub kind: Kind,
    /// Which one of that kind, counted from one at the moment of ordering.
    pub nth: u64,
    /// Every later one too.
    pub forever: bool,
    /// What happens.
    pub trouble: Trouble,
}

/// The faults on order and the operations counted so far.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    orders: Vec<(Fault, u64)>,
    counts: [u64; Kind::ALL.len()],
    /// Faults that happened.
    pub hits: u64,
}

impl Faults {
    /// Orders a fault.
    pub fn order(&mut self, fault: Fault) {
        let target = self.counts[fault.kind as usize] + fault.nth;
        self.orders.push((fault, target));
    }

    /// Whether a fault is on order.
    pub fn is_ordered(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Cancels all orders.
    pub fn clear(&mut self) {
        self.orders.clear();
    }

    /// Operations of `kind` so far.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// Counts an operation and says what is to go wrong with it.
    pub fn next(&mut self, kind: Kind) -> Option<Trouble> {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        let count = *count;
        let hit = self.orders.iter().find(|(fault, target)| {
            fault.kind == kind && (*target == count || fault.forever && *target < count)
        })?;
        self.hits += 1;
        Some(hit.0.trouble)
    }
}
