//! Damage, enumerated: whatever happens to the bytes of a small store, what comes back is a prefix
//! of what was written, or the damage is reported. Never a wrong byte, a panic or a hang.
//!
//! One damaged place may cost the last group, if no frame behind it vouches for it, and nothing
//! else. Several places at once may cost more of the tail, never a record in the middle.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use millrace_core::{
    error::ErrorKind,
    ids::Lsn,
    io::MemoryDisk,
    wal::{builder::Builder, recovery::RecoveryMode},
};
use millrace_tests::store;

/// What came of all cases.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    cases: u64,
    whole: u64,
    cut: u64,
    refused: u64,
    met_later: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.cases += other.cases;
        self.whole += other.whole;
        self.cut += other.cut;
        self.refused += other.refused;
        self.met_later += other.met_later;
    }
}

/// How much of the tail a case may cost without a report of damage.
#[derive(Debug, Clone, Copy)]
enum Allowed {
    /// The last group.
    LastGroup,
    /// Any part of the tail.
    Tail,
}

/// Opens a damaged store and holds it against what was written.
fn check(disk: &MemoryDisk, store: &Builder, allowed: Allowed, tally: &mut Tally, case: &str) {
    tally.cases += 1;
    let changes = disk.changes();
    let recovered = match store::open(disk, RecoveryMode::Tail) {
        Ok(recovered) => recovered,
        Err(error) => {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::Corrupt | ErrorKind::Format),
                "{case}: {error}"
            );
            assert_eq!(
                disk.changes(),
                changes,
                "{case}: a refused store was touched"
            );
            tally.refused += 1;
            return;
        }
    };
    let (records, error) = store::read(disk, &recovered);
    assert_eq!(disk.changes(), changes, "{case}: recovery wrote");
    compare(&records, recovered.first, store, case);
    if let Some(error) = error {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{case}: {error}");
        tally.met_later += 1;
        return;
    }
    assert_eq!(
        recovered.first.plus(records.len() as u64),
        recovered.next,
        "{case}: a short read"
    );
    let all = store.records.len() as u64;
    if recovered.next == Lsn(all + 1) {
        tally.whole += 1;
        return;
    }
    tally.cut += 1;
    let least = match allowed {
        Allowed::LastGroup => {
            assert!(
                recovered.report.torn_at.is_some(),
                "{case}: cut without a report"
            );
            group_before_last(store)
        }
        Allowed::Tail => Lsn(1),
    };
    assert!(
        recovered.next >= least,
        "{case}: {} of {all} records left",
        recovered.next.previous()
    );
}

fn compare(records: &[(Lsn, Vec<u8>)], first: Lsn, store: &Builder, case: &str) {
    for (at, (lsn, record)) in records.iter().enumerate() {
        assert_eq!(*lsn, first.plus(at as u64), "{case}: a gap");
        let written = store.records.get(lsn.0 as usize - 1);
        assert_eq!(Some(record), written, "{case}: record {lsn} is wrong");
    }
}

/// Salvage may leave out anything and invent nothing.
fn check_salvage(disk: &MemoryDisk, store: &Builder, case: &str) {
    let Ok(recovered) = store::open(disk, RecoveryMode::Salvage) else {
        return;
    };
    let (records, _) = store::read(disk, &recovered);
    let mut above = Lsn(0);
    for (lsn, record) in &records {
        assert!(*lsn > above, "{case}: salvage goes back");
        above = *lsn;
        let written = store.records.get(lsn.0 as usize - 1);
        assert_eq!(
            Some(record),
            written,
            "{case}: salvaged record {lsn} is wrong"
        );
    }
}

/// The LSN after the last group but one that carries records.
fn group_before_last(store: &Builder) -> Lsn {
    let last = Lsn(store.records.len() as u64 + 1);
    let before = store
        .frames
        .iter()
        .map(|(.., next)| *next)
        .filter(|next| *next < last);
    before.max().unwrap_or(Lsn(1))
}

/// Shares `cases` out to all cores; `run` gets its own copy of the store for each worker.
fn for_each<C: Sync>(
    store: &Builder,
    cases: &[C],
    run: impl Fn(&MemoryDisk, &C, &mut Tally) + Sync,
) -> Tally {
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(2, usize::from);
    let mut total = Tally::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let disk = store.disk.copy();
                    let mut tally = Tally::default();
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        run(&disk, case, &mut tally);
                    }
                    tally
                })
            })
            .collect();
        for worker in workers {
            total += worker.join().unwrap();
        }
    });
    total
}

fn stores() -> [(&'static str, Builder); 4] {
    [
        ("killed", store::killed()),
        ("closed", store::closed()),
        ("restarted", store::restarted()),
        ("recycled", store::recycled()),
    ]
}

fn every_byte(store: &Builder) -> Vec<(String, usize)> {
    let mut places = Vec::new();
    for name in store.disk.names() {
        let length = store.disk.get(&name).unwrap().len();
        places.extend((0..length).map(|at| (name.clone(), at)));
    }
    places
}

#[test]
fn every_byte_and_every_bit() {
    // One wrong byte anywhere costs at most the last group, or is reported.
    let mut total = Tally::default();
    for (label, store) in stores() {
        total += for_each(&store, &every_byte(&store), |disk, (name, at), tally| {
            let old = disk.edit(name, |bytes| bytes[*at]);
            let flips = (0..8).map(|bit| old ^ (1 << bit));
            for new in flips.chain([0x00, 0xff]).filter(|new| *new != old) {
                disk.edit(name, |bytes| bytes[*at] = new);
                let case = format!("{label} {name} byte {at}: {old:#04x} -> {new:#04x}");
                check(disk, &store, Allowed::LastGroup, tally, &case);
                if tally.cases % 16 == 0 {
                    check_salvage(disk, &store, &case);
                }
            }
            disk.edit(name, |bytes| bytes[*at] = old);
        });
    }
    report("bytes and bits", total);
    assert!(total.whole > 0 && total.cut > 0 && total.refused > 0 && total.met_later > 0);
}

/// What can be done to a block with the help of another.
#[derive(Debug, Clone, Copy)]
enum Change {
    Zero,
    Ones,
    Spoil,
    Copy,
    Swap,
}

type Block = (String, usize);

fn blocks(store: &Builder) -> Vec<Block> {
    let blocks = every_byte(store)
        .into_iter()
        .filter(|(_, at)| at % 512 == 0);
    blocks.map(|(name, at)| (name, at / 512)).collect()
}

fn get(disk: &MemoryDisk, (name, at): &Block) -> Vec<u8> {
    disk.edit(name, |bytes| {
        let end = bytes.len().min(at * 512 + 512);
        bytes[at * 512..end].to_vec()
    })
}

fn put(disk: &MemoryDisk, (name, at): &Block, block: &[u8]) {
    disk.edit(name, |bytes| {
        bytes[at * 512..at * 512 + block.len()].copy_from_slice(block)
    });
}

#[test]
fn every_block_lost_or_unreadable() {
    // A block of zeros, of ones, or one the device cannot read: at most the last group, or a report.
    let mut total = Tally::default();
    for (label, store) in stores() {
        total += for_each(&store, &blocks(&store), |disk, block, tally| {
            for change in [Change::Zero, Change::Ones, Change::Spoil] {
                let old = get(disk, block);
                let damaged = disk.copy();
                match change {
                    Change::Zero => put(&damaged, block, &[0; 512]),
                    Change::Ones => put(&damaged, block, &[0xff; 512]),
                    _ => damaged.spoil(&block.0, block.1 as u64 * 512),
                }
                let case = format!("{label} {block:?} {change:?}");
                if matches!(change, Change::Spoil) {
                    check_unreadable(&damaged, &store, tally, &case);
                } else if get(&damaged, block) != old {
                    check(&damaged, &store, Allowed::LastGroup, tally, &case);
                }
                check_salvage(&damaged, &store, &case);
            }
        });
    }
    report("blocks lost", total);
}

/// A reader that meets a bad sector later says `Io`; everything else as for wrong bytes.
fn check_unreadable(disk: &MemoryDisk, store: &Builder, tally: &mut Tally, case: &str) {
    let Ok(recovered) = store::open(disk, RecoveryMode::Tail) else {
        tally.cases += 1;
        tally.refused += 1;
        return;
    };
    let (records, error) = store::read(disk, &recovered);
    match error {
        Some(error) => {
            compare(&records, recovered.first, store, case);
            assert_eq!(error.errno(), Some(5), "{case}: {error}");
            tally.cases += 1;
            tally.met_later += 1;
        }
        None => check(disk, store, Allowed::LastGroup, tally, case),
    }
}

#[test]
fn every_block_copied_over_or_swapped_with_every_other() {
    // A misdirected, shifted or repeated block is never taken for what should be there.
    let mut total = Tally::default();
    for (label, store) in stores() {
        let blocks = blocks(&store);
        let pairs: Vec<(Block, Block, Change)> = blocks
            .iter()
            .flat_map(|from| blocks.iter().map(move |to| (from.clone(), to.clone())))
            .filter(|(from, to)| from != to)
            .flat_map(|(from, to)| {
                [Change::Copy, Change::Swap].map(|c| (from.clone(), to.clone(), c))
            })
            .collect();
        total += for_each(&store, &pairs, |disk, (from, to, change), tally| {
            let (source, target) = (get(disk, from), get(disk, to));
            if source == target {
                return;
            }
            put(disk, to, &source[..source.len().min(target.len())]);
            if matches!(change, Change::Swap) {
                put(disk, from, &target[..source.len().min(target.len())]);
            }
            let case = format!("{label} {change:?} {from:?} -> {to:?}");
            let allowed = match change {
                Change::Swap => Allowed::Tail,
                _ => Allowed::LastGroup,
            };
            check(disk, &store, allowed, tally, &case);
            check_salvage(disk, &store, &case);
            put(disk, to, &target);
            put(disk, from, &source);
        });
    }
    report("blocks misdirected", total);
    assert!(total.refused > 0);
}

#[test]
fn every_run_of_blocks_from_an_older_life() {
    // Blocks of the same place written by an earlier owner, or of another log, are never taken
    // for current ones, whichever of them come back.
    let mut total = Tally::default();
    for (label, store) in stores() {
        let mut other = store::killed();
        other.reopen();
        other.append(&[b"a life that was cut off".as_slice(), b"two"]);
        other.append(&[vec![9; 900]]);
        let old = other.disk.get(&other.name()).unwrap();
        let blocks = blocks(&store);
        let runs: Vec<(usize, usize)> = (0..blocks.len())
            .flat_map(|from| (from + 1..=blocks.len().min(from + 8)).map(move |to| (from, to)))
            .collect();
        total += for_each(&store, &runs, |disk, (from, to), tally| {
            let run = &blocks[*from..*to];
            let before: Vec<_> = run.iter().map(|block| get(disk, block)).collect();
            for (block, was) in run.iter().zip(&before) {
                put(disk, block, &old[block.1 * 512..block.1 * 512 + was.len()]);
            }
            let case = format!("{label} older blocks at {run:?}");
            check(disk, &store, Allowed::Tail, tally, &case);
            check_salvage(disk, &store, &case);
            for (block, was) in run.iter().zip(&before) {
                put(disk, block, was);
            }
        });
    }
    report("blocks of an older life", total);
}

#[test]
fn every_truncation() {
    // A file that ends too early anywhere is noticed, unless nothing is behind the cut.
    let mut total = Tally::default();
    for (label, store) in stores() {
        total += for_each(&store, &every_byte(&store), |disk, (name, at), tally| {
            let whole = disk.get(name).unwrap();
            disk.edit(name, |bytes| bytes.truncate(*at));
            let case = format!("{label} {name} cut to {at}");
            check(disk, &store, Allowed::LastGroup, tally, &case);
            check_salvage(disk, &store, &case);
            disk.put(name, &whole);
        });
    }
    report("truncations", total);
    assert!(total.whole > 0 && total.refused > 0);
}

#[test]
fn every_file_lost_doubled_or_exchanged() {
    // Whole files in the wrong place are told by what their headers say.
    let mut total = Tally::default();
    for (label, store) in stores() {
        let names = store.disk.names();
        let mut tally = Tally::default();
        for name in &names {
            for other in &names {
                let disk = store.disk.copy();
                let (one, two) = (disk.get(name).unwrap(), disk.get(other).unwrap());
                disk.put(other, &one);
                check(
                    &disk,
                    &store,
                    Allowed::Tail,
                    &mut tally,
                    &format!("{label} {name} over {other}"),
                );
                disk.put(name, &two);
                check(
                    &disk,
                    &store,
                    Allowed::Tail,
                    &mut tally,
                    &format!("{label} {name} for {other}"),
                );
            }
            let disk = store.disk.copy();
            let bytes = disk.get(name).unwrap();
            disk.put("00000000000000ff.log", &bytes);
            check(
                &disk,
                &store,
                Allowed::Tail,
                &mut tally,
                &format!("{label} {name} doubled"),
            );
            let disk = store.disk.copy();
            disk.edit(name, |bytes| bytes.extend_from_slice(&[0x5a; 700]));
            check(
                &disk,
                &store,
                Allowed::LastGroup,
                &mut tally,
                &format!("{label} {name} longer"),
            );
        }
        total += tally;
    }
    report("files", total);
}

fn report(item: &str, tally: Tally) {
    println!("damage: {item}: {tally:?}");
}
