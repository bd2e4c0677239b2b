mod batch;
mod beside;
mod faults;
mod frame;
mod full;
mod group_commit;
mod handback;
mod lifecycle;
mod reader;
mod recovery;
mod recycle;
mod repair;
pub(crate) mod rig;
mod segment;
mod shelf;
mod trust;
mod turner;
mod verdict;
mod watch;

use crate::{
    error::Result,
    io::{Blocking, Disk, MemoryDisk},
    wal::{
        reader::{Catalogue, Reader},
        recovery::{Recovered, RecoveryMode, recover},
    },
};
use std::{path::Path, sync::Arc};

/// Runs with a backend of `disk` and its directory.
fn with_dir<R>(disk: &MemoryDisk, run: impl FnOnce(&mut Blocking, &crate::io::File) -> R) -> R {
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("log"), false).unwrap();
    run(&mut io, &dir)
}

fn recover_in(disk: &MemoryDisk, mode: RecoveryMode) -> Result<Recovered> {
    with_dir(disk, |io, dir| recover(io, dir, mode))
}

/// Everything a reader gives, or its error.
fn read_all(disk: &MemoryDisk, recovered: &Recovered) -> Result<Vec<Vec<u8>>> {
    with_dir(disk, |io, dir| {
        let catalogue = Arc::new(Catalogue::new(recovered));
        let mut reader = Reader::new(catalogue, dir.clone(), recovered.first, None)?;
        let mut records = Vec::new();
        while let Some(batch) = reader.next_batch(io, recovered.next.previous(), 7)? {
            records.extend(batch.payloads().map(<[u8]>::to_vec));
        }
        Ok(records)
    })
}
