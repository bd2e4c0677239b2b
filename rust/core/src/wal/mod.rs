//! The durable log.
//!
//! ```text
//! append --> ring --> committer --> one frame, one synchronous write --> watermark --> answers
//! open   --> lock --> recover (reads only) --> new segment --> tidy up
//! read   --> segments, oldest first, never above the durable watermark
//! ```
//!
//! # Always true
//!
//! 1. A record at or below the durable watermark survives the process, the kernel and the power
//!    supply, as far as the device honours a flush.
//! 2. LSNs are dense and in the order of the calls; a crash only shortens the tail.
//! 3. After one failed write nothing more is acknowledged until the log is opened again.
//!
//! # Where things are
//!
//! [`segment`] and [`frame`] are the bytes; `recovery`, `scan`, `verdict` and `reader` read them;
//! [`commit`] writes them, fed by `group` and helped by `prepare`; [`log`] is the handle for any
//! thread; `marks` tells waiters; `truncate` drops old segments; `handle` is all of it on the
//! machine's own disk; [`open`] begins; `driver` turns the committer on a thread of its own;
//! `turner` lends it to its callers, `steward` stands by, `crowd` says when to take it back;
//! `choose` measures the ways to the disk; `cursor` keeps named positions; `lock` keeps other owners
//! out; `watch` follows from outside a log that somebody else owns.
//!
#![doc = include_str!("FORMAT.md")]

#[cfg(any(test, feature = "testing"))]
pub mod builder;
mod catalogue;
pub mod choose;
pub mod commit;
mod counters;
mod crowd;
pub mod cursor;
mod driver;
pub mod frame;
mod group;
mod handle;
pub mod lock;
pub mod log;
mod marks;
pub mod open;
pub mod reader;
mod record;
pub mod recovery;
pub mod recycle;
pub mod repair;
mod salvage;
pub mod scan;
pub mod segment;
pub mod settings;
mod steward;
mod stock;
mod survey;
#[cfg(any(test, feature = "testing"))]
pub mod trial;
mod truncate;
mod turner;
pub mod verdict;
pub mod verify;
mod watch;

pub use counters::Counts;
pub use group::Batch;
pub use handle::{Log, LogReader, Way};
pub use marks::Level;
pub use watch::Watch;

#[cfg(test)]
mod tests;
