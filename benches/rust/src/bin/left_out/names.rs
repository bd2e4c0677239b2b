//! Operations on names: by the threads of the engine, through the ring, and by plain calls.

use std::{
    ffi::CString,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};
use millrace_core::{
    engine::io::{self, IoEngine},
    ioloop::{Answered, Ask, Reply, Sink},
};

use super::{
    Named,
    cells::Ring,
    table::{Meter, Sample},
};

/// Files that are there to be named; more than are removed in a sample.
const FILES: usize = 4096;

/// Who carries names out.
#[derive(Clone, Copy)]
pub enum Way {
    Engine,
    Ring,
    Calls,
}

impl Named for Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Engine => "the engine: a thread of its own",
            Self::Ring => "the ring alone",
            Self::Calls => "plain calls, nobody waits",
        }
    }
}

/// A directory of files, and how many requests are under way.
pub struct Names {
    paths: Vec<PathBuf>,
    depth: usize,
}

struct Answers(mpsc::Sender<Answered>);

impl Sink for Answers {
    fn answer(&self, answered: Answered) {
        self.0.send(answered).unwrap();
    }
}

impl Names {
    pub const WAYS: [Way; 3] = [Way::Engine, Way::Ring, Way::Calls];

    pub fn new(work: &Path, depth: usize) -> Self {
        let dir = work.join("names");
        std::fs::create_dir_all(&dir).unwrap();
        let paths: Vec<PathBuf> = (0..FILES).map(|at| dir.join(at.to_string())).collect();
        for path in &paths {
            if !path.exists() {
                File::create(path).unwrap();
            }
        }
        Self { paths, depth }
    }

    pub fn sample(&self, way: Way, what: &str, time: Duration) -> Option<Sample> {
        let most = if what == "unlink" {
            FILES as u64
        } else {
            u64::MAX
        };
        match way {
            Way::Engine => Some(self.by_engine(what, time, most)),
            Way::Ring => self.by_ring(what, time, most),
            Way::Calls => Some(self.by_calls(what, time, most)),
        }
    }

    fn path(&self, number: u64) -> &Path {
        &self.paths[number as usize % FILES]
    }

    fn by_calls(&self, what: &str, time: Duration, most: u64) -> Sample {
        let (meter, mut done) = (Meter::start(), 0);
        while meter.elapsed() < time && done < most {
            let path = self.path(done);
            match what {
                "stat" => drop(std::fs::metadata(path).unwrap()),
                "unlink" => std::fs::remove_file(path).unwrap(),
                _ => drop(File::open(path).unwrap()),
            }
            done += 1;
        }
        meter.stop(done)
    }

    fn by_engine(&self, what: &str, time: Duration, most: u64) -> Sample {
        let engine = io::open(&io::IoSettings::default()).unwrap();
        let (sender, answers) = mpsc::channel();
        let sink: Arc<dyn Sink> = Arc::new(Answers(sender));
        let ask = |number: u64| {
            let path = self.path(number).to_owned();
            match what {
                "stat" => Ask::StatPath { path },
                "unlink" => Ask::Unlink { path },
                _ => Ask::Open {
                    path,
                    flags: libc::O_RDONLY,
                    mode: 0,
                },
            }
        };
        let submit = |engine: &IoEngine, ask| {
            let sink = Arc::clone(&sink);
            engine.handle().submit(ask, None, sink, 0).unwrap();
        };
        let (meter, mut done, mut next) = (Meter::start(), 0, self.depth as u64);
        (0..next).for_each(|number| submit(&engine, ask(number)));
        let mut open = self.depth;
        while open > 0 {
            let reply = answers.recv().unwrap().result.unwrap();
            if let Reply::File(file) = reply {
                submit(&engine, Ask::Close { file });
                continue;
            }
            done += 1;
            if meter.elapsed() < time && next < most {
                submit(&engine, ask(next));
                next += 1;
            } else {
                open -= 1;
            }
        }
        meter.stop(done)
    }

    fn by_ring(&self, what: &str, time: Duration, most: u64) -> Option<Sample> {
        let mut ring = Ring::WAYS[0].make(64)?;
        let names: Vec<CString> = self
            .paths
            .iter()
            .map(|path| CString::new(path.as_os_str().as_bytes()).unwrap())
            .collect();
        let name = |number: u64| names[number as usize % FILES].as_ptr();
        // SAFETY: plain data, for which zeros are a value.
        let mut status: Vec<libc::statx> = vec![unsafe { std::mem::zeroed() }; self.depth];
        let here = types::Fd(libc::AT_FDCWD);
        let mut entry = |slot: usize, number: u64| {
            let entry = match what {
                "stat" => {
                    let into = (&raw mut status[slot]).cast();
                    let stat = opcode::Statx::new(here, name(number), into);
                    stat.mask(libc::STATX_BASIC_STATS).build()
                }
                "unlink" => opcode::UnlinkAt::new(here, name(number)).build(),
                _ => opcode::OpenAt::new(here, name(number)).build(),
            };
            entry.user_data(slot as u64)
        };
        let (meter, mut done, mut next) = (Meter::start(), 0, self.depth as u64);
        for slot in 0..self.depth {
            stage(&mut ring, &entry(slot, slot as u64));
        }
        let (mut open, closes) = (self.depth, what == "open and close");
        while open > 0 {
            ring.submit_and_wait(1).unwrap();
            let answers: Vec<_> = ring.completion().collect();
            for answer in answers {
                let slot = answer.user_data() as usize;
                assert!(answer.result() >= 0, "{}", answer.result());
                if closes && slot < self.depth {
                    let close = opcode::Close::new(types::Fd(answer.result())).build();
                    stage(&mut ring, &close.user_data((slot + self.depth) as u64));
                    continue;
                }
                done += 1;
                if meter.elapsed() < time && next < most {
                    let slot = slot % self.depth;
                    stage(&mut ring, &entry(slot, next));
                    next += 1;
                } else {
                    open -= 1;
                }
            }
        }
        Some(meter.stop(done))
    }
}

fn stage(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: names and places for answers outlive the ring's last answer, which is waited for.
    unsafe { ring.submission().push(entry) }.unwrap();
}
