//! Small stores whose every byte is known, and what is read back from them.

use std::{path::Path, sync::Arc};

use millrace_core::{
    Result,
    error::Error,
    ids::Lsn,
    io::{Blocking, Disk, File, MemoryDisk},
    wal::{
        builder::Builder,
        reader::{Catalogue, Reader},
        recovery::{Recovered, RecoveryMode, recover},
        segment::SegmentLimits,
    },
};

/// Eight blocks a segment, two frames in flight.
pub const TINY: SegmentLimits = SegmentLimits {
    block_bytes: 512,
    window: 2,
    record_bytes_max: 1500,
    group_bytes_max: 2000,
    segment_bytes: 4096,
};

/// Runs with a backend of `disk` and the directory on it.
pub fn with_dir<R>(disk: &dyn Disk, run: impl FnOnce(&mut Blocking, &File) -> R) -> R {
    let mut backend = disk.backend().expect("a disk in memory has backends");
    let mut io = Blocking::new(&mut *backend);
    let dir = io
        .open_dir(Path::new("log"), false)
        .expect("and a directory");
    run(&mut io, &dir)
}

/// Recovers what lies on `disk`.
pub fn open(disk: &MemoryDisk, mode: RecoveryMode) -> Result<Recovered> {
    with_dir(disk, |io, dir| recover(io, dir, mode))
}

/// Everything a reader gives, with LSNs, and the error that ended it if one did.
pub fn read(disk: &MemoryDisk, recovered: &Recovered) -> (Vec<(Lsn, Vec<u8>)>, Option<Error>) {
    let mut records = Vec::new();
    let result = with_dir(disk, |io, dir| {
        let catalogue = Arc::new(Catalogue::new(recovered));
        let mut reader = Reader::new(catalogue, dir.clone(), recovered.first, None)?;
        let durable = recovered.next.previous();
        while let Some(batch) = reader.next_batch(io, durable, usize::MAX)? {
            for (ahead, payload) in batch.payloads().enumerate() {
                records.push((batch.first().plus(ahead as u64), payload.to_vec()));
            }
        }
        Ok(())
    });
    (records, result.err())
}

/// Two owners, the second killed: rolls, watermarks, a cut predecessor, frames of several blocks.
pub fn killed() -> Builder {
    let mut builder = Builder::new(TINY);
    builder.append(&[b"one".as_slice(), b"", b"three"]);
    builder.append(&[vec![4; 900]]);
    builder.watermark();
    builder.roll();
    builder.append(&[vec![5; 1400], vec![6; 3]]);
    builder.append(&[b"seven"]);
    builder.reopen();
    builder.cut_predecessor();
    builder.append(&[b"eight".as_slice(), b"nine"]);
    builder.append(&[vec![10; 700]]);
    builder
}

/// One owner who closed the log.
pub fn closed() -> Builder {
    let mut builder = Builder::new(TINY);
    builder.append(&[b"alpha"]);
    builder.append(&[vec![2; 600], vec![3; 10]]);
    builder.append(&[b"gamma"]);
    builder.close();
    builder
}

/// Killed after a restart, before anything was appended; two frames were in flight before.
pub fn restarted() -> Builder {
    let mut builder = Builder::new(TINY);
    builder.append(&[b"first"]);
    builder.append_after(&[vec![2; 500]], Lsn(0));
    builder.append_after(&[b"third"], Lsn(1));
    builder.reopen();
    builder.append_after(&[b"fourth"], Lsn(3));
    builder.append_after(&[vec![5; 800]], Lsn(3));
    builder.watermark();
    builder.reopen();
    builder
}

/// Killed in a segment whose file was another one before: old frames lie behind the tail.
pub fn recycled() -> Builder {
    let mut builder = Builder::new(TINY);
    builder.append(&[b"one"]);
    builder.append(&[vec![2; 600]]);
    builder.append(&[b"three"]);
    builder.append(&[vec![4; 700]]);
    builder.roll_recycled();
    builder.append(&[vec![5; 500]]);
    builder.append(&[b"six"]);
    builder.watermark();
    builder
}
