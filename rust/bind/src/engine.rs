//! The engine's names, in one place.

pub use crate::fake::{Claimed, Level, Log, Payload, Pending, PendingAppend, Watermarks};
