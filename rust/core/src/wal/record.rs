//! Records inside a frame: dense, each with its length before it.
//!
//! Pure. The frame's checksum vouches for the bytes; the bounds are checked all the same, so that
//! no content can lead outside the frame.

use crate::codec::{get_u32, put};

use super::frame::FrameFault;

/// Where each field lies. Each offset is the end of the field before it.
mod at {
    pub const BYTES: usize = 0;
    pub const KIND: usize = BYTES + 4;
    pub const FLAGS: usize = KIND + 1;
    pub const RESERVED: usize = FLAGS + 1;
    pub const END: usize = RESERVED + 2;
}

/// Bytes before the payload of a record.
pub const RECORD_HEADER_BYTES: usize = at::END;

const _: () = assert!(RECORD_HEADER_BYTES == 8);

/// A record that takes an LSN.
pub const RECORD_DATA: u8 = 1;

/// One record inside a frame: where its payload lies, counted from the start of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// [`RECORD_DATA`], or a control record of a later version, which takes no LSN.
    pub kind: u8,
    /// First byte of the payload.
    pub offset: u32,
    /// Length of the payload.
    pub bytes: u32,
}

/// What a frame can be made of: a record, or one of several that lie together already.
pub trait Lay {
    /// Bytes that it takes in a frame, its header included.
    fn frame_bytes(&self) -> usize;

    /// Writes it at `at`, and returns where the next one begins.
    fn lay(&self, frame: &mut [u8], at: usize) -> usize;
}

impl<R: AsRef<[u8]>> Lay for R {
    #[inline]
    fn frame_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.as_ref().len()
    }

    #[inline]
    fn lay(&self, frame: &mut [u8], at: usize) -> usize {
        put_record(frame, at, self.as_ref())
    }
}

/// Walks the records of one frame. A record that does not fit ends the walk with a fault.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Over `bytes`, which end with the last record, from `at` on.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        let at = at.min(bytes.len());
        Self { bytes, at }
    }

    /// Where the next record begins, counted from the start of the frame.
    pub fn position(&self) -> usize {
        self.at
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, FrameFault>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let left = &self.bytes[self.at..];
        if left.is_empty() {
            return None;
        }
        let length = get_u32(left, at::BYTES) as usize;
        if left.len() < RECORD_HEADER_BYTES || left.len() - RECORD_HEADER_BYTES < length {
            self.at = self.bytes.len();
            return Some(Err(FrameFault::Contradiction(
                "a record reaches beyond its frame",
            )));
        }
        let record = Record {
            kind: left[at::KIND],
            offset: (self.at + RECORD_HEADER_BYTES) as u32,
            bytes: length as u32,
        };
        self.at += RECORD_HEADER_BYTES + length;
        Some(Ok(record))
    }
}

#[inline]
pub(super) fn put_record(frame: &mut [u8], at: usize, payload: &[u8]) -> usize {
    let mut head = [0; RECORD_HEADER_BYTES];
    put(&mut head, at::BYTES, &(payload.len() as u32).to_le_bytes());
    head[at::KIND] = RECORD_DATA;
    put(frame, at, &head);
    put(frame, at + RECORD_HEADER_BYTES, payload);
    at + RECORD_HEADER_BYTES + payload.len()
}
