//! Frame by frame through one segment, with bounded memory.
//!
//! A [`Source`] keeps one stretch of the file in memory: a chunk, or one frame where a frame is
//! larger. A [`Scanner`] follows the chain of frames through it and, where the chain ends, looks
//! for evidence behind that place. It judges nothing: see [`super::verdict`].

use crate::{
    codec::align_up,
    error::{Error, ErrorKind, Result},
    ids::Lsn,
    io::{Blocking, Buffer, File},
};

use super::{
    frame::{Expected, FRAME_HEADER_BYTES, FrameFault, FrameHeader, FrameKind, RECORD_DATA, Seed},
    segment::{End, SegmentHeader},
    verdict::{Later, Proof, Tail, Unreadable},
};

/// How much is read at a time: large enough for the disk, small enough for any machine.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A window of a file.
pub struct Source {
    file: File,
    length: u64,
    chunk: usize,
    start: u64,
    filled: usize,
    buffer: Buffer,
}

impl Source {
    /// Over the first `length` bytes of `file`, a chunk at a time.
    pub fn new(file: File, length: u64, chunk: usize) -> Self {
        Self {
            file,
            length,
            chunk,
            start: 0,
            filled: 0,
            buffer: Buffer::zeroed(0),
        }
    }

    /// Where the bytes end.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Forgets what was read, so that the next look goes to the file.
    pub fn forget(&mut self) {
        self.filled = 0;
    }

    /// The bytes from `offset`: at least `wanted` of them unless the file ends first. The inner
    /// result is about the device: `Unreadable` if it cannot give them.
    pub fn at(
        &mut self,
        io: &mut Blocking,
        offset: u64,
        wanted: usize,
    ) -> Result<Result<&[u8], FrameFault>> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = wanted.min(left);
        if !self.holds(offset, wanted) {
            let most = wanted.max(self.chunk).min(left);
            let mut readable = self.fill(io, offset, most)?;
            if !readable && most > wanted {
                // The bad sector may lie behind what is needed now.
                readable = self.fill(io, offset, wanted)?;
            }
            if !readable {
                return Ok(Err(FrameFault::Unreadable));
            }
        }
        let skip = (offset - self.start) as usize;
        Ok(Ok(&self.buffer[skip..self.filled]))
    }

    fn holds(&self, offset: u64, wanted: usize) -> bool {
        self.filled > 0
            && offset >= self.start
            && offset + wanted as u64 <= self.start + self.filled as u64
    }

    /// Reads a stretch; false if the device cannot.
    fn fill(&mut self, io: &mut Blocking, offset: u64, length: usize) -> Result<bool> {
        self.filled = 0;
        self.start = offset;
        let mut buffer = std::mem::replace(&mut self.buffer, Buffer::zeroed(0));
        if buffer.len() < length {
            buffer = Buffer::zeroed(length);
        }
        match io.read(&self.file, offset, length, buffer) {
            Ok((count, buffer)) => {
                self.buffer = buffer;
                self.filled = count;
                // A file that shrank since its length was asked ends here.
                if count < length {
                    self.length = offset + count as u64;
                }
                Ok(true)
            }
            Err(error) if is_unreadable(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether the device, rather than the system, failed to read.
pub(super) fn is_unreadable(error: &Error) -> bool {
    error.kind() == ErrorKind::Io && error.errno() == Some(libc::EIO)
}

/// What stands at the scanner's place.
#[derive(Debug)]
pub enum Step<'a> {
    /// The next frame, whole and in line, with its bytes.
    Frame(FrameHeader, &'a [u8]),
    /// The segment is full: the chain ends with it.
    Full,
    /// The owner closed the log here.
    Closed,
    /// No valid frame in line.
    Fault(FrameFault),
}

/// Follows the frames of one segment.
pub struct Scanner {
    header: SegmentHeader,
    seed: Seed,
    source: Source,
    offset: u64,
    expected: Expected,
    closed: bool,
    frames: u64,
    may_be_short: bool,
}

impl Scanner {
    /// Before the first frame of the segment in `file`, of which `length` bytes are to be looked
    /// at.
    pub fn new(header: SegmentHeader, header_crc: u32, file: File, length: u64) -> Self {
        let length = length.min(header.limits.segment_bytes);
        let offset = u64::from(header.limits.block_bytes);
        let expected = Expected::first(&header, header_crc);
        Self::resume(header, file, length, offset, expected)
    }

    /// In the middle of a segment.
    pub fn resume(
        header: SegmentHeader,
        file: File,
        length: u64,
        offset: u64,
        expected: Expected,
    ) -> Self {
        Self {
            seed: Seed::new(&header),
            source: Source::new(file, length, CHUNK_BYTES),
            offset,
            expected,
            closed: false,
            frames: 0,
            may_be_short: false,
            header,
        }
    }

    /// Reads so much at a time.
    #[must_use]
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        self.source.chunk = chunk;
        self
    }

    /// The segment had a successor, which is lost: its file may have been cut to its end.
    pub fn allow_short(&mut self) {
        self.may_be_short = true;
    }

    /// Moves past the next frame, or says why there is none. After a fault, the same again.
    pub fn step(&mut self, io: &mut Blocking) -> Result<Step<'_>> {
        if self.closed {
            return Ok(Step::Closed);
        }
        if self.offset >= self.header.limits.segment_bytes {
            return Ok(Step::Full);
        }
        let frame = match self.look(io)? {
            Ok(frame) => frame,
            Err(fault) => return Ok(Step::Fault(fault)),
        };
        let mut expected = self.expected;
        if let Err(fault) = expected.follow(&frame) {
            return Ok(Step::Fault(fault));
        }
        let seed = self.seed.at(self.offset);
        let bytes = match self
            .source
            .at(io, self.offset, frame.frame_bytes as usize)?
        {
            Ok(bytes) => bytes,
            Err(fault) => return Ok(Step::Fault(fault)),
        };
        let checked = frame
            .check_body(bytes, seed)
            .and_then(|()| count(&frame, bytes));
        if let Err(fault) = checked {
            return Ok(Step::Fault(fault));
        }
        self.expected = expected;
        self.offset += u64::from(frame.frame_bytes);
        self.closed = frame.kind == FrameKind::Close;
        self.frames += 1;
        Ok(Step::Frame(frame, &bytes[..frame.frame_bytes as usize]))
    }

    /// Walks to the end of the chain and says why it ends.
    pub fn run(&mut self, io: &mut Blocking) -> Result<Stop> {
        loop {
            match self.step(io)? {
                Step::Frame(..) => {}
                Step::Full => return Ok(Stop::Full),
                Step::Closed => return Ok(Stop::Closed),
                Step::Fault(fault) => return Ok(Stop::Fault(fault)),
            }
        }
    }

    /// The header at the scanner's place, checked alone.
    fn look(&mut self, io: &mut Blocking) -> Result<Result<FrameHeader, FrameFault>> {
        let block = self.header.limits.block_bytes as usize;
        let seed = self.seed.at(self.offset);
        let decoded = self
            .source
            .at(io, self.offset, block)?
            .and_then(|bytes| FrameHeader::decode(bytes, seed, &self.header.limits));
        let room = self.header.limits.segment_bytes - self.offset;
        Ok(decoded.and_then(|frame| {
            if u64::from(frame.frame_bytes) > room {
                Err(FrameFault::Contradiction(
                    "the frame reaches beyond its segment",
                ))
            } else {
                Ok(frame)
            }
        }))
    }

    /// Looks at everything from the scanner's place to the end of the file.
    pub fn beyond(&mut self, io: &mut Blocking, stop: Stop) -> Result<Beyond> {
        let block = u64::from(self.header.limits.block_bytes);
        let window = u64::from(self.header.limits.window);
        let near = self
            .offset
            .saturating_add(window.saturating_mul(self.header.limits.frame_bytes_max()));
        let mut beyond = Beyond::default();
        let mut at = self.offset;
        while at < self.source.length() {
            let seed = self.seed.at(at);
            match self.source.at(io, at, block as usize)? {
                Err(_) => {
                    let place = if at < near {
                        Unreadable::Near
                    } else {
                        Unreadable::Far
                    };
                    beyond.unreadable = beyond.unreadable.max(place);
                    beyond.residue_end = align_up(at + 1, block);
                }
                Ok(bytes) => {
                    let bytes = &bytes[..bytes.len().min(block as usize)];
                    let later = FrameHeader::decode(bytes, seed, &self.header.limits);
                    if !is_zero(bytes) {
                        let end = at + bytes.len() as u64;
                        beyond.residue_end = self.residue(end, &later).max(beyond.residue_end);
                    }
                    if let (true, Ok(later)) = (at > self.offset || stop == Stop::Closed, later) {
                        beyond.note(&later, at, self.weigh(&later, stop));
                    }
                }
            }
            at += block;
        }
        Ok(beyond)
    }

    /// Where something that was being written ends, if the block before `end` shows that: in a
    /// file that was another segment before, only a header of this one does.
    fn residue(&self, end: u64, found: &Result<FrameHeader, FrameFault>) -> u64 {
        match found {
            _ if !self.header.is_recycled || planted!("stale_bytes_are_a_torn_tail") => end,
            Ok(frame) => {
                let begin = end - u64::from(self.header.limits.block_bytes);
                self.source
                    .length()
                    .min(begin + u64::from(frame.frame_bytes))
            }
            Err(_) => 0,
        }
    }

    /// What a header behind the end of the chain proves.
    fn weigh(&self, later: &FrameHeader, stop: Stop) -> Later {
        let window = self.header.limits.window;
        if stop == Stop::Closed {
            Later::Proof(Proof::AfterClose)
        } else if later.index <= self.expected.index || later.first < self.expected.next {
            Later::Proof(Proof::OutOfLine)
        } else if later.durable >= self.expected.next && !planted!("durable_claim_ignored") {
            Later::Proof(Proof::Durable)
        } else if later.index - self.expected.index >= window && !planted!("window_ignored") {
            Later::Proof(Proof::Window)
        } else {
            Later::Unproven
        }
    }

    /// The evidence about the tail, for the verdict.
    pub fn evidence(&self, stop: Stop, beyond: &Beyond) -> Tail {
        Tail {
            stop,
            cut_short: !self.may_be_short
                && self.source.length() < self.header.limits.segment_bytes,
            later: beyond.later,
            unreadable: beyond.unreadable,
            residue: beyond.residue_end > self.offset,
        }
    }

    /// Tries the same place again, from the file: a live owner may have written meanwhile.
    pub fn retry(&mut self, length: u64) {
        self.source.length = length.min(self.header.limits.segment_bytes);
        self.source.forget();
    }

    /// Where the chain ends so far.
    pub fn end(&self) -> End {
        End {
            segment: self.header.segment,
            incarnation: self.header.incarnation,
            next: self.expected.next,
            offset: self.offset,
            chain: self.expected.chain,
        }
    }

    /// The next frame as the chain demands it.
    pub fn expected(&self) -> Expected {
        self.expected
    }

    /// The header of the segment.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Frames passed.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Moves to the next place behind a fault where a whole frame stands, whatever it continues.
    /// For salvage only. False if there is none.
    pub fn skip(&mut self, io: &mut Blocking, least: Lsn) -> Result<bool> {
        let block = u64::from(self.header.limits.block_bytes);
        self.closed = false;
        loop {
            self.offset += block;
            if self.offset >= self.source.length() {
                return Ok(false);
            }
            let Ok(frame) = self.look(io)? else { continue };
            let seed = self.seed.at(self.offset);
            let body = self
                .source
                .at(io, self.offset, frame.frame_bytes as usize)?;
            let whole = body.and_then(|bytes| {
                frame.check_body(bytes, seed)?;
                count(&frame, bytes)
            });
            if whole.is_ok() && frame.first >= least {
                self.expected = Expected {
                    next: frame.first,
                    index: frame.index,
                    chain: frame.previous_crc,
                    durable: frame.durable,
                };
                return Ok(true);
            }
        }
    }
}

/// Whether all bytes are zero, a cache line at a time.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(64)
        .all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Checks that the records of a frame fill it exactly and are as many as it says.
fn count(frame: &FrameHeader, bytes: &[u8]) -> Result<(), FrameFault> {
    let mut data = 0_u32;
    for record in frame.records(bytes) {
        data += u32::from(record?.kind == RECORD_DATA);
    }
    if data == frame.records {
        Ok(())
    } else {
        Err(FrameFault::Contradiction(
            "the frame does not hold as many records as it claims",
        ))
    }
}

/// Why a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The segment is full.
    Full,
    /// A close frame.
    Closed,
    /// No valid frame in line.
    Fault(FrameFault),
}

/// What lies behind the end of a chain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beyond {
    /// The strongest evidence among later headers.
    pub later: Later,
    /// Where it lies, and the header.
    pub witness: Option<(u64, FrameHeader)>,
    /// Sectors that cannot be read.
    pub unreadable: Unreadable,
    /// The end of the last block that is not zeros; 0 if all are.
    pub residue_end: u64,
}

impl Beyond {
    fn note(&mut self, header: &FrameHeader, offset: u64, weight: Later) {
        if self.witness.is_none() || weight > self.later {
            self.later = weight;
            self.witness = Some((offset, *header));
        }
    }
}

const _: () = assert!(CHUNK_BYTES.is_multiple_of(64 << 10) && CHUNK_BYTES > FRAME_HEADER_BYTES);
