//! One request carried out with plain system calls, on the thread that calls.
//!
//! All of `threads`, and those operations of `uring` that the ring is not asked to do.
//!
//! # Always true
//!
//! 1. The request's file and buffer stay borrowed until the last system call returned.
//! 2. A transfer goes on until every byte is moved, the file ends, or an error stops it.
//! 3. A failed sync is answered, never repeated.
//! 4. Nothing is opened through a symbolic link inside a directory of ours, and opening something
//!    that is not a regular file never blocks.

use std::{
    ffi::{CStr, CString},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

use super::{
    Access, Answer, BLOCK, Buffer, File, Finished, Op, Open, Request, program,
    sys::{self, Errno, Sys},
    tally,
};
use crate::error::{Error, ErrorKind, Result};

/// Most bytes asked of one system call; below the kernel's limit of 2 GiB less a page.
pub(crate) const TRANSFER_MAX: usize = 1 << 30;

/// How often a call that a signal interrupted is begun again before we believe something is wrong.
const INTERRUPTIONS_MAX: u32 = 1000;

/// How often "try again" is believed; the pauses between double from [`PAUSE`].
const AGAIN_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_micros(100);

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Write all bytes, then `fdatasync`.
    #[default]
    Fdatasync,
    /// Ask for durability with the write (`RWF_DSYNC`); fall back where that is refused.
    Dsync,
}

/// What direct I/O asks of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of the memory.
    pub memory: usize,
    /// Of offsets and lengths.
    pub offset: usize,
}

/// What the filesystem says that direct I/O on `file` needs; `None` where it does not say, which
/// we take for "not offered".
pub fn direct_alignment(file: &File) -> Option<Alignment> {
    let (memory, offset) = sys::direct_alignment(file.fd()?)?;
    Some(Alignment {
        memory: memory as usize,
        offset: offset as usize,
    })
}

/// Carries out `request` and answers it. What it took is for [`tally::take`].
pub(crate) fn run(request: Request, durability: Durability) -> Finished {
    let Request { token, mut op, .. } = request;
    tally::take();
    if let Op::Close { file } = op {
        return Finished {
            token,
            buffer: None,
            result: program::close(file),
        };
    }
    let attempt = std::panic::AssertUnwindSafe(|| perform(&mut op, durability));
    let result = std::panic::catch_unwind(attempt).unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Poisoned,
            "a defect of ours: an operation panicked",
        ))
    });
    Finished {
        token,
        buffer: op.into_buffer(),
        result,
    }
}

fn perform(op: &mut Op, durability: Durability) -> Result<Answer> {
    match op {
        Op::OpenDir { path, create } => open_dir(path, *create).map(Answer::File),
        Op::Open { dir, name, access } => open(fd(dir)?, name, *access).map(Answer::File),
        Op::List { dir } => list(fd(dir)?).map(Answer::Names),
        Op::Length { file } => {
            let status = told(sys::status(fd(file)?), "fstat")?;
            Ok(Answer::Length(status.length))
        }
        Op::Read {
            file,
            offset,
            length,
            buffer,
        } => {
            check_span(*offset, *length, buffer)?;
            read(fd(file)?, &mut buffer[..*length], *offset).map(Answer::Count)
        }
        Op::Write {
            file,
            offset,
            length,
            buffer,
            sync,
        } => {
            check_span(*offset, *length, buffer)?;
            let bytes = &buffer[..*length];
            let durability = sync.then_some(durability);
            write(fd(file)?, bytes, *offset, durability)?;
            Ok(Answer::Count(bytes.len()))
        }
        Op::OpenPath { .. }
        | Op::WriteMany { .. }
        | Op::SyncData { .. }
        | Op::SyncPath { .. }
        | Op::RenamePath { .. }
        | Op::UnlinkPath { .. }
        | Op::Stat { .. }
        | Op::StatPath { .. } => program::perform(op, durability),
        other => change(other).map(|()| Answer::Done),
    }
}

/// Operations that have nothing to say but that they are done.
fn change(op: &Op) -> Result<()> {
    match op {
        Op::Sync { file } => told(sys::sync_all(fd(file)?), "fsync"),
        Op::SyncDir { dir } => told(sys::sync_all(fd(dir)?), "fsync of a directory"),
        Op::Allocate { length: 0, .. } => Ok(()),
        Op::Allocate { file, length } => {
            let fd = fd(file)?;
            told(retry(|| sys::allocate(fd, *length)), "fallocate")
        }
        Op::Truncate { file, length } => {
            let fd = fd(file)?;
            told(retry(|| sys::truncate(fd, *length)), "ftruncate")
        }
        Op::Rename { dir, from, to } => {
            let (dir, old, new) = (fd(dir)?, checked(from)?, checked(to)?);
            named(sys::rename_at(dir, &old, &new), "rename", from)
        }
        Op::Unlink { dir, name } => {
            named(sys::unlink_at(fd(dir)?, &checked(name)?), "unlink", name)
        }
        Op::DropCache { file } => told(sys::drop_cache(fd(file)?), "fadvise"),
        Op::Lock { file } => lock(file, sys::lock).and_then(|()| file.forsake_in_children()),
        Op::Share { file } => lock(file, sys::share),
        Op::Unlock { file } => told(sys::unlock(fd(file)?), "flock"),
        _ => Err(Error::invalid("the operation is not a plain change")),
    }
}

/// The descriptor of a file that the operating system made.
pub(crate) fn fd(file: &File) -> Result<RawFd> {
    file.fd()
        .ok_or_else(|| Error::invalid("the file belongs to another kind of backend"))
}

/// Refuses a transfer outside its buffer or beyond the largest file.
pub(crate) fn check_span(offset: u64, length: usize, buffer: &Buffer) -> Result<()> {
    let end = offset.checked_add(length as u64);
    if length > buffer.len() || end.is_none_or(|end| end > i64::MAX as u64) {
        return Err(
            Error::invalid("the transfer lies outside its buffer or any file")
                .with("offset", offset)
                .with("length", length as i128)
                .with("buffer", buffer.len() as i128),
        );
    }
    Ok(())
}

/// What a write that moved nothing is answered with; without it we would try for ever.
pub(crate) fn no_progress(done: usize, length: usize) -> Error {
    Error::new(ErrorKind::Io, "a write made no progress")
        .with("written", done as i128)
        .with("length", length as i128)
}

pub(crate) fn told<T>(answer: Sys<T>, operation: &'static str) -> Result<T> {
    answer.map_err(|errno| Error::from_errno(errno.0, operation))
}

fn named<T>(answer: Sys<T>, operation: &'static str, name: &str) -> Result<T> {
    told(answer, operation).map_err(|error| error.with_text("name", name))
}

/// Begins a call again while it is interrupted or told to wait, both within bounds. For calls
/// that may be repeated: never for a sync.
pub(super) fn retry<T>(mut call: impl FnMut() -> Sys<T>) -> Sys<T> {
    let (mut interruptions, mut again) = (0, 0);
    loop {
        match call() {
            Err(Errno(libc::EINTR)) if interruptions < INTERRUPTIONS_MAX => interruptions += 1,
            Err(Errno(libc::EAGAIN)) if again < AGAIN_MAX => {
                std::thread::sleep(PAUSE * (1 << again));
                again += 1;
            }
            answer => return answer,
        }
        tally::retried();
    }
}

fn read(fd: RawFd, into: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < into.len() {
        let end = into.len().min(done + TRANSFER_MAX);
        let at = offset + done as u64;
        match told(retry(|| sys::read_at(fd, &mut into[done..end], at)), "read")? {
            0 => break,
            count => {
                tally::moved(count, end - done);
                done += count;
            }
        }
    }
    Ok(done)
}

fn write(fd: RawFd, from: &[u8], offset: u64, durability: Option<Durability>) -> Result<()> {
    if durability == Some(Durability::Dsync) && !from.is_empty() {
        match write_all(from, |part, at| {
            sys::write_at_durably(fd, part, offset + at)
        }) {
            Err(error) if refuses_flag(&error) => {}
            other => return other,
        }
    }
    write_all(from, |part, at| sys::write_at(fd, part, offset + at))?;
    match durability {
        Some(_) => told(sys::sync_data(fd), "fdatasync"),
        None => Ok(()),
    }
}

/// An old kernel or a filesystem without the flag; data errors look different.
pub(super) fn refuses_flag(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

fn write_all(from: &[u8], mut call: impl FnMut(&[u8], u64) -> Sys<usize>) -> Result<()> {
    let mut done = 0;
    while done < from.len() {
        let end = from.len().min(done + TRANSFER_MAX);
        match told(retry(|| call(&from[done..end], done as u64)), "write")? {
            0 => return Err(no_progress(done, from.len())),
            count => {
                tally::moved(count, end - done);
                done += count;
            }
        }
    }
    Ok(())
}

/// A name of ours, never a path.
fn checked(name: &str) -> Result<CString> {
    let path_like = name.is_empty() || name == "." || name == ".." || name.contains('/');
    match CString::new(name) {
        Ok(name) if !path_like && name.as_bytes().len() <= 255 => Ok(name),
        _ => Err(Error::invalid("not a name for a file").with_text("name", name)),
    }
}

fn open(dir: RawFd, name: &str, access: Access) -> Result<File> {
    let path = checked(name)?;
    let (fd, created) = named(open_or_make(dir, &path, access), "open", name)
        .map_err(|error| explained(error, dir, &path, name))?;
    match prepare(&fd, access, created) {
        Ok(()) => Ok(File::from_fd(fd)),
        Err(error) => {
            if created {
                // The caller gets the first error; a leftover empty file is harmless.
                let _ = sys::unlink_at(dir, &path);
            }
            Err(error.with_text("name", name))
        }
    }
}

/// Opens as told, and says whether the file is new. `O_NONBLOCK` so that a pipe with nobody at
/// the other end does not hold us.
fn open_or_make(dir: RawFd, name: &CStr, access: Access) -> Sys<(OwnedFd, bool)> {
    let how = if access.write {
        libc::O_RDWR
    } else {
        libc::O_RDONLY
    };
    let how = how | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let existing = || sys::open_at(dir, name, how, 0).map(|fd| (fd, false));
    let new = || {
        let how = how | libc::O_CREAT | libc::O_EXCL;
        sys::open_at(dir, name, how, 0o600).map(|fd| (fd, true))
    };
    match access.open {
        Open::Existing => retry(existing),
        Open::New => retry(new),
        Open::Any => loop {
            match retry(existing) {
                Err(Errno(libc::ENOENT)) => {}
                other => return other,
            }
            match retry(new) {
                // Somebody made it since; a dangling link is told apart by the next look.
                Err(Errno(libc::EEXIST)) => {}
                other => return other,
            }
        },
    }
}

/// Checks what was opened, and makes it what was asked for.
fn prepare(fd: &OwnedFd, access: Access, created: bool) -> Result<()> {
    let fd = fd.as_raw_fd();
    let status = told(sys::status(fd), "fstat")?;
    if !status.is_regular() {
        return Err(not_regular(status.kind_name()));
    }
    if created {
        // The mode given to open was narrowed by the umask.
        told(sys::set_mode(fd, 0o600), "fchmod")?;
    }
    // O_NONBLOCK was for the opening only; a ring would refuse to wait for such a file.
    let mut flags = told(sys::flags(fd), "fcntl")? & !libc::O_NONBLOCK;
    if access.direct {
        require_direct(fd)?;
        flags |= libc::O_DIRECT;
    }
    told(sys::set_flags(fd, flags), "fcntl")
}

fn require_direct(fd: RawFd) -> Result<()> {
    match sys::direct_alignment(fd) {
        Some((memory, offset)) if memory.max(offset) as usize <= BLOCK => Ok(()),
        Some((memory, offset)) => Err(Error::new(
            ErrorKind::Unsupported,
            "direct I/O needs larger blocks here than we use",
        )
        .with("memory", memory)
        .with("offset", offset)),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "this filesystem does not say that it offers direct I/O",
        )),
    }
}

fn not_regular(kind: &str) -> Error {
    Error::invalid(format!("the name belongs to {kind}, not to a regular file"))
}

/// Says what the name is when it is nothing we would open.
fn explained(error: Error, dir: RawFd, path: &CStr, name: &str) -> Error {
    match sys::status_at(dir, path) {
        Ok(status) if !status.is_regular() => not_regular(status.kind_name())
            .with_text("name", name)
            .caused_by(error),
        _ => error,
    }
}

fn open_dir(path: &Path, create: bool) -> Result<File> {
    find_or_make_dir(path, create).map_err(|error| error.with_path(path))
}

fn find_or_make_dir(path: &Path, create: bool) -> Result<File> {
    let place = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("a path with a zero byte in it"))?;
    let created = create
        && match sys::make_dir(&place) {
            Ok(()) => true,
            Err(Errno(libc::EEXIST)) => false,
            Err(errno) => return told(Err(errno), "mkdir"),
        };
    let how = libc::O_RDONLY | libc::O_DIRECTORY;
    let fd = told(
        retry(|| sys::open_at(libc::AT_FDCWD, &place, how, 0)),
        "open",
    )?;
    if created {
        told(sys::set_mode(fd.as_raw_fd(), 0o700), "fchmod")?;
    }
    check_owner(fd.as_raw_fd())?;
    if create {
        sync_parent(path, &fd, created)?;
    }
    Ok(File::from_fd(fd))
}

/// A directory of another user can be changed under us by that user.
fn check_owner(fd: RawFd) -> Result<()> {
    let (owner, user) = (told(sys::status(fd), "fstat")?.owner, sys::user());
    if owner == user || owner == 0 || user == 0 {
        return Ok(());
    }
    Err(Error::invalid("the directory belongs to another user")
        .with("owner", owner)
        .with("user", user))
}

/// Makes the directory's own name durable; also when an earlier process made it and died before
/// this. A parent that cannot be opened for reading is synced with its whole filesystem.
fn sync_parent(path: &Path, dir: &OwnedFd, created: bool) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let Ok(place) = CString::new(parent.as_os_str().as_bytes()) else {
        return Ok(());
    };
    let how = libc::O_RDONLY | libc::O_DIRECTORY;
    match retry(|| sys::open_at(libc::AT_FDCWD, &place, how, 0)) {
        Ok(parent) => told(sys::sync_all(parent.as_raw_fd()), "fsync of a directory"),
        Err(_) if !created => Ok(()),
        Err(_) => told(sys::sync_filesystem(dir.as_raw_fd()), "syncfs"),
    }
}

/// Reads the names through a descriptor of its own, because the position belongs to it.
fn list(dir: RawFd) -> Result<Vec<String>> {
    let how = libc::O_RDONLY | libc::O_DIRECTORY;
    let dir = told(retry(|| sys::open_at(dir, c".", how, 0)), "open")?;
    let mut chunk = vec![0u8; 32 * 1024];
    let mut names = Vec::new();
    loop {
        match told(
            retry(|| sys::entries(dir.as_raw_fd(), &mut chunk)),
            "getdents",
        )? {
            0 => return Ok(names),
            count => collect_names(&chunk[..count], &mut names),
        }
    }
}

/// Kernel form of an entry: inode 8, offset 8, length of the entry 2, type 1, name with a zero.
/// A name that is not text is not ours; its stand-in can equal none of ours.
fn collect_names(mut entries: &[u8], names: &mut Vec<String>) {
    const NAME: usize = 19;
    while entries.len() > NAME {
        let length = usize::from(u16::from_ne_bytes([entries[16], entries[17]]));
        let Some((entry, rest)) = entries.split_at_checked(length.max(NAME)) else {
            return;
        };
        let name = entry[NAME..].split(|byte| *byte == 0).next().unwrap_or(&[]);
        if name != b"." && name != b".." {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        entries = rest;
    }
}

fn lock(file: &File, take: impl Fn(RawFd) -> Sys<()>) -> Result<()> {
    let number = fd(file)?;
    match retry_interrupted(|| take(number)) {
        Ok(()) => Ok(()),
        Err(Errno(libc::EWOULDBLOCK)) => Err(Error::new(
            ErrorKind::Locked,
            "somebody else holds the lock",
        )),
        Err(errno) => told(Err(errno), "flock"),
    }
}

/// As [`retry`], where "try again" is an answer.
pub(super) fn retry_interrupted<T>(mut call: impl FnMut() -> Sys<T>) -> Sys<T> {
    for _ in 0..INTERRUPTIONS_MAX {
        match call() {
            Err(Errno(libc::EINTR)) => {}
            answer => return answer,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_writes_are_continued_where_they_stopped() {
        // However the kernel cuts a write up, every byte is given to it once and in order.
        let bytes: Vec<u8> = (0..=99).collect();
        let mut script = [7, 1, 50].into_iter();
        let mut seen = Vec::new();
        write_all(&bytes, |part, at| {
            assert_eq!(at, seen.len() as u64);
            let count = script.next().unwrap_or(part.len());
            seen.extend_from_slice(&part[..count]);
            Ok(count)
        })
        .unwrap();
        assert_eq!(seen, bytes);
        let counted = tally::take();
        assert_eq!((counted.short, counted.retried), (3, 0));
    }

    #[test]
    fn a_write_without_progress_ends() {
        // A write that answers zero would be repeated for ever; it is an error instead.
        let error = write_all(&[1, 2], |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.number("written"), Some(0));
    }

    #[test]
    fn interruptions_and_try_again_are_hidden_up_to_a_bound() {
        // A few are retried; for ever is an error with the errno.
        for (errno, bound) in [(libc::EINTR, INTERRUPTIONS_MAX), (libc::EAGAIN, AGAIN_MAX)] {
            let mut left = 3;
            let answer = retry(|| {
                left -= 1;
                if left > 0 { Err(Errno(errno)) } else { Ok(5) }
            });
            assert_eq!(answer, Ok(5));
            assert_eq!(tally::take().retried, 2);
            let mut calls = 0;
            let answer = retry(|| {
                calls += 1;
                Err::<(), _>(Errno(errno))
            });
            assert_eq!(answer, Err(Errno(errno)));
            assert_eq!(calls, bound + 1);
            assert_eq!(tally::take().retried, u64::from(bound));
        }
    }

    #[test]
    fn a_name_is_never_a_path() {
        // Names come from us, but a defect must not reach outside the directory.
        for name in ["", ".", "..", "a/b", "/", "a\0b", &"x".repeat(256)] {
            assert_eq!(checked(name).unwrap_err().kind(), ErrorKind::Invalid);
        }
        assert!(checked(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn an_entry_that_lies_about_its_length_ends_the_list() {
        // The kernel's entries are walked without trusting their lengths.
        let mut entries = vec![0u8; 24];
        entries[16] = 24;
        entries[19] = b'a';
        let mut lying = entries.clone();
        lying[16] = 200;
        let mut names = Vec::new();
        collect_names(&[entries, lying].concat(), &mut names);
        assert_eq!(names, ["a"]);
    }
}
