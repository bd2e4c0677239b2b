//! A log on the machine's own disk: opened, driven by its thread, read, truncated, closed.
//!
//! Everything here may wait for the disk and is meant for plain threads; an event loop uses the
//! [`Appender`] and hands the rest to a worker.

use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    error::{Error, ErrorKind, Result},
    ids::Lsn,
    io::{Backend, Blocking, Disk, File},
    sync::{Arc, Mutex, lock},
};

use super::{
    choose::{self, Candidate, Measured},
    cursor::{self, Mark},
    driver,
    log::Appender,
    marks::Level,
    open::{self, Manner, World},
    reader::{Batch, Reader},
    settings::{CommitPath, Driver, LogSettings},
    truncate,
};

/// How an open log reaches the disk.
#[derive(Debug, Clone)]
pub struct Way {
    /// The chosen path.
    pub path: CommitPath,
    /// `uring`, `uring-plain` or `threads`.
    pub backend: &'static str,
    /// Groups that may be in flight at once.
    pub window: u32,
    /// Who turns the committer.
    pub driver: Driver,
    /// What every candidate cost, or why it was refused.
    pub measured: Vec<Measured>,
}

/// An open log.
pub struct Log {
    appender: Appender,
    tools: Arc<dyn Disk>,
    dir: File,
    location: PathBuf,
    way: Option<Way>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log in `location` and starts its thread. `candidates` are the ways to the disk
    /// that may be taken; a single one is forced.
    pub fn open(
        world: &World,
        location: &Path,
        settings: LogSettings,
        candidates: &[Candidate],
    ) -> Result<Self> {
        let mut chosen = None;
        let block = settings.block_bytes;
        let opened = open::open(world, location, settings, || {
            let (at, measured) = choose::choose(&*world.disk, location, candidates, block)?;
            let Candidate {
                path,
                backend,
                window,
                driver,
                ..
            } = candidates[at];
            let way = Way {
                path,
                backend,
                window,
                driver,
                measured,
            };
            chosen = Some((at, way));
            Ok(Manner {
                window,
                direct: path == CommitPath::Direct,
            })
        })?;
        let Some((at, way)) = chosen else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "no way to the disk was chosen",
            ));
        };
        let thread = driver::spawn(
            opened.committer,
            opened.appender.clone(),
            &candidates[at],
            opened.lock,
        )?;
        Ok(Self {
            appender: opened.appender,
            tools: Arc::clone(&world.disk),
            dir: opened.dir,
            location: location.to_owned(),
            way: Some(way),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Opens the log in `location` as it is, beside a living owner or without one. Takes no lock
    /// and changes nothing; sees what was durable when it was opened.
    pub fn open_read_only(world: &World, location: &Path, settings: LogSettings) -> Result<Self> {
        let (appender, dir) = open::open_read_only(world, location, settings)?;
        Ok(Self {
            appender,
            tools: Arc::clone(&world.disk),
            dir,
            location: location.to_owned(),
            way: None,
            thread: Mutex::new(None),
        })
    }

    /// Whether it was opened to read only.
    pub fn is_read_only(&self) -> bool {
        self.way.is_none()
    }

    fn check_writable(&self) -> Result<()> {
        self.appender.check_process()?;
        match (self.way.is_some(), self.appender.failure()) {
            (true, None) => Ok(()),
            (true, Some(error)) => Err(error),
            (false, _) => Err(open::read_only()),
        }
    }

    /// For appending and waiting.
    pub fn appender(&self) -> &Appender {
        &self.appender
    }

    /// Where the log lies.
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// How it reaches the disk; `None` if it was opened to read only.
    pub fn way(&self) -> Option<&Way> {
        self.way.as_ref()
    }

    /// Waits until everything appended before this call is durable; returns the durable LSN.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<Lsn> {
        let target = self.appender.marks().appended;
        self.appender.wait(Level::Durable, target, timeout)?;
        Ok(self.appender.marks().durable)
    }

    /// A reader from `start` up to but not including `stop`.
    pub fn reader(&self, start: Lsn, stop: Option<Lsn>) -> Result<LogReader> {
        self.appender.check_process()?;
        let first = self.appender.first_lsn();
        if start < first && start != Lsn::FIRST {
            return Err(truncate::truncated(start, first));
        }
        let catalogue = Arc::clone(self.appender.0.segments.catalogue());
        let reader = Reader::new(catalogue, self.dir.clone(), start.max(first), stop)?;
        Ok(LogReader {
            appender: self.appender.clone(),
            backend: self.tools.backend()?,
            reader,
        })
    }

    /// Drops whole segments below `lsn`, never above a cursor that holds truncation back. Returns
    /// the first LSN left. A segment's file goes when its last reader lets go.
    pub fn truncate_before(&self, lsn: Lsn) -> Result<Lsn> {
        let _one_at_a_time = lock(&self.appender.0.upkeep);
        self.check_writable()?;
        let held = lock(&self.appender.0.cursors)
            .held_from()
            .filter(|_| !planted!("cursors_hold_nothing"));
        let lsn = held.map_or(lsn, |held| held.min(lsn));
        let first = self.appender.0.segments.drop_below(lsn);
        self.remove_files()?;
        Ok(first)
    }

    /// Removes files of dropped segments whose last reader has let go since.
    pub fn sweep(&self) -> Result<()> {
        if !self.appender.0.segments.is_removal_due() {
            return Ok(());
        }
        let _one_at_a_time = lock(&self.appender.0.upkeep);
        // A log that is closed or has failed no longer holds its lock.
        if self.check_writable().is_err() {
            return Ok(());
        }
        self.remove_files()
    }

    fn remove_files(&self) -> Result<()> {
        let mut backend = self.tools.backend()?;
        let mut io = Blocking::new(&mut *backend);
        let gone = self.appender.0.segments.remove_files(&mut io, &self.dir)?;
        self.appender.0.counters.removed(gone);
        Ok(())
    }

    /// The cursor's position, or `None` if it has never been committed.
    pub fn cursor(&self, name: &str) -> Result<Option<Mark>> {
        cursor::check_name(name)?;
        Ok(lock(&self.appender.0.cursors).get(name))
    }

    /// Makes a cursor's position durable. Positions only move forward and never above what is
    /// durable: an LSN above it may be given out again after a crash.
    pub fn commit_cursor(&self, name: &str, mark: Mark) -> Result<()> {
        let _one_at_a_time = lock(&self.appender.0.upkeep);
        self.check_writable()?;
        cursor::check_name(name)?;
        let durable = self.appender.marks().durable;
        if mark.position > durable {
            return Err(
                Error::invalid("a cursor cannot stand above what is durable")
                    .with("lsn", mark.position.0)
                    .with("durable_lsn", durable.0),
            );
        }
        // Written on a copy: event loops look at the cursors while the disk is waited for.
        let mut cursors = lock(&self.appender.0.cursors).clone();
        if let Some(old) = cursors.get(name).filter(|old| old.position > mark.position) {
            return Err(Error::invalid("a cursor only moves forward")
                .with("lsn", mark.position.0)
                .with("position", old.position.0));
        }
        let mut backend = self.tools.backend()?;
        cursors.set(&mut Blocking::new(&mut *backend), &self.dir, name, mark)?;
        *lock(&self.appender.0.cursors) = cursors;
        Ok(())
    }

    /// Writes what was claimed, marks the clean close, releases the lock. Idempotent; a second
    /// caller waits for the first. Returns the poison if the log had failed.
    ///
    /// Files of dropped segments go, also those that a reader holds: nobody else would remove
    /// them, and the next open would count them as there.
    pub fn close(&self) -> Result<()> {
        self.appender.check_process()?;
        if !planted!("close_leaves_what_readers_hold") {
            self.appender.0.segments.release_dropped();
        }
        let swept = self.sweep();
        self.appender.request_close();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the thread has been caught and is reported below.
            let _joined = thread.join();
        }
        match self.appender.failure() {
            _ if self.is_read_only() => Ok(()),
            Some(error) if error.kind() != ErrorKind::Closed => Err(error),
            _ => swept,
        }
    }

    /// Asks for a close without waiting for it; for finalizers.
    pub fn request_close(&self) {
        self.appender.request_close();
    }

    /// Whether nothing has to be closed any more. Waits for nobody, also not for a close.
    pub fn is_over(&self) -> bool {
        self.is_read_only() || self.thread.try_lock().is_ok_and(|thread| thread.is_none())
    }

    /// The driver's thread, for who waits elsewhere for its end; a close does not any more.
    pub fn take_thread(&self) -> Option<JoinHandle<()>> {
        lock(&self.thread).take()
    }

    /// Whether the driver's thread has ended.
    pub fn is_stopped(&self) -> bool {
        lock(&self.thread)
            .as_ref()
            .is_none_or(JoinHandle::is_finished)
    }
}

/// A reader with a backend of its own. Its calls wait for the disk.
pub struct LogReader {
    appender: Appender,
    backend: Box<dyn Backend>,
    reader: Reader,
}

impl LogReader {
    /// The next records, at most `records_max`, none above what is durable now. `None`: there are
    /// none yet.
    pub fn next_batch(&mut self, records_max: usize) -> Result<Option<Batch>> {
        let durable = self.appender.marks().durable;
        let mut io = Blocking::new(&mut *self.backend);
        self.reader.next_batch(&mut io, durable, records_max)
    }

    /// Holds nothing back any more; for a reader that is about to be dropped elsewhere.
    pub fn let_go(&self) {
        self.reader.let_go();
    }

    /// LSN of the next record it gives.
    pub fn position(&self) -> Lsn {
        self.reader.position()
    }

    /// Whether it has given everything below its stop.
    pub fn is_finished(&self) -> bool {
        self.reader.is_finished()
    }
}
