//! The durable log.
//!
//! [`segment`] and [`frame`] are the bytes; the rest of this page draws them. [`recovery`] decides
//! what a directory holds ([`verdict`] is the decision table, [`scan`] gathers the evidence);
//! [`reader`] goes forward through it.
#![doc = include_str!("FORMAT.md")]

#[cfg(any(test, feature = "testing"))]
pub mod builder;
pub mod frame;
pub mod reader;
pub mod recovery;
mod salvage;
pub mod scan;
pub mod segment;
mod survey;
pub mod verdict;

#[cfg(test)]
mod tests;
