//! One segment file: its name, its header block, and where its predecessor ended.
//!
//! Pure functions over bytes; `FORMAT.md` draws them. The first [`IDENTITY_BYTES`] bytes keep
//! their meaning in every version for ever and carry a checksum of their own, so that an unknown
//! version is told from damage before anything else is believed.

use crate::{
    codec::{align_up, crc32c, get_i64, get_u32, get_u64, put},
    error::{Error, ErrorKind, Result},
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::Buffer,
};

use super::frame::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;
/// The file was another segment before: behind its frames lies what that one left, not zeros.
const COMPAT_RECYCLED: u32 = 1;
/// Feature bits that an older reader may ignore. One who does reads the same records. It errs on
/// the side of caution behind them: what an earlier segment left is a torn tail to it, which strict
/// recovery refuses, and a file that was made ready and never used, one that lost its header.
pub const COMPAT_KNOWN: u32 = COMPAT_RECYCLED;
/// Feature bits without which a log may be read but not written: none yet.
pub const RO_COMPAT_KNOWN: u32 = 0;
/// Feature bits without which a log must not be touched: none yet.
pub const INCOMPAT_KNOWN: u32 = 0;

/// The smallest block: a sector.
pub const BLOCK_BYTES_MIN: u32 = 512;
/// The largest block a header may state.
pub const BLOCK_BYTES_MAX: u32 = 65536;

/// No segment, incarnation or LSN comes this far: at a thousand million a second it takes a
/// century. Larger ones are refused, so that counting on from one never overflows.
const NUMBER_MAX: u64 = 1 << 62;

const MAGIC: [u8; 8] = *b"MILLRACE";

/// Where each field of the header lies. Each offset is the end of the field before it.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = MAGIC + 8;
    pub const COMPAT: usize = VERSION + 4;
    pub const RO_COMPAT: usize = COMPAT + 4;
    pub const INCOMPAT: usize = RO_COMPAT + 4;
    pub const HEADER_BYTES: usize = INCOMPAT + 4;
    pub const IDENTITY_CRC: usize = HEADER_BYTES + 4;
    pub const STORE: usize = IDENTITY_CRC + 4;
    pub const SEGMENT: usize = STORE + 16;
    pub const INCARNATION: usize = SEGMENT + 8;
    pub const BASE: usize = INCARNATION + 8;
    pub const PRIOR_SEGMENT: usize = BASE + 8;
    pub const PRIOR_INCARNATION: usize = PRIOR_SEGMENT + 8;
    pub const PRIOR_LSN: usize = PRIOR_INCARNATION + 8;
    pub const PRIOR_OFFSET: usize = PRIOR_LSN + 8;
    pub const SEGMENT_BYTES: usize = PRIOR_OFFSET + 8;
    pub const CREATED: usize = SEGMENT_BYTES + 8;
    pub const PRIOR_CHAIN: usize = CREATED + 8;
    pub const BLOCK_BYTES: usize = PRIOR_CHAIN + 4;
    pub const WINDOW: usize = BLOCK_BYTES + 4;
    pub const RECORD_BYTES_MAX: usize = WINDOW + 4;
    pub const GROUP_BYTES_MAX: usize = RECORD_BYTES_MAX + 4;
    pub const RESERVED: usize = GROUP_BYTES_MAX + 4;
}

/// Bytes whose meaning never changes, checksum included.
pub const IDENTITY_BYTES: usize = at::STORE;
/// Bytes of the header of version 1, checksum included.
pub const SEGMENT_HEADER_BYTES: usize = 256;
const HEADER_CRC: usize = SEGMENT_HEADER_BYTES - 4;
/// How much to read to see any header.
pub const SEGMENT_HEADER_READ: usize = BLOCK_BYTES_MIN as usize;

const _: () = {
    assert!(IDENTITY_BYTES == 32, "frozen for every version");
    assert!(
        at::RESERVED <= HEADER_CRC,
        "the fields leave room for the checksum"
    );
    assert!(
        SEGMENT_HEADER_BYTES <= BLOCK_BYTES_MIN as usize,
        "a header fits the smallest block"
    );
    assert!(SEGMENT_HEADER_BYTES <= SEGMENT_HEADER_READ);
    assert!(
        at::SEGMENT.is_multiple_of(8) && at::CREATED.is_multiple_of(8),
        "wide fields are aligned"
    );
    assert!(BLOCK_BYTES_MIN.is_power_of_two() && BLOCK_BYTES_MAX.is_power_of_two());
};

/// What a segment holds at most. Written into its header: a reader uses these, never its own
/// settings, so that a log opens with smaller limits than it was written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLimits {
    /// Every frame starts and ends on a multiple of it.
    pub block_bytes: u32,
    /// Frames in flight at most.
    pub window: u32,
    /// Payload of one record.
    pub record_bytes_max: u32,
    /// Records of one frame, their headers included.
    pub group_bytes_max: u32,
    /// The whole file.
    pub segment_bytes: u64,
}

impl SegmentLimits {
    /// Bytes of the largest frame these limits allow.
    pub fn frame_bytes_max(&self) -> u64 {
        let bytes = FRAME_HEADER_BYTES as u64 + u64::from(self.group_bytes_max);
        align_up(bytes, u64::from(self.block_bytes))
    }

    /// Refuses limits that no segment can have; the message names the limit.
    pub fn check(&self) -> Result<()> {
        let record = u64::from(self.record_bytes_max) + RECORD_HEADER_BYTES as u64;
        let wrong = if !self.block_bytes.is_power_of_two()
            || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&self.block_bytes)
        {
            "block_bytes must be a power of two from 512 to 65536"
        } else if self.window == 0 {
            "window must be at least 1"
        } else if record > u64::from(self.group_bytes_max) {
            "group_bytes_max must hold one record of record_bytes_max and its header"
        } else if self.frame_bytes_max() > u64::from(u32::MAX) {
            "group_bytes_max must leave room for a frame header and padding in 32 bits"
        } else if !self
            .segment_bytes
            .is_multiple_of(u64::from(self.block_bytes))
        {
            "segment_bytes must be a multiple of block_bytes"
        } else if self.segment_bytes < 3 * u64::from(self.block_bytes) {
            "segment_bytes must hold a header, a frame and a closing frame"
        } else {
            return Ok(());
        };
        Err(Error::invalid(wrong))
    }
}

/// Where a segment ended. Its successor says so in its header, and from then on nothing beyond
/// it exists, whatever the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The segment that ended.
    pub segment: SegmentId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The LSN after its last record.
    pub next: Lsn,
    /// The byte after its last frame.
    pub offset: u64,
    /// Header checksum of its last frame, or of the segment if it has none.
    pub chain: u32,
}

/// The first block of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log it belongs to.
    pub store: StoreId,
    /// Its number, also in its name; at least 1.
    pub segment: SegmentId,
    /// Which opening of the log made it; at least 1.
    pub incarnation: Incarnation,
    /// LSN of its first record.
    pub base: Lsn,
    /// Where the segment before it ended; `None` for the first of a log.
    pub predecessor: Option<End>,
    /// What it holds at most.
    pub limits: SegmentLimits,
    /// When it was made, in nanoseconds since the Unix epoch, UTC.
    pub created_ns: i64,
    /// Feature bits that forbid writing, unknown ones included.
    pub ro_compat: u32,
    /// The file was another segment before: what is not zero behind its frames means nothing.
    pub is_recycled: bool,
}

/// Why a block is not a segment header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderFault {
    /// All zeros: prepared and never used.
    Empty,
    /// Not ours, or damaged.
    Damaged(&'static str),
    /// Written by a version, or with a feature, that this one does not know.
    Unknown {
        /// The version found.
        version: u32,
        /// Feature bits found that must be understood and are not.
        incompat: u32,
    },
}

impl HeaderFault {
    /// The error for a reader that needed this header.
    pub fn into_error(self, segment: SegmentId) -> Error {
        let number = i128::from(segment.0);
        match self {
            Self::Unknown { version, incompat } => Error::new(
                ErrorKind::Format,
                format!(
                    "segment {segment} has format version {version} with unknown features \
                     {incompat:#x}; this build knows version {VERSION}; nothing was touched"
                ),
            )
            .with("segment", number)
            .with("found", version)
            .with("known", VERSION),
            Self::Empty => Error::new(ErrorKind::Corrupt, "the segment header is empty")
                .with("segment", number)
                .with("offset", 0),
            Self::Damaged(what) => Error::new(
                ErrorKind::Corrupt,
                format!("the segment header is damaged: {what}"),
            )
            .with("segment", number)
            .with("offset", 0),
        }
    }
}

impl SegmentHeader {
    /// One block with this header, and its checksum: the beginning of the chain of frames.
    pub fn encode(&self) -> (Buffer, u32) {
        let mut block = Buffer::zeroed(self.limits.block_bytes as usize);
        put(&mut block, at::MAGIC, &MAGIC);
        put(&mut block, at::VERSION, &VERSION.to_le_bytes());
        let compat = if self.is_recycled { COMPAT_RECYCLED } else { 0 };
        put(&mut block, at::COMPAT, &compat.to_le_bytes());
        put(&mut block, at::RO_COMPAT, &self.ro_compat.to_le_bytes());
        put(
            &mut block,
            at::HEADER_BYTES,
            &(SEGMENT_HEADER_BYTES as u32).to_le_bytes(),
        );
        let identity = crc32c(0, &block[..at::IDENTITY_CRC]);
        put(&mut block, at::IDENTITY_CRC, &identity.to_le_bytes());
        put(&mut block, at::STORE, &self.store.0);
        put(&mut block, at::SEGMENT, &self.segment.0.to_le_bytes());
        put(
            &mut block,
            at::INCARNATION,
            &self.incarnation.0.to_le_bytes(),
        );
        put(&mut block, at::BASE, &self.base.0.to_le_bytes());
        if let Some(prior) = &self.predecessor {
            put(
                &mut block,
                at::PRIOR_SEGMENT,
                &prior.segment.0.to_le_bytes(),
            );
            put(
                &mut block,
                at::PRIOR_INCARNATION,
                &prior.incarnation.0.to_le_bytes(),
            );
            put(&mut block, at::PRIOR_LSN, &prior.next.0.to_le_bytes());
            put(&mut block, at::PRIOR_OFFSET, &prior.offset.to_le_bytes());
            put(&mut block, at::PRIOR_CHAIN, &prior.chain.to_le_bytes());
        }
        let limits = &self.limits;
        put(
            &mut block,
            at::SEGMENT_BYTES,
            &limits.segment_bytes.to_le_bytes(),
        );
        put(&mut block, at::CREATED, &self.created_ns.to_le_bytes());
        put(
            &mut block,
            at::BLOCK_BYTES,
            &limits.block_bytes.to_le_bytes(),
        );
        put(&mut block, at::WINDOW, &limits.window.to_le_bytes());
        put(
            &mut block,
            at::RECORD_BYTES_MAX,
            &limits.record_bytes_max.to_le_bytes(),
        );
        put(
            &mut block,
            at::GROUP_BYTES_MAX,
            &limits.group_bytes_max.to_le_bytes(),
        );
        let crc = crc32c(0, &block[..HEADER_CRC]);
        put(&mut block, HEADER_CRC, &crc.to_le_bytes());
        (block, crc)
    }

    /// Reads a header from the beginning of a file, with its checksum.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), HeaderFault> {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_READ) else {
            return Err(HeaderFault::Damaged("the file is shorter than a header"));
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::Empty);
        }
        let header_bytes = check_identity(bytes)?;
        let crc_at = header_bytes - 4;
        let crc = crc32c(0, &bytes[..crc_at]);
        if get_u32(bytes, crc_at) != crc {
            return Err(HeaderFault::Damaged("its checksum does not match"));
        }
        let header = Self::fields(bytes);
        header.check().map_err(HeaderFault::Damaged)?;
        Ok((header, crc))
    }

    fn fields(bytes: &[u8]) -> Self {
        let mut store = [0; 16];
        store.copy_from_slice(&bytes[at::STORE..at::STORE + 16]);
        let prior = End {
            segment: SegmentId(get_u64(bytes, at::PRIOR_SEGMENT)),
            incarnation: Incarnation(get_u64(bytes, at::PRIOR_INCARNATION)),
            next: Lsn(get_u64(bytes, at::PRIOR_LSN)),
            offset: get_u64(bytes, at::PRIOR_OFFSET),
            chain: get_u32(bytes, at::PRIOR_CHAIN),
        };
        Self {
            store: StoreId(store),
            segment: SegmentId(get_u64(bytes, at::SEGMENT)),
            incarnation: Incarnation(get_u64(bytes, at::INCARNATION)),
            base: Lsn(get_u64(bytes, at::BASE)),
            predecessor: (prior.segment.0 != 0).then_some(prior),
            limits: SegmentLimits {
                block_bytes: get_u32(bytes, at::BLOCK_BYTES),
                window: get_u32(bytes, at::WINDOW),
                record_bytes_max: get_u32(bytes, at::RECORD_BYTES_MAX),
                group_bytes_max: get_u32(bytes, at::GROUP_BYTES_MAX),
                segment_bytes: get_u64(bytes, at::SEGMENT_BYTES),
            },
            created_ns: get_i64(bytes, at::CREATED),
            ro_compat: get_u32(bytes, at::RO_COMPAT),
            is_recycled: get_u32(bytes, at::COMPAT) & COMPAT_RECYCLED != 0,
        }
    }

    /// What a checksum cannot promise: that the numbers make sense together.
    fn check(&self) -> Result<(), &'static str> {
        if self.limits.check().is_err() {
            return Err("its limits contradict each other");
        }
        let numbers = [self.segment.0, self.incarnation.0, self.base.0];
        if numbers
            .iter()
            .any(|number| !(1..=NUMBER_MAX).contains(number))
        {
            return Err("a number is zero or beyond what any log reaches");
        }
        match &self.predecessor {
            Some(prior) if prior.segment >= self.segment => Err("its predecessor comes after it"),
            Some(prior) if prior.next != self.base => Err("it does not start where the last ended"),
            Some(prior) if prior.incarnation > self.incarnation => {
                Err("its predecessor was made by a later opening")
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Checks the part that is the same in every version; returns how long the header is.
fn check_identity(bytes: &[u8]) -> Result<usize, HeaderFault> {
    if bytes[..at::VERSION] != MAGIC {
        return Err(HeaderFault::Damaged(
            "it does not begin with the magic number",
        ));
    }
    if get_u32(bytes, at::IDENTITY_CRC) != crc32c(0, &bytes[..at::IDENTITY_CRC]) {
        return Err(HeaderFault::Damaged(
            "the checksum of its first bytes does not match",
        ));
    }
    let version = get_u32(bytes, at::VERSION);
    let incompat = get_u32(bytes, at::INCOMPAT) & !INCOMPAT_KNOWN;
    if version != VERSION || incompat != 0 {
        return Err(HeaderFault::Unknown { version, incompat });
    }
    // A later minor change may append fields; this version reads the ones it knows.
    let header_bytes = get_u32(bytes, at::HEADER_BYTES) as usize;
    if !(SEGMENT_HEADER_BYTES..=SEGMENT_HEADER_READ).contains(&header_bytes) {
        return Err(HeaderFault::Damaged("its length is out of range"));
    }
    Ok(header_bytes)
}

/// What a name in a log directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// A segment.
    Segment(SegmentId),
    /// A file prepared to become a segment.
    Prepared(SegmentId),
    /// The file of a dropped segment, kept to become another.
    Spare(SegmentId),
    /// The lock file.
    Lock,
    /// The named cursors.
    Cursors,
    /// Half-made, left by a crash.
    Temporary,
    /// Not ours, or set aside by a repair.
    Other,
}

/// Name of the lock file.
pub const LOCK_NAME: &str = "LOCK";
/// Name of the file of named cursors.
pub const CURSORS_NAME: &str = "cursors";

impl Name {
    /// Reads a name. Only the one spelling that we write counts as ours.
    pub fn parse(name: &str) -> Self {
        match name.split_once('.') {
            Some((number, "log")) => hex(number).map_or(Self::Other, Self::Segment),
            Some((number, "prep")) => hex(number).map_or(Self::Other, Self::Prepared),
            Some((number, "spare")) => hex(number).map_or(Self::Other, Self::Spare),
            Some((_, "tmp")) => Self::Temporary,
            None if name == LOCK_NAME => Self::Lock,
            None if name == CURSORS_NAME => Self::Cursors,
            Some(_) | None => Self::Other,
        }
    }
}

fn hex(text: &str) -> Option<SegmentId> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (text == format!("{number:016x}")).then_some(SegmentId(number))
}

/// File name of a segment.
pub fn segment_name(segment: SegmentId) -> String {
    format!("{:016x}.log", segment.0)
}

/// File name of a segment that is being prepared.
pub fn prepared_name(segment: SegmentId) -> String {
    format!("{:016x}.prep", segment.0)
}

/// File name of a dropped segment that is kept to become another.
pub fn spare_name(segment: SegmentId) -> String {
    format!("{:016x}.spare", segment.0)
}
