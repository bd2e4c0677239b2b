//! Owned memory aligned for direct I/O.
//!
//! A buffer is moved into a request and comes back with the answer. It is never borrowed by the
//! kernel: whoever leaks it keeps the memory valid for ever.

use std::{
    alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Mutex,
};

use crate::error::{Error, ErrorKind, Result};

/// Alignment of every buffer and default unit of direct I/O, in bytes: the page size, and the
/// largest logical sector in use (4Kn).
pub const BLOCK: usize = 4096;

/// From here on the kernel gives memory by itself: its pages are zero without anybody writing to
/// them, and are there only once they are used. glibc's allocator asks it for as much from the same
/// size on, but writes the zeros, because it cannot tell when more than usual alignment is wanted.
const MAPPED_FROM: usize = 128 << 10;

/// The size of a huge page, and the unit of buffers made of them.
pub const HUGE: usize = 2 << 20;

/// Zeroed, owned, [`BLOCK`]-aligned bytes.
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a Buffer owns its memory exclusively, like a Vec<u8>; only `Buffer` makes one.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads plain bytes; exclusive access needs `&mut`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `length` zero bytes. Zero length allocates nothing.
    pub fn zeroed(length: usize) -> Self {
        Self::made(length, true)
            .unwrap_or_else(|| handle_alloc_error(layout(length).unwrap_or(Layout::new::<u8>())))
    }

    /// As [`zeroed`](Self::zeroed), for lengths that a program chose: what does not fit into memory
    /// is an error.
    pub fn try_zeroed(length: usize) -> Result<Self> {
        if let Some(kept) = take_kept(length) {
            return Ok(kept);
        }
        Self::made(length, true).ok_or_else(|| too_large(length))
    }

    /// At least `length` zero bytes, in whole huge pages if the kernel has some to give: one of
    /// them is one place for a device to fetch from, where small pages are hundreds.
    pub fn try_huge(length: usize) -> Result<Self> {
        let rounded = length.checked_next_multiple_of(HUGE);
        let made = rounded.and_then(|rounded| Some((mapped_huge(rounded)?, rounded)));
        let (start, length) = made.ok_or_else(|| too_large(length))?;
        Ok(Self { start, length })
    }

    /// A copy of `bytes`; what does not fit into memory is an error.
    pub fn try_copy_of(bytes: &[u8]) -> Result<Self> {
        let length = bytes.len();
        let copy = Self::made(length, false).ok_or_else(|| too_large(length))?;
        if length >= HUGE {
            // All of it is written now, by a caller who may be an event loop: 512 page faults fewer
            // for each huge page.
            wish_huge(copy.start, length);
        }
        // SAFETY: `start` is valid for `length` bytes (or both are empty), new, and so apart from
        // `bytes`; after the copy all of it is initialised.
        unsafe {
            copy.start
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), length);
        };
        Ok(copy)
    }

    /// Memory, zero or to be filled by our caller before anybody looks at it; `None`: there is none.
    fn made(length: usize, zero: bool) -> Option<Self> {
        let start = match length {
            0 => NonNull::dangling(),
            1..MAPPED_FROM => {
                let layout = layout(length)?;
                // SAFETY: the layout has a non-zero size.
                NonNull::new(unsafe {
                    if zero {
                        alloc_zeroed(layout)
                    } else {
                        alloc(layout)
                    }
                })?
            }
            _ => mapped(length)?,
        };
        Some(Self { start, length })
    }
}

fn layout(length: usize) -> Option<Layout> {
    Layout::from_size_align(length, BLOCK).ok()
}

fn too_large(length: usize) -> Error {
    Error::new(ErrorKind::TooLarge, "no memory for a buffer of this length")
        .with("length", length as i128)
}

/// Zero pages of the kernel, aligned to [`BLOCK`] at least.
fn mapped(length: usize) -> Option<NonNull<u8>> {
    let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: new memory at a place of the kernel's choice; nothing that exists is touched.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, how, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(start.cast())
}

/// Zero pages of the kernel, aligned to [`HUGE`], with the wish that they be huge. `length` is a
/// multiple of it, and not zero.
fn mapped_huge(length: usize) -> Option<NonNull<u8>> {
    let all = length.checked_add(HUGE)?;
    let start = mapped(all)?.as_ptr();
    let before = start.align_offset(HUGE);
    let behind = HUGE - before;
    // SAFETY: `before` is less than `HUGE`, so this is inside the mapping of `all` bytes.
    let aligned = unsafe { start.add(before) };
    // SAFETY: what lies around the `length` bytes from `aligned` was mapped just now and is known
    // to nobody; its bounds are pages, since `HUGE` and `start` are multiples of a page.
    unsafe {
        if before > 0 {
            libc::munmap(start.cast(), before);
        }
        libc::munmap(aligned.add(length).cast(), behind);
    };
    let aligned = NonNull::new(aligned)?;
    wish_huge(aligned, length);
    Some(aligned)
}

/// Wishes that what is mapped there be of huge pages where one fits in. Where the kernel has none
/// the advice fails, and the pages are small.
fn wish_huge(start: NonNull<u8>, length: usize) {
    // SAFETY: an advice about memory that our caller has mapped; it changes no byte of it.
    unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.length == 0 || keep(self.start, self.length) {
            return;
        }
        if self.length >= MAPPED_FROM {
            // SAFETY: `start` came from `mapped` with this very length and is given back once,
            // here; `Buffer` is not `Clone`.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        } else if let Some(layout) = layout(self.length) {
            // SAFETY: `start` came from the allocator with this very layout and is freed once,
            // here.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Blocks that were freed and are used again. A block is allocated by the thread that turns a loop
/// and freed by the one that took the answer; the allocator would give its pages back to the kernel
/// and fault them in again, about once for each read.
static KEPT: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// Blocks kept at most: one megabyte.
const KEPT_MAX: usize = 256;

/// A block that nobody uses.
struct Block(NonNull<u8>);

// SAFETY: whoever has it owns its memory, as with a Buffer.
unsafe impl Send for Block {}

/// A kept block, zeroed. Nobody waits for the lock: it may be held for ever in a forked child.
fn take_kept(length: usize) -> Option<Buffer> {
    if length != BLOCK {
        return None;
    }
    let Block(start) = KEPT.try_lock().ok()?.pop()?;
    // SAFETY: it was kept with this length by `keep`, which had it from a Buffer that gave it up.
    unsafe { start.write_bytes(0, length) };
    Some(Buffer { start, length })
}

/// Keeps the memory of a buffer that is given up; false if it is to be freed.
fn keep(start: NonNull<u8>, length: usize) -> bool {
    if length != BLOCK {
        return false;
    }
    let Ok(mut kept) = KEPT.try_lock() else {
        return false;
    };
    let has_room = kept.len() < KEPT_MAX;
    if has_room {
        kept.push(Block(start));
    }
    has_room
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `length` initialised bytes (or dangling and empty), owned
        // by `self`, and cannot be written while `&self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_zero() {
        // Direct I/O needs aligned memory, and padding must never carry old bytes.
        for length in [
            1,
            511,
            BLOCK,
            BLOCK + 1,
            MAPPED_FROM - 1,
            MAPPED_FROM,
            1 << 20,
        ] {
            let buffer = Buffer::zeroed(length);
            assert_eq!(buffer.as_ptr() as usize % BLOCK, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            assert_eq!(buffer.len(), length);
        }
        assert!(Buffer::zeroed(0).is_empty());
    }

    #[test]
    fn huge_pages_are_whole_and_aligned_and_given_back() {
        // One place for a device, whatever length was asked for; freeing it leaves its neighbours.
        for length in [1, BLOCK, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE] {
            let mut buffer = Buffer::try_huge(length).unwrap();
            assert_eq!(buffer.as_ptr() as usize % HUGE, 0);
            assert_eq!(buffer.len(), length.next_multiple_of(HUGE));
            let beside = Buffer::try_huge(length).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(beside.iter().all(|byte| *byte == 0));
            drop(beside);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
        let refused = Buffer::try_huge(usize::MAX).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_block_that_is_used_again_is_zero_and_belongs_to_one() {
        // No byte of a former owner is seen, and two owners never share a block.
        for _ in 0..3 {
            let mut blocks: Vec<Buffer> = (0..KEPT_MAX + 10)
                .map(|_| Buffer::try_zeroed(BLOCK).unwrap())
                .collect();
            for (number, block) in blocks.iter_mut().enumerate() {
                assert!(block.iter().all(|byte| *byte == 0));
                block.fill(number as u8 | 1);
            }
            for (number, block) in blocks.iter().enumerate() {
                assert!(block.iter().all(|byte| *byte == number as u8 | 1));
            }
        }
        assert!(KEPT.lock().unwrap().len() <= KEPT_MAX);
    }

    #[test]
    fn a_copy_has_the_bytes_and_a_place_of_its_own() {
        // What is written survives whatever the caller does with his own memory.
        let mut bytes: Vec<u8> = (0..=255).collect();
        let copy = Buffer::try_copy_of(&bytes).unwrap();
        bytes.fill(0);
        assert!(
            copy.iter()
                .enumerate()
                .all(|(at, byte)| at == usize::from(*byte))
        );
        assert_eq!(copy.as_ptr() as usize % BLOCK, 0);
        assert!(Buffer::try_copy_of(&[]).unwrap().is_empty());
        for length in [MAPPED_FROM + 1, HUGE, 2 * HUGE + 1] {
            let large = vec![7; length];
            assert_eq!(Buffer::try_copy_of(&large).unwrap()[..], large[..]);
        }
    }

    #[test]
    fn a_large_buffer_costs_nothing_until_it_is_used() {
        // A receive may wait for a peer for hours with it: its pages come when bytes come.
        const LENGTH: usize = 1 << 30;
        let pages = |buffer: &Buffer| {
            let mut there = vec![0u8; LENGTH.div_ceil(BLOCK)];
            let start = buffer.as_ptr().cast_mut().cast();
            // SAFETY: asks about memory of ours; `there` has a byte for each page of it.
            let known = unsafe { libc::mincore(start, LENGTH, there.as_mut_ptr()) };
            assert_eq!(known, 0);
            there.iter().filter(|page| **page & 1 != 0).count()
        };
        let mut buffer = Buffer::try_zeroed(LENGTH).unwrap();
        assert_eq!(pages(&buffer), 0);
        buffer[LENGTH / 2] = 1;
        assert!((1..=512).contains(&pages(&buffer)));
    }

    #[test]
    fn what_does_not_fit_into_memory_is_an_error() {
        // Lengths come from programs; none of them ends the process.
        for length in [usize::MAX / 4, isize::MAX as usize, usize::MAX] {
            let refused = Buffer::try_zeroed(length).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::TooLarge);
        }
    }
}
