//! Bytes in and out: reads, writes and the buffers that carry them.

use super::{World, filled, finish, read, refused_as, request, run, write};
use crate::{
    error::ErrorKind,
    io::{Access, BLOCK, Blocking, Buffer, Class, Op},
};

/// What was written is read back, at any offset, with or without sync.
pub fn bytes_come_back_as_written(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut expected = vec![0u8; 5 * BLOCK];
    for (offset, length, sync) in [
        (0, BLOCK, true),
        (3 * BLOCK, 2 * BLOCK, false),
        (BLOCK + 1, 100, true),
        (7, 3, false),
    ] {
        let bytes = filled(length, offset as u8);
        expected[offset..offset + length].copy_from_slice(&bytes);
        let done = run(&mut *backend, write(&file, offset as u64, bytes, sync));
        done.result.unwrap();
        assert_eq!(done.buffer.unwrap().len(), length);
    }
    assert_eq!(read(&mut *backend, &file, 0, expected.len()), expected);
}

/// A read ends early only at the end of the file, and says how much it got.
pub fn a_read_ends_early_only_at_the_end(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let length = 3 * BLOCK + 5;
    run(&mut *backend, write(&file, 0, filled(length, 1), false))
        .result
        .unwrap();
    assert_eq!(read(&mut *backend, &file, 0, length).len(), length);
    assert_eq!(
        read(&mut *backend, &file, BLOCK as u64, 4 * BLOCK).len(),
        length - BLOCK
    );
    assert!(read(&mut *backend, &file, length as u64, BLOCK).is_empty());
    assert!(read(&mut *backend, &file, 1 << 40, BLOCK).is_empty());
}

/// Only `length` bytes of a buffer take part; the rest is left alone.
pub fn a_transfer_stays_inside_its_length(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let op = Op::Write {
        file: file.clone(),
        offset: 0,
        length: 10,
        buffer: filled(BLOCK, 1),
        sync: false,
    };
    run(&mut *backend, op).result.unwrap();
    assert_eq!(Blocking::new(&mut *backend).length(&file).unwrap(), 10);
    let op = Op::Read {
        file,
        offset: 0,
        length: 4,
        buffer: filled(BLOCK, 9),
    };
    let buffer = run(&mut *backend, op).buffer.unwrap();
    assert_eq!(buffer[..4], filled(BLOCK, 1)[..4]);
    assert_eq!(buffer[4..], filled(BLOCK, 9)[4..]);
}

/// An empty transfer succeeds and moves nothing.
pub fn an_empty_transfer_is_no_error(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for sync in [false, true] {
        let op = write(&file, 5, Buffer::zeroed(0), sync);
        run(&mut *backend, op).result.unwrap();
    }
    assert_eq!(Blocking::new(&mut *backend).length(&file).unwrap(), 0);
    assert!(read(&mut *backend, &file, 0, 0).is_empty());
}

/// A buffer comes back with an error too, and a refused transfer changed nothing.
pub fn a_buffer_comes_back_with_an_error(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let dir = world.dir(&mut *backend);
    let outside = Op::Write {
        file: file.clone(),
        offset: 0,
        length: BLOCK + 1,
        buffer: filled(BLOCK, 1),
        sync: false,
    };
    let done = run(&mut *backend, outside);
    refused_as(done.result, ErrorKind::Invalid);
    assert_eq!(done.buffer.unwrap()[..], filled(BLOCK, 1)[..]);
    let beyond = Op::Read {
        file,
        offset: u64::MAX - 10,
        length: BLOCK,
        buffer: filled(BLOCK, 2),
    };
    let done = run(&mut *backend, beyond);
    refused_as(done.result, ErrorKind::Invalid);
    assert_eq!(done.buffer.unwrap().len(), BLOCK);
    let mut io = Blocking::new(&mut *backend);
    let read_only = io.open(&dir, "f", Access::READ).unwrap();
    for sync in [false, true] {
        let done = run(&mut *backend, write(&read_only, 0, filled(BLOCK, 3), sync));
        assert!(done.result.is_err());
        assert_eq!(done.buffer.unwrap()[..], filled(BLOCK, 3)[..]);
    }
    assert_eq!(Blocking::new(&mut *backend).length(&read_only).unwrap(), 0);
}

/// A write that meets the limit of file sizes is answered with an error and its buffer, and what
/// fitted is written. Changes the limits of the process: run it with [`in_own_process`](super::in_own_process).
pub fn a_write_meets_the_size_limit(world: &World) {
    const LIMIT: usize = 3 * BLOCK;
    let limit = libc::rlimit {
        rlim_cur: LIMIT as u64,
        rlim_max: libc::RLIM_INFINITY,
    };
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    // SAFETY: ignores a signal and sets a limit of this process, from plain values.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    for (sync, class) in [
        (false, Class::Foreground),
        (true, Class::Foreground),
        (true, Class::Background),
    ] {
        let op = write(&file, 0, filled(2 * LIMIT, 5), sync);
        backend.submit(request(1, class, op)).unwrap();
        let done = finish(&mut *backend).remove(0);
        let error = done.result.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EFBIG), "{error}");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(done.buffer.unwrap().len(), 2 * LIMIT);
        let there = read(&mut *backend, &file, 0, 2 * LIMIT);
        assert_eq!(there, filled(2 * LIMIT, 5)[..LIMIT]);
        Blocking::new(&mut *backend).truncate(&file, 0).unwrap();
    }
}
