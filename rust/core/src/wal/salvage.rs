//! Everything readable of a damaged log: runs of whole frames, in LSN order, with a report of what
//! lies between them.

use crate::{
    error::Result,
    ids::{Lsn, SegmentId},
    io::{Blocking, File},
};

use super::{
    recovery::{Damage, Recovered, SegmentSummary, Settled, Torn, WriteBar, settle},
    recycle::open_shared,
    scan::Scanner,
    segment::{End, SegmentHeader},
    survey::{Found, Survey, has_trace},
    verdict::{Evidence, Verdict, judge},
};

/// Reads every segment through and keeps what is whole. Fails only where the system does.
pub(super) fn recover(io: &mut Blocking, dir: &File, survey: &Survey) -> Result<Recovered> {
    let mut recovered = Recovered::empty(survey);
    recovered.write_bar = Some(WriteBar::Salvage);
    recovered.store = survey
        .found
        .iter()
        .rev()
        .find_map(|found| found.valid().map(|h| h.store));
    for (at, found) in survey.found.iter().enumerate() {
        match &found.header {
            Ok((header, _))
                if Some(header.store) != recovered.store || header.segment != found.id =>
            {
                let base = header.base;
                recovered.note(found.id, 0, base, None, judge(Evidence::Foreign));
            }
            Ok(_) => pieces(io, dir, survey, found, &mut recovered)?,
            Err(_) => {
                let last = survey.found[at..].iter().all(|found| found.header.is_err());
                let trace = has_trace(io, dir, survey, found)?;
                let verdict = judge(Evidence::NoHeader { last, trace });
                recovered.note(found.id, 0, recovered.next, None, verdict);
            }
        }
    }
    recovered.note_lost_beginning(survey);
    recovered.first = recovered
        .segments
        .first()
        .map_or(recovered.next, SegmentSummary::base);
    recovered.report.segments = recovered.segments.len() as u64;
    recovered.report.bytes = recovered.segments.iter().map(SegmentSummary::bytes).sum();
    Ok(recovered)
}

impl Recovered {
    /// A segment that the first one continues may be missing although an older file is left:
    /// truncation does not do that.
    fn note_lost_beginning(&mut self, survey: &Survey) {
        let first = self.segments.first().map(|run| &run.header);
        let last = || survey.found.iter().rev().find_map(Found::valid);
        let Some(prior) = first.or_else(last).and_then(|header| header.predecessor) else {
            return;
        };
        let is_left = survey.found.iter().any(|found| found.id < prior.segment);
        if is_left && survey.get(prior.segment).is_none() {
            let last = Some(prior.next.previous());
            self.note(prior.segment, 0, Lsn::FIRST, last, judge(Evidence::Missing));
        }
    }

    /// Whether a segment comes after what was read so far; notes what lies between.
    fn has_place(&mut self, header: &SegmentHeader) -> bool {
        if self.segments.is_empty() || header.base == self.next {
            self.next = header.base;
            return true;
        }
        let is_above = header.base > self.next;
        let (evidence, from, to) = if is_above {
            (Evidence::Missing, self.next, header.base)
        } else {
            (Evidence::Disagrees, header.base, self.next)
        };
        let prior = header.predecessor.filter(|_| is_above);
        let segment = prior.map_or(header.segment, |prior| prior.segment);
        self.note(segment, 0, from, Some(to.previous()), judge(evidence));
        is_above
    }

    fn note(
        &mut self,
        segment: SegmentId,
        offset: u64,
        first: Lsn,
        last: Option<Lsn>,
        verdict: Verdict,
    ) {
        if let Verdict::Damage(what) = verdict {
            self.report.damage.push(Damage {
                segment,
                offset,
                first,
                last,
                what,
            });
        }
    }
}

/// The runs of whole frames in one segment. What its successor dropped stays dropped.
fn pieces(
    io: &mut Blocking,
    dir: &File,
    survey: &Survey,
    found: &Found,
    recovered: &mut Recovered,
) -> Result<()> {
    let Ok((header, header_crc)) = &found.header else {
        return Ok(());
    };
    let (said, is_superseded) = successor(survey, header);
    if is_superseded || !recovered.has_place(header) {
        return Ok(());
    }
    let length = said.map_or(found.length, |end| end.offset.min(found.length));
    let file = open_shared(io, dir, found.id)?;
    let mut scanner = Scanner::new(header.clone(), *header_crc, file.clone(), length);
    let headers = survey.found.iter().filter_map(Found::valid);
    if headers.map(|later| later.segment).max() > Some(header.segment) {
        scanner.allow_short();
    }
    loop {
        let (offset, expected) = (scanner.end().offset, scanner.expected());
        let settled = settle(io, &file, &mut scanner, length)?;
        let end = scanner.end();
        if end.next > expected.next {
            recovered.report.records += end.next.0 - expected.next.0;
            recovered.next = end.next;
            recovered.segments.push(SegmentSummary {
                header: header.clone(),
                offset,
                expected,
                end: Some(end),
            });
        }
        // Behind its last record a segment holds nothing that was promised.
        let is_whole = said.is_some_and(|said| said.next == end.next);
        if is_whole || !go_on(io, &mut scanner, &settled, said, recovered)? {
            return Ok(());
        }
    }
}

/// Judges the place where a run ends and reports it; moves to the next run. False if there is
/// none that counts.
fn go_on(
    io: &mut Blocking,
    scanner: &mut Scanner,
    settled: &Settled,
    said: Option<End>,
    recovered: &mut Recovered,
) -> Result<bool> {
    let end = scanner.end();
    let verdict = match said {
        Some(_) => judge(Evidence::BrokenInside),
        None => settled.verdict,
    };
    let is_damage = matches!(verdict, Verdict::Damage(_));
    let is_more = is_damage && scanner.skip(io, end.next)?;
    let next = if is_more {
        scanner.expected().next
    } else {
        said.map_or(end.next, |said| said.next)
    };
    let last = (next > end.next).then_some(next.previous());
    recovered.note(end.segment, end.offset, end.next, last, verdict);
    recovered.next = recovered.next.max(next);
    match verdict {
        Verdict::Torn => {
            recovered.report.cut_bytes = settled.beyond.residue_end.saturating_sub(end.offset);
            recovered.report.torn_at = Some(Torn {
                segment: end.segment,
                offset: end.offset,
                next: end.next,
            });
        }
        Verdict::Closed => recovered.report.clean_close = true,
        Verdict::End | Verdict::NeverUsed | Verdict::Damage(_) => {}
    }
    Ok(is_more)
}

/// What a later segment says about where this one ended, and whether a later one says that this
/// one is no part of the log.
fn successor(survey: &Survey, header: &SegmentHeader) -> (Option<End>, bool) {
    let later = survey.found.iter().filter_map(Found::valid);
    let mut later =
        later.filter(|later| later.segment > header.segment && later.store == header.store);
    let said = later.clone().find_map(|later| {
        later
            .predecessor
            .filter(|prior| prior.segment == header.segment)
    });
    let is_passed_over = |later: &SegmentHeader| {
        later
            .predecessor
            .is_none_or(|prior| prior.segment < header.segment)
    };
    (said, said.is_none() && later.any(is_passed_over))
}
