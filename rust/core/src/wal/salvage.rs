//! Everything readable of a damaged log: runs of whole frames, in LSN order, with a report of what
//! lies between them.

use crate::{
    error::Result,
    ids::{Lsn, SegmentId},
    io::{Access, Blocking, File},
};

use super::{
    recovery::{Damage, Recovered, SegmentSummary, WriteBar},
    scan::{Scanner, Stop},
    segment::{HeaderFault, segment_name},
    survey::{Found, Survey},
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
            Err(fault) => {
                let last = survey.found[at..].iter().all(|found| found.header.is_err());
                if *fault != HeaderFault::Empty || !last {
                    let next = recovered.next;
                    let verdict = judge(Evidence::NoHeader { last, trace: true });
                    recovered.note(found.id, 0, next, None, verdict);
                }
            }
        }
    }
    recovered.first = recovered
        .segments
        .first()
        .map_or(Lsn::FIRST, SegmentSummary::base);
    recovered.report.segments = recovered.segments.len() as u64;
    recovered.report.bytes = recovered.segments.iter().map(SegmentSummary::bytes).sum();
    Ok(recovered)
}

impl Recovered {
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
    let successor = survey
        .found
        .iter()
        .filter_map(Found::valid)
        .find_map(|later| {
            later
                .predecessor
                .filter(|prior| prior.segment == found.id && later.store == header.store)
        });
    let superseded = successor.is_none()
        && survey.found.iter().filter_map(Found::valid).any(|later| {
            later.segment > found.id
                && later
                    .predecessor
                    .is_none_or(|prior| prior.segment < found.id)
        });
    if superseded {
        return Ok(());
    }
    let length = successor.map_or(found.length, |end| end.offset.min(found.length));
    let file = io.open(dir, &segment_name(found.id), Access::READ)?;
    let mut scanner = Scanner::new(header.clone(), *header_crc, file, length);
    if header.base < recovered.next && !recovered.segments.is_empty() {
        let (base, last) = (header.base, recovered.next.previous());
        recovered.note(found.id, 0, base, Some(last), judge(Evidence::Disagrees));
        return Ok(());
    }
    if header.base > recovered.next && !recovered.segments.is_empty() {
        let verdict = judge(Evidence::Missing);
        let last = header.base.previous();
        recovered.note(found.id, 0, recovered.next, Some(last), verdict);
    }
    loop {
        let (offset, expected) = (scanner.end().offset, scanner.expected());
        let stop = scanner.run(io)?;
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
        let done = successor.is_some_and(|said| said.offset == end.offset && said.next == end.next);
        if done || stop == Stop::Full {
            return Ok(());
        }
        let beyond = scanner.beyond(io, stop)?;
        let found_more = scanner.skip(io, end.next)?;
        let verdict = match successor {
            Some(_) => Verdict::Damage("frames that the successor continues are damaged"),
            None => judge(Evidence::Tail(
                scanner.evidence_at(end.offset, stop, &beyond),
            )),
        };
        let last = match (found_more, successor) {
            (true, _) => Some(scanner.expected().next.previous()),
            (false, Some(said)) => Some(said.next.previous()),
            (false, None) => None,
        };
        recovered.note(
            end.segment,
            end.offset,
            end.next,
            last.filter(|last| *last >= end.next),
            verdict,
        );
        if !found_more {
            return Ok(());
        }
    }
}
