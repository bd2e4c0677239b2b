//! What becomes of an answer: how each kind of it looks to Python, and where a failed one happened.

use std::{path::Path, sync::Arc};

use millrace_core::{
    Error, io,
    ioloop::{Reply, Whereabouts},
    planted,
};
use pyo3::{IntoPyObjectExt, prelude::*};

use super::{
    file::{File, OpenFile},
    inbox::News,
    memory::Reservation,
    report::{CloseReport, FileStatus},
    shared::Shared,
};
use crate::{buffer, error};

/// Where an operation takes place, as its errors tell.
#[derive(Default)]
pub struct Place {
    pub path: Option<Arc<Path>>,
    pub offset: Option<u64>,
    pub requested: Option<u64>,
}

/// Which call it was, in an error that no call of the kernel's gave. The calls that name a place
/// are reads and writes like any other.
pub fn named(error: Error, call: &'static str) -> Error {
    if error.facts().iter().any(|(known, _)| *known == "operation") {
        return error;
    }
    let short = call.trim_end_matches("_at").trim_end_matches("_into");
    error.with_text("operation", short)
}

impl Place {
    /// Of a socket, which has no name and no positions.
    pub fn of(requested: usize) -> Self {
        Self {
            requested: Some(requested as u64),
            ..Self::default()
        }
    }

    pub fn path(path: impl Into<Arc<Path>>) -> Self {
        Self {
            path: Some(path.into()),
            ..Self::default()
        }
    }

    /// For the engine's own reports.
    pub fn whereabouts(&self) -> Whereabouts {
        Whereabouts {
            path: self.path.clone(),
            offset: self.offset,
        }
    }

    /// Adds what the error does not say itself.
    pub fn tell(&self, error: Error) -> Error {
        if planted!("bind_errors_name_no_place") {
            return error;
        }
        let says = |key: &str| error.facts().iter().any(|(known, _)| *known == key);
        let (path, offset, requested) = (says("path"), says("offset"), says("requested"));
        let mut error = error;
        if let (false, Some(here)) = (path, &self.path) {
            error = error.with_path(&**here);
        }
        if let (false, Some(here)) = (offset, self.offset) {
            error = error.with("offset", here);
        }
        if let (false, Some(here)) = (requested, self.requested) {
            error = error.with("requested", here);
        }
        error
    }
}

/// What whoever waits wants to have.
pub enum Wanted {
    /// Nothing but to know that it is done.
    Done,
    /// How many bytes.
    Count,
    /// The bytes.
    Bytes,
    /// The bytes, put into something of Python's.
    Copied(Py<PyAny>),
    /// The bytes, put into a buffer of the engine's.
    Moved(Reservation),
    /// How many bytes went out; the socket is kept for as long.
    Sent(io::File),
    /// The bytes that came in; the socket is kept for as long.
    Received(io::File),
    /// An open file.
    File,
    /// What is known about a file.
    Status,
    /// The end of the engine.
    End,
}

impl Wanted {
    pub fn show(
        self,
        py: Python<'_>,
        engine: &Arc<Shared>,
        (call, place): (&'static str, &Place),
        news: News,
    ) -> PyResult<Py<PyAny>> {
        let reply = match news {
            News::Ended(left) => return CloseReport::of(left).into_py_any(py),
            News::Answer(Err(failed)) => {
                return Err(error::raise_io(py, &named(place.tell(failed), call)));
            }
            News::Answer(Ok(reply)) => reply,
        };
        match (self, reply) {
            (Self::Bytes | Self::Received(_), Reply::Bytes { buffer, length }) => {
                Ok(buffer::shown(py, &buffer[..length])?.into_any().unbind())
            }
            (Self::Copied(into), Reply::Bytes { buffer, length }) => {
                buffer::copy_out(into.bind(py), &buffer[..length])?;
                length.into_py_any(py)
            }
            (Self::Moved(reservation), Reply::Bytes { buffer, length }) => {
                reservation.fill(buffer, length);
                length.into_py_any(py)
            }
            (Self::Count | Self::Sent(_), Reply::Count(count)) => count.into_py_any(py),
            (Self::File, Reply::File(file)) => {
                let path = place.path.clone().unwrap_or_else(|| Path::new("").into());
                let file = OpenFile::new(Arc::clone(engine), file, path);
                File::new(file).into_py_any(py)
            }
            (Self::Status, Reply::Status(status)) => FileStatus(status).into_py_any(py),
            (Self::Done, _) => Ok(py.None()),
            (_, _) => Err(error::panicked("an answer of another kind")),
        }
    }
}
