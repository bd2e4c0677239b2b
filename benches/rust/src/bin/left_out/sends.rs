//! Sends that the kernel copies, and sends whose memory it keeps until the peer has the bytes.
//!
//! Over loopback the receiver is on this machine and the bytes are copied once more in any case;
//! this says what the second answer of each send costs, not what a network card would save.

use std::{
    io::Read as _,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use io_uring::{cqueue, opcode, squeue, types};
use millrace_core::io::Buffer;

use super::{
    Named,
    cells::Ring,
    table::{Meter, Sample},
};

const DEPTH: usize = 4;

/// A way to send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    Copied,
    Kept,
}

impl Named for Sends {
    fn name(&self) -> &'static str {
        match self {
            Self::Copied => "as the engine does",
            Self::Kept => "zero-copy send",
        }
    }
}

impl Sends {
    pub const WAYS: [Self; 2] = [Self::Copied, Self::Kept];

    /// Rates are of sends of `length` bytes.
    pub fn sample(self, length: usize, time: Duration) -> Option<Sample> {
        let (ours, mut theirs) = pair();
        let reader = std::thread::spawn(move || {
            let (mut seen, mut chunk) = (0, vec![0; 1 << 20]);
            loop {
                match theirs.read(&mut chunk).unwrap() {
                    0 => return seen,
                    count => seen += count as u64,
                }
            }
        });
        let buffers: Vec<Buffer> = (0..DEPTH).map(|_| Buffer::zeroed(length)).collect();
        let mut ring = Ring::WAYS[0].make(16)?;
        let stage = |ring: &mut io_uring::IoUring, slot: usize| {
            let entry = self.entry(&ours, &buffers[slot]).user_data(slot as u64);
            // SAFETY: the buffers outlive the ring's last answer, which is waited for below.
            unsafe { ring.submission().push(&entry) }.unwrap();
        };
        let (meter, mut sent, mut open) = (Meter::start(), 0, DEPTH);
        for slot in 0..DEPTH {
            stage(&mut ring, slot);
        }
        while open > 0 {
            ring.submit_and_wait(1).unwrap();
            let answers: Vec<_> = ring.completion().collect();
            let goes_on = meter.elapsed() < time;
            for answer in answers {
                let is_note = cqueue::notif(answer.flags());
                if !is_note {
                    assert!(answer.result() > 0, "{}", answer.result());
                    sent += answer.result() as u64;
                }
                if cqueue::more(answer.flags()) {
                    // The memory is free with the second answer.
                    continue;
                }
                if goes_on {
                    stage(&mut ring, answer.user_data() as usize);
                } else {
                    open -= 1;
                }
            }
        }
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(reader.join().unwrap(), sent);
        Some(meter.stop(sent / length as u64))
    }

    fn entry(self, socket: &TcpStream, buffer: &Buffer) -> squeue::Entry {
        let fd = types::Fd(socket.as_raw_fd());
        let (start, length) = (buffer.as_ptr(), buffer.len() as u32);
        let all = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        match self {
            Self::Copied => opcode::Send::new(fd, start, length).flags(all).build(),
            Self::Kept => opcode::SendZc::new(fd, start, length).flags(all).build(),
        }
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    (ours, theirs)
}
