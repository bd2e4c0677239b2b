//! Seconds of Python to numbers of the wheel, checked.

use std::time::Duration;

use millrace_core::clock::Mono;
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyFloat},
};

use crate::ticket::in_range;

const NANOS: f64 = 1e9;
const TICK_MIN_S: f64 = 1e-6;
const TICK_MAX_S: f64 = 3600.0;

/// The length of a tick, as it was given.
pub fn tick_s(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    number(value, "tick_s")
}

pub fn tick(tick_s: f64) -> PyResult<Duration> {
    if (TICK_MIN_S..=TICK_MAX_S).contains(&tick_s) {
        return Ok(Duration::from_nanos(nanos(tick_s)));
    }
    Err(PyValueError::new_err(format!(
        "tick_s must lie between a microsecond and an hour, not {tick_s}"
    )))
}

/// A delay: finite and not negative.
#[inline]
pub fn delay(value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let delay_s = number(value, "delay_s")?;
    if !(delay_s.is_finite() && delay_s >= 0.0) {
        return Err(PyValueError::new_err(format!(
            "delay_s must be finite and not negative, not {delay_s}"
        )));
    }
    // A float beyond what 64 bits of nanoseconds hold becomes their maximum: 584 years.
    Ok(Duration::from_nanos(nanos(delay_s)))
}

/// An instant of the loop's clock, as it was given.
pub fn instant(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let when = number(value, "when")?;
    if when.is_nan() {
        return Err(PyValueError::new_err("when must not be NaN"));
    }
    Ok(when)
}

/// The instant a float of the loop's clock stands for. Rounded, because a float that came from
/// adding others up may be a hair below what was meant.
pub fn mono(when: f64) -> Mono {
    Mono(nanos(when))
}

/// Nanoseconds, as near as can be; what 64 bits cannot hold becomes the nearest they can.
#[allow(clippy::cast_sign_loss, reason = "a cast from float saturates")]
#[inline]
fn nanos(seconds: f64) -> u64 {
    (seconds * NANOS).round() as u64
}

/// The float of the loop's clock for an instant.
#[allow(clippy::cast_precision_loss, reason = "a clock of floats has no more")]
pub fn of(instant: Mono) -> f64 {
    instant.0 as f64 / NANOS
}

#[inline]
fn number(value: &Bound<'_, PyAny>, name: &str) -> PyResult<f64> {
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        return Ok(float.value());
    }
    let py = value.py();
    match value.extract::<f64>() {
        Ok(number) if !value.is_instance_of::<PyBool>() => Ok(number),
        Err(error) if !error.is_instance_of::<PyTypeError>(py) => Err(in_range(py, error, name)),
        _ => Err(PyTypeError::new_err(format!(
            "{name} must be a number of seconds, not {}",
            value.get_type().name()?
        ))),
    }
}
