//! Bytes across the line: copied in at the call, copied out as `bytes`.
//!
//! The copy is taken while the interpreter is held, so a writable exporter may be changed or
//! resized as soon as the call has returned.

use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyBufferError, PyTypeError},
    prelude::*,
    types::{PyBytes, PyString},
};

/// Most items that room is made for before they are seen.
const HINT_MAX: usize = 4096;

/// Copies a bytes-like object.
#[inline]
pub fn payload(data: &Bound<'_, PyAny>) -> PyResult<Box<[u8]>> {
    match data.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.as_bytes().into()),
        Err(_) => from_buffer(data),
    }
}

/// Copies every item of an iterable of bytes-like objects.
pub fn payloads(items: &Bound<'_, PyAny>) -> PyResult<Vec<Box<[u8]>>> {
    if items.is_instance_of::<PyBytes>() || items.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(
            "append_many() needs an iterable of bytes-like objects, not one of them; \
             use append() for a single record",
        ));
    }
    // A length is only a hint: it may be wrong, or of a `range` that nobody could copy.
    let mut copies = Vec::with_capacity(items.len().unwrap_or(0).min(HINT_MAX));
    for (index, item) in items.try_iter()?.enumerate() {
        let copy = payload(&item?).map_err(|error| located(items.py(), &error, index))?;
        copies.push(copy);
    }
    Ok(copies)
}

fn from_buffer(data: &Bound<'_, PyAny>) -> PyResult<Box<[u8]>> {
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
    let length = buffer.len_bytes();
    if length == 0 {
        return Ok(Box::default());
    }
    // SAFETY: a C-contiguous buffer is `len_bytes` readable bytes from `buf_ptr`, kept alive by
    // `buffer`, which lives to the end of this function. No Python code runs in between: we hold
    // the interpreter and call nothing, so with the interpreter lock nobody writes to it either.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), length) };
    Ok(bytes.into())
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
