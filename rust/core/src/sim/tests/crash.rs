use std::{cell::RefCell, collections::BTreeSet, path::Path};

use super::{super::*, filled, open, sectors};
use crate::io::{Access, Backend, Blocking, Buffer, Class, Disk, File, Op, Request, Token};

/// What a disk shows after a power cut: names with the first byte of each sector.
fn shown(image: &Image) -> Vec<(String, Vec<u8>)> {
    let disk = SimDisk::from_image(image, Settings::default());
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let Ok(dir) = io.open_dir(Path::new("/log"), false) else {
        return Vec::new();
    };
    let names = io.list(&dir).unwrap();
    let mut show = |name: String| {
        let file = io.open(&dir, &name, Access::READ).unwrap();
        let bytes = sectors(&mut io, &file);
        (name, bytes)
    };
    names.into_iter().map(&mut show).collect()
}

fn states(disk: &SimDisk, model: Model) -> BTreeSet<Vec<(String, Vec<u8>)>> {
    let point = disk.with(|world| CrashPoint::capture(world, model));
    let mut found = BTreeSet::new();
    let mut count = 0;
    point.states(0, &RefCell::default(), &mut |image, _, digits| {
        assert_eq!(image.fingerprint(), point.image(digits).fingerprint());
        found.insert(shown(image));
        count += 1;
        true
    });
    assert_eq!(
        found.len(),
        count,
        "fingerprints tell states apart, and only states"
    );
    found
}

fn one(name: &str, bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    vec![(name.into(), bytes.into())]
}

/// A durable, empty directory and a durable file `a` with two sectors of ones.
fn begin(disk: &SimDisk) -> (Box<dyn Backend>, File, File) {
    let (mut backend, dir) = open(disk);
    let mut io = Blocking::new(&mut *backend);
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    io.write(&file, 0, 1024, filled(1024, 1), false).unwrap();
    io.sync(&file).unwrap();
    io.sync_dir(&dir).unwrap();
    (backend, dir, file)
}

#[test]
fn what_was_flushed_is_certain() {
    // After a sync of file and directory there is one state.
    let disk = SimDisk::seeded(1);
    let _kept = begin(&disk);
    assert_eq!(states(&disk, Model::default()), [one("a", &[1, 1])].into());
}

#[test]
fn every_subset_of_unflushed_sectors_is_legal() {
    // Old or new, for each sector; a second version too; in flight or answered alike.
    let disk = SimDisk::seeded(1);
    let (mut backend, _dir, file) = begin(&disk);
    let mut io = Blocking::new(&mut *backend);
    io.write(&file, 0, 1024, filled(1024, 2), false).unwrap();
    let two = [[1, 1], [1, 2], [2, 1], [2, 2]].map(|bytes| one("a", &bytes));
    assert_eq!(states(&disk, Model::default()), two.clone().into());
    let op = Op::Write {
        file: file.clone(),
        offset: 512,
        length: 512,
        buffer: filled(512, 3),
        sync: true,
    };
    let request = Request {
        token: Token(1),
        class: Class::Foreground,
        op,
    };
    backend.submit(request).unwrap();
    let more = [[1, 3], [2, 3]].map(|bytes| one("a", &bytes));
    let all: BTreeSet<_> = two.into_iter().chain(more).collect();
    assert_eq!(states(&disk, Model::default()), all);
    backend.shutdown(None);
    let flushed = [[1, 3], [2, 3]].map(|bytes| one("a", &bytes));
    assert_eq!(states(&disk, Model::default()), flushed.into());
}

#[test]
fn a_length_lies_between_the_flushed_and_the_last() {
    // A file that grew may have grown in part, and what is there may be zero.
    let disk = SimDisk::seeded(1);
    let (mut backend, _dir, file) = begin(&disk);
    let mut io = Blocking::new(&mut *backend);
    io.write(&file, 1024, 512, filled(512, 2), false).unwrap();
    let legal: [&[u8]; 3] = [&[1, 1], &[1, 1, 0], &[1, 1, 2]];
    assert_eq!(
        states(&disk, Model::default()),
        legal.map(|bytes| one("a", bytes)).into()
    );
    io.write(&file, 1536, 1024, filled(1024, 0), false).unwrap();
    assert!(states(&disk, Model::default()).contains(&one("a", &[1, 1, 0, 0])));
    io.sync(&file).unwrap();
    assert_eq!(
        states(&disk, Model::default()),
        [one("a", &[1, 1, 2, 0, 0])].into()
    );
}

#[test]
fn names_change_each_for_itself_or_in_order() {
    // Without a directory sync nothing about names is certain, not even after a file sync.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir, _file) = begin(&disk);
    let mut io = Blocking::new(&mut *backend);
    let other = io.open(&dir, "b", Access::CREATE).unwrap();
    io.write(&other, 0, 512, filled(512, 2), true).unwrap();
    io.unlink(&dir, "a").unwrap();
    let (a, b) = (one("a", &[1, 1]), one("b", &[2]));
    let both: Vec<_> = a.iter().chain(&b).cloned().collect();
    let strict = [vec![], a.clone(), b.clone(), both.clone()];
    assert_eq!(states(&disk, Model::default()), strict.into());
    let journal = Model {
        names: Names::Journal,
        ..Model::default()
    };
    assert_eq!(states(&disk, journal), [a, b.clone(), both].into());
    io.sync_dir(&dir).unwrap();
    assert_eq!(states(&disk, Model::default()), [b].into());
}

#[test]
fn a_rename_leaves_one_name() {
    // The old or the new name, never both, and the new one may be all that is there of a file.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir, _file) = begin(&disk);
    let mut io = Blocking::new(&mut *backend);
    io.rename(&dir, "a", "b").unwrap();
    let legal = [one("a", &[1, 1]), one("b", &[1, 1])];
    assert_eq!(states(&disk, Model::default()), legal.into());
}

#[test]
fn a_directory_in_the_making_may_be_missing() {
    // Until the call that makes it is answered; afterwards its name is durable.
    let disk = SimDisk::seeded(1);
    let mut backend = disk.backend().unwrap();
    let op = Op::OpenDir {
        path: "/log".into(),
        create: true,
    };
    let request = Request {
        token: Token(1),
        class: Class::Foreground,
        op,
    };
    backend.submit(request).unwrap();
    let point = disk.with(|world| CrashPoint::capture(world, Model::default()));
    assert_eq!(point.combinations(), 2);
    backend.shutdown(None);
    let point = disk.with(|world| CrashPoint::capture(world, Model::default()));
    assert_eq!(point.combinations(), 1);
}

#[test]
fn a_torn_sector_can_be_unreadable_or_garbage() {
    // Only a sector that was being written; its neighbours are safe.
    let disk = SimDisk::seeded(1);
    let (mut backend, _dir, file) = begin(&disk);
    Blocking::new(&mut *backend)
        .write(&file, 512, 512, filled(512, 2), false)
        .unwrap();
    for torn in [Torn::Unreadable, Torn::Garbage] {
        let model = Model {
            torn,
            ..Model::default()
        };
        let point = disk.with(|world| CrashPoint::capture(world, model));
        assert_eq!(point.combinations(), 3);
        let mut bad = 0;
        point.states(0, &RefCell::default(), &mut |image, _, _| {
            let (_, _, content) = image.files().next().unwrap();
            let mut bytes = [0; 1024];
            bad += usize::from(content.read(0, &mut bytes).is_err());
            assert_eq!(content.read(0, &mut bytes[..512]), Ok(512));
            true
        });
        assert_eq!(bad, usize::from(torn == Torn::Unreadable));
    }
}

#[test]
fn pages_dropped_by_a_failed_sync_may_be_old_or_new() {
    // Nobody knows what the device did, and a later sync that succeeds does not make it certain.
    let disk = SimDisk::seeded(1);
    let (mut backend, _dir, file) = begin(&disk);
    let mut io = Blocking::new(&mut *backend);
    let trouble = Trouble::Drops(libc::EIO);
    let order = Fault {
        kind: Kind::Sync,
        nth: 1,
        forever: false,
        trouble,
    };
    disk.with(|world| world.faults.order(order));
    io.write(&file, 0, 512, filled(512, 2), false).unwrap();
    io.sync(&file).unwrap_err();
    io.sync(&file).unwrap();
    let legal = [one("a", &[1, 1]), one("a", &[2, 1])];
    assert_eq!(states(&disk, Model::default()), legal.into());
}

#[test]
fn beyond_the_complete_limit_telling_states_are_visited() {
    // Many dirty sectors: none, all, each missing, each alone, prefixes, whole operations, chance.
    let disk = SimDisk::seeded(1);
    let (mut backend, _dir, file) = begin(&disk);
    let mut io = Blocking::new(&mut *backend);
    io.truncate(&file, 32 * 512).unwrap();
    io.sync(&file).unwrap();
    io.write(&file, 0, 16 * 512, filled(16 * 512, 2), false)
        .unwrap();
    io.write(&file, 16 * 512, 16 * 512, filled(16 * 512, 3), false)
        .unwrap();
    let point = disk.with(|world| CrashPoint::capture(world, Model::default()));
    assert_eq!(point.combinations(), 1 << 32);
    let found = states(&disk, Model::default());
    assert!(found.len() > 300 && found.len() < 512, "{}", found.len());
    let whole = |first: u8, second: u8| {
        let half = |byte, old: u8| {
            if byte > 0 {
                vec![byte; 16]
            } else {
                vec![old; 16]
            }
        };
        let mut bytes = [half(first, 0), half(second, 0)].concat();
        if first == 0 {
            bytes[..2].fill(1);
        }
        one("a", &bytes)
    };
    for state in [whole(0, 0), whole(2, 3), whole(2, 0), whole(0, 3)] {
        assert!(found.contains(&state), "{state:?}");
    }
}

#[test]
fn a_hook_sees_every_event() {
    // Each submission and each answer is a crash point.
    let disk = SimDisk::seeded(1);
    let (mut backend, dir) = open(&disk);
    let (send, receive) = std::sync::mpsc::channel();
    let hook: Hook = Box::new(move |world, event| {
        let point = CrashPoint::capture(world, Model::default());
        send.send((event.kind, event.phase, point.combinations()))
            .unwrap();
    });
    disk.with(|world| world.set_hook(Some(hook)));
    let mut io = Blocking::new(&mut *backend);
    let file = io.open(&dir, "a", Access::CREATE).unwrap();
    io.sync_dir(&dir).unwrap();
    io.write(&file, 0, 512, filled(512, 1), true).unwrap();
    drop(io.read(&file, 0, 512, Buffer::zeroed(512)).unwrap());
    disk.with(|world| world.set_hook(None));
    let seen: Vec<_> = receive
        .iter()
        .map(|(kind, phase, count)| (kind, phase == Phase::Submitted, count))
        .collect();
    let expected = [
        (Kind::Open, true, 2),
        (Kind::Open, false, 2),
        (Kind::SyncDir, true, 2),
        (Kind::SyncDir, false, 1),
        (Kind::WriteSync, true, 4),
        (Kind::WriteSync, false, 1),
        (Kind::Read, true, 1),
        (Kind::Read, false, 1),
    ];
    assert_eq!(seen, expected);
}
