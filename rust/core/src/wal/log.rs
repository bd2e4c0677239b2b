//! The handle of an open log: append, wait, look. Cheap to clone, usable from any thread.
//!
//! A call claims its LSN when it is made: the LSN is the position on the ring, counted from the
//! first LSN of this open. There is no second allocator whose numbers could be lost or reordered.

use std::{sync::OnceLock, time::Duration};

use crate::{
    epoch,
    error::{Error, ErrorKind, Result},
    fork::Origin as Process,
    ids::Lsn,
    port::{Doorbell, Watch},
    ring::{Admission, AdmissionState, Bound, Claim, Entries, Producer, Refusal, Weigh},
    sync::{Arc, AtomicBool, Mutex, Ordering, Wake, lock},
};

use super::{
    counters::{Counters, Counts},
    cursor::Cursors,
    frame::RECORD_HEADER_BYTES,
    group::{Batch, Entry},
    marks::{Level, Marks, timed_out},
    recovery::RecoveryReport,
    settings::{Driver, LogSettings},
    stock::Stock,
    truncate::Segments,
    turner::{Turner, Who},
};

/// One record's bytes.
pub type Payload = Box<[u8]>;

/// What the handle, the committer and the readers share.
pub(crate) struct Shared {
    pub(crate) settings: LogSettings,
    pub(crate) producer: Producer<Entry>,
    /// LSN of ring position zero.
    pub(crate) origin: Lsn,
    pub(crate) marks: Marks,
    pub(crate) segments: Segments,
    pub(crate) counters: Counters,
    pub(crate) report: RecoveryReport,
    /// Memory for batches and large frames.
    pub(crate) stock: Arc<Stock>,
    pub(crate) cursors: Mutex<Cursors>,
    /// Held by whoever changes the directory beside the committer, and by whoever gives the lock
    /// back: one truncation or cursor commit at a time, since both decide by what the other
    /// changes, and none of them once the lock is free.
    pub(crate) upkeep: Mutex<()>,
    /// The process that opened it; a forked child must not use it.
    pub(crate) process: Process,
    close_requested: AtomicBool,
    driver: Mutex<Option<Arc<dyn Wake>>>,
    /// Set if whoever appends or waits turns the committer; see [`Turner`].
    turner: OnceLock<Arc<Turner>>,
}

impl Shared {
    pub(crate) fn new(
        settings: LogSettings,
        producer: Producer<Entry>,
        origin: Lsn,
        segments: Segments,
        report: RecoveryReport,
        cursors: Cursors,
    ) -> Result<Self> {
        let process = Process::here()?;
        Ok(Self {
            process,
            stock: Stock::new(process, settings.stock_bytes()),
            settings,
            producer,
            origin,
            marks: Marks::new(origin.previous()),
            segments,
            counters: Counters::default(),
            report,
            cursors: Mutex::new(cursors),
            upkeep: Mutex::new(()),
            close_requested: AtomicBool::new(false),
            driver: Mutex::new(None),
            turner: OnceLock::new(),
        })
    }

    pub(crate) fn attach_turner(&self, turner: Arc<Turner>) {
        // There is one for a log, and it comes before anybody appends.
        let _first = self.turner.set(turner);
    }

    pub(crate) fn turner(&self) -> Option<&Arc<Turner>> {
        self.turner.get()
    }

    /// The LSN behind everything that was claimed.
    pub(crate) fn claimed(&self) -> Lsn {
        self.lsn(self.producer.claimed())
    }

    /// Whether nobody but the driver may turn the committer any more: it is closing or has failed.
    pub(crate) fn is_winding_down(&self) -> bool {
        self.is_close_requested() || self.failure().is_some()
    }

    pub(crate) fn attach_driver(&self, wake: Arc<dyn Wake>) {
        *lock(&self.driver) = Some(wake);
    }

    pub(crate) fn wake_driver(&self) {
        let wake = lock(&self.driver).clone();
        if let Some(wake) = wake {
            wake.wake();
        }
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.marks.durable()
    }

    pub(crate) fn advance(&self, durable: Lsn) {
        self.marks.advance(durable);
    }

    pub(crate) fn failure(&self) -> Option<&Error> {
        self.marks.failure()
    }

    /// The one way into the failed state; the first cause stays.
    pub(crate) fn poison(&self, cause: Error) {
        let error = Error::new(
            ErrorKind::Poisoned,
            "the log stopped after a failed write; records that were not acknowledged may or may \
             not be durable: close it and open it again to find out",
        )
        .with("durable_lsn", self.durable().0)
        .caused_by(cause);
        if planted!("poison_not_sticky") {
            return;
        }
        self.marks.fail(error);
        self.producer.close();
        self.stock.close();
    }

    /// An orderly close: no new claims; what was claimed is still written.
    pub(crate) fn request_close(&self) {
        self.producer.close();
        self.stock.close();
        // Release: pairs with the Acquire in `is_close_requested`; the closed ring comes first.
        self.close_requested.store(true, Ordering::Release);
        self.wake_driver();
    }

    pub(crate) fn is_close_requested(&self) -> bool {
        // Acquire: pairs with the Release in `request_close`.
        self.close_requested.load(Ordering::Acquire)
    }

    fn lsn(&self, position: u64) -> Lsn {
        self.origin.plus(position)
    }

    /// What was put at `position` will be written, whether or not its caller does more for it.
    fn published(&self, position: u64) -> Lsn {
        if let Some(turner) = self.turner() {
            turner.steward.stay_awake();
        }
        self.lsn(position)
    }

    fn refused(&self, reason: Refusal) -> Error {
        if let Some(error) = self.failure() {
            return error.clone();
        }
        match reason {
            Refusal::Full | Refusal::TimedOut => Error::new(
                ErrorKind::Overloaded,
                "as many records as allowed are waiting for the disk; await append() instead, \
                 or try again later",
            )
            .with("ring_entries", self.settings.ring_entries as i64)
            .with("ring_bytes", self.settings.ring_bytes as i64),
            Refusal::TooLarge {
                bound,
                asked,
                allowed,
            } => too_large(limit_name(bound), asked, allowed),
            Refusal::Closed => closed(),
        }
    }

    /// Checks limits that waiting will not change.
    fn check(&self, payload: &Payload) -> Result<()> {
        self.process.check()?;
        Load::default().add(&self.settings, payload.len())
    }
}

/// How much an append asks for, counted record by record, so that what is too large is refused
/// before it is copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    records: usize,
    bytes: usize,
}

impl Load {
    /// Adds a record of `length` bytes, or says which limit it would break.
    #[inline]
    fn add(&mut self, settings: &LogSettings, length: usize) -> Result<()> {
        let limit = settings.record_bytes_max;
        if length > limit {
            return Err(too_large("record_bytes_max", length, limit));
        }
        self.records += 1;
        self.bytes += length + RECORD_HEADER_BYTES;
        let limit = settings.group_bytes_max + RECORD_HEADER_BYTES;
        if self.bytes > limit {
            return Err(too_large("group_bytes_max", self.bytes, limit));
        }
        Ok(())
    }
}

/// The setting that a limit of the ring comes from.
fn limit_name(bound: Bound) -> &'static str {
    match bound {
        Bound::Entries => "ring_entries",
        Bound::Bytes => "ring_bytes",
        Bound::EntryBytes => "record_bytes_max",
    }
}

fn too_large(limit: &'static str, found: usize, allowed: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "{found} is more than {limit} allows ({allowed}), and waiting will not change that"
        ),
    )
    .with_text("limit", limit)
    .with("found", found as i64)
    .with("allowed", allowed as i64)
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the log is closed; open it again")
}

/// Where a claim stands.
pub enum Claimed {
    /// In the ring: the LSN of the first record.
    Now(Lsn),
    /// The ring is full; it waits in line.
    Later(PendingAppend),
}

/// An append that waits for room in the ring, first come first served.
pub struct PendingAppend {
    admission: Arc<Admission<Entry>>,
    shared: Arc<Shared>,
}

/// How an append that had to wait in line stands.
#[derive(Debug, Clone)]
pub enum Pending {
    /// Still in line.
    Waiting,
    /// In the ring, from this LSN on.
    Admitted(Lsn),
    /// The log closed or failed first; nothing was written.
    Failed(Error),
}

impl PendingAppend {
    /// How it stands.
    pub fn state(&self) -> Pending {
        match self.admission.state() {
            AdmissionState::Waiting => Pending::Waiting,
            AdmissionState::Admitted(position) => Pending::Admitted(self.shared.lsn(position)),
            AdmissionState::Closed | AdmissionState::Cancelled => {
                Pending::Failed(self.shared.refused(Refusal::Closed))
            }
        }
    }

    /// Leaves the line. True: it was still in line and will never be written.
    pub fn cancel(&self) -> bool {
        self.admission.cancel()
    }

    /// The records of an append that left the line unwritten, to be freed by whoever drops them,
    /// and their bytes.
    pub fn take_back(&self) -> Option<(impl Send + 'static, usize)> {
        let records = self.admission.take_back()?;
        let bytes = match &records {
            Entries::One(record) => record.weight(),
            Entries::Many(records) => records.iter().map(Weigh::weight).sum(),
        };
        Some((records, bytes))
    }
}

/// The watermarks of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Claimed on the ring, in memory.
    pub appended: Lsn,
    /// In the file.
    pub committed: Lsn,
    /// Survives power loss.
    pub durable: Lsn,
}

/// Appending, for any thread.
#[derive(Clone)]
pub struct Appender(pub(crate) Arc<Shared>);

impl Appender {
    /// Puts one record on the ring and returns its LSN without waiting. `Overloaded` when full.
    ///
    /// An LSN is a place in line and no promise: a log that fails announces it before it closes
    /// the ring, and a call in between still gets one. Whoever waits for it gets the failure, as
    /// for every LSN above `durable` then. The failure is not looked at once more after claiming:
    /// it may come a moment later anyway, and a record that was claimed before an orderly close
    /// and written by it would be reported as refused.
    pub fn submit(&self, payload: Payload) -> Result<Lsn> {
        let shared = &self.0;
        shared.check(&payload)?;
        match shared.producer.try_append(Entry::single(payload)) {
            Ok(position) => Ok(shared.published(position)),
            Err(refused) => Err(shared.refused(refused.reason)),
        }
    }

    /// Puts records on the ring that will share a frame. Returns the first LSN.
    pub fn submit_many(&self, payloads: &[Payload]) -> Result<Lsn> {
        let shared = &self.0;
        let mut load = Load::default();
        for payload in payloads {
            self.admit(&mut load, payload.len())?;
        }
        let mut batch = self.batch(payloads.len(), payloads.iter().map(|p| p.len()).sum())?;
        for payload in payloads {
            batch.push(payload)?;
        }
        let batch = self.whole(batch)?;
        match shared.producer.try_append_many(batch.into_entries()) {
            Ok(position) => Ok(shared.published(position)),
            Err(refused) => Err(shared.refused(refused.reason)),
        }
    }

    /// Room for a batch of about `records` records, `bytes` bytes in all. Fails as an append would
    /// if the log takes none any more, so that what would be refused is not copied first.
    pub fn batch(&self, records: usize, bytes: usize) -> Result<Batch> {
        self.check_open()?;
        Batch::new(&self.0.stock, records, bytes)
    }

    /// Like [`submit`](Self::submit), but joins the line when the ring is full; `wake` is called
    /// once when it leaves the line other than by `cancel`.
    pub fn append(
        &self,
        payload: Payload,
        wake: impl FnOnce() -> Arc<dyn Wake>,
    ) -> Result<Claimed> {
        let shared = &self.0;
        shared.check(&payload)?;
        match shared.producer.try_append(Entry::single(payload)) {
            Ok(position) => Ok(Claimed::Now(shared.published(position))),
            Err(refused) if refused.reason == Refusal::Full => {
                self.queue(Entries::One(refused.value), wake())
            }
            Err(refused) => Err(shared.refused(refused.reason)),
        }
    }

    /// [`append`](Self::append) for records that will share a frame.
    pub fn append_many(
        &self,
        batch: Batch,
        wake: impl FnOnce() -> Arc<dyn Wake>,
    ) -> Result<Claimed> {
        let shared = &self.0;
        let batch = self.whole(batch)?;
        match shared.producer.try_append_many(batch.into_entries()) {
            Ok(position) => Ok(Claimed::Now(shared.published(position))),
            Err(refused) if refused.reason == Refusal::Full => {
                self.queue(Entries::Many(refused.value), wake())
            }
            Err(refused) => Err(shared.refused(refused.reason)),
        }
    }

    /// Counts a record of `length` bytes into `load`, or says which limit it would break. For
    /// callers that make the payloads: what is refused here need not be made.
    #[inline]
    pub fn admit(&self, load: &mut Load, length: usize) -> Result<()> {
        let capacity = self.0.producer.limits().capacity;
        load.add(&self.0.settings, length)?;
        if load.records > capacity {
            return Err(too_large("ring_entries", load.records, capacity));
        }
        Ok(())
    }

    /// Fails as an append would if the log takes none any more.
    pub fn check_open(&self) -> Result<()> {
        let shared = &self.0;
        shared.process.check()?;
        if shared.failure().is_some() || shared.producer.is_closed() {
            return Err(shared.refused(Refusal::Closed));
        }
        Ok(())
    }

    fn whole(&self, batch: Batch) -> Result<Batch> {
        self.0.process.check()?;
        if batch.is_empty() {
            return Err(Error::invalid("a batch needs at least one record"));
        }
        Ok(batch)
    }

    fn queue(&self, entries: Entries<Entry>, wake: Arc<dyn Wake>) -> Result<Claimed> {
        let shared = &self.0;
        match shared.producer.append_or_queue(entries, wake) {
            Ok(Claim::Now(position)) => Ok(Claimed::Now(shared.published(position))),
            Ok(Claim::Later(admission)) => Ok(Claimed::Later(PendingAppend {
                admission,
                shared: Arc::clone(shared),
            })),
            Err(refused) => Err(shared.refused(refused.reason)),
        }
    }

    /// The watermarks now. `appended` may lie above records that are still being published.
    pub fn marks(&self) -> Watermarks {
        let durable = self.0.marks.durable();
        let committed = self.0.marks.committed().max(durable);
        let claimed = self.0.claimed().previous();
        Watermarks {
            appended: claimed.max(committed),
            committed,
            durable,
        }
    }

    /// Why nothing is acknowledged any more: the poison, or closed.
    pub fn failure(&self) -> Option<Error> {
        self.0.failure().cloned()
    }

    /// A watch that is woken when a mark moves or the log fails.
    pub fn watch(&self, wake: Arc<dyn Wake>) -> Arc<Watch> {
        self.0.marks.watch(wake)
    }

    /// Waits on a plain thread, or on the thread of a loop that turns the committer itself.
    pub fn wait(&self, level: Level, lsn: Lsn, timeout: Option<Duration>) -> Result<()> {
        self.0.process.check()?;
        let Some(turner) = self.0.turner() else {
            return self.0.marks.wait(level, lsn, timeout);
        };
        let reached = || self.0.marks.reached(level, lsn);
        turner.wait(&self.0, timeout, &|| reached().is_some());
        reached().unwrap_or_else(|| Err(timed_out(lsn)))
    }

    /// Whether appends are carried out by whoever appends or waits, so that [`urge`](Self::urge)
    /// and [`turn`](Self::turn) mean anything.
    pub fn is_turned_by_callers(&self) -> bool {
        self.0.turner().is_some()
    }

    /// Who turns the committer now, if that is not always its own thread.
    pub fn turned_by(&self) -> Option<Driver> {
        let is_led = self.0.turner()?.is_led();
        Some(if is_led { Driver::Thread } else { Driver::Loop })
    }

    /// Whether a turn by anybody may do something now, rather than be done without them.
    pub fn needs_turns(&self) -> bool {
        self.0.turner().is_some_and(|turner| !turner.is_led())
    }

    /// After an append on the thread of an event loop, whose `bell` the kernel shall raise: what
    /// should go to the disk at once goes. True: call [`turn`](Self::turn) when this iteration of
    /// the loop is over.
    pub fn urge(&self, bell: &Arc<Doorbell>) -> bool {
        let turner = self.0.turner();
        turner.is_some_and(|turner| turner.urge(&self.0, bell))
    }

    /// The loop with this bell is gone; others see to what it left.
    pub fn forget(&self, bell: &Arc<Doorbell>) {
        if let Some(turner) = self.0.turner() {
            turner.forget(&self.0, bell);
        }
    }

    /// Does what can be done for the log without waiting.
    pub fn turn(&self) {
        if let Some(turner) = self.0.turner() {
            turner.turn_now(&self.0, Who::Guest);
        }
    }

    /// Turns the committer, waiting for the disk, until `is_over` or `timeout`. False if nobody
    /// but the driver's thread may: then the caller has to wait by other means.
    pub fn assist(&self, timeout: Duration, is_over: &dyn Fn() -> bool) -> bool {
        let Some(turner) = self.0.turner() else {
            return false;
        };
        turner.wait(&self.0, Some(timeout), is_over);
        true
    }

    /// What was done since the open.
    pub fn counts(&self) -> Counts {
        self.0.counters.snapshot()
    }

    /// Its readers as pins, and the dropped segments that wait for them as deferred work.
    pub fn reclamation(&self) -> epoch::Statistics {
        self.0.segments.catalogue().statistics()
    }

    /// Fails with `Forked` in a child of the process that opened the log.
    pub fn check_process(&self) -> Result<()> {
        self.0.process.check()
    }

    /// Asks for an orderly close: no new claims; what was claimed is still written.
    pub fn request_close(&self) {
        self.0.request_close();
    }

    /// How many segments can be read.
    pub fn segments_count(&self) -> usize {
        self.0.segments.count()
    }

    /// What recovery found.
    pub fn report(&self) -> &RecoveryReport {
        &self.0.report
    }

    /// The settings in force.
    pub fn settings(&self) -> &LogSettings {
        &self.0.settings
    }

    /// The first LSN that can be read.
    pub fn first_lsn(&self) -> Lsn {
        self.0.segments.first()
    }
}
