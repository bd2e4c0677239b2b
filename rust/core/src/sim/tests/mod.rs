//! The simulated disk keeps its own promises.

mod crash;
mod disk;
mod oracle;
mod toy;

mod contract {
    use super::super::{Settings, SimDisk};
    use crate::io::{Blocking, Disk, contract::World, faulty::FaultyDisk, metered::MeteredDisk};

    fn disk() -> SimDisk {
        SimDisk::new(Settings::default())
    }

    fn world_on(disk: impl Disk + 'static) -> World {
        let mut backend = disk.backend().unwrap();
        let path = std::path::PathBuf::from("/contract");
        Blocking::new(&mut *backend).open_dir(&path, true).unwrap();
        World {
            disk: Box::new(disk),
            path,
            real: false,
            keep: Box::new(()),
        }
    }

    mod bare {
        fn world(_name: &str) -> super::World {
            super::world_on(super::disk())
        }
        crate::contract_tests!(world);
    }

    mod faulty {
        fn world(_name: &str) -> super::World {
            super::world_on(super::FaultyDisk::new(super::disk()))
        }
        crate::contract_tests!(world);
    }

    mod metered {
        fn world(_name: &str) -> super::World {
            super::world_on(super::MeteredDisk::new(super::disk()))
        }
        crate::contract_tests!(world);
    }
}

use std::path::Path;

use super::SimDisk;
use crate::io::{Backend, Blocking, Buffer, Disk, File};

/// A backend and an opened directory on `disk`.
fn open(disk: &SimDisk) -> (Box<dyn Backend>, File) {
    let mut backend = disk.backend().unwrap();
    let dir = Blocking::new(&mut *backend)
        .open_dir(Path::new("/log"), true)
        .unwrap();
    (backend, dir)
}

/// A buffer of `length` bytes, all `byte`.
fn filled(length: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    buffer.fill(byte);
    buffer
}

/// The first byte of every sector of `file`.
fn sectors(io: &mut Blocking<'_>, file: &File) -> Vec<u8> {
    let length = io.length(file).unwrap() as usize;
    let (count, buffer) = io.read(file, 0, length, Buffer::zeroed(length)).unwrap();
    buffer[..count]
        .iter()
        .step_by(super::SECTOR)
        .copied()
        .collect()
}
