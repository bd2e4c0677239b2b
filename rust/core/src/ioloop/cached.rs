//! Reads that the page cache can answer, tried on the caller's own thread.
//!
//! A read through the loop costs a hop to another thread and back; one that needs no device costs
//! a system call. `RWF_NOWAIT` (preadv2(2)) asks for exactly what needs no waiting. Where it keeps
//! missing, trying is given up for a while, so that a cold file costs no extra call for each read.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Handle;
use crate::io::{Buffer, File, sys};

/// Misses in a row after which trying pauses.
const MISSES_MAX: u32 = 8;

/// Reads let by before the next try; doubles with every miss up to a bound.
const PAUSE_MIN: u32 = 16;
const PAUSE_MAX: u32 = 1024;

/// What is known about a file's place in the page cache. One for each open file, shared by all who
/// read it; races between them only blur the guess.
#[derive(Debug, Default)]
pub struct Warmth {
    /// Misses in a row; beyond [`MISSES_MAX`] each adds to the pause.
    misses: AtomicU32,
    /// Reads to let by before the next try.
    pause: AtomicU32,
}

/// Longest read tried on the caller's thread: copying more would hold up an event loop for longer
/// than a hop to another thread takes.
pub const LENGTH_MAX: usize = 64 * 1024;

impl Warmth {
    /// Whether a try is worth a system call now.
    fn is_likely(&self) -> bool {
        let pause = self.pause.load(Ordering::Relaxed);
        if pause > 0 {
            self.pause.store(pause - 1, Ordering::Relaxed);
        }
        pause == 0 || planted!("cached_never_pauses")
    }

    fn on_hit(&self) {
        self.misses.store(0, Ordering::Relaxed);
    }

    fn on_miss(&self) {
        let misses = self.misses.fetch_add(1, Ordering::Relaxed) + 1;
        if misses >= MISSES_MAX {
            let doublings = (misses - MISSES_MAX).min(PAUSE_MAX.ilog2());
            let pause = (PAUSE_MIN << doublings.min(16)).min(PAUSE_MAX);
            self.pause.store(pause, Ordering::Relaxed);
        }
    }

    /// Not here, whatever is read: a device, a pipe, a filesystem without the flag.
    fn on_refused(&self) {
        self.misses.store(MISSES_MAX + 16, Ordering::Relaxed);
        self.pause.store(u32::MAX, Ordering::Relaxed);
    }

    /// All of `length` bytes from `offset`, or those up to the end of the file, if the page cache
    /// has them now; `None` means that the loop has to be asked. Never waits for a device.
    pub fn read(
        &self,
        handle: &Handle,
        file: &File,
        offset: u64,
        length: usize,
    ) -> Option<(Buffer, usize)> {
        if !self.is_worth_a_try(file, length) {
            return None;
        }
        let mut buffer = Buffer::try_zeroed(length).ok()?;
        let count = self.read_into(handle, file, offset, &mut buffer)?;
        Some((buffer, count))
    }

    /// Whether [`read_into`](Self::read_into) should be called now. Asked once for each read.
    pub fn is_worth_a_try(&self, file: &File, length: usize) -> bool {
        length <= LENGTH_MAX && !file.is_direct() && self.is_likely()
    }

    /// As [`read`](Self::read), into memory of the caller's.
    pub fn read_into(
        &self,
        handle: &Handle,
        file: &File,
        offset: u64,
        into: &mut [u8],
    ) -> Option<usize> {
        let metrics = &handle.shared().metrics;
        let Some(count) = self.fill(file.fd()?, into, offset) else {
            metrics.cached_misses.up();
            return None;
        };
        metrics.cached_hits.up();
        Some(count)
    }

    /// A short count is the end of the file only if the next byte is not there either.
    fn fill(&self, fd: std::os::fd::RawFd, into: &mut [u8], offset: u64) -> Option<usize> {
        let mut done = 0;
        while done < into.len() {
            match sys::read_cached(fd, &mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(sys::Errno(libc::EAGAIN)) => {
                    self.on_miss();
                    return None;
                }
                Err(_) => {
                    self.on_refused();
                    return None;
                }
            }
        }
        self.on_hit();
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_file_is_tried_ever_more_rarely_and_a_warm_one_always() {
        // A thousand reads that miss cost a few tries; one hit brings back the trust.
        let warmth = Warmth::default();
        let mut tries = 0;
        for _ in 0..1000 {
            if warmth.is_likely() {
                tries += 1;
                warmth.on_miss();
            }
        }
        assert!(tries < 20, "{tries} tries");
        while !warmth.is_likely() {}
        warmth.on_hit();
        assert!((0..1000).all(|_| warmth.is_likely()));
        warmth.on_refused();
        assert!(!(0..1000).any(|_| warmth.is_likely()));
    }
}
