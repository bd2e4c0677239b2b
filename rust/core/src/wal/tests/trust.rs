//! What recovery shows was on the device when it was read.

use std::{cell::RefCell, path::Path};

use crate::{
    ids::Lsn,
    io::{Access, Blocking, Buffer, Disk, File},
    sim::{CrashPoint, Fault, Kind, Model, Seen, SimDisk, Trouble, Zombies},
    wal::{
        builder::{Builder, SMALL},
        recovery::{Recovered, RecoveryMode, recover},
    },
};

fn open(disk: &SimDisk) -> Recovered {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("log"), false).unwrap();
    recover(&mut io, &dir, RecoveryMode::Tail).unwrap()
}

/// A log in `location` with one record that is durable, and a second group that nobody has written
/// yet: the segment, and where in which bytes that group lies.
pub(super) fn one_of_two_groups(io: &mut Blocking<'_>, location: &str) -> (File, u64, Vec<u8>) {
    let mut builder = Builder::new(SMALL);
    builder.append(&[b"durable"]);
    let whole = builder.disk.get(&builder.name()).unwrap();
    let at = builder.append(&[b"written"]);
    let dir = io.open_dir(Path::new(location), true).unwrap();
    let file = io.open(&dir, &builder.name(), Access::CREATE).unwrap();
    let mut buffer = Buffer::zeroed(whole.len());
    buffer.copy_from_slice(&whole);
    io.write(&file, 0, whole.len(), buffer, true).unwrap();
    io.sync(&file).unwrap();
    io.sync_dir(&dir).unwrap();
    (file, at, builder.disk.get(&builder.name()).unwrap())
}

/// Writes the group at `at`, and does not sync it.
pub(super) fn write_group(io: &mut Blocking<'_>, file: &File, at: u64, bytes: &[u8]) {
    let mut frame = Buffer::zeroed(512);
    frame.copy_from_slice(&bytes[at as usize..at as usize + 512]);
    io.write(file, at, 512, frame, false).unwrap();
}

/// A log of two groups whose owner was killed after it wrote the second and before it synced it.
fn killed_before_sync(fault: Option<Fault>) -> SimDisk {
    let disk = SimDisk::seeded(1);
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let (file, at, bytes) = one_of_two_groups(&mut io, "log");
    write_group(&mut io, &file, at, &bytes);
    if let Some(fault) = fault {
        disk.with(|world| world.faults.order(fault));
        io.sync(&file).unwrap_err();
    }
    drop(io);
    drop(backend);
    disk.kill(Zombies::default());
    disk.new_process()
}

#[test]
fn what_recovery_showed_survives_a_power_cut() {
    // A group that lay only in the cache is synced before it is shown, so no later crash takes it
    // back.
    let disk = killed_before_sync(None);
    let found = open(&disk);
    assert_eq!(found.next, Lsn(3));
    let point = disk.with(|world| CrashPoint::capture(world, Model::default()));
    let seen = RefCell::new(Seen::default());
    let mut states = 0;
    point.states(0, &seen, &mut |image, _, _| {
        let after = open(&SimDisk::from_image(image, crate::sim::Settings::default()));
        assert_eq!(after.next, found.next);
        states += 1;
        true
    });
    assert!(states > 0);
}

#[test]
fn what_only_the_cache_holds_is_not_believed() {
    // A failed sync dropped the pages: they read well until they leave the cache, and are nowhere.
    let fault = Fault {
        kind: Kind::Sync,
        nth: 1,
        forever: false,
        trouble: Trouble::Drops(libc::EIO),
    };
    let disk = killed_before_sync(Some(fault));
    assert_eq!(open(&disk).next, Lsn(2));
}
