//! A log of a hundred lines, right or with one planted defect, to prove that the enumeration and
//! the oracles find what they are made to find.

use std::{path::Path, time::Duration};

use super::super::*;
use crate::{
    codec::{crc32c, get_u32, get_u64, put},
    error::{ErrorKind, Result},
    io::{Access, Backend, Blocking, Buffer, Disk, File},
};

const BYTES: usize = 24 * SECTOR;
const HEADER: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    AcknowledgesBeforeFlush,
    KeepsTailWithoutChain,
    ForgetsDirectory,
    RenamesBeforeFlush,
    RewritesLastSector,
    ShowsUnflushed,
    HoldsNoLock,
}

struct Toy(Defect);

struct Session {
    backend: Box<dyn Backend>,
    _lock: File,
    file: File,
    end: usize,
    crc: u32,
    next: u64,
}

type Shown = Vec<(u64, Vec<u8>)>;

#[derive(Debug, Clone)]
enum Op {
    /// One record per length, all written, then one flush.
    Append(Vec<usize>),
}

fn frame(bytes: &[u8], seed: u32) -> Option<(u32, u64, &[u8])> {
    let length = get_u32(bytes, 4) as usize;
    let whole = bytes.get(..HEADER + length).filter(|_| length > 0)?;
    let crc = crc32c(seed, &whole[4..]);
    (crc == get_u32(bytes, 0)).then(|| (crc, get_u64(bytes, 8), &whole[HEADER..]))
}

impl Toy {
    fn seed(&self, crc: u32) -> u32 {
        if self.0 == Defect::KeepsTailWithoutChain {
            1
        } else {
            crc
        }
    }

    fn lock(&self, io: &mut Blocking<'_>, dir: &File) -> Result<File> {
        let access = Access {
            open: crate::io::Open::Any,
            ..Access::CREATE
        };
        let lock = io.open(dir, "LOCK", access)?;
        while let Err(error) = io.lock(&lock) {
            if error.kind() != ErrorKind::Locked {
                return Err(error);
            }
            io.sleep(Duration::from_millis(1))?;
        }
        if self.0 != Defect::HoldsNoLock {
            io.hold(&lock)?;
        }
        Ok(lock)
    }

    fn make(&self, io: &mut Blocking<'_>, dir: &File) -> Result<()> {
        let access = Access {
            open: crate::io::Open::Any,
            ..Access::CREATE
        };
        let file = io.open(dir, "toy.tmp", access)?;
        io.write(&file, 0, BYTES, Buffer::zeroed(BYTES), false)?;
        if self.0 == Defect::RenamesBeforeFlush {
            io.rename(dir, "toy.tmp", "toy.log")?;
            io.sync_dir(dir)?;
            return io.sync(&file);
        }
        io.sync(&file)?;
        io.rename(dir, "toy.tmp", "toy.log")?;
        if self.0 != Defect::ForgetsDirectory {
            io.sync_dir(dir)?;
        }
        Ok(())
    }

    fn recover(&self, disk: &SimDisk) -> Result<(Session, Shown)> {
        let mut backend = disk.backend()?;
        let mut io = Blocking::new(&mut *backend);
        let dir = io.open_dir(Path::new("/toy"), true)?;
        let lock = self.lock(&mut io, &dir)?;
        if !io.list(&dir)?.contains(&"toy.log".to_owned()) {
            self.make(&mut io, &dir)?;
        }
        let file = io.open(&dir, "toy.log", Access::WRITE)?;
        if self.0 != Defect::ShowsUnflushed {
            io.sync(&file)?;
        }
        let (_, bytes) = io.read(&file, 0, BYTES, Buffer::zeroed(BYTES))?;
        let (mut end, mut crc, mut shown) = (0, 1, Vec::new());
        while let Some((next, lsn, payload)) = frame(&bytes[end..], self.seed(crc)) {
            if lsn != shown.len() as u64 + 1 {
                break;
            }
            shown.push((lsn, payload.to_vec()));
            crc = next;
            end += (HEADER + payload.len()).next_multiple_of(SECTOR);
        }
        if self.0 != Defect::KeepsTailWithoutChain && bytes[end..].iter().any(|byte| *byte != 0) {
            io.write(&file, end as u64, BYTES - end, Buffer::zeroed(BYTES), false)?;
            io.sync(&file)?;
        }
        let next = shown.len() as u64 + 1;
        Ok((
            Session {
                backend,
                _lock: lock,
                file,
                end,
                crc,
                next,
            },
            shown,
        ))
    }

    fn append(&self, session: &mut Session, value: &[u8]) -> Result<()> {
        let length = (HEADER + value.len()).next_multiple_of(SECTOR);
        let mut buffer = Buffer::zeroed(length);
        put(&mut buffer, 4, &(value.len() as u32).to_le_bytes());
        put(&mut buffer, 8, &session.next.to_le_bytes());
        put(&mut buffer, HEADER, value);
        session.crc = crc32c(self.seed(session.crc), &buffer[4..HEADER + value.len()]);
        put(&mut buffer, 0, &session.crc.to_le_bytes());
        let mut io = Blocking::new(&mut *session.backend);
        if self.0 == Defect::RewritesLastSector && session.end > 0 {
            let at = (session.end - SECTOR) as u64;
            let (_, last) = io.read(&session.file, at, SECTOR, Buffer::zeroed(SECTOR))?;
            io.write(&session.file, at, SECTOR, last, false)?;
        }
        io.write(&session.file, session.end as u64, length, buffer, false)?;
        session.end += length;
        session.next += 1;
        Ok(())
    }
}

fn refused(error: &crate::Error) -> Violation {
    Violation::new("O8", error.to_string())
}

impl Subject for Toy {
    type Session = Session;
    type Op = Op;

    fn open(&self, disk: &SimDisk, book: &Book) -> Verdict<Session> {
        let (session, shown) = self.recover(disk).map_err(|error| refused(&error))?;
        let shown = shown.iter().map(|(lsn, bytes)| (*lsn, &bytes[..]));
        book.with(|ledger| ledger.recovered(1, shown, session.next))?;
        Ok(session)
    }

    fn perform(&self, disk: &SimDisk, session: &mut Session, op: &Op, book: &Book) -> Verdict {
        let Op::Append(lengths) = op;
        for length in lengths {
            let values = book.with(|ledger| ledger.give(&[*length]));
            self.append(session, &values[0])
                .map_err(|error| refused(&error))?;
        }
        let last = session.next - 1;
        if self.0 == Defect::AcknowledgesBeforeFlush {
            book.acknowledge(disk, last)?;
        }
        let synced = Blocking::new(&mut *session.backend).sync(&session.file);
        synced.map_err(|error| refused(&error))?;
        book.acknowledge(disk, last)
    }

    fn next_ops(&self, draw: u64) -> Vec<Op> {
        let sizes = [10, SECTOR - HEADER, SECTOR, 1000];
        let size = |shift: u32| sizes[(draw >> shift) as usize % sizes.len()];
        match draw % 3 {
            0 => vec![Op::Append(vec![size(2)])],
            1 => vec![Op::Append(vec![size(2), size(4)])],
            _ => vec![
                Op::Append(vec![size(2)]),
                Op::Append(vec![size(4), size(6)]),
            ],
        }
    }
}

fn explore(defect: Defect) -> (Verdict, Report) {
    let toy = Toy(defect);
    let plan = Plan {
        nest_one_in: 4,
        seals: false,
        ..Plan::default()
    };
    let mut explorer = Explorer::new(&toy, plan);
    let sizes = [vec![10], vec![600], vec![10, 600], vec![600, 10]];
    let alphabet = sizes.map(Op::Append);
    let mut run = || {
        (0..sequences_count(alphabet.len(), 2))
            .try_for_each(|number| explorer.workload(&sequence(&alphabet, number)))
    };
    let verdict = run();
    (verdict, explorer.report)
}

#[test]
fn a_right_log_passes() {
    // Every state of every crash, three lives deep, satisfies all oracles; and twice the same.
    let (verdict, report) = explore(Defect::None);
    verdict.unwrap();
    assert!(
        report.distinct > 500 && report.lives > 50 && report.kills > 20,
        "{report:?}"
    );
    assert_eq!(
        format!("{report:?}"),
        format!("{:?}", explore(Defect::None).1)
    );
}

#[test]
fn who_watches_stops_it_at_once() {
    // He is asked before each state and each kill, however deep they are; after his word nothing
    // is begun, and less was tried than is known. A run that nobody stops tries all of it.
    let (_, whole) = explore(Defect::None);
    assert_eq!(whole.tried, whole.known);
    assert!(whole.tried > whole.states);
    let alphabet = [vec![10], vec![600]].map(Op::Append);
    let begun = |report: &Report| report.states + report.kills;
    for patience in [0, 1, 2, 3, 50, 51, 400] {
        let plan = Plan {
            nest_one_in: 4,
            seals: false,
            ..Plan::default()
        };
        let (mut asked, mut before) = (0, 0);
        let mut explorer = Explorer::new(&Toy(Defect::None), plan).watched(Box::new(|report| {
            assert!(begun(report) <= before + 1, "not asked: {report:?}");
            (asked, before) = (asked + 1, begun(report));
            asked <= patience
        }));
        for number in 0..sequences_count(alphabet.len(), 2) {
            explorer.workload(&sequence(&alphabet, number)).unwrap();
        }
        assert!(explorer.is_stopped());
        let report = explorer.report;
        drop(explorer);
        assert_eq!(asked, patience + 1);
        assert_eq!(begun(&report), before, "{report:?}");
        assert!(patience < 2 || report.tried < report.known, "{report:?}");
    }
}

/// The oracle that finds `defect`.
fn found(defect: Defect) -> &'static str {
    let (verdict, _) = explore(defect);
    let error = verdict.expect_err("a planted defect is found");
    error.oracle
}

#[test]
fn an_acknowledgement_before_the_flush_is_found() {
    // The monitor sees it as it happens.
    assert_eq!(found(Defect::AcknowledgesBeforeFlush), "O11");
}

#[test]
fn a_tail_that_comes_back_is_found() {
    // A dropped record behind a torn one is completed by the next life's record.
    let oracle = found(Defect::KeepsTailWithoutChain);
    assert!(oracle == "O4" || oracle == "O3", "{oracle}");
}

#[test]
fn names_without_a_flush_are_found() {
    // Without a directory sync the file is gone; renamed before its bytes, it is short.
    assert_eq!(found(Defect::ForgetsDirectory), "O1");
    assert_eq!(found(Defect::RenamesBeforeFlush), "O1");
}

#[test]
fn a_rewritten_sector_is_found() {
    // Even with the same bytes: the sector may be torn.
    assert_eq!(found(Defect::RewritesLastSector), "O11");
}

#[test]
fn showing_what_is_not_durable_is_found() {
    // After a kill the page cache has more than the device; a power cut later it is gone.
    let oracle = found(Defect::ShowsUnflushed);
    assert!(oracle == "O1" || oracle == "O3", "{oracle}");
}

#[test]
fn a_dead_owners_late_write_is_found() {
    // Without the lock held by the backend the next owner writes where the dead one still does.
    let oracle = found(Defect::HoldsNoLock);
    assert!(["O1", "O3", "O4", "O11"].contains(&oracle), "{oracle}");
}
