//! Operations on names: by the engine as it is, by an engine that leaves them to its threads, by a
//! bare ring, and by plain calls that nobody waits for.

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
    clock::SystemClock,
    io::{Disk, File as Opened},
    ioloop::{Answered, Ask, Handle, IoLoop, Reply, Settings, Sink, driver},
    uring::UringDisk,
};

use super::{
    Named,
    cells::Ring,
    table::{Meter, Sample},
};

/// Files that are there to be named; more than are removed in a sample.
const FILES: usize = 4096;

/// Who carries names out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Engine,
    Threads,
    Ring,
    Calls,
}

impl Named for Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Engine => "the engine",
            Self::Threads => "the engine, names left to its threads",
            Self::Ring => "the ring alone",
            Self::Calls => "plain calls, nobody waits",
        }
    }
}

/// What is done, again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    Stat,
    StatOpen,
    OpenClose,
    Make,
    Truncate,
    Rename,
    Unlink,
    SyncDirectory,
}

impl What {
    pub const ALL: [Self; 8] = [
        Self::Stat,
        Self::StatOpen,
        Self::OpenClose,
        Self::Make,
        Self::Truncate,
        Self::Rename,
        Self::Unlink,
        Self::SyncDirectory,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stat => "stat of a path",
            Self::StatOpen => "stat of an open file",
            Self::OpenClose => "open to read, and close",
            Self::Make => "open to write what may have to be made, and close",
            Self::Truncate => "truncate to what it has",
            Self::Rename => "rename there and back",
            Self::Unlink => "unlink",
            Self::SyncDirectory => "sync of a directory that has not changed",
        }
    }

    fn flags(self) -> i32 {
        match self {
            Self::Make => libc::O_RDWR | libc::O_CREAT,
            _ => libc::O_RDONLY,
        }
    }

    fn closes(self) -> bool {
        matches!(self, Self::OpenClose | Self::Make)
    }

    /// How often it can be done.
    fn most(self) -> u64 {
        match self {
            Self::Unlink => FILES as u64,
            _ => u64::MAX,
        }
    }
}

/// A directory of files, and how many requests are under way.
pub struct Names {
    paths: Vec<PathBuf>,
    others: Vec<PathBuf>,
    depth: usize,
}

struct Answers(mpsc::Sender<Answered>);

impl Sink for Answers {
    fn answer(&self, answered: Answered) {
        self.0.send(answered).unwrap();
    }
}

fn engine(way: Way) -> (Handle, std::thread::JoinHandle<()>) {
    let clock: Arc<SystemClock> = Arc::new(SystemClock::new());
    let disk = UringDisk::probe(clock.clone(), None).unwrap();
    let disk = match way {
        Way::Threads => disk.without_names(),
        _ => disk,
    };
    let (made, handle) = IoLoop::new(disk.backend().unwrap(), clock, Settings::default()).unwrap();
    (handle, driver::spawn(made).unwrap())
}

impl Names {
    pub const WAYS: [Way; 4] = [Way::Engine, Way::Threads, Way::Ring, Way::Calls];

    pub fn new(work: &Path, depth: usize) -> Self {
        let dir = work.join("names");
        std::fs::create_dir_all(&dir).unwrap();
        let name = |prefix: &str, at: usize| dir.join(format!("{prefix}{at}"));
        let paths: Vec<PathBuf> = (0..FILES).map(|at| name("", at)).collect();
        let others: Vec<PathBuf> = (0..FILES).map(|at| name("x", at)).collect();
        for (path, other) in paths.iter().zip(&others) {
            if other.exists() {
                std::fs::remove_file(other).unwrap();
            }
            if !path.exists() {
                File::create(path).unwrap();
            }
        }
        Self {
            paths,
            others,
            depth,
        }
    }

    pub fn sample(&self, way: Way, what: What, time: Duration) -> Option<Sample> {
        match way {
            Way::Engine | Way::Threads => Some(self.by_engine(way, what, time)),
            Way::Ring => self.by_ring(what, time),
            Way::Calls => Some(self.by_calls(what, time)),
        }
    }

    fn path(&self, number: u64) -> &Path {
        &self.paths[number as usize % FILES]
    }

    /// From where to where the rename of this number goes: each file there and back.
    fn ends(&self, number: u64) -> (&Path, &Path) {
        let at = number as usize % FILES;
        let there = (number / FILES as u64).is_multiple_of(2);
        let (old, new) = (&self.paths[at], &self.others[at]);
        if there { (old, new) } else { (new, old) }
    }

    fn dir(&self) -> &Path {
        self.paths[0].parent().unwrap()
    }

    fn by_calls(&self, what: What, time: Duration) -> Sample {
        let open = File::options().write(true).open(self.path(0)).unwrap();
        let (meter, mut done) = (Meter::start(), 0);
        while meter.elapsed() < time && done < what.most() {
            let path = self.path(done);
            match what {
                What::Stat => drop(std::fs::metadata(path).unwrap()),
                What::StatOpen => drop(open.metadata().unwrap()),
                What::OpenClose => drop(File::open(path).unwrap()),
                What::Make => drop(
                    File::options()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .open(path)
                        .unwrap(),
                ),
                What::Truncate => open.set_len(0).unwrap(),
                What::Rename => {
                    let (old, new) = self.ends(done);
                    std::fs::rename(old, new).unwrap();
                }
                What::Unlink => std::fs::remove_file(path).unwrap(),
                What::SyncDirectory => File::open(self.dir()).unwrap().sync_all().unwrap(),
            }
            done += 1;
        }
        meter.stop(done)
    }

    fn by_engine(&self, way: Way, what: What, time: Duration) -> Sample {
        let (handle, thread) = engine(way);
        let (sender, answers) = mpsc::channel();
        let sink: Arc<dyn Sink> = Arc::new(Answers(sender));
        let open = File::options().write(true).open(self.path(0)).unwrap();
        let file = Opened::from_fd(open.into());
        let submit = |ask| {
            let sink = Arc::clone(&sink);
            handle.submit(ask, None, sink, 0).unwrap();
        };
        let (meter, mut done, mut next) = (Meter::start(), 0, self.depth as u64);
        (0..next).for_each(|number| submit(self.ask(what, number, &file)));
        let mut open = self.depth;
        while open > 0 {
            let reply = answers.recv().unwrap().result.unwrap();
            if let Reply::File(file) = reply {
                submit(Ask::Close { file });
                continue;
            }
            done += 1;
            if meter.elapsed() < time && next < what.most() {
                submit(self.ask(what, next, &file));
                next += 1;
            } else {
                open -= 1;
            }
        }
        let sample = meter.stop(done);
        handle.close(None, None);
        thread.join().unwrap();
        sample
    }

    fn ask(&self, what: What, number: u64, file: &Opened) -> Ask {
        let path = self.path(number).to_owned();
        match what {
            What::Stat => Ask::StatPath { path },
            What::StatOpen => Ask::Stat { file: file.clone() },
            What::OpenClose | What::Make => Ask::Open {
                path,
                flags: what.flags(),
                mode: 0o600,
            },
            What::Truncate => Ask::Truncate {
                file: file.clone(),
                length: 0,
            },
            What::Rename => {
                let (from, to) = self.ends(number);
                let (from, to) = (from.to_owned(), to.to_owned());
                Ask::Rename { from, to }
            }
            What::Unlink => Ask::Unlink { path },
            What::SyncDirectory => Ask::SyncDirectory {
                path: self.dir().to_owned(),
            },
        }
    }

    fn by_ring(&self, what: What, time: Duration) -> Option<Sample> {
        let mut ring = Ring::WAYS[0].make(128)?;
        let open = File::options().write(true).open(self.path(0)).unwrap();
        let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&open));
        let terminated = |path: &PathBuf| CString::new(path.as_os_str().as_bytes()).unwrap();
        let names: Vec<CString> = self.paths.iter().map(terminated).collect();
        let others: Vec<CString> = self.others.iter().map(terminated).collect();
        let name = |number: u64| names[number as usize % FILES].as_ptr();
        // SAFETY: plain data, for which zeros are a value.
        let mut status: Vec<libc::statx> = vec![unsafe { std::mem::zeroed() }; self.depth];
        let here = types::Fd(libc::AT_FDCWD);
        if what == What::SyncDirectory {
            return None;
        }
        let mut entry = |slot: usize, number: u64| {
            let into = (&raw mut status[slot]).cast();
            let entry = match what {
                What::Stat => {
                    let stat = opcode::Statx::new(here, name(number), into);
                    stat.mask(libc::STATX_BASIC_STATS).build()
                }
                What::StatOpen | What::SyncDirectory => {
                    let stat = opcode::Statx::new(fd, c"".as_ptr(), into);
                    let stat = stat.flags(libc::AT_EMPTY_PATH);
                    stat.mask(libc::STATX_BASIC_STATS).build()
                }
                What::OpenClose | What::Make => {
                    let open = opcode::OpenAt::new(here, name(number));
                    open.flags(what.flags()).mode(0o600).build()
                }
                What::Truncate => opcode::Ftruncate::new(fd, 0).build(),
                What::Rename => {
                    let at = number as usize % FILES;
                    let (old, new) = (names[at].as_ptr(), others[at].as_ptr());
                    let there = (number / FILES as u64).is_multiple_of(2);
                    let (old, new) = if there { (old, new) } else { (new, old) };
                    opcode::RenameAt::new(here, old, here, new).build()
                }
                What::Unlink => opcode::UnlinkAt::new(here, name(number)).build(),
            };
            entry.user_data(slot as u64)
        };
        let (meter, mut done, mut next) = (Meter::start(), 0, self.depth as u64);
        for slot in 0..self.depth {
            stage(&mut ring, &entry(slot, slot as u64));
        }
        let mut open = self.depth;
        while open > 0 {
            ring.submit_and_wait(1).unwrap();
            let answers: Vec<_> = ring.completion().collect();
            for answer in answers {
                let slot = answer.user_data() as usize;
                assert!(answer.result() >= 0, "{}", answer.result());
                if what.closes() && slot < self.depth {
                    let close = opcode::Close::new(types::Fd(answer.result())).build();
                    stage(&mut ring, &close.user_data((slot + self.depth) as u64));
                    continue;
                }
                done += 1;
                if meter.elapsed() < time && next < what.most() {
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
