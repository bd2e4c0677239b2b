//! One frame: a group of records on disk, checked before anything in it is believed.
//!
//! ```text
//! | header 64 | rec | rec | rec ... | zeros to the block |
//!      |            '------ body checksum ------------'
//!      '--- header checksum, last; covers the body checksum and the one of the frame before
//! ```
//!
//! Both checksums start from a seed of store, segment, incarnation and offset: a frame counts
//! only where it was written, by the opening that wrote it. `FORMAT.md` draws the bytes.
//!
//! # Always true
//!
//! 1. No length is used before the header checksum holds, and none then without its limit.
//! 2. Decoding allocates nothing and never reads outside the slice it was given.
//! 3. What [`FrameWriter`] writes, [`FrameHeader::decode`] reads; limits are those of the
//!    segment's header on both sides.

use crate::{
    codec::{align_up, crc32c, get_i64, get_u32, get_u64, put},
    error::{Error, ErrorKind, Result},
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::Buffer,
};

use super::segment::{BLOCK_BYTES_MIN, End, SegmentHeader, SegmentLimits};

pub use super::record::{Lay, RECORD_DATA, RECORD_HEADER_BYTES, Record, Records};

const MAGIC: u32 = u32::from_le_bytes(*b"MRfr");

/// Where each field of the header lies. Each offset is the end of the field before it.
mod at {
    pub const MAGIC: usize = 0;
    pub const KIND: usize = MAGIC + 4;
    pub const FLAGS: usize = KIND + 1;
    pub const RESERVED: usize = FLAGS + 1;
    pub const FRAME_BYTES: usize = RESERVED + 2;
    pub const PAYLOAD_BYTES: usize = FRAME_BYTES + 4;
    pub const FIRST: usize = PAYLOAD_BYTES + 4;
    pub const RECORDS: usize = FIRST + 8;
    pub const INDEX: usize = RECORDS + 4;
    pub const DURABLE: usize = INDEX + 4;
    pub const TIMESTAMP: usize = DURABLE + 8;
    pub const PREVIOUS_CRC: usize = TIMESTAMP + 8;
    pub const BODY_CRC: usize = PREVIOUS_CRC + 4;
    pub const INCARNATION: usize = BODY_CRC + 4;
    pub const HEADER_CRC: usize = INCARNATION + 4;
    pub const END: usize = HEADER_CRC + 4;
}

/// Bytes before the records of a frame.
pub const FRAME_HEADER_BYTES: usize = at::END;
const _: () = {
    assert!(FRAME_HEADER_BYTES == 64, "one cache line");
    assert!(
        FRAME_HEADER_BYTES <= BLOCK_BYTES_MIN as usize,
        "a header never spans two sectors"
    );
    assert!(
        at::FIRST.is_multiple_of(8)
            && at::DURABLE.is_multiple_of(8)
            && at::TIMESTAMP.is_multiple_of(8)
    );
};

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// It carries records.
    Records = 1,
    /// It carries nothing; it proves how far the log was durable.
    Watermark = 2,
    /// The last frame of a segment whose owner closed the log.
    Close = 3,
}

/// Checksum seed of one segment; see [`at`](Self::at).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    /// The seed shared by the frames of a segment.
    pub fn new(header: &SegmentHeader) -> Self {
        Self::of(header.store, header.segment, header.incarnation)
    }

    /// The same, from what it is made of.
    pub fn of(store: StoreId, segment: SegmentId, incarnation: Incarnation) -> Self {
        let mut identity = [0; 32];
        put(&mut identity, 0, &store.0);
        put(&mut identity, 16, &segment.0.to_le_bytes());
        if !planted!("seed_without_incarnation") {
            put(&mut identity, 24, &incarnation.0.to_le_bytes());
        }
        Self(crc32c(0, &identity))
    }

    /// The seed of a frame that starts at `offset`.
    pub fn at(self, offset: u64) -> u32 {
        let offset = if planted!("seed_without_offset") {
            0
        } else {
            offset
        };
        crc32c(self.0, &offset.to_le_bytes())
    }
}

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it is for.
    pub kind: FrameKind,
    /// The whole frame, padding included.
    pub frame_bytes: u32,
    /// Records with their headers.
    pub payload_bytes: u32,
    /// LSN of its first record; for a frame without records, the next LSN.
    pub first: Lsn,
    /// How many LSNs it takes.
    pub records: u32,
    /// Its ordinal in the segment, from 0.
    pub index: u32,
    /// The highest LSN known durable when it was submitted.
    pub durable: Lsn,
    /// Nanoseconds since the Unix epoch, UTC.
    pub timestamp_ns: i64,
    /// Header checksum of the frame before it, or of the segment.
    pub previous_crc: u32,
    /// Checksum of everything after the header.
    pub body_crc: u32,
    /// Its own header checksum.
    pub crc: u32,
}

/// Why bytes are not the frame that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameFault {
    /// A header of zeros: nothing was written here.
    Empty,
    /// No frame of ours begins here.
    Magic,
    /// The header checksum does not match.
    HeaderChecksum,
    /// The header is whole, the bytes after it are not.
    BodyChecksum,
    /// The file ends inside the frame.
    Short,
    /// The device could not read it.
    Unreadable,
    /// Checksums match and the content contradicts itself or the frames before it. No crash
    /// leaves this.
    Contradiction(&'static str),
}

impl FrameFault {
    /// In words, for reports.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Empty => "nothing is written there",
            Self::Magic => "no frame begins there",
            Self::HeaderChecksum => "the frame header fails its checksum",
            Self::BodyChecksum => "the records of the frame fail their checksum",
            Self::Short => "the file ends inside the frame",
            Self::Unreadable => "the device cannot read it",
            Self::Contradiction(what) => what,
        }
    }
}

impl FrameHeader {
    /// Reads the header at the beginning of `bytes`, which lie at the offset `seed` was made for.
    ///
    /// Says nothing about the body: see [`check_body`](Self::check_body).
    pub fn decode(bytes: &[u8], seed: u32, limits: &SegmentLimits) -> Result<Self, FrameFault> {
        let Some(bytes) = bytes.get(..FRAME_HEADER_BYTES) else {
            return Err(FrameFault::Short);
        };
        if get_u32(bytes, at::MAGIC) != MAGIC {
            let empty = bytes.iter().all(|byte| *byte == 0);
            return Err(if empty {
                FrameFault::Empty
            } else {
                FrameFault::Magic
            });
        }
        let crc = crc32c(seed, &bytes[..at::HEADER_CRC]);
        if get_u32(bytes, at::HEADER_CRC) != crc {
            return Err(FrameFault::HeaderChecksum);
        }
        let kind = match bytes[at::KIND] {
            1 => FrameKind::Records,
            2 => FrameKind::Watermark,
            3 => FrameKind::Close,
            _ => return Err(FrameFault::Contradiction("a frame of an unknown kind")),
        };
        let header = Self {
            kind,
            frame_bytes: get_u32(bytes, at::FRAME_BYTES),
            payload_bytes: get_u32(bytes, at::PAYLOAD_BYTES),
            first: Lsn(get_u64(bytes, at::FIRST)),
            records: get_u32(bytes, at::RECORDS),
            index: get_u32(bytes, at::INDEX),
            durable: Lsn(get_u64(bytes, at::DURABLE)),
            timestamp_ns: get_i64(bytes, at::TIMESTAMP),
            previous_crc: get_u32(bytes, at::PREVIOUS_CRC),
            body_crc: get_u32(bytes, at::BODY_CRC),
            crc,
        };
        header.check(limits).map_err(FrameFault::Contradiction)?;
        Ok(header)
    }

    /// The LSN after its last record.
    pub fn next(&self) -> Lsn {
        self.first.plus(u64::from(self.records))
    }

    /// Checks the bytes after the header; `frame` begins at the header.
    pub fn check_body(&self, frame: &[u8], seed: u32) -> Result<(), FrameFault> {
        match frame.get(FRAME_HEADER_BYTES..self.frame_bytes as usize) {
            None => Err(FrameFault::Short),
            Some(_) if planted!("body_unchecked") => Ok(()),
            Some(body) if crc32c(seed, body) != self.body_crc => Err(FrameFault::BodyChecksum),
            Some(_) => Ok(()),
        }
    }

    /// The records of a frame whose body was checked.
    pub fn records<'a>(&self, frame: &'a [u8]) -> Records<'a> {
        self.records_from(frame, FRAME_HEADER_BYTES)
    }

    /// The same, from a place that [`Records::position`] gave.
    pub fn records_from<'a>(&self, frame: &'a [u8], at: usize) -> Records<'a> {
        let end = FRAME_HEADER_BYTES + self.payload_bytes as usize;
        let bytes = &frame[..end.min(frame.len())];
        Records::new(bytes, at)
    }

    fn check(&self, limits: &SegmentLimits) -> Result<(), &'static str> {
        let payload = u64::from(self.payload_bytes);
        let whole = align_up(
            FRAME_HEADER_BYTES as u64 + payload,
            u64::from(limits.block_bytes),
        );
        let empty = self.records == 0 && self.payload_bytes == 0;
        if u64::from(self.frame_bytes) != whole {
            Err("the length of the frame is not that of its records")
        } else if self.payload_bytes > limits.group_bytes_max {
            Err("the frame is larger than the limit of its segment")
        } else if u64::from(self.records) > payload / RECORD_HEADER_BYTES as u64 {
            Err("the frame cannot hold as many records as it claims")
        } else if empty != (self.kind != FrameKind::Records) {
            Err("the kind of the frame does not fit its records")
        } else if self.durable >= self.first {
            Err("the frame claims its own records were durable before it")
        } else {
            Ok(())
        }
    }
}

/// What the frame at a place must say: the frames before it decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The next LSN.
    pub next: Lsn,
    /// The next ordinal.
    pub index: u32,
    /// Header checksum of the frame before, or of the segment.
    pub chain: u32,
    /// The highest durable LSN claimed so far; claims never go back.
    pub durable: Lsn,
}

impl Expected {
    /// Before the first frame of a segment.
    pub fn first(header: &SegmentHeader, header_crc: u32) -> Self {
        Self {
            next: header.base,
            index: 0,
            chain: header_crc,
            // A header is written only after everything before it is durable.
            durable: header.base.previous(),
        }
    }

    /// Checks that `frame` continues the chain, and moves past it.
    pub fn follow(&mut self, frame: &FrameHeader) -> Result<(), FrameFault> {
        let wrong = if frame.previous_crc != self.chain && !planted!("chain_dropped") {
            "the frame does not continue the one before it"
        } else if frame.first != self.next && !planted!("lsn_unchecked") {
            "the frame does not start at the next LSN"
        } else if frame.index != self.index {
            "the frame is not the next one of its segment"
        } else if frame.durable < self.durable {
            "the frame claims less to be durable than the one before it"
        } else {
            *self = Self {
                next: frame.next(),
                index: frame.index.saturating_add(1),
                chain: frame.crc,
                durable: frame.durable,
            };
            return Ok(());
        };
        Err(FrameFault::Contradiction(wrong))
    }
}

/// What the committer knows at the moment it submits a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The highest LSN known to be durable.
    pub durable: Lsn,
    /// Nanoseconds since the Unix epoch, UTC.
    pub timestamp_ns: i64,
}

/// An encoded frame: write `buffer[..length]` at `offset`.
#[derive(Debug)]
pub struct Encoded {
    /// Where it belongs.
    pub offset: u64,
    /// How much of the buffer it is.
    pub length: usize,
    /// The bytes.
    pub buffer: Buffer,
    /// LSN of its first record, or the next LSN.
    pub first: Lsn,
    /// How many LSNs it takes.
    pub records: u32,
}

/// Encodes the frames of one segment, in order.
#[derive(Debug, Clone)]
pub struct FrameWriter {
    header: SegmentHeader,
    seed: Seed,
    offset: u64,
    expected: Expected,
}

impl FrameWriter {
    /// Starts behind the header block; `header_crc` is what encoding the header gave.
    pub fn new(header: SegmentHeader, header_crc: u32) -> Self {
        Self {
            seed: Seed::new(&header),
            offset: u64::from(header.limits.block_bytes),
            expected: Expected::first(&header, header_crc),
            header,
        }
    }

    /// Whether records of `payload_bytes` (their headers included) fit, with one block left for
    /// the closing frame.
    pub fn fits(&self, payload_bytes: u64) -> bool {
        let block = u64::from(self.header.limits.block_bytes);
        let bytes = align_up(FRAME_HEADER_BYTES as u64 + payload_bytes, block);
        self.room() >= bytes.saturating_add(block)
    }

    /// Bytes left in the segment.
    pub fn room(&self) -> u64 {
        self.header.limits.segment_bytes.saturating_sub(self.offset)
    }

    /// Where the segment ends if nothing more is written: what its successor's header says.
    pub fn end(&self) -> End {
        End {
            segment: self.header.segment,
            incarnation: self.header.incarnation,
            next: self.expected.next,
            offset: self.offset,
            chain: self.expected.chain,
        }
    }

    /// The header of the segment.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// How many frames were encoded.
    pub fn frames(&self) -> u32 {
        self.expected.index
    }

    /// Encodes one group. `spare` is used if it is large enough.
    pub fn records<R: Lay>(
        &mut self,
        records: &[R],
        stamp: Stamp,
        spare: Option<Buffer>,
    ) -> Result<Encoded> {
        let payload = self.measure(records)?;
        let mut encoded = self.frame(payload, records.len() as u32, spare);
        let mut at = FRAME_HEADER_BYTES;
        for record in records {
            at = record.lay(&mut encoded.buffer, at);
        }
        self.finish(&mut encoded, FrameKind::Records, payload, stamp);
        Ok(encoded)
    }

    /// Makes a frame of `records` that lie in `buffer` already, `payload` bytes of them behind room
    /// for the header. Their lengths were checked when they were put there.
    pub(crate) fn laid(
        &mut self,
        buffer: Buffer,
        payload: usize,
        records: u32,
        stamp: Stamp,
    ) -> Result<Encoded> {
        let payload = self.fitting(payload as u64)?;
        let mut encoded = self.frame(payload, records, Some(buffer));
        self.finish(&mut encoded, FrameKind::Records, payload, stamp);
        Ok(encoded)
    }

    /// Encodes a frame that only says how far the log is durable. It leaves room for a closing
    /// frame; `NoSpace` if it cannot.
    pub fn watermark(&mut self, stamp: Stamp, spare: Option<Buffer>) -> Result<Encoded> {
        if !self.fits(0) {
            return Err(self.full());
        }
        Ok(self.bare(FrameKind::Watermark, stamp, spare))
    }

    /// Encodes the frame that marks a clean close. Nothing follows it.
    pub fn close(&mut self, stamp: Stamp, spare: Option<Buffer>) -> Result<Encoded> {
        if self.room() < u64::from(self.header.limits.block_bytes) {
            return Err(self.full());
        }
        Ok(self.bare(FrameKind::Close, stamp, spare))
    }

    fn bare(&mut self, kind: FrameKind, stamp: Stamp, spare: Option<Buffer>) -> Encoded {
        let mut encoded = self.frame(0, 0, spare);
        self.finish(&mut encoded, kind, 0, stamp);
        encoded
    }

    /// The payload bytes of a group, or the limit it breaks.
    fn measure<R: Lay>(&self, records: &[R]) -> Result<u32> {
        let limits = &self.header.limits;
        if records.is_empty() {
            return Err(Error::invalid("a group needs at least one record"));
        }
        let mut payload = 0_u64;
        for record in records {
            let whole = record.frame_bytes() as u64;
            let bytes = whole - RECORD_HEADER_BYTES as u64;
            if bytes > u64::from(limits.record_bytes_max) {
                return Err(too_large(
                    "record_bytes_max",
                    bytes,
                    limits.record_bytes_max,
                ));
            }
            payload += whole;
        }
        self.fitting(payload)
    }

    /// `payload` bytes, if a group may be so large and the segment has room for it.
    fn fitting(&self, payload: u64) -> Result<u32> {
        let limits = &self.header.limits;
        if payload > u64::from(limits.group_bytes_max) {
            return Err(too_large(
                "group_bytes_max",
                payload,
                limits.group_bytes_max,
            ));
        }
        if !self.fits(payload) {
            return Err(self.full());
        }
        Ok(payload as u32)
    }

    fn full(&self) -> Error {
        Error::new(ErrorKind::NoSpace, "the segment has no room for the frame")
            .with("segment", self.header.segment.0)
            .with("offset", self.offset)
    }

    /// A buffer for a frame, with its padding zeroed.
    fn frame(&self, payload: u32, records: u32, spare: Option<Buffer>) -> Encoded {
        let used = FRAME_HEADER_BYTES + payload as usize;
        let block = u64::from(self.header.limits.block_bytes);
        let length = align_up(used as u64, block) as usize;
        let mut buffer = match spare {
            Some(spare) if spare.len() >= length => spare,
            Some(_) | None => Buffer::zeroed(length),
        };
        buffer[..FRAME_HEADER_BYTES].fill(0);
        if !planted!("padding_of_former_use") {
            buffer[used..length].fill(0);
        }
        Encoded {
            offset: self.offset,
            length,
            buffer,
            first: self.expected.next,
            records,
        }
    }

    /// Writes the header over finished records and moves past the frame.
    fn finish(&mut self, encoded: &mut Encoded, kind: FrameKind, payload: u32, stamp: Stamp) {
        let seed = self.seed.at(encoded.offset);
        let frame = &mut encoded.buffer[..encoded.length];
        let body_crc = crc32c(seed, &frame[FRAME_HEADER_BYTES..]);
        // A claim never covers the frame itself and never goes back.
        let durable = stamp
            .durable
            .min(encoded.first.previous())
            .max(self.expected.durable);
        put(frame, at::MAGIC, &MAGIC.to_le_bytes());
        put(frame, at::KIND, &[kind as u8]);
        put(
            frame,
            at::FRAME_BYTES,
            &(encoded.length as u32).to_le_bytes(),
        );
        put(frame, at::PAYLOAD_BYTES, &payload.to_le_bytes());
        put(frame, at::FIRST, &encoded.first.0.to_le_bytes());
        put(frame, at::RECORDS, &encoded.records.to_le_bytes());
        put(frame, at::INDEX, &self.expected.index.to_le_bytes());
        put(frame, at::DURABLE, &durable.0.to_le_bytes());
        put(frame, at::TIMESTAMP, &stamp.timestamp_ns.to_le_bytes());
        put(frame, at::PREVIOUS_CRC, &self.expected.chain.to_le_bytes());
        put(frame, at::BODY_CRC, &body_crc.to_le_bytes());
        put(
            frame,
            at::INCARNATION,
            &incarnation_word(self.header.incarnation).to_le_bytes(),
        );
        let crc = crc32c(seed, &frame[..at::HEADER_CRC]);
        put(frame, at::HEADER_CRC, &crc.to_le_bytes());
        self.offset += encoded.length as u64;
        self.expected = Expected {
            next: encoded.first.plus(u64::from(encoded.records)),
            index: self.expected.index.saturating_add(1),
            chain: crc,
            durable,
        };
    }
}

/// Whether `bytes`, which lie at the offset `seed` was made for, begin with a header whose checksum
/// holds. For a segment whose header, and with it the limits, is lost.
pub fn is_header(bytes: &[u8], seed: u32) -> bool {
    bytes.len() >= FRAME_HEADER_BYTES
        && get_u32(bytes, at::MAGIC) == MAGIC
        && get_u32(bytes, at::HEADER_CRC) == crc32c(seed, &bytes[..at::HEADER_CRC])
}

/// The part of the incarnation that a frame carries in plain.
pub fn incarnation_word(incarnation: Incarnation) -> u32 {
    incarnation.0 as u32
}

/// The incarnation word of something that may be a frame whose segment header is lost.
pub fn peek_incarnation(bytes: &[u8]) -> Option<u32> {
    let is_frame = bytes.len() >= FRAME_HEADER_BYTES && get_u32(bytes, at::MAGIC) == MAGIC;
    is_frame.then(|| get_u32(bytes, at::INCARNATION))
}

fn too_large(limit: &'static str, found: u64, allowed: u32) -> Error {
    Error::new(ErrorKind::TooLarge, format!("larger than {limit}"))
        .with_text("limit", limit)
        .with("found", found)
        .with("allowed", allowed)
}
