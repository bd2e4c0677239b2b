//! Arguments: what they must be, and an error that names the one that is not.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBool, PyBytes, PyInt},
};

/// Flags of open(2) for the modes of Python's own `open`, as far as they make sense where every
/// operation names its position.
pub fn open_flags(flags: &str) -> PyResult<i32> {
    match flags.replace('b', "").as_str() {
        "r" => Ok(libc::O_RDONLY),
        "r+" => Ok(libc::O_RDWR),
        "w" => Ok(libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC),
        "w+" => Ok(libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC),
        "x" => Ok(libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL),
        "x+" => Ok(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL),
        "a" | "a+" => Err(PyValueError::new_err(
            "flags 'a' would ignore the offset of every write; open with 'r+' and write at the \
             length that stat() tells",
        )),
        _ => Err(PyValueError::new_err(format!(
            "flags must be 'r', 'r+', 'w', 'w+', 'x' or 'x+', not {flags:?}"
        ))),
    }
}

/// A path as an argument: what `os.fspath` takes, absolute from now on.
pub fn location(name: &str, path: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    static FSENCODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = path.py();
    let _inside = crate::gate::enter(py);
    let encoded = FSENCODE.import(py, "os", "fsencode")?.call1((path,))?;
    let bytes = encoded.cast::<PyBytes>()?.as_bytes();
    if bytes.is_empty() {
        return Err(PyValueError::new_err(format!("{name} is empty")));
    }
    if bytes.contains(&0) {
        return Err(PyValueError::new_err(format!(
            "{name} contains a NUL character"
        )));
    }
    Ok(std::path::absolute(OsStr::from_bytes(bytes))?)
}

/// A number of bytes that memory is needed for.
pub fn size(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    let value = count(name, value)?;
    usize::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} is too large")))
}

/// A number of bytes, or a place in a file. `True` is not a number here.
pub fn count(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let refused = || {
        PyValueError::new_err(format!(
            "{name} must lie between 0 and 2**63 - 1, not {value}"
        ))
    };
    let index = index(value)?.ok_or_else(|| {
        let class = value.get_type().name().map(|class| class.to_string());
        let class = class.unwrap_or_default();
        PyTypeError::new_err(format!("{name} must be an int, not {class}"))
    })?;
    let value = &index;
    let number: u64 = value.extract().map_err(|_| refused())?;
    if number > i64::MAX.cast_unsigned() {
        return Err(refused());
    }
    Ok(number)
}

/// Permissions of a file that is made.
pub fn permissions(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    const MOST: u32 = 0o7777;
    let name = "permissions";
    let number = u32::try_from(count(name, value)?).ok();
    number.filter(|number| *number <= MOST).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{name} must lie between 0 and 0o{MOST:o}, not {value}"
        ))
    })
}

/// An int, or what says itself which int it is, as numbers of other libraries do. What it raises
/// instead of saying so is its caller's to see.
fn index<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    if value.is_instance_of::<PyBool>() {
        return Ok(None);
    }
    if value.is_instance_of::<PyInt>() {
        return Ok(Some(value.clone()));
    }
    let Some(ask) = value.getattr_opt(intern!(value.py(), "__index__"))? else {
        return Ok(None);
    };
    let told = ask.call0()?;
    Ok(told.is_instance_of::<PyInt>().then_some(told))
}
