//! The log as a subject of the simulated disk's explorer: opened, driven by hand, killed, opened
//! again, and never trusted.
//!
//! It looks at the log only through what a user could see: LSNs given out, the durable mark, and
//! the records that a reader shows.

use std::path::Path;

use crate::{
    error::{Error, Result},
    ids::{Lsn, StoreId},
    io::{Backend, Blocking, Disk, File, Wait, Wanted},
    sim::{Book, LIVENESS, Ledger, SimDisk, Subject, Verdict, Violation},
    sync::{Arc, lock},
};

use super::{
    commit::Next,
    cursor::{Cursors, Mark},
    lock::{Census, Holder},
    open::{self, Manner, Opened, World},
    reader::{Batch, Catalogue, Reader},
    recovery,
    settings::LogSettings,
};

const PATH: &str = "/log";
const CURSOR: &str = "c";
const CHUNK_BYTES: usize = 8 << 10;

/// Nobody is alive but us.
pub(crate) struct Alone;

impl Census for Alone {
    fn myself(&self) -> Holder {
        Holder {
            pid: 1,
            started: 1,
            boot: "sim".to_owned(),
        }
    }

    fn is_alive(&self, _: &Holder) -> bool {
        false
    }
}

/// How the log under test is set up.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Its settings.
    pub settings: LogSettings,
    /// Groups in flight, and whether past the page cache.
    pub manner: Manner,
}

impl Trial {
    /// 512-byte blocks, a first segment of 4 KiB that a few records fill, then 32 KiB.
    pub fn new(manner: Manner) -> Self {
        let settings = LogSettings {
            segment_bytes: 32 << 10,
            segment_first_bytes: 4 << 10,
            record_bytes_max: 3 << 10,
            group_bytes_max: 6 << 10,
            ring_entries: 16,
            ring_bytes: 16 << 10,
            block_bytes: 512,
            ..LogSettings::default()
        };
        Self { settings, manner }
    }

    /// Segments that one [`Op::Fill`] fills, so that truncated ones are soon used again.
    #[must_use]
    pub fn with_small_segments(mut self) -> Self {
        self.settings.segment_bytes = 8 << 10;
        self.settings.segment_first_bytes = 8 << 10;
        self
    }
}

/// Something to do with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// One record, waited for.
    Append(usize),
    /// A batch of records in one frame, waited for.
    Batch([usize; 2]),
    /// Two records, the second given while the first is in flight; both waited for.
    Pair(usize, usize),
    /// Waits for everything, preparation included, and rests until the watermark is stated.
    Rest,
    /// Enough to fill the first segment and begin the next.
    Rotate,
    /// Drops what can be dropped of the records so far.
    Truncate,
    /// Moves a cursor to the last durable record.
    Cursor,
    /// An orderly close, and an open by the same process.
    Reopen,
    /// A batch that leaves no room for another in a segment.
    Fill,
}

impl Op {
    /// Payloads that with their headers make one block less a byte, one block, one more, three.
    pub const SIZES: [usize; 5] = [1, 439, 440, 441, 1464];

    /// What it takes until a truncated segment of this opening is written again.
    pub fn recycling() -> Vec<Self> {
        use Op::{Fill, Rest, Truncate};
        vec![Fill, Fill, Rest, Truncate, Fill, Fill]
    }

    /// What workloads are made of.
    pub fn alphabet() -> Vec<Self> {
        let sizes = Self::SIZES.into_iter().map(Self::Append);
        let others = [
            Self::Batch([1, 441]),
            Self::Pair(439, 441),
            Self::Rest,
            Self::Rotate,
            Self::Truncate,
            Self::Cursor,
            Self::Reopen,
        ];
        sizes.chain(others).collect()
    }
}

/// An open log and the backend that drives it.
pub struct Session {
    opened: Opened,
    backend: Box<dyn Backend>,
    acknowledged: Lsn,
}

fn refused(doing: &str, error: &Error) -> Violation {
    Violation::new(LIVENESS, format!("{doing}: {error}"))
}

/// All records from `first` to below `next`, through the reader.
fn read(
    io: &mut Blocking<'_>,
    catalogue: Arc<Catalogue>,
    dir: File,
    first: Lsn,
    next: Lsn,
) -> Result<Vec<Batch>> {
    let mut batches = Vec::new();
    if first >= next {
        return Ok(batches);
    }
    let mut reader = Reader::new(catalogue, dir, first, Some(next))?.with_chunk(CHUNK_BYTES);
    while let Some(batch) = reader.next_batch(io, next.previous(), usize::MAX)? {
        batches.push(batch);
    }
    Ok(batches)
}

fn hold_against(book: &Book, first: Lsn, batches: &[Batch], next: Lsn) -> Verdict {
    let records = batches.iter().flat_map(|batch| {
        let lsns = batch.first().0..;
        lsns.zip(batch.payloads())
    });
    book.with(|ledger| ledger.recovered(first.0, records, next.0))
}

fn show_cursor(book: &Book, cursor: Option<Mark>) -> Verdict {
    let position = cursor.map_or(0, |mark| mark.position.0);
    book.with(|ledger| ledger.cursor_recovered(position))
}

impl Session {
    fn begin(trial: &Trial, disk: &SimDisk) -> Result<Self> {
        let world = World {
            clock: Arc::new(disk.clock()),
            disk: Arc::new(disk.clone()),
            census: Box::new(Alone),
            fresh_id: StoreId(*b"of the simulator"),
            wanted: Wanted::default(),
        };
        let settings = trial.settings.clone();
        let opened = open::open(&world, Path::new(PATH), settings, || Ok(trial.manner))?;
        let mut backend = disk.backend()?;
        backend.hold(&opened.lock)?;
        opened.committer.attach(&*backend);
        let acknowledged = opened.appender.marks().durable;
        Ok(Self {
            opened,
            backend,
            acknowledged,
        })
    }

    fn show(&mut self, disk: &SimDisk, book: &Book) -> Verdict {
        let appender = &self.opened.appender;
        let (first, next) = (appender.first_lsn(), appender.marks().durable.plus(1));
        let catalogue = Arc::clone(appender.0.segments.catalogue());
        let shown = disk.backend().and_then(|mut backend| {
            let io = &mut Blocking::new(&mut *backend);
            read(io, catalogue, self.opened.dir.clone(), first, next)
        });
        let shown = shown.map_err(|error| refused("read", &error))?;
        hold_against(book, first, &shown, next)?;
        let cursor = lock(&appender.0.cursors).get(CURSOR);
        show_cursor(book, cursor)
    }

    fn give(&mut self, book: &Book, lengths: &[usize]) -> Verdict<Lsn> {
        let expected = book.with(|ledger| ledger.next_lsn());
        let values = book.with(|ledger| ledger.give(lengths));
        let mut values = values.into_iter().map(Vec::into_boxed_slice);
        let first = match (values.next(), lengths.len()) {
            (Some(value), 1) => self.opened.appender.submit(value),
            (first, _) => self
                .opened
                .appender
                .submit_many(&first.into_iter().chain(values).collect::<Vec<_>>()),
        };
        let first = first.map_err(|error| refused("submit", &error))?;
        if first.0 != expected {
            let text = format!("LSN {first} was given out, {expected} was due");
            return Err(Violation::new("O2", text));
        }
        Ok(first.plus(lengths.len() as u64).previous())
    }

    /// One turn; whether the committer is done, or else how long it would wait.
    fn turn(&mut self, disk: &SimDisk, book: &Book) -> Verdict<Next> {
        let next = self.opened.committer.turn(&mut *self.backend);
        let durable = self.opened.appender.marks().durable;
        if durable > self.acknowledged {
            self.acknowledged = durable;
            book.acknowledge(disk, durable.0)?;
        }
        match self.opened.appender.failure() {
            Some(error) => Err(self.stopped(disk, book, &error)),
            None => Ok(next),
        }
    }

    /// The log failed: nothing is acknowledged and nothing is taken any more.
    fn stopped(&mut self, disk: &SimDisk, book: &Book, cause: &Error) -> Violation {
        book.with(Ledger::fail);
        let refusal = self.opened.appender.submit(vec![1].into());
        if refusal.is_ok() {
            return Violation::new("O6", "a failed log takes a record");
        }
        for _ in 0..8 {
            let next = self.opened.committer.turn(&mut *self.backend);
            let durable = self.opened.appender.marks().durable;
            if let Err(violation) = book.acknowledge(disk, durable.0) {
                return violation;
            }
            if next == Next::Done || self.backend.in_flight() == 0 {
                break;
            }
            self.opened.committer.wait(&mut *self.backend, Wait::Never);
        }
        refused("turn", cause)
    }

    /// Turns until `is_enough`, or until nothing is in flight and nothing is left to do.
    fn drive(
        &mut self,
        disk: &SimDisk,
        book: &Book,
        is_enough: impl Fn(&Self) -> bool,
    ) -> Verdict<Next> {
        loop {
            let next = self.turn(disk, book)?;
            let idle = self.backend.in_flight() == 0;
            match next {
                Next::Done => return Ok(next),
                Next::Wait(_) if is_enough(self) => return Ok(next),
                Next::Wait(Wait::Never) => {
                    self.opened.committer.wait(&mut *self.backend, Wait::Never);
                }
                Next::Wait(_) if idle => return Ok(next),
                Next::Wait(wait) => self.opened.committer.wait(&mut *self.backend, wait),
            }
        }
    }

    fn wait_for(&mut self, disk: &SimDisk, book: &Book, lsn: Lsn) -> Verdict {
        self.drive(disk, book, |session| session.acknowledged >= lsn)?;
        if self.acknowledged >= lsn {
            return Ok(());
        }
        let text = format!(
            "LSN {lsn} is never acknowledged, stuck at {}",
            self.acknowledged
        );
        Err(Violation::new(LIVENESS, text))
    }

    fn append(&mut self, disk: &SimDisk, book: &Book, lengths: &[usize]) -> Verdict {
        let last = self.give(book, lengths)?;
        self.wait_for(disk, book, last)
    }

    fn rest(&mut self, disk: &SimDisk, book: &Book) -> Verdict {
        while let Next::Wait(wait @ Wait::Until(_)) = self.drive(disk, book, |_| false)? {
            self.opened.committer.wait(&mut *self.backend, wait);
        }
        Ok(())
    }

    fn truncate(&mut self, disk: &SimDisk, book: &Book) -> Verdict {
        let lsn = self.acknowledged.plus(1);
        book.with(|ledger| ledger.truncate(lsn.0));
        let segments = &self.opened.appender.0.segments;
        segments.drop_below(lsn);
        let removed = disk.backend().and_then(|mut backend| {
            segments.remove_files(&mut Blocking::new(&mut *backend), &self.opened.dir)
        });
        removed
            .map(drop)
            .map_err(|error| refused("truncate", &error))
    }

    fn move_cursor(&mut self, disk: &SimDisk, book: &Book) -> Verdict {
        let position = self.acknowledged;
        book.with(|ledger| ledger.move_cursor(position.0));
        let mark = Mark {
            position,
            holds_truncation: false,
        };
        let mut cursors = lock(&self.opened.appender.0.cursors);
        let moved = disk.backend().and_then(|mut backend| {
            let io = &mut Blocking::new(&mut *backend);
            cursors.set(io, &self.opened.dir, CURSOR, mark)
        });
        moved.map_err(|error| refused("move a cursor", &error))?;
        book.with(Ledger::cursor_moved);
        Ok(())
    }

    fn close(&mut self, disk: &SimDisk, book: &Book) -> Verdict {
        self.opened.appender.0.request_close();
        let next = self.drive(disk, book, |_| false)?;
        if next != Next::Done {
            return Err(Violation::new(
                LIVENESS,
                format!("a close ends with {next:?}"),
            ));
        }
        if self.backend.in_flight() > 0 {
            let text = "a close leaves a request in flight";
            return Err(Violation::new(LIVENESS, text));
        }
        self.backend.let_go();
        let unlocked = Blocking::new(&mut *self.backend).unlock(&self.opened.lock);
        unlocked.map_err(|error| refused("unlock", &error))
    }
}

impl Subject for Trial {
    type Session = Session;
    type Op = Op;

    fn open(&self, disk: &SimDisk, book: &Book) -> Verdict<Session> {
        let mut session = Session::begin(self, disk).map_err(|error| refused("open", &error))?;
        session.show(disk, book)?;
        Ok(session)
    }

    fn perform(&self, disk: &SimDisk, session: &mut Session, op: &Op, book: &Book) -> Verdict {
        match op {
            Op::Append(length) => session.append(disk, book, &[*length]),
            Op::Batch(lengths) => session.append(disk, book, lengths),
            Op::Fill => session.append(disk, book, &[2900, 2900]),
            Op::Pair(first, second) => {
                session.give(book, &[*first])?;
                session.turn(disk, book)?;
                session.append(disk, book, &[*second])
            }
            Op::Rest => session.rest(disk, book),
            Op::Rotate => {
                session.append(disk, book, &[1464])?;
                session.append(disk, book, &[1464])
            }
            Op::Truncate => session.truncate(disk, book),
            Op::Cursor => session.move_cursor(disk, book),
            Op::Reopen => {
                session.close(disk, book)?;
                *session = self.open(disk, book)?;
                Ok(())
            }
        }
    }

    /// Recovers and reads, without opening for writing.
    fn probe(&self, disk: &SimDisk, book: &Book) -> Verdict {
        let shown = || {
            let mut backend = disk.backend()?;
            let io = &mut Blocking::new(&mut *backend);
            let dir = match io.open_dir(Path::new(PATH), false) {
                Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
                dir => dir?,
            };
            let recovered = recovery::recover(io, &dir, self.settings.recovery)?;
            let catalogue = Arc::new(Catalogue::new(&recovered));
            let cursor = Cursors::load(io, &dir, false)?.get(CURSOR);
            let batches = read(io, catalogue, dir, recovered.first, recovered.next)?;
            Ok(Some((recovered.first, batches, recovered.next, cursor)))
        };
        let empty = (Lsn::FIRST, Vec::new(), Lsn::FIRST, None);
        let shown = shown().map_err(|error: Error| refused("recover", &error))?;
        let (first, batches, next, cursor) = shown.unwrap_or(empty);
        hold_against(book, first, &batches, next)?;
        show_cursor(book, cursor)
    }

    fn next_ops(&self, draw: u64) -> Vec<Op> {
        let size = |shift: u32| Op::SIZES[(draw >> shift) as usize % Op::SIZES.len()];
        match draw % 9 {
            0 | 1 => vec![Op::Append(size(3))],
            2 => vec![Op::Pair(size(3), size(6))],
            3 => vec![Op::Append(size(3)), Op::Pair(size(6), size(9))],
            4 => vec![Op::Batch([size(3), size(6)])],
            5 => vec![Op::Rotate],
            6 => vec![Op::Append(size(3)), Op::Cursor, Op::Cursor],
            7 => vec![Op::Append(size(3)), Op::Reopen, Op::Append(size(6))],
            _ => vec![Op::Append(size(3)), Op::Rest, Op::Truncate],
        }
    }
}
