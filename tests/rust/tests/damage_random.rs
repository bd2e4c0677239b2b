//! Damage by chance: random small stores, several places damaged at once, and what a repair makes
//! of them. The complement of the enumeration, which damages one place of three known stores.
//!
//! `MILLRACE_SEED=n` runs one store again; the ignored test runs for an eighth of
//! `MILLRACE_TORTURE_SECONDS`.

use std::time::{Duration, Instant};

use millrace_core::{
    error::ErrorKind,
    io::MemoryDisk,
    sim::Random,
    wal::{
        builder::Builder, recovery::RecoveryMode, repair::repair, segment::SegmentLimits,
        verify::verify,
    },
};
use millrace_tests::store::{self, TINY};

/// Damages tried on each store.
const DAMAGES: u64 = 40;

fn limits(random: &mut Random) -> SegmentLimits {
    let block_bytes = 512 << random.below(3);
    SegmentLimits {
        block_bytes,
        window: 1 + random.below(4) as u32,
        segment_bytes: u64::from(block_bytes) * (8 + random.below(8)),
        ..TINY
    }
}

/// A store as a few owners may leave it.
fn random_store(random: &mut Random) -> Builder {
    let mut builder = Builder::new(limits(random));
    for _ in 0..random.below(24) {
        match random.below(12) {
            0 => builder.reopen(),
            1 => {
                builder.limits = limits(random);
                builder.roll();
            }
            2 => {
                builder.watermark_if_room();
            }
            3 => builder.cut_predecessor(),
            _ => {
                let records: Vec<Vec<u8>> = (0..=random.below(3))
                    .map(|_| vec![random.draw() as u8; random.below(450) as usize])
                    .collect();
                builder.append(&records);
            }
        }
    }
    builder
}

/// Changes something, somewhere.
fn hurt(disk: &MemoryDisk, random: &mut Random) {
    let names = disk.names();
    let name = &names[random.below(names.len() as u64) as usize];
    let other = &names[random.below(names.len() as u64) as usize];
    let length = disk.edit(name, |bytes| bytes.len() as u64);
    if length == 0 {
        return;
    }
    let at = random.below(length) as usize;
    let block = at / 512 * 512;
    let end = (block + 512 * (1 + random.below(4) as usize)).min(length as usize);
    match random.below(8) {
        0 => disk.edit(name, |bytes| bytes[at] = random.draw() as u8),
        1 => disk.edit(name, |bytes| bytes[block..end].fill(0)),
        2 => disk.edit(name, |bytes| {
            bytes[block..end].fill_with(|| random.draw() as u8)
        }),
        3 => disk.edit(name, |bytes| bytes.truncate(at)),
        4 => disk.spoil(name, at as u64),
        5 => {
            let bytes = disk.get(name).unwrap_or_default();
            disk.edit(other, |target| {
                let to = random.below(target.len() as u64 / 512 + 1) as usize * 512;
                let count = (end - block).min(target.len().saturating_sub(to));
                target[to..to + count].copy_from_slice(&bytes[block..block + count]);
            });
        }
        6 => disk.remove(name),
        _ => disk.edit(name, |bytes| bytes[at] ^= 1 << random.below(8)),
    }
}

/// What is read is what was written, whether the log opens, is salvaged or is repaired.
fn check(disk: &MemoryDisk, store: &Builder, case: &str) {
    for mode in [RecoveryMode::Tail, RecoveryMode::Salvage] {
        right_or_refused(disk, store, mode, case);
    }
    assert_eq!(disk.changes(), 0, "{case}: looking changed something");
    let repaired = store::with_dir(disk, repair);
    match repaired {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{case}: {error}"),
        Ok(report) => {
            let sound = store::with_dir(disk, verify).unwrap();
            assert!(
                sound.is_sound(),
                "{case}: not sound after repair: {:?}",
                sound.report.damage
            );
            let recovered = store::open(disk, RecoveryMode::Tail);
            let recovered =
                recovered.unwrap_or_else(|error| panic!("{case}: repaired, and {error}"));
            let (records, error) = store::read(disk, &recovered);
            assert!(
                error.is_none(),
                "{case}: a repaired log cannot be read: {error:?}"
            );
            assert_eq!(
                records.len() as u64,
                report.records,
                "{case}: repair miscounts"
            );
            right_or_refused(disk, store, RecoveryMode::Tail, case);
        }
    }
}

fn right_or_refused(disk: &MemoryDisk, store: &Builder, mode: RecoveryMode, case: &str) {
    let recovered = match store::open(disk, mode) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Format),
                "{case}: {error}"
            );
            return;
        }
    };
    let (records, error) = store::read(disk, &recovered);
    for (lsn, record) in &records {
        let written = store.records.get(lsn.0 as usize - 1);
        assert_eq!(
            Some(record),
            written,
            "{case}: record {lsn} is wrong ({mode:?})"
        );
    }
    if mode == RecoveryMode::Tail && error.is_none() {
        let expected = recovered.next.0 - recovered.first.0;
        assert_eq!(
            records.len() as u64,
            expected,
            "{case}: records are missing unreported"
        );
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let store = random_store(&mut random);
    for damage in 0..DAMAGES {
        let disk = store.disk.copy();
        for _ in 0..=random.below(3) {
            if !disk.names().is_empty() {
                hurt(&disk, &mut random);
            }
        }
        let command = "cargo test --profile fast -p millrace-tests --test damage_random";
        check(
            &disk,
            &store,
            &format!("damage {damage}: MILLRACE_SEED={seed} {command}"),
        );
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn damage_by_chance_is_never_read_as_data() {
    // Several wounds at once: what opens is right, what does not is refused, what is repaired is
    // sound.
    match number("MILLRACE_SEED") {
        Some(seed) => run(seed),
        None => (1..=40).for_each(run),
    }
}

#[test]
#[ignore = "torture"]
fn damage_by_chance_for_as_long_as_there_is_time() {
    // The same, on stores nobody has seen yet.
    let budget = Duration::from_secs(number("MILLRACE_TORTURE_SECONDS").unwrap_or(60)) / 8;
    let started = Instant::now();
    let mut seed = number("MILLRACE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        now.duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos() as u64)
    });
    let mut stores = 0_u64;
    while started.elapsed() < budget {
        run(seed);
        seed = seed.wrapping_add(1);
        stores += 1;
    }
    println!(
        "damage by chance: {stores} stores, {} cases, {:.1} s",
        stores * DAMAGES,
        started.elapsed().as_secs_f64()
    );
}
