//! From ring slots to a group: which published entries share the next frame.
//!
//! A batch of `append_many` is never split: its first entry carries the count and the bytes of the
//! whole, and the group ends before it if it does not fit.

use crate::ring::{Consumer, Weigh};

use super::frame::RECORD_HEADER_BYTES;

/// What a writer puts on the ring.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The record.
    pub(crate) payload: Box<[u8]>,
    /// Entries of the batch that starts here; zero inside a batch.
    pub(crate) batch: u32,
    /// Frame bytes of the batch that starts here, record headers included.
    pub(crate) batch_bytes: u32,
}

impl Entry {
    /// A record by itself. The caller has checked its length against the record limit.
    pub(crate) fn single(payload: Box<[u8]>) -> Self {
        let batch_bytes = (payload.len() + RECORD_HEADER_BYTES) as u32;
        Self {
            payload,
            batch: 1,
            batch_bytes,
        }
    }

    /// Records that must share a frame. The caller has checked their sum against the group limit.
    pub(crate) fn batch(payloads: Vec<Box<[u8]>>) -> Vec<Self> {
        let count = payloads.len() as u32;
        let bytes: usize = payloads.iter().map(|p| p.len() + RECORD_HEADER_BYTES).sum();
        let mut entries: Vec<Self> = payloads
            .into_iter()
            .map(|payload| Self {
                payload,
                batch: 0,
                batch_bytes: 0,
            })
            .collect();
        if let Some(first) = entries.first_mut() {
            first.batch = count;
            first.batch_bytes = bytes as u32;
        }
        entries
    }
}

impl AsRef<[u8]> for Entry {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Weigh for Entry {
    fn weight(&self) -> usize {
        self.payload.len() + RECORD_HEADER_BYTES
    }
}

/// What [`gather`] found.
#[derive(Debug)]
pub(crate) enum Gathered {
    /// Nothing whole is published.
    Nothing,
    /// Something is, and it does not fit into `room`.
    NoRoom,
    /// Entries in LSN order, and their frame bytes.
    Group {
        /// The entries, popped; their slots are free again, their bytes are not.
        entries: Vec<Entry>,
        /// Sum of payloads and record headers.
        bytes: usize,
    },
}

/// Takes what is published, whole batches only, up to `room` frame bytes.
pub(crate) fn gather(consumer: &mut Consumer<Entry>, room: usize) -> Gathered {
    let mut entries = Vec::new();
    let mut bytes = 0;
    while let Some(head) = consumer.peek() {
        let (count, size) = (head.batch as usize, head.batch_bytes as usize);
        debug_assert!(count > 0, "a group never starts inside a batch");
        if bytes + size > room {
            if entries.is_empty() {
                return Gathered::NoRoom;
            }
            break;
        }
        if !consumer.is_published(count) {
            break;
        }
        entries.extend((0..count).map_while(|_| consumer.pop()));
        bytes += size;
    }
    if entries.is_empty() {
        return Gathered::Nothing;
    }
    consumer.release_slots();
    Gathered::Group { entries, bytes }
}
