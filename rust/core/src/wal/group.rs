//! From ring slots to a group: which published entries share the next frame.
//!
//! A batch of `append_many` is never split: its first entry carries the count and the bytes of the
//! whole, and the group ends before it if it does not fit. Its records lie one after the other in
//! one buffer, as they will in the frame; the entries behind the first only take their LSNs.

use crate::{
    error::Result,
    io::Buffer,
    ring::{Consumer, Weigh},
    sync::Arc,
};

use super::{
    frame::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES},
    record::{Lay, put_record},
    stock::{Lent, Stock},
};

/// A batch of fewer bytes does not keep a buffer of which it needs less than half: what waits on
/// the ring is counted by its bytes, and the copy costs little.
const LOOSE_BELOW_BYTES: usize = 64 << 10;

/// What a writer puts on the ring.
#[derive(Debug)]
pub(crate) struct Entry {
    bytes: Bytes,
    /// Entries of the batch that starts here; zero inside a batch.
    batch: u32,
    /// Frame bytes of the batch that starts here; inside a batch, of this record.
    size: u32,
}

/// Where the bytes of an entry are. As large as a boxed slice alone.
#[derive(Debug)]
enum Bytes {
    /// A record by itself.
    Own(Box<[u8]>),
    /// Those of a batch are with its first entry.
    Batched(Option<Box<Whole>>),
}

/// The records of a batch, laid out.
#[derive(Debug)]
struct Whole {
    laid: Laid,
    /// Frame bytes of the first record.
    first: u32,
}

#[derive(Debug)]
enum Laid {
    /// Behind room for the header of a frame.
    InPlace(Lent),
    /// By themselves; see [`LOOSE_BELOW_BYTES`].
    Apart(Box<[u8]>),
}

impl Laid {
    fn of(buffer: Lent, used: usize) -> Self {
        let is_loose = used < LOOSE_BELOW_BYTES && buffer.len() > 2 * used;
        if is_loose && !planted!("small_batches_keep_their_buffers") {
            Self::Apart(buffer[FRAME_HEADER_BYTES..used].into())
        } else {
            Self::InPlace(buffer)
        }
    }

    /// The records, and what may lie behind them.
    fn records(&self) -> &[u8] {
        match self {
            Self::InPlace(buffer) => &buffer[FRAME_HEADER_BYTES..],
            Self::Apart(records) => records,
        }
    }

    /// The buffer, if it has room for a frame of `length` bytes.
    fn has_room(&self, length: usize) -> bool {
        matches!(self, Self::InPlace(buffer) if buffer.len() >= length)
    }
}

impl Entry {
    /// A record by itself. The caller has checked its length against the record limit.
    #[inline]
    pub(crate) fn single(payload: Box<[u8]>) -> Self {
        let size = (payload.len() + RECORD_HEADER_BYTES) as u32;
        Self {
            bytes: Bytes::Own(payload),
            batch: 1,
            size,
        }
    }
}

#[cfg(test)]
impl Entry {
    /// Bytes of memory behind it.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.bytes {
            Bytes::Own(payload) => payload.len(),
            Bytes::Batched(None) => 0,
            Bytes::Batched(Some(whole)) => match &whole.laid {
                Laid::InPlace(buffer) => buffer.len(),
                Laid::Apart(records) => records.len(),
            },
        }
    }
}

impl Lay for Entry {
    #[inline]
    fn frame_bytes(&self) -> usize {
        match &self.bytes {
            Bytes::Own(payload) => payload.len() + RECORD_HEADER_BYTES,
            Bytes::Batched(Some(whole)) => whole.first as usize,
            Bytes::Batched(None) => self.size as usize,
        }
    }

    /// The first entry of a batch lays all its records.
    #[inline]
    fn lay(&self, frame: &mut [u8], at: usize) -> usize {
        match &self.bytes {
            Bytes::Own(payload) => put_record(frame, at, payload),
            Bytes::Batched(None) => at,
            Bytes::Batched(Some(whole)) => {
                let size = self.size as usize;
                frame[at..at + size].copy_from_slice(&whole.laid.records()[..size]);
                at + size
            }
        }
    }
}

impl Weigh for Entry {
    #[inline]
    fn weight(&self) -> usize {
        self.frame_bytes()
    }
}

/// Records that shall share a frame, each copied to its place in it.
#[derive(Debug)]
pub struct Batch {
    entries: Vec<Entry>,
    buffer: Lent,
    used: usize,
}

impl Batch {
    /// For about `records` records of `bytes` bytes in all; there may be more.
    pub(crate) fn new(stock: &Arc<Stock>, records: usize, bytes: usize) -> Result<Self> {
        let headers = FRAME_HEADER_BYTES + records * RECORD_HEADER_BYTES;
        Ok(Self {
            entries: Vec::with_capacity(records),
            buffer: stock.lend(headers + bytes)?,
            used: FRAME_HEADER_BYTES,
        })
    }

    /// Copies one more record. The caller has checked the limits. Fails for lack of memory.
    #[inline]
    pub fn push(&mut self, record: &[u8]) -> Result<()> {
        let size = record.len() + RECORD_HEADER_BYTES;
        if self.used + size > self.buffer.len() {
            self.buffer.grow(self.used, self.used + size)?;
        }
        self.used = put_record(&mut self.buffer, self.used, record);
        self.entries.push(Entry {
            bytes: Bytes::Batched(None),
            batch: 0,
            size: size as u32,
        });
        Ok(())
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Frame bytes of all of them.
    fn size(&self) -> usize {
        self.used - FRAME_HEADER_BYTES
    }

    /// One entry for each record.
    pub(crate) fn into_entries(self) -> Vec<Entry> {
        let (count, size) = (self.entries.len() as u32, self.size() as u32);
        let mut entries = self.entries;
        if let Some(first) = entries.first_mut() {
            let whole = Whole {
                laid: Laid::of(self.buffer, self.used),
                first: first.size,
            };
            *first = Entry {
                bytes: Bytes::Batched(Some(Box::new(whole))),
                batch: count,
                size,
            };
        }
        entries
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

/// Takes what is published, whole batches only, up to `room` frame bytes. A batch of `alone_from`
/// bytes or more gets a group of its own.
pub(crate) fn gather(consumer: &mut Consumer<Entry>, room: usize, alone_from: usize) -> Gathered {
    let mut entries = Vec::new();
    let mut bytes = 0;
    while let Some(head) = consumer.peek() {
        let (count, size) = (head.batch as usize, head.size as usize);
        debug_assert!(count > 0, "a group never starts inside a batch");
        let is_alone = size >= alone_from;
        if bytes + size > room || (is_alone && !entries.is_empty()) {
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
        if is_alone {
            break;
        }
    }
    if entries.is_empty() {
        return Gathered::Nothing;
    }
    consumer.release_slots();
    Gathered::Group { entries, bytes }
}

/// The buffer of a group that is one batch, if it has room for `length` bytes: a frame can be made
/// in place.
pub(crate) fn in_place(entries: &mut [Entry], length: usize) -> Option<Buffer> {
    let count = entries.len();
    let first = entries.first_mut()?;
    let Bytes::Batched(whole) = &mut first.bytes else {
        return None;
    };
    let is_all = first.batch as usize == count || planted!("in_place_of_several");
    if !is_all || !whole.as_ref()?.laid.has_room(length) {
        return None;
    }
    match whole.take()?.laid {
        Laid::InPlace(buffer) => Some(buffer.into_buffer()),
        Laid::Apart(_) => None,
    }
}
