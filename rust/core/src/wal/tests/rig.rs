//! A log on the simulated disk, turned by hand.

use std::path::Path;

use crate::{
    error::Result,
    ids::{Lsn, StoreId},
    io::{Backend, Blocking, Disk, Wait, Wanted},
    sim::{SimDisk, Zombies},
    sync::{Arc, lock},
    wal::{
        commit::Next,
        cursor::Mark,
        open::{self, Manner, Opened, World},
        recovery::{RecoveryMode, recover},
        settings::LogSettings,
        trial::Alone,
    },
};

pub(crate) fn world(disk: &SimDisk) -> World {
    World {
        clock: Arc::new(disk.clock()),
        disk: Arc::new(disk.clone()),
        census: Box::new(Alone),
        fresh_id: StoreId([7; 16]),
        wanted: Wanted::default(),
    }
}

/// Small enough to rotate often.
pub(crate) fn small() -> LogSettings {
    LogSettings {
        segment_bytes: 32 << 10,
        segment_first_bytes: 8 << 10,
        record_bytes_max: 4 << 10,
        group_bytes_max: 8 << 10,
        ring_entries: 64,
        ring_bytes: 64 << 10,
        block_bytes: 512,
        ..LogSettings::default()
    }
}

pub(crate) struct Rig {
    pub(crate) opened: Opened,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) disk: SimDisk,
}

impl Rig {
    pub(crate) fn open(disk: &SimDisk, settings: LogSettings, window: u32) -> Result<Self> {
        let world = world(disk);
        let manner = Manner {
            window,
            direct: false,
        };
        let opened = open::open(&world, Path::new("/log"), settings, || Ok(manner))?;
        let mut backend = world.disk.backend()?;
        backend.hold(&opened.lock)?;
        opened.committer.attach(&*backend);
        Ok(Self {
            opened,
            backend,
            disk: disk.clone(),
        })
    }

    /// Turns until nothing is in flight; returns whether the committer is done.
    pub(crate) fn settle(&mut self) -> bool {
        loop {
            match self.opened.committer.turn(&mut *self.backend) {
                Next::Done => return true,
                Next::Wait(Wait::Never) => {}
                Next::Wait(_) if self.backend.in_flight() == 0 => return false,
                Next::Wait(_) => {}
            }
            self.opened
                .committer
                .wait(&mut *self.backend, Wait::Forever);
        }
    }

    pub(crate) fn submit(&self, bytes: &[u8]) -> Result<Lsn> {
        self.opened.appender.submit(bytes.into())
    }

    pub(crate) fn commit_cursor(&mut self, name: &str, mark: Mark) -> Result<()> {
        let mut backend = self.disk.backend()?;
        let mut io = Blocking::new(&mut *backend);
        let mut cursors = lock(&self.opened.appender.0.cursors);
        cursors.set(&mut io, &self.opened.dir, name, mark)
    }

    pub(crate) fn truncate_before(&mut self, lsn: Lsn) -> Result<Lsn> {
        let mut backend = self.disk.backend()?;
        let mut io = Blocking::new(&mut *backend);
        let segments = &self.opened.appender.0.segments;
        let first = segments.drop_below(lsn);
        segments.remove_files(&mut io, &self.opened.dir)?;
        Ok(first)
    }

    pub(crate) fn close(mut self) -> Result<()> {
        self.opened.appender.request_close();
        assert!(self.settle());
        self.backend.let_go();
        Blocking::new(&mut *self.backend).unlock(&self.opened.lock)
    }
}

/// What a process kill now would leave: the LSN that recovery finds last.
pub(crate) fn durable_prefix(world: &crate::sim::World) -> Lsn {
    let disk = world.killed(Zombies::default());
    let mut backend = disk.backend().unwrap();
    let mut io = Blocking::new(&mut *backend);
    let dir = io.open_dir(Path::new("/log"), false).unwrap();
    let found = recover(&mut io, &dir, RecoveryMode::Tail).unwrap();
    found.next.previous()
}
