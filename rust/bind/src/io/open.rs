//! Settings in, engine out.

use std::time::Duration;

use millrace_core::{
    Error, Result,
    engine::io::{self, DriverSetting, IoEngine},
    ioloop::Settings,
};
use pyo3::prelude::*;

use crate::open::backend;

/// The attributes of `millrace.IoSettings`, which has checked their types.
#[derive(FromPyObject)]
pub struct Numbers {
    backend: String,
    size: usize,
    driver: String,
    timeout_tick_s: f64,
    shutdown_timeout_s: Option<f64>,
    slow_after_s: f64,
}

impl Numbers {
    pub fn open(&self) -> Result<IoEngine> {
        let shutdown = self.shutdown_timeout_s;
        io::open(&io::IoSettings {
            numbers: Settings {
                size: self.size,
                tick: seconds("timeout_tick_s", self.timeout_tick_s)?,
                shutdown_timeout: shutdown
                    .map(|timeout| seconds("shutdown_timeout_s", timeout))
                    .transpose()?,
                slow_after: seconds("slow_after_s", self.slow_after_s)?,
            },
            backend: backend(&self.backend)?,
            driver: driver(&self.driver)?,
            dir: None,
        })
    }
}

fn seconds(name: &str, seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error::invalid(format!("{name} must be a number of seconds, 0 or more")))
}

fn driver(name: &str) -> Result<DriverSetting> {
    match name {
        "auto" => Ok(DriverSetting::Auto),
        "thread" => Ok(DriverSetting::Thread),
        "loop" => Ok(DriverSetting::Loop),
        _ => Err(Error::invalid("driver must be 'auto', 'thread' or 'loop'")),
    }
}
