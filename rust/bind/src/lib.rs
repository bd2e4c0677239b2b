//! The module's list of names.

use pyo3::prelude::*;

/// The compiled half of Millrace; import `millrace` instead.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
