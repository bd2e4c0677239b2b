//! What becomes of an answer: how each kind of it looks to Python, and where a failed one happened.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_core::{Error, io, ioloop::Reply, planted};
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

    /// Adds what the error does not say itself.
    fn tell(&self, error: Error) -> Error {
        let says = |key: &str| error.facts().iter().any(|(known, _)| *known == key);
        let (path, offset, requested) = (says("path"), says("offset"), says("requested"));
        let mut error = error;
        if let (false, Some(here)) = (path, &self.path) {
            error = error.with_text("path", here.display().to_string());
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
    Done(Place),
    /// How many bytes.
    Count(Place),
    /// The bytes.
    Bytes(Place),
    /// The bytes, put into something of Python's.
    Copied(Place, Py<PyAny>),
    /// The bytes, put into a buffer of the engine's.
    Moved(Place, Reservation),
    /// How many bytes went out; the socket is kept for as long.
    Sent(Place, io::File),
    /// The bytes that came in; the socket is kept for as long.
    Received(Place, io::File),
    /// An open file.
    File(PathBuf),
    /// What is known about a file.
    Status(Place),
    /// The end of the engine.
    End,
}

impl Wanted {
    /// The error, with where it happened.
    pub fn placed(&self, error: Error) -> Error {
        match self {
            _ if planted!("bind_errors_name_no_place") => error,
            Self::Done(place)
            | Self::Count(place)
            | Self::Bytes(place)
            | Self::Copied(place, _)
            | Self::Moved(place, _)
            | Self::Sent(place, _)
            | Self::Received(place, _)
            | Self::Status(place) => place.tell(error),
            Self::File(path) => Place::path(path.as_path()).tell(error),
            Self::End => error,
        }
    }

    pub fn show(
        self,
        py: Python<'_>,
        engine: &Arc<Shared>,
        call: &'static str,
        news: News,
    ) -> PyResult<Py<PyAny>> {
        let reply = match news {
            News::Ended(left) => return CloseReport::of(left).into_py_any(py),
            News::Answer(Err(failed)) => {
                return Err(error::raise_io(py, &named(self.placed(failed), call)));
            }
            News::Answer(Ok(reply)) => reply,
        };
        match (self, reply) {
            (Self::Bytes(_) | Self::Received(..), Reply::Bytes { buffer, length }) => {
                Ok(buffer::shown(py, &buffer[..length])?.into_any().unbind())
            }
            (Self::Copied(_, into), Reply::Bytes { buffer, length }) => {
                buffer::copy_out(into.bind(py), &buffer[..length])?;
                length.into_py_any(py)
            }
            (Self::Moved(_, reservation), Reply::Bytes { buffer, length }) => {
                reservation.fill(buffer, length);
                length.into_py_any(py)
            }
            (Self::Count(_) | Self::Sent(..), Reply::Count(count)) => count.into_py_any(py),
            (Self::File(path), Reply::File(file)) => {
                let file = OpenFile::new(Arc::clone(engine), file, path);
                File::new(file).into_py_any(py)
            }
            (Self::Status(_), Reply::Status(status)) => FileStatus(status).into_py_any(py),
            (Self::Done(_), _) => Ok(py.None()),
            (_, _) => Err(error::panicked("an answer of another kind")),
        }
    }
}
