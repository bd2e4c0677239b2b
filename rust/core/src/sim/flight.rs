//! A request in flight, with what it will do spelled out, so that it can be carried out late,
//! after its owner died, or in a copy of the world.

use std::{path::PathBuf, time::Duration};

use super::{
    content::Piece,
    fault::{Kind, Trouble},
    random::mix,
    volume::Ino,
};
use crate::{
    clock::Mono,
    error::Error,
    io::{Access, Buffer, File, Token},
};

/// What a handle leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Nothing: the path is in the request.
    None,
    /// A directory.
    Dir(usize),
    /// A file.
    File(Ino),
}

/// What a request does to the world.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    /// Opens or makes a directory.
    OpenDir { path: PathBuf, create: bool },
    /// Opens or makes a file.
    Open {
        dir: usize,
        name: String,
        access: Access,
    },
    /// Reads names.
    List { dir: usize },
    /// Reads a length.
    Length { ino: Ino },
    /// Reads what is known of a file.
    Stat { ino: Ino },
    /// Reads bytes.
    Read {
        ino: Ino,
        offset: u64,
        length: usize,
        direct: bool,
    },
    /// Writes bytes.
    Write {
        ino: Ino,
        pieces: Vec<Piece>,
        offset: u64,
        length: usize,
        sync: bool,
    },
    /// Flushes a file.
    Sync { ino: Ino },
    /// Reserves space, or cuts and extends.
    Resize {
        ino: Ino,
        length: u64,
        may_cut: bool,
    },
    /// Renames.
    Rename {
        dir: usize,
        from: String,
        to: String,
    },
    /// Unlinks.
    Unlink { dir: usize, name: String },
    /// Flushes a directory.
    SyncDir { dir: usize },
    /// Forgets cached pages.
    DropCache { ino: Ino },
    /// Locks the handle's file, alone or with others.
    Lock {
        ino: Ino,
        handle: usize,
        is_shared: bool,
    },
    /// Gives the handle's lock back.
    Unlock { ino: Ino, handle: usize },
    /// The request makes no sense.
    Refused(Error),
}

impl Effect {
    /// What it is about.
    pub fn target(&self) -> Target {
        match self {
            Self::OpenDir { .. } | Self::Refused(_) => Target::None,
            Self::Open { dir, .. }
            | Self::List { dir }
            | Self::Rename { dir, .. }
            | Self::Unlink { dir, .. }
            | Self::SyncDir { dir } => Target::Dir(*dir),
            Self::Length { ino }
            | Self::Stat { ino }
            | Self::Read { ino, .. }
            | Self::Write { ino, .. }
            | Self::Sync { ino }
            | Self::Resize { ino, .. }
            | Self::DropCache { ino }
            | Self::Lock { ino, .. }
            | Self::Unlock { ino, .. } => Target::File(*ino),
        }
    }

    /// Offset and length, where it has them.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, length, .. } | Self::Write { offset, length, .. } => {
                (*offset, *length as u64)
            }
            Self::Resize { length, .. } => (0, *length),
            _ => (0, 0),
        }
    }

    /// Tells the bytes it writes from others.
    pub fn mark(&self) -> u64 {
        match self {
            Self::Write { pieces, .. } => pieces.iter().fold(0, |sum, one| mix(sum ^ one.mark())),
            _ => 0,
        }
    }

    /// Whether carrying it out changes what is in files or directories.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::Resize { .. }
            | Self::Rename { .. }
            | Self::Unlink { .. }
            | Self::OpenDir { create: true, .. } => true,
            Self::Open { access, .. } => access.open != crate::io::Open::Existing,
            _ => false,
        }
    }
}

/// When a dead owner's request is carried out: whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Late {
    /// At this event of the world.
    pub at_event: u64,
    /// At this time.
    pub at_time: Mono,
}

/// What becomes of the requests a dead owner left in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zombies {
    /// Bit n: the n-th change in flight is carried out at all.
    pub lands: u64,
    /// After so many events of the world.
    pub after_events: u64,
    /// After so much of its time.
    pub after: Duration,
}

impl Default for Zombies {
    fn default() -> Self {
        Self {
            lands: u64::MAX,
            after_events: u64::MAX,
            after: Duration::from_millis(10),
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Flight {
    /// The backend it came through.
    pub seat: usize,
    /// The owner's token.
    pub token: Token,
    /// Its kind.
    pub kind: Kind,
    /// What it will do.
    pub effect: Effect,
    /// Kept for the answer.
    pub buffer: Option<Buffer>,
    /// Kept open until the answer.
    pub _file: Option<File>,
    /// The event of its submission.
    pub submitted: u64,
    /// When it can be answered.
    pub due: Mono,
    /// What goes wrong.
    pub trouble: Option<Trouble>,
    /// Its owner died.
    pub late: Option<Late>,
}

impl Flight {
    /// The same change without its owner.
    pub fn orphaned(&self, late: Late) -> Self {
        Self {
            seat: self.seat,
            token: self.token,
            kind: self.kind,
            effect: self.effect.clone(),
            buffer: None,
            _file: None,
            submitted: self.submitted,
            due: self.due,
            trouble: None,
            late: Some(late),
        }
    }

    /// Whether it is never answered.
    pub fn is_stalled(&self) -> bool {
        self.trouble == Some(Trouble::Stalls)
    }
}
