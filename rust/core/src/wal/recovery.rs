//! What a log directory holds, decided without changing a byte of it.
//!
//! The last valid segment leads back through its predecessors, each of which ended where its
//! successor says. Only the last segment is read through. Every judgement is made by [`judge`];
//! this file gathers the evidence and reports.
//!
//! # Always true
//!
//! 1. Nothing is written, renamed or removed here. Running it twice gives the same answer.
//! 2. What is trusted was synced first and read from the device, not from the cache.
//! 3. Memory is bounded by the largest frame and the number of segments, whatever the log's size.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind, Result},
    ids::{Incarnation, Lsn, SegmentId, StoreId},
    io::{Blocking, File},
};

use super::{
    frame::Expected,
    recycle::open_shared,
    salvage,
    scan::{Beyond, Scanner},
    segment::{End, RO_COMPAT_KNOWN, SegmentHeader, segment_name},
    survey::{Found, Survey, has_trace},
    verdict::{Evidence, Verdict, judge},
};

/// What to do about a tail that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecoveryMode {
    /// A torn tail is cut and reported; damage is an error.
    #[default]
    Tail,
    /// A torn tail is an error too.
    Strict,
    /// Everything readable is shown, what is not is reported, and nothing may be written.
    Salvage,
}

/// Something promised that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub segment: SegmentId,
    /// The byte in its file.
    pub offset: u64,
    /// First LSN that is affected.
    pub first: Lsn,
    /// Last LSN known to be affected, if any is.
    pub last: Option<Lsn>,
    /// In words.
    pub what: &'static str,
}

impl Damage {
    /// The error that stops an opening.
    pub fn to_error(&self) -> Error {
        let error = Error::new(ErrorKind::Corrupt, self.what)
            .with_text("file", segment_name(self.segment))
            .with("segment", self.segment.0)
            .with("offset", self.offset)
            .with("first_lsn", self.first.0);
        match self.last {
            Some(last) => error.with("last_lsn", last.0),
            None => error,
        }
    }
}

/// A tail that was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// Where.
    pub segment: SegmentId,
    /// The byte where the log now ends.
    pub offset: u64,
    /// The LSN that is given out next.
    pub next: Lsn,
}

/// What recovery did, for the user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Records in the log.
    pub records: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Segments they lie in.
    pub segments: u64,
    /// Bytes cut from the tail.
    pub cut_bytes: u64,
    /// Where, if anything was cut.
    pub torn_at: Option<Torn>,
    /// The last owner closed the log.
    pub clean_close: bool,
    /// What is damaged; empty unless salvaging, because damage stops an opening.
    pub damage: Vec<Damage>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A run of frames in one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its header.
    pub header: SegmentHeader,
    /// Offset of the first frame: behind the header, except for a piece that was salvaged.
    pub offset: u64,
    /// What the first frame must say.
    pub expected: Expected,
    /// Where it ends; `None` while it is being written.
    pub end: Option<End>,
}

impl SegmentSummary {
    /// A whole segment; `header_crc` begins its chain.
    pub fn new(header: SegmentHeader, header_crc: u32, end: Option<End>) -> Self {
        Self {
            offset: u64::from(header.limits.block_bytes),
            expected: Expected::first(&header, header_crc),
            header,
            end,
        }
    }

    /// Its number.
    pub fn id(&self) -> SegmentId {
        self.header.segment
    }

    /// LSN of its first record.
    pub fn base(&self) -> Lsn {
        self.expected.next
    }

    /// Whether both are about the same frames, ended or not.
    pub fn is_same_run(&self, other: &Self) -> bool {
        self.id() == other.id() && self.offset == other.offset
    }

    /// Its file.
    pub fn name(&self) -> String {
        segment_name(self.id())
    }

    /// Bytes of its frames; zero while it is being written.
    pub fn bytes(&self) -> u64 {
        self.end
            .map_or(0, |end| end.offset.saturating_sub(self.offset))
    }
}

/// Where the chain of the last segment ends, for who goes on from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontier {
    /// The segment, as one that is being written.
    pub summary: SegmentSummary,
    /// Offset of the frame that would come next.
    pub offset: u64,
    /// What it must say.
    pub expected: Expected,
}

/// Why a log must not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteBar {
    /// It has features that an older writer would break: these bits.
    Features(u32),
    /// It was opened for salvage.
    Salvage,
}

/// What a log directory holds, and how to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The log's identity; `None` if there is no log yet.
    pub store: Option<StoreId>,
    /// Segments that hold records, oldest first. None of them is written any more.
    pub segments: Vec<SegmentSummary>,
    /// LSN of the oldest record; the next LSN if there is none.
    pub first: Lsn,
    /// The LSN that is given out next.
    pub next: Lsn,
    /// What the header of the next segment says about its predecessor.
    pub end: Option<End>,
    /// Where the last segment with a header ends; `None` if there is none, or after a salvage.
    pub frontier: Option<Frontier>,
    /// A number that no file in the directory has.
    pub next_segment: SegmentId,
    /// An incarnation that no segment has.
    pub incarnation: Incarnation,
    /// Files to remove once the next segment's header and name are durable, not before.
    pub superseded: Vec<String>,
    /// Files that mean nothing: an owner may remove them at any time.
    pub leftovers: Vec<String>,
    /// Why the log must not be written, if it must not.
    pub write_bar: Option<WriteBar>,
    /// What was found.
    pub report: RecoveryReport,
}

/// How often to look when each look finds other damage than the one before.
const LOOKS_MAX: u32 = 10;
/// How long to go on looking while files vanish: beside a living owner that truncates.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks: what an owner was in the middle of is over then.
const PAUSE: Duration = Duration::from_millis(3);

/// Finds out what `dir` holds.
///
/// `Timeout` if its owner changes it quicker than it can be looked at; see [`look_until_sure`].
pub fn recover(io: &mut Blocking, dir: &File, mode: RecoveryMode) -> Result<Recovered> {
    let started = io.now();
    let mut recovered = look_until_sure(io, |io| attempt(io, dir, mode))?;
    recovered.report.elapsed = io.now().since(started);
    Ok(recovered)
}

/// Looks until the directory stood still for one look, or showed the same damage in two that follow
/// each other: beside a living owner, files vanish, and a file may become a segment between the
/// look at its header and the look behind it. Damage that was seen once is never reported.
pub(super) fn look_until_sure(
    io: &mut Blocking,
    mut look: impl FnMut(&mut Blocking) -> Result<Recovered>,
) -> Result<Recovered> {
    let deadline = io.now().after(PATIENCE);
    let mut doubts = 0;
    let mut doubted = None;
    loop {
        let found = look(io);
        let doubt = match &found {
            Err(error) if error.errno() == Some(libc::ENOENT) => None,
            Err(error) if error.kind() == ErrorKind::Corrupt => Some(error.to_string()),
            Ok(found) if !found.report.damage.is_empty() => {
                Some(format!("{:?}", found.report.damage))
            }
            _ => return found,
        };
        if doubt.is_some() && (doubted == doubt || planted!("damage_seen_once")) {
            return found;
        }
        doubts += u32::from(doubt.is_some());
        if doubts >= LOOKS_MAX || io.now() >= deadline {
            return Err(restless(
                found.err().filter(|error| error.errno().is_none()),
            ));
        }
        doubted = doubt;
        io.sleep(PAUSE)?;
    }
}

fn restless(last: Option<Error>) -> Error {
    let error = Error::new(
        ErrorKind::Timeout,
        "the log changed during every look at it, as beside an owner that truncates; nothing was \
         changed and no damage was found twice: try again",
    );
    match last {
        Some(last) => error.caused_by(last),
        None => error,
    }
}

fn attempt(io: &mut Blocking, dir: &File, mode: RecoveryMode) -> Result<Recovered> {
    let survey = Survey::of(io, dir)?;
    if mode == RecoveryMode::Salvage {
        return salvage::recover(io, dir, &survey);
    }
    let mut recovered = Recovered::empty(&survey);
    let Some(last) = last_segment(io, dir, &survey, &mut recovered)? else {
        return Ok(recovered);
    };
    check_identity(&survey, last)?;
    let tail = read_tail(io, dir, last)?;
    tail.report(mode, &mut recovered)?;
    recovered.frontier = Some(tail.frontier());
    let members = lead_back(io, dir, &survey, last)?;
    recovered.assemble(&survey, last, members, tail.scanner.end());
    Ok(recovered)
}

impl Recovered {
    /// A directory without a log, so far.
    pub(super) fn empty(survey: &Survey) -> Self {
        let headers = survey.found.iter().filter_map(Found::valid);
        let incarnation = headers.clone().map(|header| header.incarnation.0).max();
        let barred = headers.fold(0, |bits, header| bits | header.ro_compat) & !RO_COMPAT_KNOWN;
        Self {
            store: None,
            segments: Vec::new(),
            first: Lsn::FIRST,
            next: Lsn::FIRST,
            end: None,
            frontier: None,
            next_segment: SegmentId(survey.highest + 1),
            incarnation: Incarnation(incarnation.unwrap_or(0) + 1),
            superseded: Vec::new(),
            leftovers: survey.leftovers.clone(),
            write_bar: (barred != 0).then_some(WriteBar::Features(barred)),
            report: RecoveryReport::default(),
        }
    }

    /// Puts the segments in order; `members` come newest first, the last segment not among them.
    fn assemble(&mut self, survey: &Survey, last: &Found, members: Vec<SegmentSummary>, end: End) {
        let Ok((header, header_crc)) = &last.header else {
            return;
        };
        self.store = Some(header.store);
        self.next = end.next;
        self.segments = members;
        self.segments.reverse();
        if end.next > header.base {
            self.end = Some(end);
            let summary = SegmentSummary::new(header.clone(), *header_crc, Some(end));
            self.segments.push(summary);
        } else {
            // Without a record it holds nothing that its header does not say; the next segment
            // continues its predecessor.
            self.end = header.predecessor;
        }
        self.first = self
            .segments
            .first()
            .map_or(self.next, SegmentSummary::base);
        for found in &survey.found {
            let member = self.segments.iter().any(|summary| summary.id() == found.id);
            if !member && found.id <= last.id {
                self.superseded.push(segment_name(found.id));
            }
        }
        self.report.records = self.next.0 - self.first.0;
        self.report.segments = self.segments.len() as u64;
        self.report.bytes = self.segments.iter().map(SegmentSummary::bytes).sum();
    }
}

/// The valid segment with the highest number. Files above it must never have been used.
fn last_segment<'a>(
    io: &mut Blocking,
    dir: &File,
    survey: &'a Survey,
    recovered: &mut Recovered,
) -> Result<Option<&'a Found>> {
    for found in survey.found.iter().rev() {
        if found.header.is_ok() {
            return Ok(Some(found));
        }
        let trace = has_trace(io, dir, survey, found)?;
        match judge(Evidence::NoHeader { last: true, trace }) {
            Verdict::NeverUsed => recovered.leftovers.push(segment_name(found.id)),
            verdict => return Err(damage(verdict, found.id, 0, Lsn::ZERO, None)),
        }
    }
    Ok(None)
}

/// Every header must be of the log of the last segment, and of its own file.
fn check_identity(survey: &Survey, last: &Found) -> Result<()> {
    let store = last.valid().map(|header| header.store);
    for found in &survey.found {
        let Some(header) = found.valid() else {
            continue;
        };
        if header.segment != found.id || Some(header.store) != store {
            let verdict = judge(Evidence::Foreign);
            return Err(damage(verdict, found.id, 0, header.base, None)
                .with("found", header.segment.0)
                .with_text("store", header.store.to_string()));
        }
    }
    Ok(())
}

/// Follows the predecessors of `last`; newest first. Stops where older segments were truncated.
fn lead_back(
    io: &mut Blocking,
    dir: &File,
    survey: &Survey,
    last: &Found,
) -> Result<Vec<SegmentSummary>> {
    let mut members = Vec::new();
    let mut header = last.valid();
    while let Some(prior) = header.and_then(|header| header.predecessor) {
        let refuse = |evidence, first: Lsn| {
            let last = prior.next.previous();
            damage(judge(evidence), prior.segment, 0, first, Some(last))
        };
        let Some(found) = survey.get(prior.segment) else {
            // Truncation removes the oldest first: a gap above a file that is left is no
            // truncation.
            let older = survey.found.iter().rfind(|found| found.id < prior.segment);
            if let Some(older) = older.filter(|_| !planted!("missing_segment_accepted")) {
                let first = older.valid().map_or(Lsn::FIRST, |header| header.base);
                return Err(refuse(Evidence::Missing, first));
            }
            break;
        };
        let Ok((its_header, header_crc)) = &found.header else {
            let evidence = Evidence::NoHeader {
                last: false,
                trace: true,
            };
            return Err(refuse(evidence, Lsn::ZERO));
        };
        if !continues(its_header, *header_crc, &prior) {
            return Err(refuse(Evidence::Disagrees, its_header.base));
        }
        if found.length < prior.offset && !has_all_records(io, dir, found, &prior)? {
            return Err(refuse(Evidence::ShortOfSuccessor, its_header.base));
        }
        members.push(SegmentSummary::new(
            its_header.clone(),
            *header_crc,
            Some(prior),
        ));
        header = Some(its_header);
    }
    Ok(members)
}

/// Whether a file that is shorter than its successor says lacks only frames without records.
fn has_all_records(io: &mut Blocking, dir: &File, found: &Found, prior: &End) -> Result<bool> {
    let Ok((header, header_crc)) = &found.header else {
        return Ok(false);
    };
    let file = open_shared(io, dir, found.id)?;
    let mut scanner = Scanner::new(header.clone(), *header_crc, file, found.length);
    scanner.run(io)?;
    Ok(scanner.end().next >= prior.next)
}

/// Whether `header` is of the segment that its successor says it continues.
fn continues(header: &SegmentHeader, header_crc: u32, prior: &End) -> bool {
    let block = u64::from(header.limits.block_bytes);
    let empty = prior.next == header.base;
    header.incarnation == prior.incarnation
        && prior.next >= header.base
        && prior.offset >= block
        && prior.offset.is_multiple_of(block)
        && prior.offset <= header.limits.segment_bytes
        && (empty || prior.offset > block)
        && (prior.offset > block || prior.chain == header_crc)
}

/// The end of a chain: what lies behind it, and what that means.
pub(super) struct Settled {
    pub(super) beyond: Beyond,
    pub(super) verdict: Verdict,
}

/// Runs to the end of the chain and judges it. What looks like damage is looked at twice, past the
/// cache: beside a living owner, a frame may arrive between the look at its place and the look
/// behind it. At most `most` bytes of the file count.
pub(super) fn settle(
    io: &mut Blocking,
    file: &File,
    scanner: &mut Scanner,
    most: u64,
) -> Result<Settled> {
    let mut last = None;
    loop {
        let stop = scanner.run(io)?;
        let beyond = scanner.beyond(io, stop)?;
        let verdict = judge(Evidence::Tail(scanner.evidence(stop, &beyond)));
        let settled = Settled { beyond, verdict };
        let place = Some((stop, scanner.end().offset));
        if last == place || !matches!(verdict, Verdict::Damage(_)) {
            return Ok(settled);
        }
        last = place;
        io.drop_cache(file)?;
        scanner.retry(io.length(file)?.min(most));
    }
}

/// The last segment, read to the end of its chain.
struct Read {
    header_crc: u32,
    scanner: Scanner,
    settled: Settled,
}

fn read_tail(io: &mut Blocking, dir: &File, found: &Found) -> Result<Read> {
    let (header, header_crc) = match &found.header {
        Ok((header, crc)) => (header.clone(), *crc),
        Err(fault) => return Err(fault.clone().into_error(found.id)),
    };
    let file = open_shared(io, dir, found.id)?;
    let mut scanner = Scanner::new(header, header_crc, file.clone(), found.length);
    let settled = settle(io, &file, &mut scanner, u64::MAX)?;
    Ok(Read {
        header_crc,
        scanner,
        settled,
    })
}

impl Read {
    /// Says what the verdict means: an error, or lines of the report.
    fn report(&self, mode: RecoveryMode, recovered: &mut Recovered) -> Result<()> {
        let verdict = self.settled.verdict;
        let end = self.scanner.end();
        let report = &mut recovered.report;
        match verdict {
            Verdict::Closed => report.clean_close = true,
            Verdict::End | Verdict::NeverUsed => {}
            Verdict::Torn => {
                report.cut_bytes = self.settled.beyond.residue_end.saturating_sub(end.offset);
                report.torn_at = Some(Torn {
                    segment: end.segment,
                    offset: end.offset,
                    next: end.next,
                });
                if mode == RecoveryMode::Strict {
                    let what = "the tail is torn, which strict recovery refuses";
                    let verdict = Verdict::Damage(what);
                    return Err(damage(verdict, end.segment, end.offset, end.next, None));
                }
            }
            Verdict::Damage(_) => {
                return Err(damage(
                    verdict,
                    end.segment,
                    end.offset,
                    end.next,
                    self.missing(),
                ));
            }
        }
        Ok(())
    }

    fn frontier(&self) -> Frontier {
        let header = self.scanner.header().clone();
        Frontier {
            summary: SegmentSummary::new(header, self.header_crc, None),
            offset: self.scanner.end().offset,
            expected: self.scanner.expected(),
        }
    }

    /// The last LSN that a later header shows to be missing.
    fn missing(&self) -> Option<Lsn> {
        let (_, witness) = self.settled.beyond.witness?;
        let last = witness.first.previous().max(witness.durable);
        (last >= self.scanner.end().next).then_some(last)
    }
}

/// The error of a verdict that stops the opening.
fn damage(
    verdict: Verdict,
    segment: SegmentId,
    offset: u64,
    first: Lsn,
    last: Option<Lsn>,
) -> Error {
    let what = match verdict {
        Verdict::Damage(what) => what,
        Verdict::Closed | Verdict::End | Verdict::Torn | Verdict::NeverUsed => {
            "the log is not as it was left"
        }
    };
    Damage {
        segment,
        offset,
        first,
        last,
        what,
    }
    .to_error()
}
