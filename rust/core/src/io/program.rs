//! Requests of a program, carried out with plain system calls on the thread that calls: paths are
//! the program's own, flags are those of open(2), and nothing is added but close-on-exec.
//!
//! The transfers among them follow the rules of [`execute`](super::execute).

use std::{
    ffi::{CStr, CString},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::{
    Answer, Buffer, File, Op, Status,
    execute::{Durability, fd, no_progress, refuses_flag, retry, retry_interrupted, told},
    request::total,
    sys::{self, Errno, Sys},
    tally,
    vectors::Vectors,
};
use crate::error::{Error, ErrorKind, Result};

/// Carries out what only programs ask for. Sockets are not among it: their waits have no place on
/// a worker.
pub(super) fn perform(op: &mut Op, durability: Durability) -> Result<Answer> {
    match op {
        Op::OpenPath { path, flags, mode } => open(path, *flags, *mode).map(Answer::File),
        Op::WriteMany {
            file,
            offset,
            buffers,
            sync,
        } => {
            check_many(*offset, buffers)?;
            write_many(fd(file)?, buffers, *offset, sync.then_some(durability)).map(Answer::Count)
        }
        Op::Stat { file } => told(sys::stat(fd(file)?), "fstat").map(|stat| status(&stat)),
        Op::StatPath { path } => {
            let place = terminated(path)?;
            about(sys::stat_path(&place), "stat", path).map(|stat| status(&stat))
        }
        Op::SyncData { file } => told(sys::sync_data(fd(file)?), "fdatasync").map(done),
        Op::SyncPath { path } => sync_path(path).map(done),
        Op::RenamePath { from, to } => {
            let (old, new) = (terminated(from)?, terminated(to)?);
            about(sys::rename(&old, &new), "rename", from).map(done)
        }
        Op::UnlinkPath { path } => about(sys::unlink(&terminated(path)?), "unlink", path).map(done),
        _ => Err(Error::invalid("the operation is none of a program's")),
    }
}

/// Closes a file; see [`Op::Close`].
pub(super) fn close(file: File) -> Result<Answer> {
    match file.into_fd() {
        Some(fd) => told(sys::close(fd), "close").map(done),
        None => Ok(Answer::Done),
    }
}

fn done((): ()) -> Answer {
    Answer::Done
}

pub(crate) fn terminated(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("a path with a zero byte in it"))
}

pub(crate) fn about<T>(answer: Sys<T>, operation: &'static str, path: &Path) -> Result<T> {
    told(answer, operation).map_err(|error| error.with_path(path))
}

/// See [`Op::OpenPath`].
fn open(path: &Path, flags: i32, mode: u32) -> Result<File> {
    let place = terminated(path)?;
    let shown = |error: Error| error.with_path(path);
    let as_told = |flags| sys::open_at(libc::AT_FDCWD, &place, flags, mode);
    let at_once = flags & libc::O_NONBLOCK != 0;
    let opened = match retry_interrupted(|| as_told(flags)) {
        // Somebody has a lease on the file and is being asked for it: that is waited for.
        Err(Errno(libc::EAGAIN)) => retry(|| as_told(flags & !libc::O_NONBLOCK)),
        // Nobody reads from the pipe, or it is the name of a socket.
        Err(Errno(libc::ENXIO)) if at_once && !is_device(&place) => {
            return Err(shown(no_positions()));
        }
        other => other,
    };
    settle(about(opened, "open", path)?, path, flags)
}

/// Makes what was opened with `flags` what was asked for. Waits for nothing.
pub(crate) fn settle(fd: OwnedFd, path: &Path, flags: i32) -> Result<File> {
    if flags & libc::O_NONBLOCK != 0 {
        require_positions(&fd).map_err(|error| error.with_path(path))?;
    }
    Ok(File::from_fd(fd))
}

/// Refuses what has no positions, and makes what is left wait like any other file: `O_NONBLOCK` was
/// for the opening only.
fn require_positions(fd: &OwnedFd) -> Result<()> {
    let fd = fd.as_raw_fd();
    match sys::position(fd) {
        Ok(_) => {}
        Err(Errno(libc::ESPIPE)) => return Err(no_positions()),
        Err(errno) => return told(Err(errno), "lseek"),
    }
    let flags = told(sys::flags(fd), "fcntl")?;
    told(sys::set_flags(fd, flags & !libc::O_NONBLOCK), "fcntl")
}

fn is_device(place: &CStr) -> bool {
    let kind = sys::stat_path(place).map(|stat| stat.st_mode & libc::S_IFMT);
    matches!(kind, Ok(libc::S_IFCHR | libc::S_IFBLK))
}

fn no_positions() -> Error {
    Error::new(
        ErrorKind::Io,
        "a pipe, a socket or a terminal has no positions to read and write at; asyncio's own \
         streams are made for it",
    )
    .with("errno", libc::ESPIPE)
    .with_text("operation", "open")
}

fn sync_path(path: &Path) -> Result<()> {
    let place = terminated(path)?;
    let how = libc::O_RDONLY | libc::O_DIRECTORY;
    let opened = retry(|| sys::open_at(libc::AT_FDCWD, &place, how, 0));
    let dir = about(opened, "open", path)?;
    about(sys::sync_all(dir.as_raw_fd()), "fsync of a directory", path)
}

/// Refuses a transfer beyond the largest file.
pub(crate) fn check_many(offset: u64, buffers: &[Buffer]) -> Result<()> {
    let end = offset.checked_add(total(buffers));
    if end.is_none_or(|end| end > i64::MAX as u64) {
        return Err(Error::invalid("the transfer lies outside any file").with("offset", offset));
    }
    Ok(())
}

/// All bytes, then durability of all of them. `RWF_DSYNC` covers what its own call moved, so it is
/// enough only if one call moves everything.
fn write_many(
    fd: RawFd,
    buffers: &[Buffer],
    offset: u64,
    durability: Option<Durability>,
) -> Result<usize> {
    let all = total(buffers) as usize;
    let mut vectors = Vectors::new();
    let mut moved = 0;
    let mut flagged = durability == Some(Durability::Dsync);
    let mut durable = false;
    while moved < all {
        let asked = vectors.show(buffers, moved);
        let whole = asked == all;
        let at = offset + moved as u64;
        let with_flag = flagged && whole;
        match told(
            retry(|| sys::write_many_at(fd, &vectors, at, with_flag)),
            "write",
        ) {
            Ok(0) => return Err(no_progress(moved, all)),
            Ok(count) => {
                tally::moved(count, asked);
                moved += count;
                durable = with_flag && count == all;
            }
            Err(error) if with_flag && refuses_flag(&error) => flagged = false,
            Err(error) => return Err(error),
        }
    }
    if durability.is_some() && !durable {
        told(sys::sync_data(fd), "fdatasync")?;
    }
    Ok(moved)
}

fn nanos(seconds: i64, nanos: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The same from the kernel's newer call.
pub(crate) fn status_of(stat: &libc::statx) -> Answer {
    let time = |time: libc::statx_timestamp| nanos(time.tv_sec, time.tv_nsec.into());
    Answer::Status(Box::new(Status {
        mode: stat.stx_mode.into(),
        inode: stat.stx_ino,
        device: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        links: stat.stx_nlink.into(),
        user: stat.stx_uid,
        group: stat.stx_gid,
        length: stat.stx_size,
        blocks: stat.stx_blocks,
        accessed_ns: time(stat.stx_atime),
        modified_ns: time(stat.stx_mtime),
        changed_ns: time(stat.stx_ctime),
    }))
}

fn status(stat: &libc::stat) -> Answer {
    Answer::Status(Box::new(Status {
        mode: stat.st_mode,
        inode: stat.st_ino,
        device: stat.st_dev,
        links: stat.st_nlink,
        user: stat.st_uid,
        group: stat.st_gid,
        length: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        accessed_ns: nanos(stat.st_atime, stat.st_atime_nsec),
        modified_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
        changed_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
    }))
}

/// What a request is answered with that was taken back, or went on no further after that.
pub(crate) fn cancelled(done: usize) -> Error {
    Error::from_errno(libc::ECANCELED, "cancelled").with("done", done as i128)
}

/// What a receive is answered with when the peer ended first.
pub(crate) fn peer_ended(got: usize, wanted: usize) -> Error {
    Error::new(ErrorKind::EndOfStream, "the peer ended the stream")
        .with("got", got as i128)
        .with("wanted", wanted as i128)
}
