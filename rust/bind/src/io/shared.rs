//! What every handle, file and request of one engine has in common.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use millrace_core::{
    Error, ErrorKind, Result,
    engine::{BackendInfo, io::IoEngine},
    fork::Origin,
    io::Leftovers,
    ioloop::{Answered, Ask, Handle, Id, Reply, Sink},
};
use pyo3::prelude::*;

use super::{
    guest::{self, Host},
    inbox::{Inbox, Waiting},
    outcome::{Place, Wanted},
    sockets::Sockets,
};
use crate::{
    error,
    exit::{self, Closes},
    jobs::Answering,
    loops::LoopPort,
    operation::{Operation, Source},
};

/// An open engine.
pub struct Shared {
    /// `None` only while this is dropped.
    engine: Option<IoEngine>,
    handle: Handle,
    pub origin: Origin,
    pub sockets: Arc<Sockets>,
    /// Bytes of buffers that a view holds.
    pub pinned: Arc<AtomicUsize>,
    pub is_guest: bool,
    backend: BackendInfo,
    under_way: Arc<AtomicUsize>,
}

impl Shared {
    pub fn new(engine: IoEngine) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            handle: engine.handle().clone(),
            backend: engine.backend().clone(),
            origin: Origin::here()?,
            sockets: Arc::default(),
            pinned: Arc::default(),
            is_guest: engine.turnable().is_some(),
            under_way: Arc::default(),
            engine: Some(engine),
        }))
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn backend(&self) -> &BackendInfo {
        &self.backend
    }

    pub fn engine(&self) -> Option<&IoEngine> {
        self.engine.as_ref()
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Starts a request; it is under way when this returns.
    pub fn start(
        self: &Arc<Self>,
        py: Python<'_>,
        name: &'static str,
        ask: Ask,
        timeout: Option<Duration>,
        (wanted, place): (Wanted, Place),
    ) -> PyResult<Operation> {
        let changes_nothing = matches!(
            ask,
            Ask::Read { .. } | Ask::Recv { .. } | Ask::Stat { .. } | Ask::StatPath { .. }
        );
        let alone = self.under_way() == 0;
        let host = self.host(py)?;
        let inbox = Inbox::new(&self.under_way, place);
        let deadline = timeout.map(|timeout| self.handle.now().after(timeout));
        let sink: Arc<dyn Sink> = Arc::<Inbox>::clone(&inbox);
        let submitted = if self.is_guest {
            self.handle.submit_quietly(ask, deadline, sink, 0)
        } else {
            self.handle.submit(ask, deadline, sink, 0)
        };
        let id = match submitted {
            Ok(id) => id,
            Err(refused) => {
                inbox.discount();
                return Err(error::raise_io(py, &inbox.place().tell(refused)));
            }
        };
        let turner = self.urge(py, host, alone);
        let idle = changes_nothing.then_some(id);
        let mut waiting = Waiting::new(name, Arc::clone(self), inbox, idle, wanted);
        waiting.turned_by(turner);
        Ok(Operation::new(name, Source::Job(Arc::new(waiting))))
    }

    /// Something that was answered by the call itself.
    pub fn answered(
        self: &Arc<Self>,
        name: &'static str,
        answer: Result<Reply>,
        (wanted, place): (Wanted, Place),
    ) -> Operation {
        let inbox = Inbox::full(&self.under_way, place, answer);
        let waiting = Waiting::new(name, Arc::clone(self), inbox, None, wanted);
        Operation::new(name, Source::Job(Arc::new(waiting)))
    }

    /// Stops taking requests; the result tells what was left behind at the end.
    pub fn close(
        self: &Arc<Self>,
        py: Python<'_>,
        timeout: Option<Duration>,
    ) -> PyResult<Operation> {
        let host = self.host(py)?;
        let inbox = Inbox::new(&self.under_way, Place::default());
        // It waits for the others: nobody shall take it for one of them.
        inbox.discount();
        let listener = Arc::new(Ending {
            sockets: Arc::clone(&self.sockets),
            inbox: Arc::clone(&inbox),
        });
        self.handle.close(timeout, Some((listener, 0)));
        let turner = self.urge(py, host, true);
        let mut waiting = Waiting::new("close", Arc::clone(self), inbox, None, Wanted::End);
        waiting.turned_by(turner);
        let job: Arc<dyn Answering> = Arc::new(waiting);
        Ok(Operation::new("close", Source::Job(job)))
    }

    /// Who turns a guest engine for what is about to be asked for.
    fn host(self: &Arc<Self>, py: Python<'_>) -> PyResult<Option<Host>> {
        self.is_guest.then(|| Host::find(py, self)).transpose()
    }

    /// Has what was just asked for carried out, if nobody does it by himself; the loop that will.
    fn urge(self: &Arc<Self>, py: Python<'_>, host: Option<Host>, alone: bool) -> Weak<LoopPort> {
        host.map_or_else(Weak::new, |host| host.urge(py, self, alone))
    }

    /// Nobody waits for this one any more.
    pub fn forget(&self, id: Id) {
        self.handle.forget(id);
        guest::turn_here(self);
    }

    /// Has the engine carry out something that nobody waits for. False: it takes nothing.
    pub fn entrust(&self, ask: Ask) -> bool {
        let accepted = self.handle.submit(ask, None, Arc::new(Nobody), 0).is_ok();
        guest::turn_here(self);
        accepted
    }

    /// `open`, `closing`, `closed` or `failed`; `forked` in a child.
    pub fn state(&self) -> &'static str {
        if self.origin.is_forked_child() {
            // Nothing here may be touched.
            return "forked";
        }
        if self.handle.poison().is_some() {
            return "failed";
        }
        match (self.handle.is_closed(), self.handle.is_over()) {
            (false, _) => "open",
            (true, false) => "closing",
            (true, true) => "closed",
        }
    }

    /// Fails with `Forked` in a child, with `Closed` after a close.
    pub fn check(&self) -> Result<()> {
        self.origin.check()?;
        match self.handle.poison() {
            Some(cause) => {
                Err(Error::new(ErrorKind::Poisoned, "the I/O engine failed").caused_by(cause))
            }
            None if self.handle.is_closed() => {
                Err(Error::new(ErrorKind::Closed, "the I/O engine is closed"))
            }
            None => Ok(()),
        }
    }
}

impl Closes for Shared {
    fn origin(&self) -> Origin {
        self.origin
    }

    fn is_over(&self) -> bool {
        self.handle.is_over()
    }

    fn end_within(&self, budget: Duration) {
        if let Some(engine) = self.engine() {
            // One that failed meanwhile: nobody is left to tell.
            let _ = engine.close(Some(budget));
        }
    }
}

impl Drop for Shared {
    /// The last handle is gone. Closing may wait for a device, so it is done elsewhere.
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else {
            return;
        };
        if self.origin.is_forked_child() {
            // It knows that it was inherited, and touches nothing.
            drop(engine);
            return;
        }
        exit::entrust(engine, self.origin);
    }
}

/// What is kept for receives goes with the engine, also if nobody waits for its end.
struct Ending {
    sockets: Arc<Sockets>,
    inbox: Arc<Inbox>,
}

impl Sink for Ending {
    fn answer(&self, answered: Answered) {
        self.inbox.answer(answered);
    }

    fn closed(&self, tag: u64, left: Leftovers) {
        self.sockets.clear();
        self.inbox.closed(tag, left);
    }
}

/// Nobody wants to know.
struct Nobody;

impl Sink for Nobody {
    fn answer(&self, _answered: Answered) {}

    fn closed(&self, _tag: u64, _left: Leftovers) {}
}
