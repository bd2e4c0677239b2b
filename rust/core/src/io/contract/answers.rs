//! Requests and their answers: each exactly once, and none in another's way.

use std::{fs::OpenOptions, sync::mpsc, thread, time::Duration};

use super::{World, filled, finish, foreground, program::make_pipe, read, request, write};
use crate::io::{BLOCK, Class, Op, Token, Wait};

/// How long a foreground request is waited for that waits for something itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every request is finished exactly once, whatever its class and however many there are.
pub fn every_request_is_finished_exactly_once(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut tokens = Vec::new();
    let mut out = Vec::new();
    for token in 0..300u64 {
        let class = if token % 3 == 0 {
            Class::Background
        } else {
            Class::Foreground
        };
        let op = match token % 5 {
            0 => Op::Length { file: file.clone() },
            1 => Op::Sync { file: file.clone() },
            2 => Op::Truncate {
                file: file.clone(),
                length: token,
            },
            _ => write(&file, token * 16, filled(16, token as u8), token % 2 == 0),
        };
        let mut next = request(token, class, op);
        while let Err(back) = backend.submit(next) {
            assert_eq!(back.token, Token(token));
            next = back;
            backend.poll(&mut out, Wait::Forever).unwrap();
        }
    }
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    for finished in out {
        finished.result.unwrap();
        assert_eq!(finished.buffer.is_some(), finished.token.0 % 5 > 2);
        tokens.push(finished.token.0);
    }
    tokens.sort_unstable();
    assert_eq!(tokens, (0..300).collect::<Vec<_>>());
}

/// A full table gives the request back whole, and takes it once there is room.
pub fn a_full_table_gives_the_request_back(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    let mut taken = 0;
    let refused = loop {
        let op = write(&file, taken * 16, filled(16, 1), false);
        match backend.submit(foreground(taken, op)) {
            Ok(()) => taken += 1,
            Err(request) => break Some(request),
        }
        assert_eq!(backend.in_flight() as u64, taken);
        if taken == 20_000 {
            // A table without bounds keeps this rule by never being full.
            break None;
        }
    };
    let mut out = finish(&mut *backend);
    if let Some(request) = refused {
        assert_eq!(request.token, Token(taken));
        let Op::Write { buffer, length, .. } = &request.op else {
            panic!("another request came back: {request:?}");
        };
        assert_eq!(buffer[..*length], filled(16, 1)[..]);
        backend.submit(request).unwrap();
        out.append(&mut finish(&mut *backend));
        taken += 1;
    }
    assert_eq!(out.len() as u64, taken);
    assert!(out.iter().all(|finished| finished.result.is_ok()));
}

/// A request keeps its file open by itself.
pub fn a_request_keeps_its_file_open(world: &World) {
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..8 {
        let op = write(&file, token * 4096, filled(BLOCK, token as u8), true);
        backend.submit(foreground(token, op)).unwrap();
    }
    drop(file);
    assert!(finish(&mut *backend).iter().all(|done| done.result.is_ok()));
    let file = world.file(&mut *backend, "f");
    assert_eq!(
        read(&mut *backend, &file, 7 * 4096, BLOCK),
        filled(BLOCK, 7)[..]
    );
}

/// A foreground request does not wait behind background ones, however long those take.
pub fn background_never_delays_foreground(world: &World) {
    const COUNT: u64 = 3;
    if !world.real {
        return;
    }
    let pipe = world.path.join("pipe");
    make_pipe(&pipe);
    let mut backend = world.backend();
    let file = world.file(&mut *backend, "f");
    for token in 0..COUNT {
        // Takes until somebody opens the other end.
        let op = Op::OpenPath {
            path: pipe.clone(),
            flags: libc::O_RDONLY,
            mode: 0,
        };
        let opening = request(token, Class::Background, op);
        backend.submit(opening).unwrap();
    }
    let op = write(&file, 0, filled(BLOCK, 1), true);
    backend.submit(foreground(COUNT, op)).unwrap();
    let (is_answered, answered) = mpsc::channel::<()>();
    let opener = thread::spawn(move || {
        // A backend that waits for them first has failed, and is let go on.
        let _told = answered.recv_timeout(PATIENCE);
        OpenOptions::new().read(true).write(true).open(pipe)
    });
    let mut out = Vec::new();
    while out.is_empty() {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    drop(is_answered);
    let other_end = opener.join().unwrap().unwrap();
    let first: Vec<Token> = out.iter().map(|finished| finished.token).collect();
    out.append(&mut finish(&mut *backend));
    drop(other_end);
    assert_eq!(first, [Token(COUNT)]);
    assert!(out.iter().all(|finished| finished.result.is_ok()));
}
