//! Forward through the records of a log, in batches, never above what is durable.
//!
//! Whole frames are decoded out of large chunks; every frame is checked against its checksums and
//! the frame before it. A [`Batch`] owns the bytes it points into, so nothing is copied between
//! the file and whoever makes objects of the records.
//!
//! # Always true
//!
//! 1. No record above the LSN given with the call is looked at: the frame that holds it may be
//!    half written.
//! 2. Records come in LSN order without gaps; what cannot be read is an error, never left out.
//! 3. Memory is bounded by two chunks or frames, and by the batches that are still held. Who has
//!    read everything keeps one.

use std::sync::Arc;

use crate::{
    error::{Error, ErrorKind, Result},
    ids::{Lsn, SegmentId},
    io::{Blocking, Buffer, File},
};

use super::{
    catalogue::Hold,
    frame::{Expected, FRAME_HEADER_BYTES, FrameFault, FrameHeader, RECORD_DATA, Seed},
    recovery::{Damage, SegmentSummary},
    recycle::open_shared,
    scan::is_unreadable,
    segment::SegmentLimits,
};

pub use super::catalogue::Catalogue;

/// How much a reader reads at a time.
pub const READ_BYTES: usize = 512 << 10;

/// One record in a batch: where its payload lies in [`Batch::bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub offset: u32,
    /// Length.
    pub bytes: u32,
}

/// Records that were written as one group, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// How many records of the batch belong to it.
    pub records: u32,
    /// When it was written, in nanoseconds since the Unix epoch, UTC.
    pub timestamp_ns: i64,
}

/// Consecutive records, with the bytes they lie in.
#[derive(Debug, Clone)]
pub struct Batch {
    first: Lsn,
    chunk: Arc<Buffer>,
    spans: Vec<Span>,
    groups: Vec<Group>,
}

impl Batch {
    /// LSN of the first record.
    pub fn first(&self) -> Lsn {
        self.first
    }

    /// How many records; at least one.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Where the records lie in [`bytes`](Self::bytes), in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The timestamps, in order: each for so many records.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The bytes that hold the payloads, and others between them.
    pub fn bytes(&self) -> &[u8] {
        &self.chunk
    }

    /// The payloads, in order.
    pub fn payloads(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let bytes = self.bytes();
        self.spans.iter().map(move |span| {
            let start = span.offset as usize;
            &bytes[start..start + span.bytes as usize]
        })
    }
}

/// Reads forward from one LSN to another.
#[derive(Debug)]
pub struct Reader {
    catalogue: Arc<Catalogue>,
    dir: File,
    next: Lsn,
    stop: Option<Lsn>,
    hold: Arc<Hold>,
    place: Option<Place>,
    chunk: Arc<Buffer>,
    /// The chunk before, to be used again once no batch holds it: while one is looked at, the next
    /// is read, and new memory would cost as much as the reading.
    spare: Arc<Buffer>,
    chunk_bytes: usize,
    /// A segment that is being written, and how much of it is known to be.
    written: Option<(SegmentId, u64)>,
}

/// Where a reader is inside a segment.
#[derive(Debug)]
struct Place {
    summary: SegmentSummary,
    seed: Seed,
    file: File,
    /// Offset of the next frame in the file.
    offset: u64,
    expected: Expected,
    /// Offset in the file of the chunk's first byte.
    start: u64,
    /// How much of the chunk is filled.
    filled: usize,
    /// What was durable when the chunk was read: frames up to it are in the chunk as they are.
    fresh: Lsn,
    /// The rest of a frame of which a part was given out.
    rest: Option<Rest>,
    /// Where it was already read again, past the cache.
    reread_at: u64,
    /// Nothing behind this offset is read.
    written: u64,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    /// Where the frame begins in the chunk.
    frame: usize,
    /// Where the next record begins in the frame.
    at: usize,
    header: FrameHeader,
    /// LSN of that record.
    next: Lsn,
}

impl Reader {
    /// From `start` up to, and without, `stop`. A start below the oldest record is an error unless
    /// the log was salvaged.
    pub fn new(
        catalogue: Arc<Catalogue>,
        dir: File,
        start: Lsn,
        stop: Option<Lsn>,
    ) -> Result<Self> {
        let start = start.max(Lsn::FIRST);
        // Held before the look: what truncation drops after it stays.
        let hold = catalogue.hold(start);
        let oldest = catalogue.oldest();
        let oldest = oldest.map(|oldest| oldest.max(catalogue.mark()));
        if let Some(oldest) = oldest.filter(|oldest| start < *oldest && !catalogue.has_gaps()) {
            return Err(removed(start, oldest));
        }
        Ok(Self {
            catalogue,
            dir,
            next: start,
            stop,
            hold,
            place: None,
            chunk: Arc::new(Buffer::zeroed(0)),
            spare: Arc::new(Buffer::zeroed(0)),
            chunk_bytes: READ_BYTES,
            written: None,
        })
    }

    /// Reads so much at a time.
    #[must_use]
    pub fn with_chunk(self, chunk_bytes: usize) -> Self {
        let chunk_bytes = chunk_bytes.max(4096);
        Self {
            chunk_bytes,
            ..self
        }
    }

    /// No byte of `segment` behind `offset` was seen to be written: it reads none of them.
    pub(super) fn is_written_to(&mut self, segment: SegmentId, offset: u64) {
        self.written = Some((segment, offset));
    }

    /// Goes on in this segment, of which the file is open and held shared. For a reader that has
    /// given everything before it.
    pub(super) fn go_on_in(&mut self, summary: SegmentSummary, file: File) {
        self.place = Some(Place::new(summary, file));
    }

    /// Holds nothing back any more. What it reads after this may have been removed.
    pub fn let_go(&self) {
        self.hold.let_go();
    }

    /// LSN of the next record it gives.
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// Whether it has given everything below its stop.
    pub fn is_finished(&self) -> bool {
        self.stop.is_some_and(|stop| self.next >= stop)
    }

    /// The next records, at most `records_max`, none above `up_to` (the durable mark). `None` if
    /// there are none yet. After an error, the same error again.
    pub fn next_batch(
        &mut self,
        io: &mut Blocking,
        up_to: Lsn,
        records_max: usize,
    ) -> Result<Option<Batch>> {
        let up_to = up_to.plus(u64::from(planted!("reader_above_durable")));
        let limit = match self.stop {
            Some(stop) => up_to.min(stop.previous()),
            None => up_to,
        };
        while self.next <= limit {
            if !self.enter(io)? {
                return Ok(None);
            }
            self.load(io, up_to)?;
            let batch = match self.decode(limit, records_max.max(1)) {
                Err(_) if self.may_be_stale() => {
                    self.read_again(io)?;
                    continue;
                }
                other => other?,
            };
            self.hold.moved_to(self.next);
            if batch.is_some() {
                return Ok(batch);
            }
        }
        self.spare = Arc::new(Buffer::zeroed(0));
        Ok(None)
    }

    /// Makes sure there is an open segment that holds the next record. False if there is none.
    fn enter(&mut self, io: &mut Blocking) -> Result<bool> {
        let next = self.next;
        if self
            .place
            .as_ref()
            .is_some_and(|place| place.is_ready(&self.chunk) || place.ends_above(next))
        {
            return Ok(true);
        }
        let found = self.catalogue.find(next);
        if let Some(place) = &mut self.place {
            match &found {
                Some(found) if found.is_same_run(&place.summary) => {
                    place.summary.end = found.end;
                    return Ok(true);
                }
                // Removed while it is being read: the open file still has it.
                Some(found) if found.base() > next && place.summary.end.is_none() => {
                    return Ok(true);
                }
                None if place.summary.end.is_none() => return Ok(true),
                Some(_) | None => {}
            }
        }
        let Some(summary) = found else {
            return Ok(false);
        };
        if summary.base() > next {
            if !self.catalogue.has_gaps() {
                return Err(removed(next, summary.base()));
            }
            self.next = summary.base();
        }
        let file = open_shared(io, &self.dir, summary.id())?;
        self.place = Some(Place::new(summary, file));
        Ok(true)
    }

    /// Makes sure the chunk holds the next frame as it is on disk when `up_to` is durable.
    fn load(&mut self, io: &mut Blocking, up_to: Lsn) -> Result<()> {
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        if place.is_ready(&self.chunk) {
            return Ok(());
        }
        let block = place.limits().block_bytes as usize;
        if let Some((segment, offset)) = self.written {
            place.written = if segment == place.summary.id() {
                offset
            } else {
                u64::MAX
            };
        }
        // Held by a batch: the one before may be free by now.
        if Arc::get_mut(&mut self.chunk).is_none() && !planted!("chunks_are_not_used_again") {
            std::mem::swap(&mut self.chunk, &mut self.spare);
        }
        match place.fill(io, &mut self.chunk, self.chunk_bytes) {
            // The bad sector may lie behind what is needed now.
            Err(error) if is_unreadable(&error) => place.fill(io, &mut self.chunk, block)?,
            other => other?,
        }
        if let Some(Ok(header)) = place.peek(&self.chunk)
            && header.frame_bytes as usize > place.filled
            && place.offset + u64::from(header.frame_bytes) <= io.length(&place.file)?
        {
            place.fill(io, &mut self.chunk, header.frame_bytes as usize)?;
        }
        place.fresh = up_to;
        Ok(())
    }

    /// Whether a fault may be the cache's and not the disk's: a direct write beside a cached read
    /// can leave an old page. Only for a segment that is still written, and once for each place.
    fn may_be_stale(&self) -> bool {
        self.place
            .as_ref()
            .is_some_and(|place| place.summary.end.is_none() && place.reread_at != place.offset)
    }

    fn read_again(&mut self, io: &mut Blocking) -> Result<()> {
        if let Some(place) = &mut self.place {
            io.drop_cache(&place.file)?;
            place.reread_at = place.offset;
            place.filled = 0;
        }
        Ok(())
    }

    /// Takes records out of the chunk.
    fn decode(&mut self, limit: Lsn, records_max: usize) -> Result<Option<Batch>> {
        let Some(place) = &mut self.place else {
            return Ok(None);
        };
        let mut out = Gather {
            next: self.next,
            limit,
            records_max,
            first: None,
            spans: Vec::new(),
            groups: Vec::new(),
        };
        while !out.is_full() {
            // A fault is told only when it comes first: what is whole before it goes out.
            match place.advance(&self.chunk, &mut out) {
                Ok(true) => {}
                Err(error) if out.first.is_none() => return Err(error),
                Ok(false) | Err(_) => break,
            }
        }
        self.next = self.next.max(out.next);
        let first = out.first;
        Ok(first.map(|first| Batch {
            first,
            chunk: self.chunk.clone(),
            spans: out.spans,
            groups: out.groups,
        }))
    }
}

impl Place {
    fn new(summary: SegmentSummary, file: File) -> Self {
        Self {
            seed: Seed::new(&summary.header),
            offset: summary.offset,
            expected: summary.expected,
            start: 0,
            filled: 0,
            fresh: Lsn::ZERO,
            rest: None,
            reread_at: 0,
            written: u64::MAX,
            file,
            summary,
        }
    }

    fn limits(&self) -> &SegmentLimits {
        &self.summary.header.limits
    }

    /// The header of the next frame, if the chunk reaches that far.
    fn peek(&self, chunk: &Buffer) -> Option<Result<FrameHeader, FrameFault>> {
        let at = self.offset.checked_sub(self.start)? as usize;
        let bytes = chunk.get(at..self.filled)?;
        if bytes.len() < self.limits().block_bytes as usize {
            return None;
        }
        Some(FrameHeader::decode(
            bytes,
            self.seed.at(self.offset),
            self.limits(),
        ))
    }

    /// Whether the chunk holds what comes next, and that was durable when the chunk was read.
    fn is_ready(&self, chunk: &Buffer) -> bool {
        if self.rest.is_some() {
            return true;
        }
        if self.has_ended() {
            return false;
        }
        // Frames become durable in order, so a record ahead vouches for all frames before it.
        self.expected.next <= self.fresh
            && match self.peek(chunk) {
                None => false,
                Some(Err(_)) => true,
                Some(Ok(header)) => {
                    let end = self.offset - self.start + u64::from(header.frame_bytes);
                    end <= self.filled as u64
                }
            }
    }

    /// Whether no record follows in this segment. What may lie behind the last one is not looked
    /// at: it promises nothing.
    fn has_ended(&self) -> bool {
        self.summary
            .end
            .is_some_and(|end| end.next <= self.expected.next)
    }

    /// Whether the segment is known to hold `lsn`.
    fn ends_above(&self, lsn: Lsn) -> bool {
        self.summary.end.is_some_and(|end| end.next > lsn)
    }

    /// Reads the file from the next frame on.
    fn fill(&mut self, io: &mut Blocking, chunk: &mut Arc<Buffer>, bytes: usize) -> Result<()> {
        let most = match self.summary.end {
            Some(end) => end.offset,
            None => self.limits().segment_bytes.min(self.written),
        };
        let left = usize::try_from(most.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let wanted = bytes.min(left);
        // A chunk that no batch holds any more is used again.
        let reused = Arc::get_mut(chunk).filter(|buffer| buffer.len() >= wanted);
        let buffer = match reused {
            Some(buffer) => std::mem::replace(buffer, Buffer::zeroed(0)),
            None => Buffer::zeroed(wanted),
        };
        self.start = self.offset;
        self.filled = 0;
        let (count, buffer) = io.read(&self.file, self.offset, wanted, buffer)?;
        self.filled = count;
        *chunk = Arc::new(buffer);
        Ok(())
    }

    /// Takes from the frame at hand, or begins the next. False if the chunk has no more. After a
    /// fault everything stands where it stood.
    fn advance(&mut self, chunk: &Buffer, out: &mut Gather) -> Result<bool> {
        if self.rest.is_none() && !self.begin_frame(chunk)? {
            return Ok(false);
        }
        if let Some(rest) = self.rest {
            let (before, next) = (out.spans.len(), out.next);
            match out.take(rest, chunk) {
                Ok(rest) => self.rest = rest,
                Err(fault) => {
                    out.spans.truncate(before);
                    out.next = next;
                    return Err(self.damage(fault));
                }
            }
        }
        Ok(true)
    }

    /// Checks the next frame and stands before its first record. False if the chunk does not hold
    /// it.
    fn begin_frame(&mut self, chunk: &Buffer) -> Result<bool> {
        if self.has_ended() || (!self.is_ready(chunk) && self.start != self.offset) {
            return Ok(false);
        }
        let decoded = self.peek(chunk).unwrap_or(Err(FrameFault::Short));
        let header = decoded.map_err(|fault| self.damage(fault))?;
        let frame = (self.offset - self.start) as usize;
        let mut expected = self.expected;
        let checked = expected.follow(&header).and_then(|()| {
            header.check_body(&chunk[frame..self.filled], self.seed.at(self.offset))
        });
        checked.map_err(|fault| self.damage(fault))?;
        self.expected = expected;
        self.offset += u64::from(header.frame_bytes);
        self.rest = Some(Rest {
            frame,
            at: FRAME_HEADER_BYTES,
            header,
            next: header.first,
        });
        Ok(true)
    }

    fn damage(&self, fault: FrameFault) -> Error {
        Damage {
            segment: self.summary.id(),
            offset: self.offset,
            first: self.expected.next,
            last: None,
            what: fault.describe(),
        }
        .to_error()
    }
}

/// Records on their way into a batch.
struct Gather {
    next: Lsn,
    limit: Lsn,
    records_max: usize,
    first: Option<Lsn>,
    spans: Vec<Span>,
    groups: Vec<Group>,
}

impl Gather {
    fn is_full(&self) -> bool {
        self.spans.len() >= self.records_max || self.next > self.limit
    }

    /// Takes what it may of a frame; gives back what is left.
    fn take(&mut self, mut rest: Rest, chunk: &Buffer) -> Result<Option<Rest>, FrameFault> {
        let before = self.spans.len();
        let end = rest.header.next();
        let mut records = rest.header.records_from(&chunk[rest.frame..], rest.at);
        let left = (end.0 - rest.next.0) as usize;
        self.spans.reserve(left.min(self.records_max - before));
        let mut is_finished = false;
        while !self.is_full() {
            let Some(record) = records.next() else {
                is_finished = true;
                break;
            };
            let record = record?;
            if record.kind != RECORD_DATA {
                continue;
            }
            if rest.next >= self.next {
                self.spans.push(Span {
                    offset: rest.frame as u32 + record.offset,
                    bytes: record.bytes,
                });
                self.next = rest.next.plus(1);
            }
            rest.next = rest.next.plus(1);
        }
        if rest.next > end || (is_finished && rest.next != end) {
            return Err(FrameFault::Contradiction(
                "the frame does not hold as many records as it claims",
            ));
        }
        let taken = (self.spans.len() - before) as u32;
        if taken > 0 {
            self.first
                .get_or_insert(Lsn(self.next.0 - u64::from(taken)));
            self.groups.push(Group {
                records: taken,
                timestamp_ns: rest.header.timestamp_ns,
            });
        }
        rest.at = records.position();
        Ok((!is_finished).then_some(rest))
    }
}

fn removed(wanted: Lsn, oldest: Lsn) -> Error {
    let what = format!("the records from {wanted} on were removed; the oldest left is {oldest}");
    Error::new(ErrorKind::Invalid, what)
        .with("lsn", wanted.0)
        .with("first_lsn", oldest.0)
}
