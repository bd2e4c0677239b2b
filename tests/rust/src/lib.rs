//! Helpers shared by the tests of the engine's public promises.

pub mod store;
pub mod torture;
