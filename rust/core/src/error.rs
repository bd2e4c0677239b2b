//! Errors by reaction: a kind says what the caller does next, the context says where it happened.
//!
//! An [`Error`] is cheap to clone, because one failed flush answers every waiter with the same
//! cause. Positions, paths and counts are kept as key-value pairs so that the Python side can
//! show them as attributes instead of parsing a sentence.

use std::{fmt, io, path::PathBuf, sync::Arc};

/// Shorthand for results of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object was closed; open it again.
    Closed,
    /// Failed for good until reopened; the first cause is inside. Durability of what was in
    /// flight is unknown.
    Poisoned,
    /// Bytes that were durable are wrong; restore, repair or salvage.
    Corrupt,
    /// Full right now; wait, or use a call that waits.
    Overloaded,
    /// Larger than a limit that waiting will not change.
    TooLarge,
    /// An argument is wrong; nothing was done.
    Invalid,
    /// Not offered by this kernel, filesystem or build.
    Unsupported,
    /// The deadline passed.
    Timeout,
    /// The file ended before the bytes that were asked for.
    ShortRead,
    /// The peer or the file ended.
    EndOfStream,
    /// The device or the quota is full.
    NoSpace,
    /// Somebody else owns it.
    Locked,
    /// Used in a child of `fork`; open it again there.
    Forked,
    /// Written by a version this one does not understand; nothing was touched.
    Format,
    /// The engine gave up waiting for the kernel; the outcome is unknown.
    Abandoned,
    /// The operating system refused; see `errno`.
    Io,
}

/// One fact about where and how an error happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A number: an offset, a count, an errno, a pid.
    Number(i128),
    /// A name of ours, or a word.
    Text(String),
    /// Where a file is, byte for byte: a path need not be text.
    Path(PathBuf),
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    facts: Vec<(&'static str, Fact)>,
    cause: Option<Error>,
}

/// A kind, a sentence, facts, and perhaps the error that came first.
#[derive(Debug, Clone)]
pub struct Error(Arc<Inner>);

impl Error {
    /// Makes an error that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            facts: Vec::new(),
            cause: None,
        }))
    }

    /// An argument is wrong and nothing was done.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Classifies an errno once; `operation` names the call that failed.
    pub fn from_errno(errno: i32, operation: &'static str) -> Self {
        let kind = match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
            libc::EOPNOTSUPP | libc::ENOSYS => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let text = io::Error::from_raw_os_error(errno);
        Self::new(kind, format!("{operation} failed: {text}"))
            .with("errno", errno)
            .with_text("operation", operation)
    }

    /// Classifies an error of the standard library.
    pub fn from_io(error: &io::Error, operation: &'static str) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::from_errno(errno, operation),
            None => Self::new(ErrorKind::Io, format!("{operation} failed: {error}"))
                .with_text("operation", operation),
        }
    }

    /// Adds a number to the facts.
    #[must_use]
    pub fn with(self, key: &'static str, value: impl Into<i128>) -> Self {
        self.push(key, Fact::Number(value.into()))
    }

    /// Adds a name of ours, or a word, to the facts.
    #[must_use]
    pub fn with_text(self, key: &'static str, value: impl Into<String>) -> Self {
        self.push(key, Fact::Text(value.into()))
    }

    /// Adds the file or directory it is about to the facts.
    #[must_use]
    pub fn with_path(self, path: impl Into<PathBuf>) -> Self {
        self.push("path", Fact::Path(path.into()))
    }

    /// Records the error that came first.
    #[must_use]
    pub fn caused_by(self, cause: Error) -> Self {
        let mut inner = self.into_inner();
        inner.cause = Some(cause);
        Self(Arc::new(inner))
    }

    /// What the caller should do next.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The sentence, without the facts.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where and how, as pairs.
    pub fn facts(&self) -> &[(&'static str, Fact)] {
        &self.0.facts
    }

    /// The error that came first, if this one only reports it.
    pub fn cause(&self) -> Option<&Error> {
        self.0.cause.as_ref()
    }

    /// A fact that is a number.
    pub fn number(&self, key: &str) -> Option<i128> {
        self.facts().iter().find_map(|(name, fact)| match fact {
            Fact::Number(value) if *name == key => Some(*value),
            _ => None,
        })
    }

    /// The errno, here or in the error that came first.
    pub fn errno(&self) -> Option<i32> {
        self.number("errno")
            .map(|value| value as i32)
            .or_else(|| self.cause().and_then(Error::errno))
    }

    fn push(self, key: &'static str, fact: Fact) -> Self {
        let mut inner = self.into_inner();
        inner.facts.push((key, fact));
        Self(Arc::new(inner))
    }

    fn into_inner(self) -> Inner {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| Inner {
            kind: shared.kind,
            message: shared.message.clone(),
            facts: shared.facts.clone(),
            cause: shared.cause.clone(),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())?;
        for (index, (key, fact)) in self.facts().iter().enumerate() {
            f.write_str(if index == 0 { " [" } else { ", " })?;
            match fact {
                Fact::Number(value) => write!(f, "{key}={value}")?,
                Fact::Text(value) => write!(f, "{key}={value}")?,
                Fact::Path(value) => write!(f, "{key}={}", value.display())?,
            }
        }
        if !self.facts().is_empty() {
            f.write_str("]")?;
        }
        match self.cause() {
            Some(cause) => write!(f, "; first cause: {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause().map(|cause| cause as _)
    }
}
