//! A large durable write as several submissions side by side.
//!
//! A device takes four writes of a quarter of a mebibyte in less time than one of a whole. That
//! holds where bytes are overwritten; into space that was never written to, each piece would change
//! the extents by itself, and nothing is gained.
//!
//! ```text
//! write --> piece, piece, piece, piece --> all answered --all whole--> finished
//!                                              |--one failed for good--> finished with that error
//!                                              \--anything else--> the whole again, in one
//! ```
//!
//! # Always true
//!
//! 1. Nothing follows from the answer of a piece before all pieces are answered: file and buffer
//!    stay, as with one submission.
//! 2. All of it is durable once every piece moved all its bytes, since each asks for durability
//!    itself. Nobody relies on the order in which they land: a single write has none either.
//! 3. An error that would end a write in one submission ends this one, whatever else its pieces
//!    were told: it is not written again.

use io_uring::{opcode, squeue};

use super::{
    super::{KEPT, Key, UringBackend},
    Flight, Work,
};
use crate::{
    codec::align_up,
    io::{Class, File},
};

/// Bytes of a piece, at least.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces of a write, at most.
const PIECES_MAX: usize = 4;
/// Where pieces begin: at a multiple of every block that direct I/O may ask for.
const ALIGNMENT: u64 = 64 << 10;

/// Of how many pieces a write of `length` bytes is, in a queue with `room` for so many.
fn count_of(length: usize, room: usize) -> usize {
    let count = (length / PIECE_BYTES).min(PIECES_MAX);
    if count <= room { count.max(1) } else { 1 }
}

/// What is under way of a write in pieces.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Bytes of each but the last; zero: it is in one.
    size: usize,
    /// How many have not been answered.
    open: usize,
    moved: usize,
    /// The worst answer so far.
    refused: Option<i32>,
}

impl Pieces {
    /// Of `length` bytes in about `count` pieces; says in how many.
    fn begin(&mut self, length: usize, count: usize) -> usize {
        let size = align_up(length.div_ceil(count) as u64, ALIGNMENT) as usize;
        let open = length.div_ceil(size);
        *self = Self {
            size,
            open,
            ..Self::default()
        };
        open
    }

    /// Where a piece begins, and its bytes.
    fn span(&self, number: usize, length: usize) -> (usize, usize) {
        let from = number * self.size;
        (from, self.size.min(length - from))
    }

    /// So many were not staged, and will not be.
    fn lack(&mut self, count: usize) {
        self.open = self.open.saturating_sub(count);
        if self.open == 0 {
            *self = Self::default();
        }
    }

    /// See [`Flight::gather`].
    fn gather(&mut self, answer: i32, length: usize) -> Option<i32> {
        if self.size == 0 {
            return Some(answer);
        }
        match usize::try_from(answer) {
            // Our caller knows what to do about such a kernel, and it is to do it at once.
            Ok(count) if count > self.size => return Some(i32::MAX),
            Ok(count) => self.moved += count,
            Err(_) => {
                let worst = self.refused.filter(|known| !is_passing(*known));
                self.refused = worst.or(Some(answer));
            }
        }
        self.open = self.open.saturating_sub(1);
        if self.open > 0 && !planted!("uring_pieces_answered_early") {
            return None;
        }
        let all = std::mem::take(self);
        let refused = all
            .refused
            .filter(|_| !planted!("uring_piece_failure_forgotten"));
        // One that fell short is like one that was interrupted: the whole is written again.
        let moved = if all.moved == length {
            i32::try_from(length).unwrap_or(-libc::EINTR)
        } else {
            -libc::EINTR
        };
        Some(refused.unwrap_or(moved))
    }
}

/// Whether a write that was answered so is made again.
fn is_passing(answer: i32) -> bool {
    matches!(
        -answer,
        libc::EINTR | libc::EAGAIN | libc::ECANCELED | libc::EOPNOTSUPP
    )
}

impl Flight {
    /// Of how many submissions the next one is, which the queue has `room` for: more than one if
    /// pieces are quicker.
    fn split(&mut self, dsync: bool, room: usize) -> usize {
        let is_write = self.work == Work::Write { sync: true } && self.buffer.is_some();
        let is_first = self.tries == 0 && self.moved == 0;
        let may = is_write && is_first && dsync && self.class == Class::Foreground;
        let suits = |file: &File| file.is_written() && file.is_direct();
        if !may || !self.file.as_ref().is_some_and(suits) {
            return 1;
        }
        match count_of(self.length, room) {
            1 => 1,
            count => self.pieces.begin(self.length, count),
        }
    }

    /// The submission of one piece. It points into the buffer, as [`entry`](Self::entry) does.
    fn piece_entry(&mut self, number: usize) -> squeue::Entry {
        self.durable = true;
        self.asked = self.length;
        let (from, count) = self.pieces.span(number, self.length);
        let (fd, at) = (self.fd(), self.offset + from as u64);
        let Some(buffer) = self.buffer.as_mut() else {
            // A transfer always has memory; this keeps the answer honest if it had none.
            return opcode::Nop::new().build();
        };
        let write = opcode::Write::new(fd, buffer[from..].as_mut_ptr(), count as u32);
        write.offset(at).rw_flags(libc::RWF_DSYNC).build()
    }

    /// So many pieces could not be staged.
    fn lack(&mut self, count: usize) {
        self.pieces.lack(count);
    }

    /// Takes an answer; gives that of the whole submission, once all its pieces are answered.
    pub(in crate::uring) fn gather(&mut self, answer: i32) -> Option<i32> {
        self.pieces.gather(answer, self.length)
    }
}

impl UringBackend {
    /// Stages the next submission of a flight in the table; if the queue is full it is the first
    /// to be tried again.
    pub(in crate::uring) fn stage_flight(&mut self, key: Key) -> bool {
        let (Some(ring), Some(flight)) = (self.ring.as_mut(), self.table.get(key)) else {
            return true;
        };
        let room = ring.room().saturating_sub(KEPT);
        let count = flight.split(self.dsync, room);
        for number in 0..count {
            let entry = match count {
                1 => flight.entry(self.dsync),
                _ => flight.piece_entry(number),
            };
            // SAFETY: the entry points into the flight's buffer, which stays where it is on the
            // heap until the table lets the flight go: at its last answer, or never (the table's
            // invariant 1). A flight in pieces has its last answer with the last of them.
            if unsafe { ring.stage(&entry.user_data(key.0)) } {
                continue;
            }
            flight.lack(count - number);
            if number == 0 {
                self.again.push_front(key);
            }
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Step, Way},
        *,
    };
    use crate::io::{Answer, Buffer, Op, Request, Token};

    const LENGTH: usize = 1 << 20;
    const QUARTER: i32 = 256 << 10;

    /// A file that says it is direct and was written to. Nothing is ever written here.
    fn file() -> File {
        let file = File::from_fd(std::fs::File::open("/dev/null").unwrap().into());
        file.claim_direct();
        file.note_written();
        file
    }

    fn write_of(length: usize, file: File) -> Flight {
        let op = Op::Write {
            file,
            offset: 0,
            length,
            buffer: Buffer::zeroed(length),
            sync: true,
        };
        let request = Request {
            token: Token(1),
            class: Class::Foreground,
            op,
        };
        match Flight::sort(request, false) {
            Way::Ring(flight) => flight,
            _ => panic!("not for the ring"),
        }
    }

    /// A mebibyte, staged in four pieces.
    fn in_pieces() -> Flight {
        let mut flight = write_of(LENGTH, file());
        assert_eq!(flight.split(true, 100), 4);
        for number in 0..4 {
            flight.piece_entry(number);
        }
        flight
    }

    /// What comes of these answers, of which the last alone may end anything.
    fn after(flight: &mut Flight, answers: [i32; 4]) -> Step {
        for answer in &answers[..3] {
            assert_eq!(flight.gather(*answer), None, "ended before the last");
        }
        let answer = flight.gather(answers[3]).unwrap();
        if flight.refuses_dsync(answer) {
            return Step::Again;
        }
        flight.on_answer(answer)
    }

    #[test]
    fn pieces_cover_the_write_once() {
        // Every byte is in one piece, each begins where direct I/O may begin, none is tiny.
        for length in [LENGTH, LENGTH - 4096, 2 * PIECE_BYTES, 5_000_192, 32 << 20] {
            let count = count_of(length, PIECES_MAX);
            let mut pieces = Pieces::default();
            let count = pieces.begin(length, count);
            assert!((2..=PIECES_MAX).contains(&count), "{length}");
            let mut end = 0;
            for number in 0..count {
                let (from, bytes) = pieces.span(number, length);
                assert_eq!((from, from as u64 % ALIGNMENT), (end, 0));
                assert!(bytes >= 64 << 10, "{length}: {bytes}");
                end = from + bytes;
            }
            assert_eq!(end, length);
        }
    }

    #[test]
    fn only_large_writes_over_written_space_are_split() {
        // Elsewhere it gains nothing; without durable writes the sync comes after the last byte.
        assert_eq!(write_of(LENGTH, file()).split(true, 100), 4);
        assert_eq!(write_of(LENGTH, file()).split(false, 100), 1);
        assert_eq!(write_of(LENGTH, file()).split(true, 3), 1);
        assert_eq!(write_of(2 * PIECE_BYTES - 4096, file()).split(true, 100), 1);
        let never_written = File::from_fd(std::fs::File::open("/dev/null").unwrap().into());
        never_written.claim_direct();
        assert_eq!(write_of(LENGTH, never_written).split(true, 100), 1);
    }

    #[test]
    fn all_pieces_whole_are_the_write() {
        // The last answer ends it, with the count of the whole; nothing follows.
        let step = after(&mut in_pieces(), [QUARTER; 4]);
        assert!(matches!(step, Step::Over(Ok(Answer::Count(LENGTH)))));
    }

    #[test]
    fn a_piece_that_failed_fails_the_write_whatever_the_others_were_told() {
        // Before and after answers that alone would lead to another try: a write that may have lost
        // its pages is not made again.
        for passing in [-libc::EAGAIN, -libc::ECANCELED, -libc::EOPNOTSUPP, 4096] {
            for answers in [
                [passing, -libc::EIO, QUARTER, QUARTER],
                [-libc::EIO, QUARTER, QUARTER, passing],
                [QUARTER, passing, passing, -libc::EIO],
            ] {
                let Step::Over(Err(error)) = after(&mut in_pieces(), answers) else {
                    panic!("{answers:?} did not fail");
                };
                assert_eq!(error.errno(), Some(libc::EIO));
            }
        }
    }

    #[test]
    fn what_passes_leads_to_one_write_of_the_whole() {
        // Short, interrupted, told to try again, or without durable writes: all bytes once more, in
        // one submission, and not in pieces again.
        for odd in [4096, 0, -libc::EINTR, -libc::EAGAIN, -libc::EOPNOTSUPP] {
            let mut flight = in_pieces();
            let step = after(&mut flight, [QUARTER, odd, QUARTER, QUARTER]);
            assert!(matches!(step, Step::Again), "{odd}");
            let dsync = odd != -libc::EOPNOTSUPP;
            assert_eq!(flight.split(dsync, 100), 1, "{odd}");
            flight.entry(dsync);
            assert_eq!(flight.gather(LENGTH as i32), Some(LENGTH as i32));
            let step = flight.on_answer(LENGTH as i32);
            assert_eq!(matches!(step, Step::Over(Ok(_))), dsync, "{odd}");
        }
    }

    #[test]
    fn pieces_that_found_no_room_are_missing() {
        // Those that were staged are waited for, then the whole is written; none staged: as before.
        let mut flight = in_pieces();
        flight.lack(2);
        assert_eq!(flight.gather(QUARTER), None);
        let answer = flight.gather(QUARTER).unwrap();
        assert!(matches!(flight.on_answer(answer), Step::Again));
        let mut flight = in_pieces();
        flight.lack(4);
        assert_eq!(flight.gather(LENGTH as i32), Some(LENGTH as i32));
    }

    #[test]
    fn more_than_a_piece_holds_is_a_broken_kernel() {
        // It is told at once; what the other pieces still do is leaked with the rest.
        let mut flight = in_pieces();
        let answer = flight.gather(QUARTER + 1).unwrap();
        assert!(matches!(flight.on_answer(answer), Step::Impossible(_)));
    }
}
