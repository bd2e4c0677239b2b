//! Files, on every backend.

use std::time::Duration;

use super::{Make, Rig, filled, on_every_backend};
use crate::{
    error::ErrorKind,
    io::{BLOCK, Buffer, Wait, vectors::PARTS_MAX},
    ioloop::{
        Ask, Reply, Settings,
        cached::{LENGTH_MAX, Warmth},
        tests::{bytes, count},
    },
};

const CREATE: i32 = libc::O_RDWR | libc::O_CREAT;

/// What was written is read back; the end of a file has a name unless the caller expects it.
fn every_file_operation_does_what_it_says(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    let write = Ask::Write {
        file: file.clone(),
        offset: 10,
        buffers: vec![filled(BLOCK, 1), filled(0, 0), filled(5, 2)],
        sync: true,
    };
    assert_eq!(count(rig.run(write)), BLOCK as u64 + 5);
    for data_only in [true, false] {
        let file = file.clone();
        assert!(matches!(
            rig.run(Ask::Sync { file, data_only }),
            Ok(Reply::Done)
        ));
    }
    let read = |offset, length, partial| Ask::Read {
        file: file.clone(),
        offset,
        length,
        partial,
    };
    let all = bytes(rig.run(read(10, BLOCK + 5, false)));
    assert_eq!(all[..BLOCK], filled(BLOCK, 1)[..]);
    assert_eq!(all[BLOCK..], filled(5, 2)[..]);
    let short = rig.run(read(10, BLOCK + 6, false)).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::ShortRead);
    assert_eq!(short.number("got"), Some(BLOCK as i128 + 5));
    assert_eq!(short.number("wanted"), Some(BLOCK as i128 + 6));
    assert_eq!(bytes(rig.run(read(10, BLOCK + 6, true))).len(), BLOCK + 5);
    assert!(bytes(rig.run(read(1 << 30, 8, true))).is_empty());
}

/// Names and metadata: cut, reserved, measured, renamed, made durable, closed, removed.
fn names_and_lengths_follow_their_orders(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    rig.run(Ask::Truncate {
        file: file.clone(),
        length: 100,
    })
    .unwrap();
    rig.run(Ask::Allocate {
        file: file.clone(),
        length: 4096,
    })
    .unwrap();
    let Reply::Status(status) = rig.run(Ask::Stat { file: file.clone() }).unwrap() else {
        panic!("no status");
    };
    assert_eq!((status.length, status.mode & 0o777), (4096, 0o600));
    rig.run(Ask::Rename {
        from: rig.path("a"),
        to: rig.path("b"),
    })
    .unwrap();
    rig.run(Ask::SyncDirectory {
        path: rig.place.path().to_owned(),
    })
    .unwrap();
    let Reply::Status(there) = rig
        .run(Ask::StatPath {
            path: rig.path("b"),
        })
        .unwrap()
    else {
        panic!("no status");
    };
    assert_eq!((there.inode, there.length), (status.inode, status.length));
    rig.run(Ask::Close { file }).unwrap();
    rig.run(Ask::Unlink {
        path: rig.path("b"),
    })
    .unwrap();
    let gone = rig
        .run(Ask::StatPath {
            path: rig.path("b"),
        })
        .unwrap_err();
    assert_eq!(gone.errno(), Some(libc::ENOENT));
}

/// A list longer than the kernel takes at once is written whole, durably or not.
fn a_long_list_of_buffers_is_split(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    for (sync, parts) in [(false, PARTS_MAX + 1), (true, 3 * PARTS_MAX)] {
        let buffers: Vec<_> = (0..parts).map(|at| filled(7, at as u8)).collect();
        let expected: Vec<u8> = buffers.iter().flat_map(|one| one.to_vec()).collect();
        let ask = Ask::Write {
            file: file.clone(),
            offset: 3,
            buffers,
            sync,
        };
        assert_eq!(count(rig.run(ask)), 7 * parts as u64);
        let ask = Ask::Read {
            file: file.clone(),
            offset: 3,
            length: 7 * parts,
            partial: false,
        };
        assert!(bytes(rig.run(ask)) == expected);
    }
    // Whatever was asked for in one call was moved by it.
    assert_eq!(rig.handle.statistics().short, 0);
}

/// An empty write is no error and changes nothing, with and without buffers.
fn an_empty_write_changes_nothing(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    for buffers in [
        vec![],
        vec![Buffer::zeroed(0)],
        vec![Buffer::zeroed(0), Buffer::zeroed(0)],
    ] {
        for sync in [false, true] {
            let count_of = buffers.len();
            let ask = Ask::Write {
                file: file.clone(),
                offset: 100,
                buffers: (0..count_of).map(|_| Buffer::zeroed(0)).collect(),
                sync,
            };
            assert_eq!(count(rig.run(ask)), 0);
        }
    }
    let Reply::Status(status) = rig.run(Ask::Stat { file }).unwrap() else {
        panic!("no status");
    };
    assert_eq!(status.length, 0);
}

/// What the kernel refuses arrives with its errno and the path or the operation.
fn a_refusal_keeps_its_errno(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", libc::O_RDONLY | libc::O_CREAT);
    let open = Ask::Open {
        path: rig.path("none/such"),
        flags: libc::O_RDONLY,
        mode: 0,
    };
    assert_eq!(rig.run(open).unwrap_err().errno(), Some(libc::ENOENT));
    for buffers in [vec![filled(8, 1)], vec![filled(8, 1), filled(8, 2)]] {
        let ask = Ask::Write {
            file: file.clone(),
            offset: 0,
            buffers,
            sync: true,
        };
        assert_eq!(rig.run(ask).unwrap_err().errno(), Some(libc::EBADF));
    }
    let ask = Ask::Recv {
        socket: file,
        length: 1,
        exact: false,
    };
    let error = rig.run(ask).unwrap_err();
    // A file can be no more received from than waited for.
    assert!(
        matches!(error.errno(), Some(libc::ENOTSOCK | libc::EPERM)),
        "{error}"
    );
    let ask = Ask::Unlink {
        path: "a\0b".into(),
    };
    assert_eq!(rig.run(ask).unwrap_err().kind(), ErrorKind::Invalid);
}

/// A file that others still use is closed with the last of them; its number is not reused before.
fn a_close_waits_for_those_who_use_the_file(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    let tags: Vec<_> = (0..20)
        .map(|at| {
            let ask = Ask::Write {
                file: file.clone(),
                offset: at * 100,
                buffers: vec![filled(100, at as u8)],
                sync: true,
            };
            rig.ask(ask, None).0
        })
        .collect();
    let (closed, _) = rig.ask(Ask::Close { file }, None);
    rig.wait(closed).unwrap();
    for tag in tags {
        assert_eq!(count(rig.wait(tag)), 100);
    }
    let file = rig.open("a", CREATE);
    let Reply::Status(status) = rig.run(Ask::Stat { file }).unwrap() else {
        panic!("no status");
    };
    assert_eq!(status.length, 2000);
}

/// Sixty-four timed requests go through a table of eight; each is answered, none by its deadline.
fn many_timed_requests_pass_a_small_table(make: Make) {
    let settings = Settings {
        size: 8,
        ..Settings::default()
    };
    let mut rig = Rig::new(make, settings);
    let file = rig.open("a", CREATE);
    let ask = Ask::Write {
        file: file.clone(),
        offset: 0,
        buffers: vec![filled(64 * BLOCK, 1)],
        sync: false,
    };
    rig.run(ask).unwrap();
    let tags: Vec<_> = (0..64)
        .map(|at| {
            let ask = Ask::Read {
                file: file.clone(),
                offset: at * BLOCK as u64,
                length: BLOCK,
                partial: false,
            };
            rig.ask(ask, Some(rig.after(1000))).0
        })
        .collect();
    for tag in tags {
        assert_eq!(bytes(rig.wait(tag)).len(), BLOCK);
    }
    let seen = rig.handle.statistics();
    assert_eq!((seen.timed_out, seen.pending), (0, 0));
    // Their deadlines went with them: an hour later nothing is left to pass.
    rig.clock.advance(Duration::from_secs(3600));
    rig.engine.turn(Wait::Never);
    assert_eq!(rig.handle.statistics().timed_out, 0);
}

/// What the page cache has is read on the caller's thread, up to the end of the file; what it does
/// not have is left to the loop, and a cold file is soon not tried any more.
fn cached_reads_need_no_loop(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    let ask = Ask::Write {
        file: file.clone(),
        offset: 0,
        buffers: vec![filled(4 * LENGTH_MAX, 1)],
        sync: true,
    };
    rig.run(ask).unwrap();
    let warmth = Warmth::default();
    let (buffer, got) = warmth.read(&rig.handle, &file, 5, 100).unwrap();
    assert_eq!((&buffer[..got], got), (&filled(105, 1)[5..], 100));
    let near_the_end = 4 * LENGTH_MAX as u64 - 10;
    let (_, got) = warmth.read(&rig.handle, &file, near_the_end, 100).unwrap();
    assert_eq!(got, 10);
    assert!(warmth.read(&rig.handle, &file, 0, LENGTH_MAX + 1).is_none());
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = crate::io::File::from_fd(reader.into());
    assert!(Warmth::default().read(&rig.handle, &pipe, 0, 1).is_none());
    assert_eq!(rig.handle.statistics().cached_hits, 2);
}

/// A direct read that goes beyond the end of the file is short by what is missing, although the
/// end lies where no direct read could begin.
fn a_direct_read_ends_at_the_end_of_the_file(make: Make) {
    let mut rig = Rig::new(make, Settings::default());
    let file = rig.open("a", CREATE);
    let ask = Ask::Write {
        file,
        offset: 0,
        buffers: vec![filled(BLOCK + 1000, 1)],
        sync: true,
    };
    rig.run(ask).unwrap();
    let open = Ask::Open {
        path: rig.path("a"),
        flags: libc::O_RDONLY | libc::O_DIRECT,
        mode: 0,
    };
    let file = match rig.run(open) {
        Ok(Reply::File(file)) => file,
        // Not on this filesystem.
        Err(error) if error.errno() == Some(libc::EINVAL) => return,
        other => panic!("{other:?}"),
    };
    let ask = Ask::Read {
        file,
        offset: 0,
        length: 4 * BLOCK,
        partial: true,
    };
    assert_eq!(bytes(rig.run(ask)), filled(BLOCK + 1000, 1)[..]);
}

on_every_backend! {
    every_file_operation_does_what_it_says
    names_and_lengths_follow_their_orders
    a_long_list_of_buffers_is_split
    an_empty_write_changes_nothing
    a_refusal_keeps_its_errno
    a_close_waits_for_those_who_use_the_file
    many_timed_requests_pass_a_small_table
    cached_reads_need_no_loop
    a_direct_read_ends_at_the_end_of_the_file
}
