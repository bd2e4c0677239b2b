use std::os::unix::{fs::PermissionsExt, net::UnixListener};

use super::*;
use crate::{
    clock::SystemClock,
    error::ErrorKind,
    io::{
        Access, BLOCK, Blocking, Buffer, Open,
        contract::{Place, World, in_own_process, transfer::a_write_meets_the_size_limit},
    },
};

fn disk() -> ThreadsDisk {
    ThreadsDisk::new(Arc::new(SystemClock::new()))
}

fn world_of(disk: ThreadsDisk, name: &str) -> World {
    let place = Place::new(name);
    World {
        disk: Box::new(disk),
        path: place.path().to_owned(),
        real: true,
        keep: Box::new(place),
    }
}

mod fdatasync {
    fn world(name: &str) -> super::World {
        super::world_of(super::disk(), name)
    }
    crate::contract_tests!(world);
}

mod dsync {
    fn world(name: &str) -> super::World {
        let disk = super::disk().with_durability(super::Durability::Dsync);
        super::world_of(disk.with_capacity(32), name)
    }
    crate::contract_tests!(world);
}

mod metered {
    use crate::io::metered::MeteredDisk;

    fn world(name: &str) -> super::World {
        let world = super::world_of(super::disk(), name);
        let disk = Box::new(MeteredDisk::new(super::disk()));
        super::World { disk, ..world }
    }
    crate::contract_tests!(world);
}

#[test]
fn a_write_beyond_the_size_limit_is_an_error() {
    // However the kernel cuts it up, the write ends with an error, its buffer, and what fitted.
    in_own_process("threads::tests::own_process_size_limit");
}

#[test]
#[ignore = "changes the limits of the process; run by the test above"]
fn own_process_size_limit() {
    // See `a_write_beyond_the_size_limit_is_an_error`.
    a_write_meets_the_size_limit(&world_of(disk(), "limit"));
    a_write_meets_the_size_limit(&world_of(
        disk().with_durability(Durability::Dsync),
        "limit",
    ));
}

fn backend() -> Box<dyn Backend> {
    disk().backend().unwrap()
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    // A directory is 0700 and a file 0600, whatever umask the process has.
    in_own_process("threads::tests::own_process_umask");
}

#[test]
#[ignore = "changes the umask of the process; run by the test above"]
fn own_process_umask() {
    // See `modes_do_not_depend_on_the_umask`.
    let place = Place::new("modes");
    let mut backend = backend();
    let mut io = Blocking::new(&mut *backend);
    // SAFETY: sets a number of this process, which runs this test alone.
    let old = unsafe { libc::umask(0o277) };
    let made = io.open_dir(&place.path().join("d"), true).and_then(|dir| {
        io.open(&dir, "f", Access::CREATE)?;
        Ok(dir)
    });
    // SAFETY: as above.
    unsafe { libc::umask(old) };
    made.unwrap();
    let mode = |path: &str| {
        let status = std::fs::metadata(place.path().join(path)).unwrap();
        status.permissions().mode() & 0o7777
    };
    assert_eq!(mode("d"), 0o700);
    assert_eq!(mode("d/f"), 0o600);
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    // A pipe, a socket, a device, a directory or a link behind a name of ours is named in the
    // error, and opening it returns at once.
    let place = Place::new("kinds");
    let at = |name: &str| place.path().join(name);
    let pipe = std::ffi::CString::new(at("pipe").to_str().unwrap()).unwrap();
    // SAFETY: a terminated string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    let _socket = UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    let mut backend = backend();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(place.path(), false).unwrap();
    for (name, kind) in [
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
        ("directory", "a directory"),
    ] {
        for access in [
            Access::READ,
            Access::WRITE,
            Access {
                open: Open::Any,
                ..Access::WRITE
            },
        ] {
            let error = io.open(&dir, name, access).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}");
            assert!(error.message().contains(kind), "{name}: {error}");
        }
    }
    let devices = io.open_dir("/dev".as_ref(), false).unwrap();
    let error = io.open(&devices, "null", Access::READ).unwrap_err();
    assert!(error.message().contains("a device"), "{error}");
}

#[test]
fn the_directory_itself_may_be_a_link() {
    // The path is resolved once, at open; later changes of the link do not matter.
    let place = Place::new("dirlink");
    std::fs::create_dir(place.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", place.path().join("link")).unwrap();
    let mut backend = backend();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(&place.path().join("link"), true).unwrap();
    std::fs::remove_file(place.path().join("link")).unwrap();
    io.open(&dir, "f", Access::CREATE).unwrap();
    assert!(place.path().join("real/f").exists());
}

#[test]
fn direct_io_is_offered_only_where_the_filesystem_says_so() {
    // tmpfs accepts the flag without saying how to use it, so it counts as not offered; and a
    // file made only to be refused is not left behind.
    let mut backend = backend();
    let mut io = Blocking::new(&mut *backend);
    let name = format!("millrace-direct-{}", std::process::id());
    for path in ["/dev/shm", "/tmp"] {
        let dir = io.open_dir(path.as_ref(), false).unwrap();
        match io.open(&dir, &name, Access::CREATE.direct(true)) {
            Ok(file) => {
                let alignment = direct_alignment(&file).unwrap();
                assert!(alignment.offset <= BLOCK && alignment.memory <= BLOCK);
                let buffer = Buffer::zeroed(BLOCK);
                io.write(&file, 0, BLOCK, buffer, true).unwrap();
                io.unlink(&dir, &name).unwrap();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
        }
        assert!(!std::path::Path::new(path).join(&name).exists());
    }
}

#[test]
fn a_backend_of_the_parent_is_refused_in_a_forked_child() {
    // Neither the poll nor the drop of an inherited backend touches the parent's thread or lock.
    let place = Place::new("forked");
    let mut backend = backend();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(place.path(), false).unwrap();
    let file = io.open(&dir, "LOCK", Access::CREATE).unwrap();
    io.lock(&file).unwrap();
    let request = Request {
        token: crate::io::Token(1),
        class: Class::Background,
        op: crate::io::Op::Sync { file: file.clone() },
    };
    backend.submit(request).unwrap();
    // SAFETY: the child polls and drops a backend, which by this test's claim only reads an
    // atomic there, and exits without running anything of the harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut out = Vec::new();
        let refused = backend.poll(&mut out, Wait::Forever).unwrap_err();
        drop(backend);
        let code = i32::from(refused.kind() != ErrorKind::Forked);
        // SAFETY: see above.
        unsafe { libc::_exit(code) }
    }
    let mut status = -1;
    // SAFETY: `pid` is our child and `status` outlives the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
    let mut out = Vec::new();
    backend.poll(&mut out, Wait::Forever).unwrap();
    assert!(out[0].result.is_ok());
    let mut other = disk().backend().unwrap();
    let mut io = Blocking::new(&mut *other);
    let again = io.open(&dir, "LOCK", Access::WRITE).unwrap();
    assert_eq!(io.lock(&again).unwrap_err().kind(), ErrorKind::Locked);
}
