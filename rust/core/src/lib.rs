//! The engine of Millrace: local durability that never blocks an event loop.
//!
//! It promises that an acknowledged record survives the process, the kernel and the power supply
//! (as far as the device honours a flush), that nothing the kernel may still write to is freed,
//! and that after a failed write nothing more is acknowledged. It knows no Python.
//!
//! Floors, each using only what stands below it:
//!
//! ```text
//! 4   engine
//! 3   wal | ioloop
//! 2   uring | threads | sim     implement io, never import each other
//! 1b  io                        the contract and the request
//! 1a  ring | wheel | epoch | port   never import each other
//! 0   sync, clock, ids, codec, error, fork, planted
//! ```

#[macro_use]
#[doc(hidden)]
pub mod planted;

pub mod clock;
pub mod codec;
pub mod epoch;
pub mod error;
#[cfg(not(loom))]
pub mod fork;
pub mod ids;
pub mod port;
pub mod ring;
pub mod sync;
pub mod wheel;

#[cfg(not(loom))]
pub mod engine;
#[cfg(not(loom))]
pub mod io;
#[cfg(not(loom))]
pub mod ioloop;
#[cfg(not(loom))]
pub mod metrics;
#[cfg(all(not(loom), any(test, feature = "testing")))]
pub mod sim;
#[cfg(not(loom))]
pub mod threads;
#[cfg(not(loom))]
pub mod uring;
#[cfg(not(loom))]
pub mod wal;

pub use error::{Error, ErrorKind, Result};
