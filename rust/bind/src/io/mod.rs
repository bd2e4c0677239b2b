//! The engine's handle: every method extracts, asks, converts.
//!
//! ```text
//! mod, file, memory        what Python calls
//! arguments, open, sockets what is made of its arguments
//! shared                   what the handles of one engine have in common
//! inbox, outcome, report   how an answer comes back
//! exit                     engines that were dropped, and the end of the process
//! guest                    the engine turned by event loops
//! ```

mod arguments;
mod file;
mod guest;
mod inbox;
mod memory;
mod open;
mod outcome;
mod report;
mod shared;
mod sockets;

use std::{sync::Arc, time::Duration};

use millrace_core::{
    io::{self, Leftovers},
    ioloop::{self, Ask, Reply},
};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBytes, PyDict},
};

use crate::{
    buffer, door, error,
    operation::{Operation, Source},
    ticket::{Seconds, timeout},
};
use arguments::{count, location, open_flags, size};
use file::OpenFile;
use outcome::{Place, Wanted};
use shared::Shared;

pub use file::File;
pub use guest::Visit;
pub use memory::EngineBuffer;
pub use report::{CloseReport, FileStatus};

/// The engine behind `millrace.IoEngine`.
#[pyclass(frozen, subclass, module = "millrace._core")]
pub struct IoEngine {
    shared: Arc<Shared>,
}

#[pymethods]
impl IoEngine {
    #[new]
    fn new(py: Python<'_>, settings: &Bound<'_, PyAny>) -> PyResult<Self> {
        let numbers: open::Numbers = settings.extract()?;
        let opened = door::detached(py, || numbers.open().and_then(Shared::new));
        let shared = opened.map_err(|failed| error::raise_io(py, &failed))?;
        crate::exit::enlist(&shared);
        Ok(Self { shared })
    }

    /// Open a file.
    #[pyo3(name = "_open")]
    fn open(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        flags: &str,
        direct: bool,
        permissions: u32,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let path = location("path", path)?;
        let mut flags = open_flags(flags)?;
        if direct {
            flags |= libc::O_DIRECT;
        }
        let mode = permissions;
        let wanted = (Wanted::File, Place::path(path.as_path()));
        let ask = Ask::Open { path, flags, mode };
        self.shared.start(py, "open", ask, timeout, wanted)
    }

    /// Read *length* bytes of *file* from *offset*.
    ///
    /// Up to 64 KiB that the page cache has are there when the call returns, as a rule, and
    /// awaiting them does not suspend.
    ///
    /// Cancelling gives the read up. Nothing is changed by it.
    ///
    /// Args:
    ///     file: An open file.
    ///
    ///     length: How much.
    ///
    ///     offset: From where.
    ///
    ///     timeout_s: When to give up.
    ///
    ///     partial: Give what there is at the end of the file, instead of an error.
    ///
    /// Raises:
    ///     ShortReadError: If the file ended before; `got` says where.
    ///
    ///     IoTimeout: If the deadline passed.
    ///
    ///     ClosedError: If the file or the engine is closed.
    #[pyo3(signature = (file, length, offset, *, timeout_s = None, partial = false))]
    fn read_at(
        &self,
        py: Python<'_>,
        file: &Bound<'_, File>,
        length: &Bound<'_, PyAny>,
        offset: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
        partial: bool,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let (length, offset) = (size("length", length)?, count("offset", offset)?);
        let open = self.lend(py, file)?;
        let (file, open) = open;
        if timeout != Some(Duration::ZERO) && open.warmth.is_worth_a_try(&file, length) {
            let tried = read_cached(py, &self.shared, open, &file, length, offset)?;
            if let Some(bytes) = tried {
                return Ok(self.cached(open, bytes, (length, offset), partial));
            }
        }
        let wanted = (Wanted::Bytes, open.place(Some(offset), Some(length as u64)));
        let ask = Ask::Read {
            file,
            offset,
            length,
            partial,
        };
        self.shared.start(py, "read_at", ask, timeout, wanted)
    }

    /// Fill *buffer* from *offset*; the result is how many bytes were read.
    ///
    /// The kernel reads into memory of the engine. It is copied to *buffer* on the loop's own
    /// thread when the await ends, so the buffer may be used, resized or dropped in the meantime.
    /// An `EngineBuffer` takes the memory itself, without a copy.
    ///
    /// Cancelling gives the read up; *buffer* stays as it was, unless its bytes had come already.
    ///
    /// Raises:
    ///     BufferError: If *buffer* is read-only, not contiguous, or an `EngineBuffer` with a
    ///         view or another read; at the end, if it has become too small.
    ///
    ///     ShortReadError: If the file ended before; *buffer* stays as it was.
    #[pyo3(signature = (file, buffer, offset, *, timeout_s = None, partial = false))]
    fn read_into(
        &self,
        py: Python<'_>,
        file: &Bound<'_, File>,
        buffer: &Bound<'_, PyAny>,
        offset: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
        partial: bool,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let offset = count("offset", offset)?;
        let (file, open) = self.lend(py, file)?;
        let engine_buffer = buffer.cast::<EngineBuffer>().ok();
        let length = match engine_buffer {
            Some(mine) => mine.get().size(),
            None => buffer::room(buffer)?,
        };
        let place = open.place(Some(offset), Some(length as u64));
        let wanted = match engine_buffer {
            Some(mine) => Wanted::Moved(mine.get().reserve()?),
            None => Wanted::Copied(buffer.clone().unbind()),
        };
        let ask = Ask::Read {
            file,
            offset,
            length,
            partial,
        };
        self.shared
            .start(py, "read_into", ask, timeout, (wanted, place))
    }

    /// Return a read-only buffer of *size* bytes in the engine's memory, for `read_into`.
    ///
    /// Raises:
    ///     TooLargeError: If there is no memory for it.
    #[pyo3(signature = (size, /))]
    fn buffer(&self, py: Python<'_>, size: &Bound<'_, PyAny>) -> PyResult<EngineBuffer> {
        self.check(py)?;
        EngineBuffer::new(py, arguments::size("size", size)?, &self.shared.pinned)
    }

    /// Write all of *data* at *offset*; the result is how many bytes that was.
    ///
    /// The bytes are copied at the call. A list or tuple of buffers is written one after the
    /// other, as one write. With *sync* they are durable when the await ends.
    ///
    /// Cancelling stops the waiting, not the write.
    ///
    /// Raises:
    ///     IoTimeout: If the deadline passed. With `indeterminate` some or all of it may have
    ///         been written.
    ///
    ///     NoSpaceError: If the device or the quota is full.
    #[pyo3(signature = (file, data, offset, *, sync = false, timeout_s = None))]
    fn write_at(
        &self,
        py: Python<'_>,
        file: &Bound<'_, File>,
        data: &Bound<'_, PyAny>,
        offset: &Bound<'_, PyAny>,
        sync: bool,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let offset = count("offset", offset)?;
        let (file, open) = self.lend(py, file)?;
        let buffers = buffer::pieces(data)?;
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let wanted = (Wanted::Count, open.place(Some(offset), Some(length as u64)));
        if buffers.is_empty() {
            let nothing = Ok(Reply::Count(0));
            return Ok(self.shared.answered("write_at", nothing, wanted));
        }
        let ask = Ask::Write {
            file,
            offset,
            buffers,
            sync,
        };
        self.shared.start(py, "write_at", ask, timeout, wanted)
    }

    /// Make what was written to *file* durable.
    ///
    /// With *data_only* times and the like are left out, but never what is needed to read the
    /// data back. Writes that were not awaited before may not be covered. After a failed sync the
    /// kernel may have dropped what it could not write: do not try again, write again.
    ///
    /// Cancelling stops the waiting, not the sync.
    #[pyo3(signature = (file, *, data_only = true, timeout_s = None))]
    fn sync(
        &self,
        py: Python<'_>,
        file: &Bound<'_, File>,
        data_only: bool,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let (file, open) = self.lend(py, file)?;
        let wanted = (Wanted::Done, open.place(None, None));
        let ask = Ask::Sync { file, data_only };
        self.shared.start(py, "sync", ask, timeout, wanted)
    }

    /// Send all of *data* on a connected socket; the result is how many bytes that was.
    ///
    /// Cancelling stops the waiting, not the sending.
    ///
    /// Raises:
    ///     TypeError: If *sock* is no `socket.socket`, or speaks TLS.
    ///
    ///     ValueError: If it is no stream socket.
    ///
    ///     IoTimeout: If the deadline passed; some of it may have been sent.
    #[pyo3(signature = (sock, data, *, timeout_s = None))]
    fn send(
        &self,
        py: Python<'_>,
        sock: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let buffers = buffer::pieces(data)?;
        let socket = self.socket(py, sock)?;
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        if buffers.is_empty() {
            let wanted = (Wanted::Count, Place::default());
            return Ok(self.shared.answered("send", Ok(Reply::Count(0)), wanted));
        }
        let wanted = (Wanted::Sent(socket.clone()), Place::of(length));
        let ask = Ask::Send { socket, buffers };
        self.shared.start(py, "send", ask, timeout, wanted)
    }

    /// Receive up to *length* bytes from a connected socket, or with *exact* as many.
    ///
    /// Receives on one socket are served in the order of the calls, sends likewise.
    ///
    /// Cancelling gives the receive up. What had come to it, or is on its way, is not lost: the
    /// next receive on *sock* begins with it. So it is when the deadline passes.
    ///
    /// Raises:
    ///     EndOfStream: If the peer ended the stream first; `got` says how many bytes had come,
    ///         which a receive without *exact* still gets.
    ///
    ///     IoTimeout: If the deadline passed; `done` says how many bytes had come, which the next
    ///         receive begins with.
    #[pyo3(signature = (sock, length, *, exact = false, timeout_s = None))]
    fn recv(
        &self,
        py: Python<'_>,
        sock: &Bound<'_, PyAny>,
        length: &Bound<'_, PyAny>,
        exact: bool,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let length = size("length", length)?;
        if length == 0 {
            return Err(PyValueError::new_err("length must be at least 1"));
        }
        let socket = self.socket(py, sock)?;
        let wanted = (Wanted::Received(socket.clone()), Place::of(length));
        let ask = Ask::Recv {
            socket,
            length,
            exact,
        };
        self.shared.start(py, "recv", ask, timeout, wanted)
    }

    /// Reserve space for the first *length* bytes of *file*, which is as long afterwards at least.
    ///
    /// Cancelling stops the waiting, not the reservation.
    #[pyo3(signature = (file, length, *, timeout_s = None))]
    fn fallocate(
        &self,
        py: Python<'_>,
        file: &Bound<'_, File>,
        length: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let length = count("length", length)?;
        if length == 0 {
            return Err(PyValueError::new_err("length must be at least 1"));
        }
        let (file, open) = self.lend(py, file)?;
        let wanted = (Wanted::Done, open.place(None, Some(length)));
        let ask = Ask::Allocate { file, length };
        self.shared.start(py, "fallocate", ask, timeout, wanted)
    }

    /// Cut or extend *file* to *length* bytes.
    ///
    /// Cancelling stops the waiting, not the change.
    #[pyo3(signature = (file, length, *, timeout_s = None))]
    fn truncate(
        &self,
        py: Python<'_>,
        file: &Bound<'_, File>,
        length: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let length = count("length", length)?;
        let (file, open) = self.lend(py, file)?;
        let wanted = (Wanted::Done, open.place(None, Some(length)));
        let ask = Ask::Truncate { file, length };
        self.shared.start(py, "truncate", ask, timeout, wanted)
    }

    /// Rename *source* to *target*, replacing what was there. Durable after `sync_directory`.
    ///
    /// Cancelling stops the waiting, not the renaming.
    #[pyo3(signature = (source, target, *, timeout_s = None))]
    fn rename(
        &self,
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        target: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let (from, to) = (location("source", source)?, location("target", target)?);
        let wanted = (Wanted::Done, Place::path(from.as_path()));
        let ask = Ask::Rename { from, to };
        self.shared.start(py, "rename", ask, timeout, wanted)
    }

    /// Remove the name of a file. Durable after `sync_directory`.
    ///
    /// Cancelling stops the waiting, not the removal.
    #[pyo3(signature = (path, *, timeout_s = None))]
    fn unlink(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let path = location("path", path)?;
        let wanted = (Wanted::Done, Place::path(path.as_path()));
        self.shared
            .start(py, "unlink", Ask::Unlink { path }, timeout, wanted)
    }

    /// Return what is known about an open file or a path; links are followed.
    ///
    /// Cancelling gives it up.
    #[pyo3(signature = (target, *, timeout_s = None))]
    fn stat(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let (ask, place) = if let Ok(file) = target.cast::<File>() {
            let (file, open) = self.lend(py, file)?;
            (Ask::Stat { file }, open.place(None, None))
        } else {
            let path = location("target", target)?;
            let place = Place::path(path.as_path());
            (Ask::StatPath { path }, place)
        };
        self.shared
            .start(py, "stat", ask, timeout, (Wanted::Status, place))
    }

    /// Make the names in a directory durable.
    ///
    /// Cancelling stops the waiting, not the sync.
    #[pyo3(signature = (path, *, timeout_s = None))]
    fn sync_directory(
        &self,
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        timeout_s: Option<Seconds>,
    ) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let path = location("path", path)?;
        let wanted = (Wanted::Done, Place::path(path.as_path()));
        let ask = Ask::SyncDirectory { path };
        self.shared
            .start(py, "sync_directory", ask, timeout, wanted)
    }

    /// Take no more, serve what was taken, and end; the result tells what was left behind.
    ///
    /// What is under way is waited for: as long as it takes, or for the shorter of *timeout_s*
    /// and `shutdown_timeout_s`. Then it is cancelled, and what the kernel still does not answer
    /// is left behind with its memory; whoever waits for it gets `AbandonedError`.
    ///
    /// Closing twice is fine; a second call can shorten the time. Cancelling stops the waiting,
    /// not the closing.
    #[pyo3(signature = (*, timeout_s = None))]
    fn close(&self, py: Python<'_>, timeout_s: Option<Seconds>) -> PyResult<Operation> {
        let timeout = timeout(timeout_s)?;
        let here = self.shared.origin.check();
        here.map_err(|forked| error::raise_io(py, &forked))?;
        self.shared.close(py, timeout)
    }

    /// Close from a plain thread, which waits; like `close` otherwise.
    #[pyo3(name = "_close_within")]
    fn close_within(&self, py: Python<'_>, timeout_s: f64) -> PyResult<CloseReport> {
        let timeout = timeout(Some(Seconds(timeout_s)))?;
        let shared = &self.shared;
        let left = door::detached(py, || match shared.engine() {
            Some(engine) => engine.close(timeout),
            None => Ok(Leftovers::default()),
        });
        left.map(CloseReport::of)
            .map_err(|failed| error::raise_io(py, &failed))
    }

    /// Name, reason and hint of the backend.
    #[getter(_backend_report)]
    fn backend_report(&self) -> (&'static str, &str, &'static str) {
        let info = self.shared.backend();
        (info.name, &info.reason, info.hint)
    }

    /// `open`, `closing`, `closed`, or `failed` after a defect; `forked` in a child.
    #[getter(_state)]
    fn state(&self) -> &'static str {
        self.shared.state()
    }

    /// Return the fields of `IoStatistics`.
    #[pyo3(name = "_statistics_report")]
    fn statistics_report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let here = self.shared.origin.check();
        here.map_err(|forked| error::raise_io(py, &forked))?;
        // Who only asks and never waits sees things go on, too.
        guest::turn_here(&self.shared);
        report::statistics(py, &self.shared)
    }
}

impl IoEngine {
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let usable = self.shared.check();
        usable.map_err(|refused| error::raise_io(py, &refused))
    }

    /// A file for one request on this engine.
    fn lend<'a>(
        &self,
        py: Python<'_>,
        file: &'a Bound<'_, File>,
    ) -> PyResult<(io::File, &'a OpenFile)> {
        self.check(py)?;
        let open = file.get().open();
        let lent = open.lend().map_err(|closed| error::raise_io(py, &closed))?;
        Ok((lent, open))
    }

    /// A socket for one request on this engine.
    fn socket(&self, py: Python<'_>, socket: &Bound<'_, PyAny>) -> PyResult<io::File> {
        let fd = sockets::descriptor(socket)?;
        self.check(py)?;
        let lent = self.shared.sockets.lend(fd);
        lent.map_err(|refused| error::raise_io(py, &refused))
    }

    /// A read that the page cache answered.
    fn cached(
        &self,
        open: &OpenFile,
        (bytes, got): (Bound<'_, PyBytes>, usize),
        (length, offset): (usize, u64),
        partial: bool,
    ) -> Operation {
        if got == length {
            return Operation::new("read_at", Source::Known(bytes.into_any().unbind()));
        }
        if partial {
            let read = PyBytes::new(bytes.py(), &bytes.as_bytes()[..got]);
            return Operation::new("read_at", Source::Known(read.into_any().unbind()));
        }
        let short = ioloop::short_read(got as u64, length as u64);
        let wanted = (Wanted::Bytes, open.place(Some(offset), Some(length as u64)));
        self.shared.answered("read_at", Err(short), wanted)
    }
}

/// Tries the page cache, on this thread.
fn read_cached<'py>(
    py: Python<'py>,
    engine: &Shared,
    open: &OpenFile,
    file: &io::File,
    length: usize,
    offset: u64,
) -> PyResult<Option<(Bound<'py, PyBytes>, usize)>> {
    let mut got = None;
    let bytes = PyBytes::new_with(py, length, |into| {
        got = open.warmth.read_into(engine.handle(), file, offset, into);
        Ok(())
    })?;
    Ok(got.map(|got| (bytes, got)))
}
