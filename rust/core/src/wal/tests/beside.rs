//! Readers beside a living owner that truncates and uses its files again, and copies of its files.

use std::{path::Path, sync::Arc, time::Duration};

use super::rig::{Rig, small};
use crate::{
    ErrorKind,
    clock::SystemClock,
    error::{Error, Result},
    ids::{Lsn, SegmentId},
    io::{Access, Blocking, Disk, Wait, contract},
    sim::SimDisk,
    threads::ThreadsDisk,
    wal::{
        commit::Next,
        recovery::{Recovered, RecoveryMode, look_until_sure, recover},
        recycle::open_shared,
        segment::segment_name,
        settings::LogSettings,
    },
};

/// Segments of one size.
fn even() -> LogSettings {
    LogSettings {
        segment_first_bytes: small().segment_bytes,
        ..small()
    }
}

fn append(rig: &mut Rig, count: u64) {
    for _ in 0..count {
        rig.submit(&[7; 1000]).unwrap();
        rig.settle();
    }
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.with(|world| {
        let dir = world.volume.find_dir(Path::new("/log")).unwrap();
        let entries = &world.volume.dirs[dir].entries;
        entries.iter().map(|(name, _)| name.to_string()).collect()
    })
}

/// One look after the other, as told; how long they took, and what came of them.
fn look(script: &mut dyn Iterator<Item = Result<Recovered>>) -> (Duration, Result<Recovered>) {
    let disk = SimDisk::seeded(1);
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let began = io.now();
    let found = look_until_sure(&mut io, |_| script.next().unwrap());
    (io.now().since(began), found)
}

fn damaged(offset: u64) -> Result<Recovered> {
    Err(Error::new(ErrorKind::Corrupt, "not as it was left").with("offset", offset))
}

fn vanished() -> Result<Recovered> {
    Err(Error::from_errno(libc::ENOENT, "open"))
}

fn sound() -> Recovered {
    let disk = SimDisk::seeded(1);
    Rig::open(&disk, small(), 1).unwrap().close().unwrap();
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    recover(&mut io, &dir, RecoveryMode::Tail).unwrap()
}

#[test]
fn damage_is_believed_when_it_is_found_twice_alike() {
    // What a look finds once, or something else each time, is the owner's work and no damage,
    // however often; there is a pause between two looks.
    let sound = sound();
    let mixed = [damaged(1), vanished(), damaged(1), damaged(2), damaged(1)];
    let mut script = mixed.into_iter().chain([Ok(sound.clone())]);
    let (took, found) = look(&mut script);
    assert_eq!(found.unwrap(), sound);
    assert!(took >= Duration::from_millis(10), "{took:?}");
    let (_, found) = look(&mut [damaged(1), damaged(2), damaged(2)].into_iter());
    let error = found.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.number("offset"), Some(2));
    let (_, found) = look(&mut (0..).map(damaged));
    let error = found.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(error.cause().map(Error::kind), Some(ErrorKind::Corrupt));
}

#[test]
fn files_that_vanish_are_looked_for_until_time_is_up() {
    // However many looks it takes: an owner that truncates is no error, one that never stops is
    // one that says to try again.
    let sound = sound();
    let often = (0..500).map(|_| vanished());
    let (_, found) = look(&mut often.chain([Ok(sound.clone())]));
    assert_eq!(found.unwrap(), sound);
    let (took, found) = look(&mut std::iter::repeat_with(vanished));
    let error = found.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(error.errno(), None);
    assert!((5..6).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn a_segment_is_never_found_locked() {
    // At every moment of the life of a file that is used again, whoever finds it under the name of
    // a segment can share it.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    append(&mut rig, 70);
    rig.truncate_before(Lsn(u64::MAX)).unwrap();
    let elsewhere = disk.new_process();
    let mut backend = elsewhere.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    for _ in 0..90 {
        rig.submit(&[7; 1000]).unwrap();
        loop {
            let next = rig.opened.committer.turn(&mut *rig.backend);
            for name in names(&disk).iter().filter(|name| name.ends_with(".log")) {
                let file = io.open(&dir, name, Access::READ).unwrap();
                io.share(&file).unwrap();
            }
            if next != Next::Wait(Wait::Never) && rig.backend.in_flight() == 0 {
                break;
            }
            let committer = &mut rig.opened.committer;
            committer.wait(&mut *rig.backend, Wait::Forever);
        }
    }
    assert!(!names(&disk).iter().any(|name| name.ends_with(".spare")));
}

#[test]
fn a_copy_made_of_hard_links_keeps_its_bytes() {
    // A file with a name that we do not know is given up, not written to.
    let disk = SimDisk::seeded(1);
    let mut rig = Rig::open(&disk, even(), 2).unwrap();
    append(&mut rig, 70);
    let copies = disk.with(|world| {
        let dir = world.volume.find_dir(Path::new("/log")).unwrap();
        let entries = &mut world.volume.dirs[dir].entries;
        let sealed = entries.iter().filter(|(name, _)| name.ends_with(".log"));
        let copies: Vec<_> = sealed.map(|(_, ino)| *ino).collect();
        for ino in &copies {
            entries.push((format!("copy-{ino}").into(), *ino));
        }
        copies
    });
    rig.truncate_before(Lsn(u64::MAX)).unwrap();
    let spares: Vec<_> = disk.with(|world| {
        let dir = world.volume.find_dir(Path::new("/log")).unwrap();
        let is_spare = |name: &str| name.ends_with(".spare");
        let entries = world.volume.dirs[dir].entries.iter();
        let spares = entries.filter(|(name, ino)| is_spare(name) && copies.contains(ino));
        spares.map(|(_, ino)| *ino).collect()
    });
    assert_eq!(spares.len(), 2);
    let content = || {
        disk.with(|world| {
            let inodes = spares.iter().map(|ino| &world.volume.inodes[*ino]);
            inodes
                .map(|inode| inode.cache.fingerprint())
                .collect::<Vec<_>>()
        })
    };
    let before = content();
    append(&mut rig, 90);
    assert!(content() == before, "a copy was written to");
    assert!(!names(&disk).iter().any(|name| name.ends_with(".spare")));
}

#[test]
fn any_number_of_segments_can_be_read_at_a_time() {
    // It needs descriptors, so a process without other tests.
    contract::in_own_process("wal::tests::beside::own_process_many_readers");
}

#[test]
#[ignore = "run by any_number_of_segments_can_be_read_at_a_time, in a process of its own"]
fn own_process_many_readers() {
    // What is held shared takes no place among what is kept from children: 600 readers, and a lock
    // can still be taken.
    let place = contract::Place::new("readers");
    let disk = ThreadsDisk::new(Arc::new(SystemClock::new()));
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let path = place.path();
    let dir = io.open_dir(path, false).unwrap();
    let id = SegmentId(1);
    let file = io.open(&dir, &segment_name(id), Access::CREATE).unwrap();
    let readers: Vec<_> = (0..600)
        .map(|_| open_shared(&mut io, &dir, id).unwrap())
        .collect();
    assert_eq!(io.lock(&file).unwrap_err().kind(), ErrorKind::Locked);
    drop(readers);
    io.lock(&file).unwrap();
}
