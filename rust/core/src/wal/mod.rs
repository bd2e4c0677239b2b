//! The durable log.
//!
//! Parts: [`segment`] and [`frame`] are the bytes, and the rest of this page draws them.
//!
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
