//! What is deferred: a kind, something that cleans, and who answers for it.

use std::sync::Arc;

use crate::error::{Error, Result};

/// What is cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An append or completion whose waiter is gone: give back what it had reserved.
    Obligation,
    /// A registration of an event loop or thread: deregister, close its descriptor.
    Waker,
    /// A file or a part of one that nothing names any more: remove it.
    Region,
    /// Entries of a scope in a timer wheel: cancel and free them in one pass.
    Timer,
    /// A follower of a log: release its buffers and its position.
    Channel,
    /// A caller's own function.
    Call,
}

impl Kind {
    /// Every kind, in the order of [`Statistics::done_by_kind`](super::Statistics).
    pub const ALL: [Self; 6] = [
        Self::Obligation,
        Self::Waker,
        Self::Region,
        Self::Timer,
        Self::Channel,
        Self::Call,
    ];

    /// The name in statistics and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Obligation => "obligation",
            Self::Waker => "waker",
            Self::Region => "region",
            Self::Timer => "timer",
            Self::Channel => "channel",
            Self::Call => "call",
        }
    }
}

/// Something that can be deferred.
pub trait Work: Send {
    /// What it cleans.
    fn kind(&self) -> Kind;
}

/// Work that brings its own handler.
pub trait Clean: Work + Sized {
    /// Does it. It counts as done when this returns, unless the slip was carried off.
    fn clean(self, slip: &mut Slip<'_>) -> Result<()>;
}

type Handler = Box<dyn FnOnce(&mut Slip<'_>) -> Result<()> + Send>;

/// A boxed handler of any kind.
pub struct Task {
    kind: Kind,
    handler: Handler,
}

impl Task {
    /// Runs `handler` when it is safe.
    pub fn new(kind: Kind, handler: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self::carried(kind, move |_| handler())
    }

    /// Runs `handler`, which may carry its [`Slip`] off and settle it later, elsewhere.
    pub fn carried(
        kind: Kind,
        handler: impl FnOnce(&mut Slip<'_>) -> Result<()> + Send + 'static,
    ) -> Self {
        Self {
            kind,
            handler: Box::new(handler),
        }
    }

    /// Runs it on this thread, without a collector.
    pub fn run_now(self) -> Result<()> {
        let mut slip = Slip {
            books: None,
            kind: self.kind,
            bytes: 0,
            is_carried: false,
        };
        self.clean(&mut slip)
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Work for Task {
    fn kind(&self) -> Kind {
        self.kind
    }
}

impl Clean for Task {
    fn clean(self, slip: &mut Slip<'_>) -> Result<()> {
        (self.handler)(slip)
    }
}

/// Whoever keeps the books of deferred work.
pub(super) trait Books: Send + Sync {
    /// The last pin of somebody was let go.
    fn on_unpin(&self, myself: &Arc<dyn Books>);
    /// Work that was carried off has come to an end.
    fn settle_carried(&self, kind: Kind, bytes: usize, outcome: Result<()>);
    /// Work was carried off.
    fn carry(&self);
}

/// The account of one piece of work while its handler runs.
pub struct Slip<'a> {
    /// `None` while the collector itself is being dropped.
    pub(super) books: Option<&'a Arc<dyn Books>>,
    pub(super) kind: Kind,
    pub(super) bytes: usize,
    pub(super) is_carried: bool,
}

impl Slip<'_> {
    /// Takes the account along: the work counts as done, and its room as free, when the charge is
    /// settled. `None` if the collector is being dropped; then the handler must do all of it now.
    pub fn carry(&mut self) -> Option<Charge> {
        let books = self.books.filter(|_| !self.is_carried)?;
        self.is_carried = true;
        books.carry();
        Some(Charge {
            books: Arc::clone(books),
            kind: self.kind,
            bytes: self.bytes,
            is_settled: false,
        })
    }
}

/// Work that left its handler unfinished. Dropped without being settled it counts as failed.
pub struct Charge {
    books: Arc<dyn Books>,
    kind: Kind,
    bytes: usize,
    is_settled: bool,
}

impl Charge {
    /// The work has come to an end.
    pub fn settle(mut self, outcome: Result<()>) {
        self.is_settled = true;
        self.books.settle_carried(self.kind, self.bytes, outcome);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if !self.is_settled {
            let lost = Error::new(
                crate::error::ErrorKind::Abandoned,
                "deferred work was carried off and never run",
            );
            self.books.settle_carried(self.kind, self.bytes, Err(lost));
        }
    }
}
