//! The Python face of the engine: extract, call, convert.

mod buffer;
mod door;
mod engine;
mod error;
mod fake;
mod fork;
mod jobs;
mod lines;
mod log;
mod loops;
mod operation;
mod shared;

use pyo3::prelude::*;

/// The compiled half of Millrace; import `millrace` instead.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::log::Log;
    #[pymodule_export]
    use super::operation::Operation;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
