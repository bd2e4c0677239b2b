//! A log that another process writes, followed from outside.
//!
//! ```text
//! look anew   recovery, as an open does it   -> the frontier: where the frames end
//! each look   frames behind the frontier?    -> it moves, what became durable is read
//!             a segment that continues here? -> it moves there
//!             neither, though written to?    -> look anew: recovery judges
//! ```
//!
//! So following costs what is new, and a look at nothing new costs the same however long the log
//! and its segments are.
//!
//! # Always true
//!
//! 1. No record is shown before a later frame or segment says that it was durable, or its file was
//!    synced here after the record was read: a crash could take it back.
//! 2. A segment is left only for one whose header says that it continues exactly where the frames
//!    end. Such a header is written when everything before it is durable.
//! 3. Whatever does not fit is judged by recovery, never here.
//! 4. The file at the frontier is held shared, so its owner may drop it and does not use it again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    clock::Mono,
    error::{Error, Result},
    ids::{Lsn, SegmentId},
    io::{Access, Backend, Blocking, Buffer, File, Wanted},
};

use super::{
    catalogue::Catalogue,
    open::{World, recover_to_read},
    reader::{Batch, Reader},
    recovery::{Frontier, Recovered, RecoveryMode, SegmentSummary},
    recycle::open_shared,
    scan::Scanner,
    segment::{HeaderFault, Name, SEGMENT_HEADER_READ, SegmentHeader, segment_name},
    truncate::truncated,
};

/// How much a look reads at a time.
const LOOK_BYTES: usize = 64 << 10;
/// The shortest and the longest pause after a look that found nothing, by how long nothing came.
const REST_MIN: Duration = Duration::from_millis(5);
const REST_MAX: Duration = Duration::from_millis(100);
/// Looking takes at most one part in so many of the time, until this much lies between two looks.
const REST_SHARE: u32 = 20;
const REST_LONGEST: Duration = Duration::from_secs(2);
/// An idle owner says after 50 ms what is durable. One that has not by now is gone or too busy.
const CLAIM_AFTER: Duration = Duration::from_millis(100);
/// After so many looks without news, only one in `CALM_PER_LOOK` does more than ask when the file
/// was written to.
const CALM_AFTER: u32 = 8;
const CALM_PER_LOOK: u32 = 4;
/// A segment that is written to, and shows no next frame for so long, is looked at by recovery.
const DOUBT_AFTER: Duration = Duration::from_secs(1);

/// Follows a log beside its owner.
pub struct Watch {
    backend: Box<dyn Backend>,
    location: PathBuf,
    mode: RecoveryMode,
    wanted: Wanted,
    next: Lsn,
    view: Option<View>,
    rest: Duration,
}

/// What is known since the last look anew.
struct View {
    catalogue: Arc<Catalogue>,
    reader: Reader,
    durable: Lsn,
    front: Option<Front>,
}

/// Where the frames end so far.
struct Front {
    file: File,
    scanner: Scanner,
    /// A record that nothing says is durable yet, and since when.
    unclaimed: Option<(Lsn, Mono)>,
    /// When the file was written to, as of the last frame found.
    written_ns: i64,
    /// Since when it is written to without a next frame.
    doubted: Option<Mono>,
    /// Looks in a row that found nothing.
    idle: u32,
    /// The next look shall not trust the cache.
    past_cache: bool,
}

/// What a look has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// There is more to read, or another place to look at.
    More,
    /// Frames that cannot be shown yet.
    Soon,
    Nothing,
    /// Something that recovery must judge.
    Lost,
}

/// What lies beside the segment at the frontier.
enum Beside {
    Nothing,
    Next(SegmentId),
    /// A segment that continues this one, farther on than its frames are seen.
    Ahead,
    Other,
}

impl Watch {
    /// From `start` on. Nothing is looked at before the first call.
    pub fn new(world: &World, location: PathBuf, mode: RecoveryMode, start: Lsn) -> Result<Self> {
        Ok(Self {
            backend: world.disk.backend()?,
            location,
            mode,
            wanted: world.wanted.clone(),
            next: start.max(Lsn::FIRST),
            view: None,
            rest: REST_MIN,
        })
    }

    /// Whether the next call looks anew, which may take as long as an open.
    pub fn is_lost(&self) -> bool {
        self.view.is_none()
    }

    /// LSN of the next record it gives.
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// How long to wait after a call that gave nothing.
    pub fn rest(&self) -> Duration {
        self.rest
    }

    /// The next records, at most `records_max`. `None`: there are none yet, look again after
    /// [`rest`](Self::rest). After an error the next call looks anew.
    pub fn next_batch(&mut self, records_max: usize) -> Result<Option<Batch>> {
        let mut io = Blocking::new(&mut *self.backend).while_wanted(&self.wanted);
        let began = io.now();
        let mut view = match self.view.take() {
            Some(view) => view,
            None => match View::anew(&mut io, &self.location, self.mode, self.next) {
                Ok(view) => view,
                Err(error) => {
                    self.rest = rest_after(io.now().since(began), REST_MAX);
                    return Err(error);
                }
            },
        };
        let (batch, look) = view.next_batch(&mut io, &self.location, records_max)?;
        self.next = view.reader.position();
        let least = match look {
            Look::More | Look::Soon => REST_MIN,
            Look::Nothing | Look::Lost => (self.rest * 2).min(REST_MAX),
        };
        self.rest = rest_after(io.now().since(began), least);
        if look != Look::Lost {
            self.view = Some(view);
        }
        Ok(batch)
    }
}

/// How long to rest after looking for so long.
pub(super) fn rest_after(look: Duration, least: Duration) -> Duration {
    (look * (REST_SHARE - 1)).clamp(least, REST_LONGEST)
}

impl View {
    /// What an open would see now, from `next` on.
    fn anew(
        io: &mut Blocking,
        location: &std::path::Path,
        mode: RecoveryMode,
        next: Lsn,
    ) -> Result<Self> {
        let dir = io.open_dir(location, false)?;
        let mut recovered = recover_to_read(io, &dir, mode)?;
        if next < recovered.first && next != Lsn::FIRST {
            return Err(truncated(next, recovered.first));
        }
        let front = recovered.frontier.take();
        let front = front.map(|front| Front::at(io, &dir, front, &mut recovered));
        let front = front.transpose()?;
        let catalogue = Arc::new(Catalogue::new(&recovered));
        let start = next.max(recovered.first);
        let reader = Reader::new(Arc::clone(&catalogue), dir, start, None)?;
        Ok(Self {
            catalogue,
            reader,
            durable: recovered.next.previous(),
            front,
        })
    }

    fn next_batch(
        &mut self,
        io: &mut Blocking,
        location: &std::path::Path,
        records_max: usize,
    ) -> Result<(Option<Batch>, Look)> {
        loop {
            if let Some(front) = &self.front {
                let end = front.scanner.end();
                self.reader.is_written_to(end.segment, end.offset);
            }
            let batch = self.reader.next_batch(io, self.durable, records_max)?;
            if batch.is_some() {
                return Ok((batch, Look::More));
            }
            match self.look(io, location)? {
                Look::More => {}
                other => return Ok((None, other)),
            }
        }
    }

    /// One look, after everything durable was read.
    fn look(&mut self, io: &mut Blocking, location: &std::path::Path) -> Result<Look> {
        if let Some(front) = &mut self.front
            && front.is_calm(io)?
        {
            return Ok(Look::Nothing);
        }
        let dir = io.open_dir(location, false)?;
        let Some(front) = &mut self.front else {
            let names = io.list(&dir)?;
            let is_segment = |name: &String| matches!(Name::parse(name), Name::Segment(_));
            return Ok(if names.iter().any(is_segment) {
                Look::Lost
            } else {
                Look::Nothing
            });
        };
        let has_moved = front.scan(io)?;
        let durable = front.durable(io, self.durable)?;
        if durable > self.durable {
            self.durable = durable;
            return Ok(Look::More);
        }
        if has_moved {
            return Ok(Look::Soon);
        }
        match front.beside(io, &dir)? {
            Beside::Next(_) if front.last() > self.durable => {
                // See 2 above.
                self.durable = front.last();
                Ok(Look::More)
            }
            Beside::Next(id) => self.step_over(io, &dir, id),
            Beside::Ahead if front.past_cache => Ok(Look::Lost),
            Beside::Ahead => {
                front.past_cache = true;
                Ok(Look::More)
            }
            Beside::Other => Ok(Look::Lost),
            Beside::Nothing => front.doubt(io),
        }
    }

    /// Goes on in the segment that continues this one.
    fn step_over(&mut self, io: &mut Blocking, dir: &File, id: SegmentId) -> Result<Look> {
        let Some(front) = &mut self.front else {
            return Ok(Look::Lost);
        };
        let file = open_shared(io, dir, id)?;
        let Ok((header, header_crc)) = read_header(io, &file)? else {
            return Ok(Look::Lost);
        };
        let end = front.scanner.end();
        let length = io.length(&file)?;
        let summary = SegmentSummary::new(header.clone(), header_crc, None);
        let scanner = Scanner::new(header, header_crc, file.clone(), length);
        *front = Front::new(file.clone(), scanner);
        self.catalogue.push(summary.clone());
        self.catalogue.seal(end);
        let passed = self
            .catalogue
            .list()
            .into_iter()
            .filter(|one| one.id() < id);
        passed.for_each(|one| self.catalogue.remove(one.id()));
        self.reader.go_on_in(summary, file);
        Ok(Look::More)
    }
}

impl Front {
    fn new(file: File, scanner: Scanner) -> Self {
        Self {
            file,
            scanner: scanner.with_chunk(LOOK_BYTES),
            unclaimed: None,
            written_ns: 0,
            doubted: None,
            idle: 0,
            past_cache: false,
        }
    }

    /// Where recovery found the end. The segment counts as one that is being written.
    fn at(
        io: &mut Blocking,
        dir: &File,
        found: Frontier,
        recovered: &mut Recovered,
    ) -> Result<Self> {
        let file = open_shared(io, dir, found.summary.id())?;
        let length = io.length(&file)?;
        let header = found.summary.header.clone();
        let scanner = Scanner::resume(header, file.clone(), length, found.offset, found.expected);
        let segments = &mut recovered.segments;
        match segments
            .last_mut()
            .filter(|last| last.is_same_run(&found.summary))
        {
            Some(last) => last.end = None,
            None => segments.push(found.summary),
        }
        let mut front = Self::new(file, scanner);
        front.written_ns = io.status(&front.file)?.modified_ns;
        Ok(front)
    }

    /// Whether nothing was written to the file for long, as far as its time says: a segment that
    /// ends is cut. It may be that it was not.
    fn is_calm(&mut self, io: &mut Blocking) -> Result<bool> {
        if self.idle < CALM_AFTER || self.idle.is_multiple_of(CALM_PER_LOOK) {
            return Ok(false);
        }
        let is_calm = io.status(&self.file)?.modified_ns == self.written_ns;
        self.idle += u32::from(is_calm);
        Ok(is_calm)
    }

    /// The last record whose frame is whole.
    fn last(&self) -> Lsn {
        self.scanner.end().next.previous()
    }

    /// Moves over the frames that are there. False if there is none.
    fn scan(&mut self, io: &mut Blocking) -> Result<bool> {
        let before = self.scanner.end().offset;
        if self.past_cache {
            io.drop_cache(&self.file)?;
        }
        let length = io.length(&self.file)?;
        self.scanner.retry(length);
        self.scanner.run(io)?;
        if self.scanner.end().offset == before {
            return Ok(false);
        }
        self.written_ns = io.status(&self.file)?.modified_ns;
        self.doubted = None;
        self.idle = 0;
        self.past_cache = false;
        Ok(true)
    }

    /// What is durable of the frames found, beside what is known to be. Their owner says so soon
    /// in a later one; if it does not, they are synced here.
    fn durable(&mut self, io: &mut Blocking, known: Lsn) -> Result<Lsn> {
        let last = self.last();
        let claimed = self.scanner.expected().durable.max(known);
        let unclaimed = self.unclaimed.filter(|(lsn, _)| claimed < *lsn);
        if claimed >= last || planted!("watch_shows_what_is_written") {
            self.unclaimed = None;
            return Ok(last.max(claimed));
        }
        let now = io.now();
        match unclaimed {
            Some((_, since)) if now.since(since) >= CLAIM_AFTER => {
                io.sync(&self.file)?;
                self.unclaimed = None;
                Ok(last)
            }
            waiting => {
                self.unclaimed = Some(waiting.unwrap_or((last, now)));
                Ok(claimed)
            }
        }
    }

    /// Looks for the segment that continues this one.
    fn beside(&mut self, io: &mut Blocking, dir: &File) -> Result<Beside> {
        let own = self.scanner.header();
        let mut is_there = false;
        let mut later = Vec::new();
        for name in io.list(dir)? {
            if let Name::Segment(id) = Name::parse(&name) {
                is_there |= id == own.segment;
                later.extend(Some(id).filter(|id| *id > own.segment));
            }
        }
        later.sort_unstable();
        for id in later {
            let file = match io.open(dir, &segment_name(id), Access::READ) {
                Err(error) if is_gone(&error) => continue,
                other => other?,
            };
            if self.past_cache {
                io.drop_cache(&file)?;
            }
            let header = match read_header(io, &file)? {
                Ok((header, _)) => header,
                // Made ready and not in use yet.
                Err(HeaderFault::Empty | HeaderFault::Damaged(_)) => continue,
                Err(HeaderFault::Unknown { .. }) => return Ok(Beside::Other),
            };
            let is_ours = header.store == own.store && header.segment == id;
            let end = self.scanner.end();
            return Ok(match header.predecessor {
                Some(prior) if is_ours && prior == end => Beside::Next(id),
                Some(prior) if is_ours && prior.segment == own.segment => {
                    if planted!("watch_steps_over_frames") {
                        return Ok(Beside::Next(id));
                    }
                    Beside::Ahead
                }
                _ => Beside::Other,
            });
        }
        // The one that is being written is never dropped.
        Ok(if is_there {
            Beside::Nothing
        } else {
            Beside::Other
        })
    }

    /// Whether what is written to this file should have been seen.
    fn doubt(&mut self, io: &mut Blocking) -> Result<Look> {
        self.idle = self.idle.saturating_add(1);
        let modified_ns = io.status(&self.file)?.modified_ns;
        if modified_ns == self.written_ns {
            self.doubted = None;
            // File times move in steps and pages may be old; less and less likely.
            self.past_cache = self.idle.is_power_of_two();
            return Ok(if self.unclaimed.is_some() {
                Look::Soon
            } else {
                Look::Nothing
            });
        }
        self.past_cache = true;
        let now = io.now();
        let since = *self.doubted.get_or_insert(now);
        if now.since(since) < DOUBT_AFTER || planted!("watch_never_doubts") {
            return Ok(Look::Soon);
        }
        Ok(Look::Lost)
    }
}

fn read_header(
    io: &mut Blocking,
    file: &File,
) -> Result<Result<(SegmentHeader, u32), HeaderFault>> {
    let buffer = Buffer::zeroed(SEGMENT_HEADER_READ);
    let (count, buffer) = io.read(file, 0, SEGMENT_HEADER_READ, buffer)?;
    Ok(SegmentHeader::decode(&buffer[..count]))
}

fn is_gone(error: &Error) -> bool {
    error.errno() == Some(libc::ENOENT)
}
