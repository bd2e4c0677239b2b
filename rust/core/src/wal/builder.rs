//! Small logs made byte for byte by hand, for tests: same calls, same bytes.
//!
//! It keeps the rules of the writer in `FORMAT.md` unless told otherwise, and remembers what it
//! wrote, so that a test can say what must come back.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test helper; it panics on a wrong test"
)]

use crate::{
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::MemoryDisk,
};

use super::{
    frame::{Encoded, FrameWriter, Stamp},
    recycle::Mark,
    segment::{End, SegmentHeader, SegmentLimits, segment_name},
};

/// When the first frame was written: a round second, 2023.
const BEGINNING_NS: i64 = 1_700_000_000_000_000_000;

/// Limits that make several segments out of a few records.
pub const SMALL: SegmentLimits = SegmentLimits {
    block_bytes: 512,
    window: 2,
    record_bytes_max: 2000,
    group_bytes_max: 3000,
    segment_bytes: 16384,
};

/// Writes a log into a [`MemoryDisk`].
#[derive(Debug, Clone)]
pub struct Builder {
    /// Where it lies.
    pub disk: MemoryDisk,
    /// Every record, from LSN 1.
    pub records: Vec<Vec<u8>>,
    /// Where each frame lies: segment, offset, length, LSN after it.
    pub frames: Vec<(SegmentId, u64, usize, Lsn)>,
    /// Limits of the next segment.
    pub limits: SegmentLimits,
    store: StoreId,
    incarnation: Incarnation,
    segment: SegmentId,
    writer: Option<FrameWriter>,
    end: Option<End>,
    clock_ns: i64,
}

impl Builder {
    /// A log whose first segment is open.
    pub fn new(limits: SegmentLimits) -> Self {
        let mut builder = Self {
            disk: MemoryDisk::default(),
            records: Vec::new(),
            frames: Vec::new(),
            limits,
            store: StoreId(*b"a test store id."),
            incarnation: Incarnation(0),
            segment: SegmentId(0),
            writer: None,
            end: None,
            clock_ns: BEGINNING_NS,
        };
        builder.reopen();
        builder
    }

    /// A log with another identity.
    pub fn with_store(limits: SegmentLimits, store: StoreId) -> Self {
        let mut builder = Self::new(limits);
        builder.store = store;
        builder.segment = SegmentId(0);
        builder.incarnation = Incarnation(0);
        builder.reopen();
        builder
    }

    /// A new owner: one incarnation and one segment on.
    pub fn reopen(&mut self) {
        self.incarnation.0 += 1;
        self.start_segment(None);
    }

    /// The next segment of the same owner, in a file that holds what the current one does.
    pub fn roll_recycled(&mut self) {
        let old = self.disk.get(&self.name());
        self.start_segment(old);
    }

    /// The next segment of the same owner.
    pub fn roll(&mut self) {
        self.start_segment(None);
    }

    fn start_segment(&mut self, old: Option<Vec<u8>>) {
        if let Some(writer) = &self.writer {
            let end = writer.end();
            if end.next > writer.header().base {
                self.end = Some(end);
            } else {
                self.end = writer.header().predecessor;
            }
        }
        self.segment.0 += 1;
        let header = SegmentHeader {
            store: self.store,
            segment: self.segment,
            incarnation: self.incarnation,
            base: self.end.map_or(Lsn::FIRST, |end| end.next),
            predecessor: self.end,
            limits: self.limits,
            created_ns: self.tick(),
            ro_compat: 0,
            is_recycled: old.is_some(),
        };
        let (block, crc) = header.encode();
        let length = self.limits.segment_bytes as usize;
        let mut bytes = old.unwrap_or_default();
        bytes.resize(length, 0);
        if header.is_recycled {
            let mark = Mark::new(&header, header.segment).encode(block.len());
            bytes[length - block.len()..].copy_from_slice(&mark);
        }
        bytes[..block.len()].copy_from_slice(&block);
        self.disk.put(&self.name(), &bytes);
        self.writer = Some(FrameWriter::new(header, crc));
    }

    /// Cuts the predecessor of the current segment to its end.
    pub fn cut_predecessor(&mut self) {
        if let Some(end) = self.end {
            let name = segment_name(end.segment);
            self.disk
                .edit(&name, |bytes| bytes.truncate(end.offset as usize));
        }
    }

    /// One group, submitted when everything before it was durable.
    pub fn append<R: AsRef<[u8]>>(&mut self, records: &[R]) -> u64 {
        let durable = self.next().previous();
        self.append_after(records, durable)
    }

    /// One group, submitted when only the records up to `durable` were.
    pub fn append_after<R: AsRef<[u8]>>(&mut self, records: &[R], durable: Lsn) -> u64 {
        let stamp = Stamp {
            durable,
            timestamp_ns: self.tick(),
        };
        let payload: usize = records.iter().map(|record| record.as_ref().len() + 8).sum();
        if !self.writer().fits(payload as u64) {
            self.roll();
        }
        self.records
            .extend(records.iter().map(|record| record.as_ref().to_vec()));
        let encoded = self.writer().records(records, stamp, None).unwrap();
        self.put(&encoded)
    }

    /// A watermark that says everything is durable.
    pub fn watermark(&mut self) -> u64 {
        let stamp = self.stamp();
        let encoded = self.writer().watermark(stamp, None).unwrap();
        self.put(&encoded)
    }

    /// The same, unless only the close frame fits.
    pub fn watermark_if_room(&mut self) {
        if self.writer().fits(0) {
            self.watermark();
        }
    }

    /// A clean close.
    pub fn close(&mut self) -> u64 {
        let stamp = self.stamp();
        let encoded = self.writer().close(stamp, None).unwrap();
        self.put(&encoded)
    }

    /// The LSN that comes next.
    pub fn next(&self) -> Lsn {
        self.end().next
    }

    /// Where the current segment ends.
    pub fn end(&self) -> End {
        self.writer.as_ref().unwrap().end()
    }

    /// Name of the current segment.
    pub fn name(&self) -> String {
        segment_name(self.segment)
    }

    /// Header of the current segment.
    pub fn header(&self) -> &SegmentHeader {
        self.writer.as_ref().unwrap().header()
    }

    fn put(&mut self, encoded: &Encoded) -> u64 {
        let (offset, length) = (encoded.offset as usize, encoded.length);
        self.disk.edit(&self.name(), |bytes| {
            bytes[offset..offset + length].copy_from_slice(&encoded.buffer[..length]);
        });
        self.frames
            .push((self.segment, encoded.offset, length, self.next()));
        encoded.offset
    }

    fn stamp(&mut self) -> Stamp {
        Stamp {
            durable: self.next().previous(),
            timestamp_ns: self.tick(),
        }
    }

    fn writer(&mut self) -> &mut FrameWriter {
        self.writer.as_mut().unwrap()
    }

    fn tick(&mut self) -> i64 {
        self.clock_ns += 1_000_000;
        self.clock_ns
    }
}
