//! A disk without room: what the log cannot use it gives back, and it opens again where it can.

use std::path::Path;

use super::rig::{Rig, small};
use crate::{
    ErrorKind,
    ids::{Lsn, SegmentId},
    io::{Access, Blocking, Buffer, Disk, File, Open},
    sim::{Settings, SimDisk, Zombies},
    wal::segment::prepared_name,
};

fn disk_of(bytes: u64) -> SimDisk {
    SimDisk::new(Settings {
        seed: 5,
        capacity_bytes: bytes,
        ..Settings::default()
    })
}

fn with_dir<R>(disk: &SimDisk, run: impl FnOnce(&mut Blocking, &File) -> R) -> R {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), true).unwrap();
    run(&mut io, &dir)
}

fn put(disk: &SimDisk, name: &str, length: usize) {
    with_dir(disk, |io, dir| {
        let access = Access {
            open: Open::Any,
            ..Access::CREATE
        };
        let file = io.open(dir, name, access).unwrap();
        io.write(&file, 0, length, Buffer::zeroed(length), true)
            .unwrap();
        io.sync_dir(dir).unwrap();
    });
}

fn names(disk: &SimDisk) -> Vec<String> {
    with_dir(disk, |io, dir| io.list(dir).unwrap())
}

#[test]
fn a_log_that_filled_its_disk_gives_back_what_it_could_not_use() {
    // A filesystem gives a reservation that fails all the space there was. The log returns it: what
    // it holds afterwards are its records, others find the space, and it can be opened again.
    let disk = disk_of(40 << 10);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    let mut acknowledged = Lsn::ZERO;
    loop {
        let lsn = rig.opened.appender.marks().appended.plus(1);
        if rig.submit(&[lsn.0 as u8; 900]).is_err() {
            break;
        }
        rig.settle();
        acknowledged = rig.opened.appender.marks().durable;
        assert!(acknowledged < Lsn(1000), "the disk has no end");
    }
    let failure = rig.opened.appender.failure().unwrap();
    assert_eq!(
        failure.cause().map(crate::Error::kind),
        Some(ErrorKind::NoSpace)
    );
    let used = disk.with(|world| world.volume.used_bytes());
    assert!(used < 16 << 10, "{used} bytes for a segment of 8 KiB");
    drop(rig);
    let after = disk.with(|world| world.killed(Zombies::default()));
    let mut rig = Rig::open(&after, small(), 1).unwrap();
    rig.submit(b"again").unwrap();
    rig.settle();
    assert_eq!(rig.opened.appender.marks().durable, acknowledged.plus(1));
    rig.close().unwrap();
}

#[test]
fn an_open_begins_with_what_means_nothing() {
    // Half-made files of a killed owner may hold all the space there is: they go before anything
    // is made. An open that finds no room all the same leaves nothing new behind.
    let draft = prepared_name(SegmentId(9));
    let disk = disk_of(24 << 10);
    Rig::open(&disk, small(), 1).unwrap().close().unwrap();
    let room = (24 << 10) - disk.with(|world| world.volume.used_bytes());
    put(&disk, &draft, room as usize);
    let mut rig = Rig::open(&disk, small(), 1).unwrap();
    rig.submit(b"first").unwrap();
    rig.settle();
    rig.close().unwrap();
    let room = (24 << 10) - disk.with(|world| world.volume.used_bytes());
    put(&disk, "theirs", room as usize - 4096);
    let before = names(&disk);
    let refused = Rig::open(&disk, small(), 1).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::NoSpace));
    assert_eq!(names(&disk), before);
}
