//! Files and directories: names, lengths and locks.

use super::{World, filled, read, refused_as, run};
use crate::{
    error::ErrorKind,
    io::{Access, BLOCK, Backend, Blocking, Buffer, File, Op, Open},
};

/// A name with a zero, a slash, or one that means a directory is refused before the disk sees it.
pub fn a_bad_name_is_refused(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "good");
    drop(file);
    let dir = world.dir(&mut *backend);
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let name = || name.to_owned();
        for op in [
            Op::Open {
                dir: dir.clone(),
                name: name(),
                access: Access::CREATE,
            },
            Op::Unlink {
                dir: dir.clone(),
                name: name(),
            },
            Op::Rename {
                dir: dir.clone(),
                from: "good".into(),
                to: name(),
            },
            Op::Rename {
                dir: dir.clone(),
                from: name(),
                to: "better".into(),
            },
        ] {
            refused_as(run(&mut *backend, op).result, ErrorKind::Invalid);
        }
    }
    assert_eq!(Blocking::new(&mut *backend).list(&dir).unwrap(), ["good"]);
}

/// What must exist and does not, or the other way round, is an error that says which.
pub fn opening_keeps_to_what_was_asked(world: &World) {
    let mut backend = world.backend();
    let dir = world.dir(&mut *backend);
    let mut io = Blocking::new(&mut *backend);
    let any = Access {
        open: Open::Any,
        ..Access::WRITE
    };
    let missing = io.open(&dir, "f", Access::WRITE).unwrap_err();
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    io.open(&dir, "f", Access::CREATE).unwrap();
    let there = io.open(&dir, "f", Access::CREATE).unwrap_err();
    assert_eq!(there.errno(), Some(libc::EEXIST));
    io.open(&dir, "f", any).unwrap();
    io.open(&dir, "g", any).unwrap();
    assert_eq!(io.list(&dir).unwrap(), ["f", "g"]);
    let gone = io.unlink(&dir, "h").unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
    let gone = io.rename(&dir, "h", "f").unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
}

/// A directory is made when asked for, found when there, and missed otherwise.
pub fn a_directory_is_made_when_asked_for(world: &World) {
    let mut backend = world.backend();
    let mut io = Blocking::new(&mut *backend);
    let path = world.path.join("inner");
    let missing = io.open_dir(&path, false).unwrap_err();
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    let dir = io.open_dir(&path, true).unwrap();
    io.open(&dir, "f", Access::CREATE).unwrap();
    let again = io.open_dir(&path, true).unwrap();
    assert_eq!(io.list(&again).unwrap(), ["f"]);
    io.sync_dir(&again).unwrap();
}

/// A rename replaces what was there; an unlinked file lives as long as its handle.
pub fn names_move_and_files_stay(world: &World) {
    let mut backend = world.backend();
    let dir = world.dir(&mut *backend);
    let mut io = Blocking::new(&mut *backend);
    let old = io.open(&dir, "old", Access::CREATE).unwrap();
    let new = io.open(&dir, "new", Access::CREATE).unwrap();
    io.write(&old, 0, 8, filled(8, 1), true).unwrap();
    io.write(&new, 0, 8, filled(8, 2), true).unwrap();
    io.rename(&dir, "old", "new").unwrap();
    io.sync_dir(&dir).unwrap();
    assert_eq!(io.list(&dir).unwrap(), ["new"]);
    let found = io.open(&dir, "new", Access::READ).unwrap();
    let (_, bytes) = io.read(&found, 0, 8, Buffer::zeroed(8)).unwrap();
    assert_eq!(bytes[..], filled(8, 1)[..]);
    let (_, bytes) = io.read(&new, 0, 8, Buffer::zeroed(8)).unwrap();
    assert_eq!(bytes[..], filled(8, 2)[..]);
    io.unlink(&dir, "new").unwrap();
    assert!(io.list(&dir).unwrap().is_empty());
    let (count, _) = io.read(&found, 0, 8, Buffer::zeroed(8)).unwrap();
    assert_eq!(count, 8);
}

/// A file is cut, extended with zeros and reserved; a dropped cache loses nothing synced.
pub fn lengths_follow_their_orders(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut io = Blocking::new(&mut *backend);
    io.write(&file, 0, BLOCK, filled(BLOCK, 1), false).unwrap();
    io.truncate(&file, 100).unwrap();
    io.truncate(&file, 3 * BLOCK as u64).unwrap();
    assert_eq!(io.length(&file).unwrap(), 3 * BLOCK as u64);
    io.allocate(&file, 2 * BLOCK as u64).unwrap();
    assert_eq!(io.length(&file).unwrap(), 3 * BLOCK as u64);
    io.sync(&file).unwrap();
    io.drop_cache(&file).unwrap();
    let bytes = read(&mut *backend, &file, 0, 3 * BLOCK);
    assert_eq!(bytes[..100], filled(BLOCK, 1)[..100]);
    assert!(bytes[100..].iter().all(|byte| *byte == 0));
}

/// One lock, one holder: given back by `unlock` or with the last handle.
pub fn a_lock_has_one_holder(world: &World) {
    let mut first = world.backend();
    let mut second = world.backend();
    let mine = world.file(&mut *first, "LOCK");
    let other = world.file(&mut *second, "LOCK");
    let lock = |backend: &mut dyn Backend, file: &File| Blocking::new(backend).lock(file);
    lock(&mut *first, &mine).unwrap();
    let refused = lock(&mut *second, &other).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    Blocking::new(&mut *first).unlock(&mine).unwrap();
    lock(&mut *second, &other).unwrap();
    assert_eq!(
        lock(&mut *first, &mine).unwrap_err().kind(),
        ErrorKind::Locked
    );
    drop(other);
    lock(&mut *first, &mine).unwrap();
}

/// Many may share a lock; nobody has it alone meanwhile, and nobody shares it with its one holder.
pub fn a_shared_lock_keeps_others_from_having_it_alone(world: &World) {
    let mut backend = world.backend();
    let [one, two, three] = [0; 3].map(|_| world.file(&mut *backend, "shared"));
    let mut io = Blocking::new(&mut *backend);
    io.share(&one).unwrap();
    io.share(&two).unwrap();
    assert_eq!(io.lock(&three).unwrap_err().kind(), ErrorKind::Locked);
    io.unlock(&one).unwrap();
    assert_eq!(io.lock(&three).unwrap_err().kind(), ErrorKind::Locked);
    drop(two);
    io.lock(&three).unwrap();
    assert_eq!(io.share(&one).unwrap_err().kind(), ErrorKind::Locked);
}

/// A held lock stays taken until it is let go, and is free at once after that.
pub fn a_held_lock_is_free_at_once_when_let_go(world: &World) {
    for round in 0..5 {
        let mut backend = world.backend();
        let lock = world.file(&mut *backend, "LOCK");
        let file = world.file(&mut *backend, "f");
        let mut io = Blocking::new(&mut *backend);
        io.lock(&lock).unwrap();
        io.hold(&lock).unwrap();
        io.write(&file, 0, 16, filled(16, round), true).unwrap();
        // Letting the handle go is not enough: the backend holds it.
        drop(lock);
        let mut other = world.backend();
        let again = world.file(&mut *other, "LOCK");
        let refused = Blocking::new(&mut *other).lock(&again).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        backend.let_go();
        Blocking::new(&mut *other).lock(&again).unwrap();
        backend.let_go();
        backend.shutdown(None);
    }
}
