//! Bytes across the line: copied in at the call, copied out as `bytes`.
//!
//! The copy is taken while the interpreter is held, so a writable exporter may be changed or
//! resized as soon as the call has returned. What is too large is refused before it is copied.

use std::marker::PhantomData;

use millrace_core::{Error, ErrorKind, Result, io, wal::Batch};
use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyBufferError, PyTypeError},
    ffi,
    prelude::*,
    types::{PyBytes, PyList, PyString, PyTuple},
};

use crate::error;

/// Most items that room is made for before they are seen.
const HINT_MAX: usize = 4096;

/// Bytes that somebody else owns, alive for as long as this.
enum View<'a, 'py> {
    Bytes(&'a [u8]),
    Exported(PyUntypedBuffer, PhantomData<&'a Bound<'py, PyAny>>),
}

impl<'a, 'py> View<'a, 'py> {
    #[inline]
    fn of(data: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        match data.cast::<PyBytes>() {
            Ok(bytes) => Ok(Self::Bytes(bytes.as_bytes())),
            Err(_) => exported(data).map(|buffer| Self::Exported(buffer, PhantomData)),
        }
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Exported(buffer, _) => buffer.len_bytes(),
        }
    }

    /// A program chose the length: that there is no memory for it is an error.
    #[inline]
    fn copy(&self) -> Result<Box<[u8]>> {
        let bytes = self.bytes();
        let mut copy = Vec::new();
        let reserved = copy.try_reserve_exact(bytes.len());
        reserved.map_err(|_| no_memory(bytes.len()))?;
        copy.extend_from_slice(bytes);
        Ok(copy.into_boxed_slice())
    }

    /// The bytes, to be copied at once: nothing of Python's may be called while they are held.
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Exported(buffer, _) if buffer.len_bytes() == 0 => &[],
            Self::Exported(buffer, _) => {
                let (start, length) = (buffer.buf_ptr().cast::<u8>(), buffer.len_bytes());
                // SAFETY: a C-contiguous buffer, which `exported` made sure of, is `len_bytes`
                // readable bytes from `buf_ptr`, kept alive by `buffer`. No Python code runs in
                // between: `'py` proves that we hold the interpreter, and our callers copy at once,
                // so with the interpreter lock nobody writes to it either.
                unsafe { std::slice::from_raw_parts(start, length) }
            }
        }
    }
}

/// Copies a bytes-like object whose length `fits`.
#[inline]
pub fn payload(
    data: &Bound<'_, PyAny>,
    fits: impl FnOnce(usize) -> PyResult<()>,
) -> PyResult<Box<[u8]>> {
    let view = View::of(data)?;
    fits(view.len())?;
    view.copy().map_err(|full| error::raise(data.py(), &full))
}

#[cold]
fn no_memory(length: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        "no memory for a copy of these bytes; nothing was appended",
    )
    .with("length", length as u64)
}

/// Copies every item of an iterable of bytes-like objects into a batch that `make` makes for so many
/// items and bytes. Together they must `fit`, which is asked before anything is copied if the items
/// are all there (a list, a tuple), and else, since a generator may use one buffer for all its
/// items, before each copy.
pub fn batch<L: Default>(
    items: &Bound<'_, PyAny>,
    fit: impl Fn(&mut L, usize) -> PyResult<()>,
    make: impl FnOnce(usize, usize) -> Result<Batch>,
) -> PyResult<Batch> {
    if items.is_instance_of::<PyBytes>() || items.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(
            "append_many() needs an iterable of bytes-like objects, not one of them; \
             use append() for a single record",
        ));
    }
    let py = items.py();
    let refused = |full| error::raise(py, &full);
    let mut bytes = 0;
    if items.is_instance_of::<PyList>() || items.is_instance_of::<PyTuple>() {
        let mut load = L::default();
        for (index, item) in items.try_iter()?.enumerate() {
            let item = item?;
            let view = View::of(&item).map_err(|error| located(py, &error, index))?;
            fit(&mut load, view.len())?;
            bytes += view.len();
        }
    }
    // A length is only a hint: it may be wrong, or of a `range` that nobody could copy.
    let count = items.len().unwrap_or(0).min(HINT_MAX);
    let mut batch = make(count, bytes).map_err(refused)?;
    let mut load = L::default();
    for (index, item) in items.try_iter()?.enumerate() {
        let item = item?;
        let view = View::of(&item).map_err(|error| located(py, &error, index))?;
        fit(&mut load, view.len())?;
        batch.push(view.bytes()).map_err(refused)?;
    }
    Ok(batch)
}

/// Copies a bytes-like object, or a list or tuple of them one after the other, into memory of the
/// engine; none if there are no bytes.
pub fn pieces(data: &Bound<'_, PyAny>) -> PyResult<Vec<io::Buffer>> {
    let py = data.py();
    if !data.is_instance_of::<PyList>() && !data.is_instance_of::<PyTuple>() {
        return together(py, &[View::of(data)?]);
    }
    // Getting at the bytes of an item may run code of its own, which may change the list.
    let items = data.try_iter()?.collect::<PyResult<Vec<_>>>()?;
    let views = items
        .iter()
        .enumerate()
        .map(|(index, item)| View::of(item).map_err(|error| located(py, &error, index)));
    together(py, &views.collect::<PyResult<Vec<_>>>()?)
}

/// One buffer for all of them: each on its own would take a page at least.
fn together(py: Python<'_>, views: &[View<'_, '_>]) -> PyResult<Vec<io::Buffer>> {
    let refused = |full| error::raise_io(py, &full);
    match views {
        [only] if only.len() > 0 => Ok(vec![
            io::Buffer::try_copy_of(only.bytes()).map_err(refused)?,
        ]),
        _ => {
            let length = views.iter().map(View::len).fold(0, usize::saturating_add);
            if length == 0 {
                return Ok(Vec::new());
            }
            let mut all = io::Buffer::try_zeroed(length).map_err(refused)?;
            let mut rest = &mut all[..];
            for view in views {
                let place;
                (place, rest) = rest.split_at_mut(view.len());
                place.copy_from_slice(view.bytes());
            }
            Ok(vec![all])
        }
    }
}

/// How many bytes a writable buffer takes.
pub fn room(into: &Bound<'_, PyAny>) -> PyResult<usize> {
    writable(into).map(|buffer| buffer.len_bytes())
}

/// Copies `bytes` to the beginning of a writable buffer, which may have been resized or released
/// since it was first looked at.
pub fn copy_out(into: &Bound<'_, PyAny>, bytes: &[u8]) -> PyResult<()> {
    let buffer = writable(into)?;
    if buffer.len_bytes() < bytes.len() {
        return Err(PyBufferError::new_err(format!(
            "the buffer shrank to {} bytes while {} were read",
            buffer.len_bytes(),
            bytes.len()
        )));
    }
    if !bytes.is_empty() {
        // SAFETY: a writable C-contiguous buffer is `len_bytes` writable bytes from `buf_ptr`,
        // kept alive by `buffer`; `bytes` is memory of the engine, so they are apart. No Python
        // code runs in between.
        unsafe {
            buffer
                .buf_ptr()
                .cast::<u8>()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
    Ok(())
}

/// `bytes` as Python's own. There may be no memory for them, which `PyBytes::new` would take for a
/// defect.
pub fn shown<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let length = ffi::Py_ssize_t::try_from(bytes.len())?;
    // SAFETY: as many bytes are read as `bytes` has. What comes back is a new `bytes` object that
    // is ours, or nothing with an exception set.
    unsafe {
        let made = ffi::PyBytes_FromStringAndSize(bytes.as_ptr().cast(), length);
        Ok(Bound::from_owned_ptr_or_err(py, made)?.cast_into_unchecked())
    }
}

fn writable(into: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let Ok(buffer) = PyUntypedBuffer::get(into) else {
        return Err(refusal(into));
    };
    if buffer.readonly() {
        return Err(PyBufferError::new_err(
            "the buffer is read-only; read into a bytearray, a writable memoryview or \
             IoEngine.buffer(n)",
        ));
    }
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err(
            "the buffer is not contiguous; read into a plain bytearray",
        ));
    }
    Ok(buffer)
}

/// Fills in a view of memory that belongs to `owner`.
///
/// # Safety
///
/// `view` is a `Py_buffer` to be filled in. The `length` bytes from `start` stay valid and as they
/// are until the view is released, as long as `owner` lives.
pub unsafe fn expose(
    owner: &Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    start: *const u8,
    length: usize,
    flags: std::ffi::c_int,
) -> PyResult<()> {
    let length = ffi::Py_ssize_t::try_from(length)?;
    let start = start.cast_mut().cast();
    // SAFETY: as the caller promises. Marked read-only, so nobody writes through the pointer.
    let filled = unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start, length, 1, flags) };
    if filled == 0 {
        return Ok(());
    }
    Err(PyErr::fetch(owner.py()))
}

/// The buffer of an object that exports one, contiguous.
fn exported(data: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    if data.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(
            "a bytes-like object is required, not 'str'; encode it first, \
             for example with data.encode()",
        ));
    }
    let Ok(buffer) = PyUntypedBuffer::get(data) else {
        return Err(refusal(data));
    };
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err(
            "the buffer is not contiguous; copy it first, for example with bytes(data)",
        ));
    }
    Ok(buffer)
}

fn refusal(data: &Bound<'_, PyAny>) -> PyErr {
    // A released memoryview says so itself; anything else is simply not a buffer.
    match PyUntypedBuffer::get(data) {
        Err(error) if !error.is_instance_of::<PyTypeError>(data.py()) => error,
        _ => {
            let name = data.get_type().name().map(|name| name.to_string());
            PyTypeError::new_err(format!(
                "a bytes-like object is required, not '{}'",
                name.unwrap_or_default()
            ))
        }
    }
}

fn located(py: Python<'_>, error: &PyErr, index: usize) -> PyErr {
    let message = format!("item {index}: {}", error.value(py));
    PyErr::from_type(error.get_type(py), message)
}
