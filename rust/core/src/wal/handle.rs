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
    ids::{Lsn, SegmentId},
    io::{Blocking, Disk, File},
    sync::{Arc, Mutex, lock},
};

use super::{
    choose::{self, Candidate, Measured},
    cursor::{self, Mark},
    driver,
    log::Appender,
    marks::Level,
    open::{self, Manner, World},
    reader::Reader,
    segment,
    settings::{CommitPath, LogSettings},
};

/// How an open log reaches the disk.
#[derive(Debug, Clone)]
pub struct Way {
    /// The chosen path.
    pub path: CommitPath,
    /// What every candidate cost, or why it was refused.
    pub measured: Vec<Measured>,
}

/// An open log.
pub struct Log {
    appender: Appender,
    tools: Arc<dyn Disk>,
    dir: File,
    location: PathBuf,
    way: Way,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// One truncation or cursor commit at a time: both decide by what the other changes.
    upkeep: Mutex<()>,
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
            let path = candidates[at].path;
            chosen = Some((at, Way { path, measured }));
            Ok(Manner {
                window: path.window(),
                direct: path == CommitPath::Direct,
            })
        })?;
        let Some((at, way)) = chosen else {
            return Err(Error::new(ErrorKind::Invalid, "no way to the disk was chosen"));
        };
        let thread = driver::spawn(
            opened.committer,
            opened.appender.clone(),
            Arc::clone(&candidates[at].disk),
            opened.lock,
        )?;
        Ok(Self {
            appender: opened.appender,
            tools: Arc::clone(&world.disk),
            dir: opened.dir,
            location: location.to_owned(),
            way,
            thread: Mutex::new(Some(thread)),
            upkeep: Mutex::new(()),
        })
    }

    /// For appending and waiting.
    pub fn appender(&self) -> &Appender {
        &self.appender
    }

    /// Where the log lies.
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// How it reaches the disk.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Waits until everything appended before this call is durable; returns the durable LSN.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<Lsn> {
        let target = self.appender.marks().appended;
        self.appender.wait(Level::Durable, target, timeout)?;
        Ok(self.appender.marks().durable)
    }

    /// A reader from `start` up to but not including `stop`.
    pub fn reader(&self, start: Lsn, stop: Option<Lsn>) -> Result<LogReader> {
        LogReader::new(&self.appender, &self.tools, &self.dir, start, stop)
    }

    /// Drops whole segments below `lsn`, never above a cursor that holds truncation back. Returns
    /// the first LSN left. A segment's file goes when its last reader lets go.
    pub fn truncate_before(&self, lsn: Lsn) -> Result<Lsn> {
        let _one_at_a_time = lock(&self.upkeep);
        let held = lock(&self.appender.0.cursors).held_from();
        let lsn = held.map_or(lsn, |held| held.min(lsn));
        let first = self.appender.0.segments.truncate(lsn);
        self.remove_doomed()?;
        Ok(first)
    }

    /// Removes files that nobody reads any more, oldest first, each durable before the next.
    fn remove_doomed(&self) -> Result<()> {
        let mut backend = self.tools.backend()?;
        let mut io = Blocking::new(&mut *backend);
        while let Some(id) = self.appender.0.segments.next_to_remove() {
            remove_segment(&mut io, &self.dir, id)?;
            self.appender.0.segments.removed(id);
            self.appender.0.counters.cut(true);
        }
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
        cursor::check_name(name)?;
        let durable = self.appender.marks().durable;
        if mark.position > durable {
            return Err(Error::invalid("a cursor cannot stand above what is durable")
                .with("lsn", mark.position.0)
                .with("durable_lsn", durable.0));
        }
        let _one_at_a_time = lock(&self.upkeep);
        let mut cursors = lock(&self.appender.0.cursors);
        if let Some(old) = cursors.get(name).filter(|old| old.position > mark.position) {
            return Err(Error::invalid("a cursor only moves forward")
                .with("lsn", mark.position.0)
                .with("position", old.position.0));
        }
        let mut backend = self.tools.backend()?;
        cursors.set(&mut Blocking::new(&mut *backend), &self.dir, name, mark)
    }

    /// Writes what was claimed, marks the clean close, releases the lock. Idempotent; a second
    /// caller waits for the first. Returns the poison if the log had failed.
    pub fn close(&self) -> Result<()> {
        self.appender.0.request_close();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the thread has been caught and is reported below.
            let _joined = thread.join();
            self.remove_doomed_at_close();
        }
        match self.appender.failure() {
            Some(error) if error.kind() != ErrorKind::Closed => Err(error),
            _ => Ok(()),
        }
    }

    /// What readers still hold stays for the next truncation to find; nothing else is lost.
    fn remove_doomed_at_close(&self) {
        let removed = self.remove_doomed();
        self.appender.0.counters.cut(removed.is_ok());
    }

    /// Asks for a close without waiting for it; for finalizers.
    pub fn request_close(&self) {
        self.appender.0.request_close();
    }

    /// Whether the driver's thread has ended.
    pub fn is_stopped(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(JoinHandle::is_finished)
    }
}

fn remove_segment(io: &mut Blocking<'_>, dir: &File, id: SegmentId) -> Result<()> {
    match io.unlink(dir, &segment::segment_name(id)) {
        Err(error) if error.errno() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    io.sync_dir(dir)
}
