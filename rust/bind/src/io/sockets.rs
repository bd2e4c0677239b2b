//! Sockets of the program, under descriptors of our own while requests on them are under way.
//!
//! The engine may still use a descriptor when the program has closed its socket and the number
//! belongs to something else. So each socket is duplicated, once for all requests that are under
//! way on it at the same time. When the last of them is over the duplicate goes, and with it our
//! share in the connection: closing a socket that nobody waits on closes it.
//!
//! # Always true
//!
//! 1. Sockets are told apart by inode, which no other one can have while a duplicate keeps it
//!    alive. A number or an address says nothing, because both are reused.
//! 2. Between two duplicates the stash of a socket stays here, under the kernel's cookie for it,
//!    which no other socket ever gets; for as long as the program has the socket open under the
//!    number it came with last, and not beyond the end of the engine.
//! 3. Stashes of closed sockets are swept out when a socket is lent and all stashes together have
//!    doubled since the last sweep, give or take [`SWEEP_BYTES`].

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::RawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use millrace_core::{
    Error, Result,
    io::{File, Stash, WeakFile},
    sync::lock,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::PyType,
};

/// Entries of sockets that are gone are swept out when there are this many more than the last
/// sweep left.
const SWEEP: usize = 64;

/// The same for the bytes they hold.
const SWEEP_BYTES: usize = 1 << 20;

type Inode = (u64, u64);

/// The duplicates in use.
#[derive(Default)]
pub struct Sockets {
    state: Mutex<State>,
    /// Bytes in all stashes.
    kept: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    known: HashMap<Inode, Known>,
    sweep_at: usize,
    sweep_at_bytes: usize,
}

/// A socket of the program.
struct Known {
    /// Our own descriptor, while something is under way on it.
    duplicate: WeakFile,
    stash: Arc<Stash>,
    cookie: Option<u64>,
    /// The program's descriptor, as it was lent last.
    number: RawFd,
}

impl Known {
    /// Whether anybody may come for it again.
    fn is_of_use(&self) -> bool {
        let is_open = || self.cookie.is_some() && cookie(self.number) == self.cookie;
        !self.duplicate.is_gone() || (!self.stash.is_empty() && is_open())
    }
}

impl Sockets {
    /// Our own descriptor for the socket behind `fd`.
    pub fn lend(&self, fd: RawFd) -> Result<File> {
        let inode = inode(fd)?;
        let mut state = lock(&self.state);
        let lent = self.duplicate(&mut state.known, inode, fd)?;
        if state.known.len() >= state.sweep_at || self.kept_bytes() >= state.sweep_at_bytes {
            self.sweep(&mut state);
        }
        Ok(lent)
    }

    fn duplicate(
        &self,
        known: &mut HashMap<Inode, Known>,
        inode: Inode,
        fd: RawFd,
    ) -> Result<File> {
        let before = known.get_mut(&inode);
        if let Some(before) = before
            && let Some(file) = before.duplicate.upgrade()
        {
            before.number = fd;
            return Ok(file);
        }
        let cookie = cookie(fd);
        let before = known.get(&inode);
        let same = before.filter(|before| cookie.is_some() && before.cookie == cookie);
        let stash = if let Some(before) = same {
            Arc::clone(&before.stash)
        } else {
            require_stream(fd)?;
            Arc::new(Stash::counted(&self.kept))
        };
        let made = File::duplicate_socket(fd, Arc::clone(&stash))?;
        let lent = Known {
            duplicate: made.downgrade(),
            stash,
            cookie,
            number: fd,
        };
        known.insert(inode, lent);
        Ok(made)
    }

    fn sweep(&self, state: &mut State) {
        state.known.retain(|_, one| one.is_of_use());
        state.sweep_at = 2 * state.known.len() + SWEEP;
        state.sweep_at_bytes = 2 * self.kept_bytes() + SWEEP_BYTES;
    }

    /// Bytes that wait for the next receive on their socket.
    pub fn kept_bytes(&self) -> usize {
        // A number to look at: it orders nothing.
        self.kept.load(Ordering::Relaxed)
    }

    /// The engine has ended, and nobody receives any more.
    pub fn clear(&self) {
        lock(&self.state).known.clear();
    }
}

/// What tells one open socket from all others.
fn inode(fd: RawFd) -> Result<Inode> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is valid for the one structure that the call writes.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return Err(Error::from_io(&std::io::Error::last_os_error(), "fstat"));
    }
    // SAFETY: the call succeeded, so it wrote all of it.
    let stat = unsafe { stat.assume_init() };
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(Error::invalid("the descriptor is not a socket"));
    }
    Ok((stat.st_dev, stat.st_ino))
}

/// The kernel's own number for a socket, never used again; `None` if `fd` is none, or the kernel
/// does not tell.
fn cookie(fd: RawFd) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option is a number of 64 bits, which `cookie` has room for, as `length` says.
    let answer = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (answer == 0).then_some(cookie)
}

/// Refuses sockets that keep the borders of messages: what is received and sent in pieces here would
/// glue them together and cut them, and an empty message is no end.
fn require_stream(fd: RawFd) -> Result<()> {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is one integer, which `kind` has room for, as `length` says.
    let answer = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    if answer != 0 {
        return Err(Error::from_io(
            &std::io::Error::last_os_error(),
            "getsockopt",
        ));
    }
    if kind == libc::SOCK_STREAM {
        return Ok(());
    }
    Err(Error::invalid(
        "only stream sockets can be used here: this one keeps the borders of messages, which an \
         engine of streams would lose; use the loop's own sock_recvfrom and sock_sendto",
    ))
}

/// The descriptor of a `socket.socket`.
pub fn descriptor(socket: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = socket.py();
    let class = CLASS.import(py, "socket", "socket")?;
    if !socket.is_instance(class)? {
        let name = socket.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!(
            "sock must be a socket.socket, not {name}"
        )));
    }
    if !socket.get_type().is(class) && socket.hasattr(intern!(py, "_sslobj"))? {
        return Err(PyTypeError::new_err(
            "an ssl.SSLSocket cannot be used here: its bytes have to go through TLS",
        ));
    }
    let fd: RawFd = socket.call_method0(intern!(py, "fileno"))?.extract()?;
    if fd < 0 {
        return Err(PyValueError::new_err("the socket is closed"));
    }
    Ok(fd)
}
