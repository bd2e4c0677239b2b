//! A simulated disk: the third backend, for proofs.
//!
//! The engine runs on it unchanged. It keeps, for every sector and every name, what a reader sees
//! and what the device would still have after a power cut; it can be stopped at every submission
//! and every answer, and says which states the disk could legally be in.
//!
//! ```text
//! SimDisk --- backend() ---> one owner's view           disk.rs
//!    |
//!  World: handles, locks, flights, faults, events       world.rs, carry.rs, flight.rs
//!    |
//!  Volume: files and directories, cached and durable    volume.rs, content.rs
//!    |
//!  CrashPoint ---> Image ---> SimDisk::from_image       capture.rs, crash.rs, image.rs
//!    |
//!  Explorer: lives, kills, Ledger and its oracles       explore.rs, oracle.rs
//! ```
//!
//! # Always true
//!
//! 1. One seed and one sequence of calls give one history: no time, no randomness, no thread of
//!    the machine's own.
//! 2. A world is used by one thread at a time (the `threaded` setting lets another thread wake).
//!
//! # Not here
//!
//! Short transfers, `EINTR` and the like lie below the contract and are tested on the real
//! backends. What a recovered log must look like is told by the oracles, which know no file.

mod capture;
mod carry;
mod content;
mod crash;
mod disk;
mod explore;
mod fault;
mod flight;

mod image;
mod oracle;
mod random;
mod volume;
mod world;

pub use content::{Content, SECTOR, Sector};
pub use crash::{COMPLETE, CrashPoint, Digits, Model, Names, Seen, Torn};
pub use disk::SimDisk;
pub use explore::{
    Book, Explorer, LIVENESS, Plan, Report, Subject, Watch, sequence, sequences_count,
};
pub use fault::{Fault, Faults, Kind, Trouble};
pub use flight::{Target, Zombies};
pub use image::Image;
pub use oracle::{Ledger, Monitor, Verdict, Violation, value};
pub use random::{Random, mix};
pub use volume::{Ino, Volume};
pub use world::{Event, Hook, Phase, Settings, World};

#[cfg(test)]
mod tests;
