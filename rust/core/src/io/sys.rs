//! System calls on files, each wrapped once, with the errno as the error.
//!
//! Nothing here decides anything: no retry, no loop, no message. That is `execute`'s work.
//! Descriptors are borrowed from a [`File`](super::File) that the caller keeps alive.

use std::{
    ffi::{CStr, c_int, c_uint},
    mem::MaybeUninit,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

use super::vectors::Vectors;

/// The number the kernel gave for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub i32);

pub(crate) type Sys<T> = Result<T, Errno>;

impl Errno {
    pub(crate) fn last() -> Self {
        Self(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }
}

fn check(answer: c_int) -> Sys<c_int> {
    if answer < 0 {
        return Err(Errno::last());
    }
    Ok(answer)
}

fn count(answer: isize) -> Sys<usize> {
    usize::try_from(answer).map_err(|_| Errno::last())
}

fn offset(value: u64) -> Sys<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| Errno(libc::EFBIG))
}

/// What `fstat` tells that we use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status {
    pub kind: libc::mode_t,
    pub length: u64,
    pub owner: libc::uid_t,
}

impl Status {
    fn of(stat: &libc::stat) -> Self {
        Self {
            kind: stat.st_mode & libc::S_IFMT,
            length: u64::try_from(stat.st_size).unwrap_or(0),
            owner: stat.st_uid,
        }
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.kind == libc::S_IFREG
    }

    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            libc::S_IFREG => "a regular file",
            libc::S_IFDIR => "a directory",
            libc::S_IFLNK => "a symbolic link",
            libc::S_IFIFO => "a pipe",
            libc::S_IFSOCK => "a socket",
            libc::S_IFCHR | libc::S_IFBLK => "a device",
            _ => "of an unknown kind",
        }
    }
}

/// Opens `name` in `dir` (`AT_FDCWD`: a path).
pub(crate) fn open_at(dir: RawFd, name: &CStr, flags: c_int, mode: libc::mode_t) -> Sys<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: `name` is a terminated string that outlives the call.
    let fd = check(unsafe { libc::openat(dir, name.as_ptr(), flags, c_uint::from(mode)) })?;
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Another descriptor for the same open file description.
pub(crate) fn duplicate(fd: RawFd) -> Sys<OwnedFd> {
    // SAFETY: plain numbers.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the kernel just made `copy` and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes and says what the kernel said; the number is free either way.
pub(crate) fn close(fd: OwnedFd) -> Sys<()> {
    // SAFETY: the descriptor is ours alone and given up here.
    check(unsafe { libc::close(fd.into_raw_fd()) }).map(drop)
}

/// What `stat` tells, in full.
pub(crate) fn stat(fd: RawFd) -> Sys<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable and large enough.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so it filled the structure.
    Ok(unsafe { stat.assume_init() })
}

/// The same for a path.
pub(crate) fn stat_path(path: &CStr) -> Sys<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `path` is a terminated string, `stat` is writable and large enough.
    check(unsafe { libc::stat(path.as_ptr(), stat.as_mut_ptr()) })?;
    // SAFETY: stat succeeded, so it filled the structure.
    Ok(unsafe { stat.assume_init() })
}

pub(crate) fn make_dir(path: &CStr) -> Sys<()> {
    // SAFETY: `path` is a terminated string that outlives the call.
    check(unsafe { libc::mkdir(path.as_ptr(), 0o700) }).map(drop)
}

pub(crate) fn set_mode(fd: RawFd, mode: libc::mode_t) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fchmod(fd, mode) }).map(drop)
}

pub(crate) fn status(fd: RawFd) -> Sys<Status> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is writable and large enough.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so it filled the structure.
    Ok(Status::of(unsafe { stat.assume_init_ref() }))
}

/// The status of a name itself; a symbolic link is not followed.
pub(crate) fn status_at(dir: RawFd, name: &CStr) -> Sys<Status> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is a terminated string, `stat` is writable and large enough.
    check(unsafe { libc::fstatat(dir, name.as_ptr(), stat.as_mut_ptr(), flags) })?;
    // SAFETY: fstatat succeeded, so it filled the structure.
    Ok(Status::of(unsafe { stat.assume_init_ref() }))
}

/// Memory and offset alignment of direct I/O; `None` where the kernel or the filesystem does not
/// say.
pub(crate) fn direct_alignment(fd: RawFd) -> Option<(u32, u32)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH;
    let wanted = libc::STATX_DIOALIGN;
    // SAFETY: the empty string is terminated, `stat` is writable and large enough.
    check(unsafe { libc::statx(fd, c"".as_ptr(), flags, wanted, stat.as_mut_ptr()) }).ok()?;
    // SAFETY: the structure is plain numbers and was zeroed before the call.
    let stat = unsafe { stat.assume_init() };
    let told = stat.stx_mask & wanted != 0;
    let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    (told && memory > 0 && offset > 0).then_some((memory, offset))
}

/// What `stat` tells, if nobody has to be waited for: on a filesystem that has a device of its own.
pub(crate) fn status_at_once(fd: RawFd) -> Option<libc::statx> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let wanted = libc::STATX_BASIC_STATS;
    // SAFETY: the empty string is terminated, `stat` is writable and large enough.
    check(unsafe { libc::statx(fd, c"".as_ptr(), flags, wanted, stat.as_mut_ptr()) }).ok()?;
    // SAFETY: the structure is plain numbers and was zeroed before the call.
    let stat = unsafe { stat.assume_init() };
    let told = stat.stx_mask & wanted == wanted;
    (told && stat.stx_dev_major != 0).then_some(stat)
}

pub(crate) fn flags(fd: RawFd) -> Sys<c_int> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd, libc::F_GETFL) })
}

pub(crate) fn set_flags(fd: RawFd, flags: c_int) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }).map(drop)
}

/// Fails with `ESPIPE` where there are no positions: a pipe, a socket, a terminal.
pub(crate) fn position(fd: RawFd) -> Sys<libc::off_t> {
    // SAFETY: plain numbers.
    let at = unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) };
    if at < 0 { Err(Errno::last()) } else { Ok(at) }
}

pub(crate) fn read_at(fd: RawFd, into: &mut [u8], at: u64) -> Sys<usize> {
    let (start, length) = (into.as_mut_ptr().cast(), into.len());
    // SAFETY: `into` is exclusively ours and `length` long; the call is synchronous.
    count(unsafe { libc::pread(fd, start, length, offset(at)?) })
}

pub(crate) fn write_at(fd: RawFd, from: &[u8], at: u64) -> Sys<usize> {
    let (start, length) = (from.as_ptr().cast(), from.len());
    // SAFETY: `from` is readable and `length` long; the call is synchronous.
    count(unsafe { libc::pwrite(fd, start, length, offset(at)?) })
}

/// Writes and waits for durability in one call.
pub(crate) fn write_at_durably(fd: RawFd, from: &[u8], at: u64) -> Sys<usize> {
    let part = libc::iovec {
        iov_base: from.as_ptr().cast_mut().cast(),
        iov_len: from.len(),
    };
    // SAFETY: one vector over `from`, which the kernel only reads; the call is synchronous.
    count(unsafe { libc::pwritev2(fd, &raw const part, 1, offset(at)?, libc::RWF_DSYNC) })
}

/// Makes data durable, and of the metadata what is needed to read it back.
pub(crate) fn sync_data(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fdatasync(fd) }).map(drop)
}

/// Makes data and all metadata durable; the way to sync a directory.
pub(crate) fn sync_all(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fsync(fd) }).map(drop)
}

/// Syncs the whole filesystem `fd` is on.
pub(crate) fn sync_filesystem(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::syncfs(fd) }).map(drop)
}

pub(crate) fn allocate(fd: RawFd, length: u64) -> Sys<()> {
    let length = offset(length)?;
    // SAFETY: plain numbers.
    check(unsafe { libc::fallocate(fd, 0, 0, length) }).map(drop)
}

pub(crate) fn truncate(fd: RawFd, length: u64) -> Sys<()> {
    let length = offset(length)?;
    // SAFETY: plain numbers.
    check(unsafe { libc::ftruncate(fd, length) }).map(drop)
}

pub(crate) fn rename_at(dir: RawFd, from: &CStr, to: &CStr) -> Sys<()> {
    // SAFETY: both names are terminated strings that outlive the call.
    check(unsafe { libc::renameat(dir, from.as_ptr(), dir, to.as_ptr()) }).map(drop)
}

pub(crate) fn unlink_at(dir: RawFd, name: &CStr) -> Sys<()> {
    // SAFETY: `name` is a terminated string that outlives the call.
    check(unsafe { libc::unlinkat(dir, name.as_ptr(), 0) }).map(drop)
}

pub(crate) fn rename(from: &CStr, to: &CStr) -> Sys<()> {
    // SAFETY: both paths are terminated strings that outlive the call.
    check(unsafe { libc::rename(from.as_ptr(), to.as_ptr()) }).map(drop)
}

pub(crate) fn unlink(path: &CStr) -> Sys<()> {
    // SAFETY: `path` is a terminated string that outlives the call.
    check(unsafe { libc::unlink(path.as_ptr()) }).map(drop)
}

/// Writes from several places at once; with `durably`, waits for durability in the same call.
pub(crate) fn write_many_at(fd: RawFd, from: &Vectors, at: u64, durably: bool) -> Sys<usize> {
    let flags = if durably { libc::RWF_DSYNC } else { 0 };
    let (start, parts) = (from.as_ptr(), from.len() as c_int);
    // SAFETY: the vectors describe buffers that the caller lends for the call, which is
    // synchronous; the kernel only reads them.
    count(unsafe { libc::pwritev2(fd, start, parts, offset(at)?, flags) })
}

/// Fills `into` as far as the page cache can without waiting; `EAGAIN` if it cannot at all.
pub(crate) fn read_cached(fd: RawFd, into: &mut [u8], at: u64) -> Sys<usize> {
    let part = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: one vector over `into`, which is exclusively ours; the call is synchronous.
    count(unsafe { libc::preadv2(fd, &raw const part, 1, offset(at)?, libc::RWF_NOWAIT) })
}

/// Receives what is there; `EAGAIN` if nothing is.
pub(crate) fn recv_now(fd: RawFd, into: &mut [u8]) -> Sys<usize> {
    let (start, length) = (into.as_mut_ptr().cast(), into.len());
    // SAFETY: `into` is exclusively ours and `length` long; the call is synchronous.
    count(unsafe { libc::recv(fd, start, length, libc::MSG_DONTWAIT) })
}

/// Sends what finds room; `EAGAIN` if nothing does. No signal if the peer is gone.
pub(crate) fn send_now(fd: RawFd, from: &mut Vectors) -> Sys<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message describes buffers that the caller lends for the call, which is
    // synchronous; the kernel only reads them.
    count(unsafe { libc::sendmsg(fd, from.message(), flags) })
}

/// A set of descriptors to watch.
pub(crate) fn watch_set() -> Sys<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds `fd` to a set, changes what is watched for (with `EPOLL_CTL_MOD`), or takes it out.
pub(crate) fn watch(set: RawFd, how: c_int, fd: RawFd, events: u32) -> Sys<()> {
    let mut event = libc::epoll_event {
        events,
        u64: u64::from(fd.cast_unsigned()),
    };
    // SAFETY: `event` lives during the call, which copies it.
    check(unsafe { libc::epoll_ctl(set, how, fd, &raw mut event) }).map(drop)
}

/// The descriptors of a set that are ready now, each with how; at most as many as `into` takes.
pub(crate) fn ready(set: RawFd, into: &mut [libc::epoll_event]) -> Sys<usize> {
    let most = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
    // SAFETY: `into` is writable and as long as told; the call does not wait.
    let found = check(unsafe { libc::epoll_wait(set, into.as_mut_ptr(), most, 0) })?;
    Ok(found.unsigned_abs() as usize)
}

/// Drops clean cached pages.
pub(crate) fn drop_cache(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers. This call answers with the errno itself.
    match unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

/// Takes the exclusive lock, or fails at once.
pub(crate) fn lock(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Takes the lock together with others who share it, or fails at once.
pub(crate) fn share(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB) }).map(drop)
}

pub(crate) fn unlock(fd: RawFd) -> Sys<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::flock(fd, libc::LOCK_UN) }).map(drop)
}

/// Fills `into` with directory entries of the kernel's form; 0 at the end.
pub(crate) fn entries(fd: RawFd, into: &mut [u8]) -> Sys<usize> {
    // SAFETY: `into` is exclusively ours and as long as told; the call is synchronous.
    let answer = unsafe { libc::syscall(libc::SYS_getdents64, fd, into.as_mut_ptr(), into.len()) };
    usize::try_from(answer).map_err(|_| Errno::last())
}

pub(crate) fn user() -> libc::uid_t {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// A counter another thread can raise to end a wait.
pub(crate) fn event() -> Sys<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Raises the counter. A full counter has woken already, so nothing is lost.
pub(crate) fn raise(fd: RawFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes.
    unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) };
}

/// Lowers the counter to zero. Answers nothing if it was.
pub(crate) fn lower(fd: RawFd) {
    let mut count = 0u64;
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd, (&raw mut count).cast(), size_of::<u64>()) };
}

/// Waits until one of `fds` is readable, a signal comes, or the time is over. A negative number
/// stands for nothing.
pub(crate) fn wait_readable(fds: [RawFd; 2], timeout: Option<std::time::Duration>) {
    let mut waiting = fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = timeout.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos().cast_signed()),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: two poll entries and perhaps a time, both alive during the call; no signal mask.
    unsafe { libc::ppoll(waiting.as_mut_ptr(), 2, timeout, std::ptr::null()) };
}

/// Keeps signals away from a thread of ours; they belong to the program we are a guest in.
pub(crate) fn block_signals() {
    let mut every = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `every` is writable, filled by the first call, and read by the second.
    unsafe {
        libc::sigfillset(every.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, every.as_ptr(), std::ptr::null_mut());
    }
}

/// Lets timed waits of this thread end when they should: without it the kernel may add 50 us to
/// each of them (prctl(2), `PR_SET_TIMERSLACK`).
pub(crate) fn wake_on_time() {
    // SAFETY: takes a number and changes a property of the calling thread; no memory is involved.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64);
    }
}
