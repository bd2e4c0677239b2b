//! Opening a log for writing: lock, recover, begin a new segment, tidy up.
//!
//! ```text
//! directory -> lock -> recover (reads only) -> remove what means nothing -> new segment, durable
//!           -> cut the old tail -> ready
//! ```
//!
//! # Always true
//!
//! 1. Nothing in the directory changes before recovery has reached its verdict, apart from the
//!    lock file.
//! 2. Every open begins a new segment. Its header states where the log ended, and is durable
//!    before its first frame; from then on a cut tail can never come back, and nothing is ever
//!    appended to a file that an earlier owner may still be writing.
//! 3. What the new header makes superfluous is removed only after it is durable.

use std::path::Path;

use crate::{
    clock::Clock,
    error::{Error, ErrorKind, Result},
    ids::StoreId,
    io::{Access, Blocking, Buffer, Disk, File, Open, Wanted},
    ring,
    sync::Arc,
};

use super::{
    commit::{Active, Committer},
    cursor::Cursors,
    frame::{FrameWriter, RECORD_HEADER_BYTES},
    group::Entry,
    lock::{self, Census},
    log::{Appender, Shared},
    reader::Catalogue,
    recovery::{self, Recovered, RecoveryMode, SegmentSummary, WriteBar},
    recycle::{Spares, open_shared},
    segment::{self, SegmentHeader, SegmentLimits},
    settings::LogSettings,
    truncate::Segments,
};

/// Everything from outside that an open needs.
pub struct World {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// Who runs.
    pub census: Box<dyn Census>,
    /// Identity of the log, if this open creates it: random.
    pub fresh_id: StoreId,
    /// Withdrawn when nobody waits for the open any more: it then ends while it waits for the lock
    /// or reads, and leaves nothing locked. Once it writes, it goes on to its end.
    pub wanted: Wanted,
}

/// How the committer will write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Groups in flight at most.
    pub window: u32,
    /// Bypass the page cache.
    pub direct: bool,
}

/// A log that is open and not yet driven.
pub struct Opened {
    /// For any thread.
    pub appender: Appender,
    /// For whoever drives it.
    pub committer: Committer,
    /// The held lock; the driver registers it with its backend.
    pub lock: File,
    /// The directory.
    pub dir: File,
}

/// Opens the log in `path`, creating the directory if needed. `select` is asked how to write once
/// the log is locked and recovered.
pub fn open(
    world: &World,
    path: &Path,
    settings: LogSettings,
    select: impl FnOnce() -> Result<Manner>,
) -> Result<Opened> {
    let mut backend = world.disk.backend()?;
    let mut io = Blocking::new(&mut *backend).while_wanted(&world.wanted);
    if planted!("settings_checked_late") {
        io.open_dir(path, true)?;
    }
    settings.validate()?;
    let dir = io.open_dir(path, true)?;
    let lock = lock::acquire(&mut io, &dir, settings.lock_timeout, &*world.census)?;
    io.hold(&lock)?;
    let opened = open_locked(world, &mut io, &dir, settings, select);
    let opened = match opened {
        Ok((appender, committer)) => Ok(Opened {
            appender,
            committer,
            lock,
            dir,
        }),
        Err(error) => {
            io.to_the_end();
            io.unlock(&lock)?;
            Err(error)
        }
    };
    drop(io);
    backend.let_go();
    backend.shutdown(None);
    opened
}

/// Opens the log in `path` as it is: no lock, no change. Appends are refused.
///
/// A living owner may be writing: what is found at its tail is what was durable, since everything
/// read is data-synced before it is shown.
pub(crate) fn open_read_only(
    world: &World,
    path: &Path,
    settings: LogSettings,
) -> Result<(Appender, File)> {
    settings.validate()?;
    let mut backend = world.disk.backend()?;
    let mut io = Blocking::new(&mut *backend).while_wanted(&world.wanted);
    let dir = io.open_dir(path, false)?;
    let recovered = recover_to_read(&mut io, &dir, settings.recovery)?;
    let cursors = Cursors::load(&mut io, &dir, false)?;
    let segments = Segments::new(Catalogue::new(&recovered), Spares::none());
    let (producer, _consumer) = make_ring(&settings)?;
    let next = recovered.next;
    let shared = Shared::new(
        settings,
        producer,
        next,
        segments,
        recovered.report,
        cursors,
    )?;
    shared.marks.fail(read_only());
    Ok((Appender(Arc::new(shared)), dir))
}

/// What `dir` holds, all of it durable.
pub(super) fn recover_to_read(
    io: &mut Blocking,
    dir: &File,
    mode: RecoveryMode,
) -> Result<Recovered> {
    let recovered = recovery::recover(io, dir, mode)?;
    if let Some(end) = recovered.end {
        match open_shared(io, dir, end.segment) {
            Ok(file) => io.sync(&file)?,
            // Dropped by its owner since, who drops only what is durable.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(recovered)
}

/// The answer to every change of a log that was opened to read.
pub(crate) fn read_only() -> Error {
    Error::invalid("the log was opened with read_only; open it without to change it")
}

fn make_ring(settings: &LogSettings) -> Result<(ring::Producer<Entry>, ring::Consumer<Entry>)> {
    ring::ring(ring::Limits {
        capacity: settings.ring_entries,
        capacity_bytes: settings.ring_bytes + RECORD_HEADER_BYTES,
        entry_bytes_max: settings.record_bytes_max + RECORD_HEADER_BYTES,
        bytes_outlive_slots: true,
    })
}

fn open_locked(
    world: &World,
    io: &mut Blocking<'_>,
    dir: &File,
    settings: LogSettings,
    select: impl FnOnce() -> Result<Manner>,
) -> Result<(Appender, Committer)> {
    let recovered = recovery::recover(io, dir, settings.recovery)?;
    check_writable(&recovered)?;
    io.to_the_end();
    // First of all: on a full disk this may be the space that the rest needs.
    if !planted!("leftovers_removed_last") {
        remove(io, dir, &recovered.leftovers)?;
    }
    let mut cursors = Cursors::load(io, dir, true)?;
    let manner = select()?;
    if !planted!("cursor_above_the_end") {
        cursors.hold_at(io, dir, recovered.next.previous())?;
    }
    let active = begin_segment(world, io, dir, &settings, manner, &recovered)?;
    tidy_up(io, dir, &recovered)?;
    let spares = Spares::new(recovered.incarnation, settings.segment_bytes);
    let segments = readable(&recovered, &active, spares);
    let (producer, consumer) = make_ring(&settings)?;
    let shared = Arc::new(Shared::new(
        settings,
        producer,
        recovered.next,
        segments,
        recovered.report,
        cursors,
    )?);
    let clock = Arc::clone(&world.clock);
    let committer = Committer::new(
        Arc::clone(&shared),
        consumer,
        clock,
        dir.clone(),
        active,
        manner.direct,
    );
    Ok((Appender(shared), committer))
}

/// The first segment of this open: small, zero-filled and durable before anybody appends.
fn begin_segment(
    world: &World,
    io: &mut Blocking<'_>,
    dir: &File,
    settings: &LogSettings,
    manner: Manner,
    recovered: &Recovered,
) -> Result<Active> {
    let header = SegmentHeader {
        store: recovered.store.unwrap_or(world.fresh_id),
        segment: recovered.next_segment,
        incarnation: recovered.incarnation,
        base: recovered.next,
        predecessor: recovered.end,
        limits: SegmentLimits {
            block_bytes: settings.block_bytes as u32,
            window: manner.window,
            record_bytes_max: settings.record_bytes_max as u32,
            group_bytes_max: (settings.group_bytes_max + RECORD_HEADER_BYTES) as u32,
            segment_bytes: settings.segment_first_bytes,
        },
        created_ns: world.clock.wall_ns(),
        ro_compat: 0,
        is_recycled: false,
    };
    let (block, crc) = header.encode();
    let mut image = Buffer::zeroed(settings.segment_first_bytes as usize);
    image[..block.len()].copy_from_slice(&block);
    let temporary = segment::prepared_name(header.segment);
    let name = segment::segment_name(header.segment);
    let file = make_durable(io, dir, &temporary, image)
        .or_else(|error| io.give_back(dir, &temporary, error))?;
    io.rename(dir, &temporary, &name)?;
    if !planted!("open_without_directory_sync") {
        io.sync_dir(dir)?;
    }
    let file = if manner.direct {
        io.open(dir, &name, Access::WRITE.direct(true))?
    } else {
        file
    };
    file.note_written();
    Ok(Active {
        file,
        writer: FrameWriter::new(header, crc),
    })
}

fn make_durable(io: &mut Blocking<'_>, dir: &File, name: &str, image: Buffer) -> Result<File> {
    let access = Access {
        open: Open::Any,
        ..Access::CREATE
    };
    let file = io.open(dir, name, access)?;
    let length = image.len();
    io.allocate(&file, length as u64)?;
    io.write(&file, 0, length, image, true)?;
    io.sync(&file)?;
    Ok(file)
}

/// Removes what the new segment makes superfluous: segments without frames. Cuts the predecessor to
/// its end. All of it only saves space, but a failure here is reported: the directory is not as
/// healthy as an open log needs it to be.
fn tidy_up(io: &mut Blocking<'_>, dir: &File, recovered: &Recovered) -> Result<()> {
    if !recovered.superseded.is_empty() && !planted!("empty_segments_stay") {
        remove(io, dir, &recovered.superseded)?;
        io.sync_dir(dir)?;
    }
    let Some(end) = recovered.end else {
        return Ok(());
    };
    let file = match io.open(dir, &segment::segment_name(end.segment), Access::WRITE) {
        Ok(file) => file,
        // Truncated away before this open, or kept read-only by the user: nothing to save.
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    if io.length(&file)? > end.offset && !planted!("predecessor_not_cut") {
        io.truncate(&file, end.offset)?;
    }
    Ok(())
}

fn remove(io: &mut Blocking<'_>, dir: &File, names: &[String]) -> Result<()> {
    for name in names {
        match io.unlink(dir, name) {
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// What can be read: the old segments, and the new one, which has no frame yet.
fn readable(recovered: &Recovered, active: &Active, spares: Spares) -> Segments {
    let catalogue = Catalogue::new(recovered);
    let header = active.writer.header().clone();
    catalogue.push(SegmentSummary::new(header, active.writer.end().chain, None));
    Segments::new(catalogue, spares)
}

fn check_writable(recovered: &Recovered) -> Result<()> {
    match recovered.write_bar {
        None => Ok(()),
        Some(WriteBar::Salvage) => Err(Error::invalid(
            "a salvaged log is read-only: open it with read_only, or repair it first",
        )),
        Some(WriteBar::Features(bits)) => Err(Error::new(
            ErrorKind::Format,
            format!(
                "the log uses features ({bits:#x}) that this build may read but not write; open \
                 it with read_only, or with a newer build"
            ),
        )),
    }
}
