//! Several buffers as the kernel wants to see them: an array of vectors, rebuilt before each call
//! or submission from where the transfer stands.
//!
//! # Always true
//!
//! 1. The vectors point into buffers that the owner of this value owns too, and keeps until the
//!    call returned or the last answer came.
//! 2. The array and the message have their places on the heap, so moving this value does not move
//!    what the kernel was shown. Both are rebuilt only while the kernel knows nothing of them.

use std::fmt;

use super::{Buffer, execute::TRANSFER_MAX};

/// Most vectors that one call takes (`UIO_MAXIOV` of the kernel).
pub(crate) const PARTS_MAX: usize = 1024;

/// See the module.
pub(crate) struct Vectors {
    parts: Vec<libc::iovec>,
    message: Box<libc::msghdr>,
}

// SAFETY: the pointers are into buffers that travel with this value (invariant 1, kept by its
// owner) and are read by nobody but the kernel.
unsafe impl Send for Vectors {}

impl Vectors {
    pub(crate) fn new() -> Self {
        // SAFETY: the structure is plain numbers and pointers, for which zero is a valid value.
        let message = Box::new(unsafe { std::mem::zeroed() });
        let parts = Vec::new();
        Self { parts, message }
    }

    /// Shows what is left of `buffers` after `done` bytes, as far as one call takes it. Returns
    /// how many bytes that is.
    pub(crate) fn show(&mut self, buffers: &[Buffer], done: usize) -> usize {
        self.parts.clear();
        let (mut skip, mut shown) = (done, 0);
        for buffer in buffers {
            let rest = buffer.get(skip..).unwrap_or(&[]);
            skip = skip.saturating_sub(buffer.len());
            let part = &rest[..rest.len().min(TRANSFER_MAX - shown)];
            if part.is_empty() {
                continue;
            }
            shown += part.len();
            self.parts.push(libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            if self.parts.len() == PARTS_MAX || shown == TRANSFER_MAX {
                break;
            }
        }
        shown
    }

    pub(crate) fn as_ptr(&self) -> *const libc::iovec {
        self.parts.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// What is shown, as a message without an address.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        self.message.msg_iov = self.parts.as_mut_ptr();
        self.message.msg_iovlen = self.parts.len();
        &raw const *self.message
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vectors({})", self.parts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(vectors: &Vectors) -> Vec<usize> {
        vectors.parts.iter().map(|part| part.iov_len).collect()
    }

    #[test]
    fn what_is_left_is_shown_from_where_the_transfer_stands() {
        // Buffers that are done and empty ones are left out; the first one may be begun.
        let buffers: Vec<_> = [3, 0, 5, 7].into_iter().map(Buffer::zeroed).collect();
        let mut vectors = Vectors::new();
        for (done, left) in [
            (0, vec![3, 5, 7]),
            (2, vec![1, 5, 7]),
            (3, vec![5, 7]),
            (9, vec![6]),
            (15, vec![]),
        ] {
            assert_eq!(vectors.show(&buffers, done), left.iter().sum());
            assert_eq!(lengths(&vectors), left, "after {done}");
        }
    }

    #[test]
    fn a_list_longer_than_the_kernel_takes_is_split() {
        // The rest is shown by the next call, from where this one ends.
        let buffers: Vec<_> = (0..PARTS_MAX + 3).map(|_| Buffer::zeroed(2)).collect();
        let mut vectors = Vectors::new();
        assert_eq!(vectors.show(&buffers, 0), 2 * PARTS_MAX);
        assert_eq!(vectors.show(&buffers, 2 * PARTS_MAX), 6);
        assert_eq!(lengths(&vectors), [2, 2, 2]);
    }

    #[test]
    fn a_total_beyond_one_transfer_is_split() {
        // The kernel takes less than 2 GiB at once; the memory here is never touched.
        let buffers = [Buffer::zeroed(TRANSFER_MAX - 1), Buffer::zeroed(10)];
        let mut vectors = Vectors::new();
        assert_eq!(vectors.show(&buffers, 0), TRANSFER_MAX);
        assert_eq!(vectors.show(&buffers, TRANSFER_MAX), 9);
    }
}
