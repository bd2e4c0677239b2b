//! Numbers that a part keeps about itself, and their snapshots. No registry, no names of exporters.
//!
//! One thread (or several) counts; any thread takes a snapshot, which is plain data and may be off
//! by what is being counted at that moment.

mod histogram;

pub use histogram::{Distribution, Histogram};
