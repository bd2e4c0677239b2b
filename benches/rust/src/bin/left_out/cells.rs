//! Reads and durable writes through a ring that is made as the engine makes it, or otherwise.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};
use millrace_core::io::{BLOCK, Buffer};

use super::{
    Named,
    table::{Meter, Sample},
};

/// How a ring is made and what is registered with it.
#[derive(Clone, Copy)]
pub struct Ring {
    name: &'static str,
    /// A thread of the kernel takes submissions.
    polled: bool,
    files: bool,
    buffers: bool,
}

const ENGINE: Ring = Ring {
    name: "as the engine does",
    polled: false,
    files: false,
    buffers: false,
};

impl Ring {
    pub const WAYS: [Self; 5] = [
        ENGINE,
        Self {
            name: "registered file",
            files: true,
            ..ENGINE
        },
        Self {
            name: "registered buffers",
            buffers: true,
            ..ENGINE
        },
        Self {
            name: "registered file and buffers",
            files: true,
            buffers: true,
            ..ENGINE
        },
        Self {
            name: "SQPOLL",
            polled: true,
            ..ENGINE
        },
    ];

    pub fn make(self, entries: u32) -> Option<IoUring> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(entries * 4);
        if self.polled {
            builder.setup_sqpoll(50);
        } else {
            builder
                .setup_submit_all()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag();
        }
        builder.build(entries).ok()
    }
}

impl Named for Ring {
    fn name(&self) -> &'static str {
        self.name
    }
}

/// Pages that a ring moves, one for each place in flight.
struct Pages {
    memory: Buffer,
}

impl Pages {
    fn new(count: usize) -> Self {
        let memory = Buffer::zeroed(count * BLOCK);
        Self { memory }
    }

    fn at(&mut self, slot: usize) -> *mut u8 {
        self.memory[slot * BLOCK..].as_mut_ptr()
    }

    fn number(&self, slot: usize) -> u64 {
        let start = slot * BLOCK;
        let bytes = self.memory[start..start + 8].try_into().unwrap();
        u64::from_le_bytes(bytes)
    }

    fn register(&mut self, ring: &IoUring, count: usize) {
        let vectors: Vec<libc::iovec> = (0..count)
            .map(|slot| libc::iovec {
                iov_base: self.at(slot).cast(),
                iov_len: BLOCK,
            })
            .collect();
        // SAFETY: the pages outlive the ring in every caller: they are declared before it.
        unsafe { ring.submitter().register_buffers(&vectors) }.unwrap();
    }
}

/// Random reads of a file in which each block begins with its number.
pub struct Reads {
    path: PathBuf,
    blocks: u64,
    depth: usize,
}

impl Reads {
    pub fn new(work: &Path, bytes: u64, depth: usize) -> Self {
        let path = work.join("reads");
        let blocks = bytes / BLOCK as u64;
        if !path.exists() {
            fill(&path, blocks);
        }
        Self {
            path,
            blocks,
            depth,
        }
    }

    pub fn sample(&self, way: &Ring, time: Duration) -> Option<Sample> {
        let file = direct(&self.path);
        let mut pages = Pages::new(self.depth);
        let mut ring = way.make((self.depth as u32 * 2).max(8))?;
        prepare(&ring, *way, &file, &mut pages, self.depth);
        let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
        let mut asked = vec![0; self.depth];
        for (slot, number) in asked.iter_mut().enumerate() {
            *number = numbers.next() % self.blocks;
            stage(&mut ring, &read(*way, &file, pages.at(slot), slot, *number));
        }
        let (meter, mut done, mut open) = (Meter::start(), 0, self.depth);
        while open > 0 {
            ring.submit_and_wait(1).unwrap();
            let answers: Vec<_> = ring.completion().collect();
            let goes_on = meter.elapsed() < time;
            for answer in answers {
                let slot = answer.user_data() as usize;
                assert_eq!(answer.result(), BLOCK as i32);
                assert_eq!(pages.number(slot), asked[slot]);
                done += 1;
                if !goes_on {
                    open -= 1;
                    continue;
                }
                asked[slot] = numbers.next() % self.blocks;
                let entry = read(*way, &file, pages.at(slot), slot, asked[slot]);
                stage(&mut ring, &entry);
            }
        }
        Some(meter.stop(done))
    }
}

/// Writes that are durable when they are answered, over space that was written before.
pub struct DurableWrites {
    path: PathBuf,
    blocks: u64,
}

impl DurableWrites {
    pub fn new(work: &Path) -> Self {
        let (path, blocks) = (work.join("writes"), 16 << 10);
        fill(&path, blocks);
        Self { path, blocks }
    }

    pub fn sample(&self, way: &Ring, time: Duration) -> Option<Sample> {
        let file = direct(&self.path);
        let mut pages = Pages::new(1);
        let mut ring = way.make(8)?;
        prepare(&ring, *way, &file, &mut pages, 1);
        let (meter, mut done) = (Meter::start(), 0);
        while meter.elapsed() < time {
            let offset = done % self.blocks * BLOCK as u64;
            let entry = write(*way, &file, pages.at(0), offset);
            stage(&mut ring, &entry);
            ring.submit_and_wait(1).unwrap();
            let answer = ring.completion().next().unwrap();
            assert_eq!(answer.result(), BLOCK as i32);
            done += 1;
        }
        Some(meter.stop(done))
    }
}

fn prepare(ring: &IoUring, way: Ring, file: &File, pages: &mut Pages, count: usize) {
    if way.files {
        let fd = [file.as_raw_fd()];
        ring.submitter().register_files(&fd).unwrap();
    }
    if way.buffers {
        pages.register(ring, count);
    }
}

fn stage(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: the entry points into pages that outlive the ring.
    unsafe { ring.submission().push(entry) }.unwrap();
}

fn read(way: Ring, file: &File, page: *mut u8, slot: usize, number: u64) -> squeue::Entry {
    let offset = number * BLOCK as u64;
    let length = BLOCK as u32;
    let fd = types::Fd(file.as_raw_fd());
    let entry = match (way.files, way.buffers) {
        (false, false) => opcode::Read::new(fd, page, length).offset(offset).build(),
        (true, false) => opcode::Read::new(types::Fixed(0), page, length)
            .offset(offset)
            .build(),
        (false, true) => opcode::ReadFixed::new(fd, page, length, slot as u16)
            .offset(offset)
            .build(),
        (true, true) => opcode::ReadFixed::new(types::Fixed(0), page, length, slot as u16)
            .offset(offset)
            .build(),
    };
    entry.user_data(slot as u64)
}

fn write(way: Ring, file: &File, page: *const u8, offset: u64) -> squeue::Entry {
    let length = BLOCK as u32;
    let fd = types::Fd(file.as_raw_fd());
    let durable = libc::RWF_DSYNC;
    match (way.files, way.buffers) {
        (false, false) => opcode::Write::new(fd, page, length)
            .offset(offset)
            .rw_flags(durable)
            .build(),
        (true, false) => opcode::Write::new(types::Fixed(0), page, length)
            .offset(offset)
            .rw_flags(durable)
            .build(),
        (false, true) => opcode::WriteFixed::new(fd, page, length, 0)
            .offset(offset)
            .rw_flags(durable)
            .build(),
        (true, true) => opcode::WriteFixed::new(types::Fixed(0), page, length, 0)
            .offset(offset)
            .rw_flags(durable)
            .build(),
    }
}

fn direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

/// Writes a file in which each block begins with its number.
fn fill(path: &Path, blocks: u64) {
    const EACH: u64 = 256;
    let mut file = File::create(path).unwrap();
    for first in (0..blocks).step_by(EACH as usize) {
        let mut chunk = vec![0; BLOCK * EACH as usize];
        for (at, block) in chunk.chunks_exact_mut(BLOCK).enumerate() {
            block[..8].copy_from_slice(&(first + at as u64).to_le_bytes());
        }
        file.write_all(&chunk).unwrap();
    }
    file.sync_all().unwrap();
}

/// Numbers that repeat in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
