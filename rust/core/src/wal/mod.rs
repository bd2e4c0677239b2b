//! The durable log.
//!
//! Parts: [`segment`] and [`frame`] are the bytes, and the rest of this page draws them.
//!
#![doc = include_str!("FORMAT.md")]

pub mod frame;
pub mod segment;

#[cfg(test)]
mod tests;
