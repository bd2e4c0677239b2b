//! One request at a time, waiting for each: how open, recovery, readers and tools use a backend.
//!
//! Never used by the commit path, and never on a thread that must not wait.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    Access, Answer, Backend, Buffer, Class, File, Finished, Op, Request, Status, Token, Wait,
};
use crate::{
    clock::Mono,
    error::{Error, ErrorKind, Result},
};

/// Whether anybody still waits for what a long operation will give. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// Nobody does any more.
    pub fn withdraw(&self) {
        // Relaxed: the flag carries nothing but itself.
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Abandoned,
                "cancelled before it had changed anything",
            ));
        }
        Ok(())
    }
}

/// A backend with nothing else in flight, used synchronously.
pub struct Blocking<'a> {
    backend: &'a mut dyn Backend,
    finished: Vec<Finished>,
    wanted: Option<Wanted>,
}

impl<'a> Blocking<'a> {
    /// Borrows a backend that has nothing in flight.
    pub fn new(backend: &'a mut dyn Backend) -> Self {
        debug_assert_eq!(backend.in_flight(), 0, "the backend is shared with nobody");
        Self {
            backend,
            finished: Vec::new(),
            wanted: None,
        }
    }

    /// The backend's time.
    pub fn now(&self) -> Mono {
        self.backend.now()
    }

    /// Opens (and perhaps creates) a directory by path.
    pub fn open_dir(&mut self, path: &Path, create: bool) -> Result<File> {
        let path = path.to_owned();
        self.file(Op::OpenDir { path, create })
    }

    /// Opens a file in `dir`.
    pub fn open(&mut self, dir: &File, name: &str, access: Access) -> Result<File> {
        let (dir, name) = (dir.clone(), name.to_owned());
        self.file(Op::Open { dir, name, access })
    }

    /// The names in `dir`, sorted.
    pub fn list(&mut self, dir: &File) -> Result<Vec<String>> {
        match self.run(Op::List { dir: dir.clone() })?.0 {
            Answer::Names(mut names) => {
                names.sort_unstable();
                Ok(names)
            }
            other => Err(surprise(&other)),
        }
    }

    /// The length of `file`.
    pub fn length(&mut self, file: &File) -> Result<u64> {
        match self.run(Op::Length { file: file.clone() })?.0 {
            Answer::Length(length) => Ok(length),
            other => Err(surprise(&other)),
        }
    }

    /// What is known about `file`.
    pub fn status(&mut self, file: &File) -> Result<Status> {
        match self.run(Op::Stat { file: file.clone() })?.0 {
            Answer::Status(status) => Ok(*status),
            other => Err(surprise(&other)),
        }
    }

    /// Reads up to `length` bytes into `buffer`; fewer only at the end of the file.
    pub fn read(
        &mut self,
        file: &File,
        offset: u64,
        length: usize,
        buffer: Buffer,
    ) -> Result<(usize, Buffer)> {
        let file = file.clone();
        let op = Op::Read {
            file,
            offset,
            length,
            buffer,
        };
        match self.run(op)? {
            (Answer::Count(count), Some(buffer)) => Ok((count, buffer)),
            (other, _) => Err(surprise(&other)),
        }
    }

    /// Writes `buffer[..length]`; with `sync`, durable on return.
    pub fn write(
        &mut self,
        file: &File,
        offset: u64,
        length: usize,
        buffer: Buffer,
        sync: bool,
    ) -> Result<Buffer> {
        let file = file.clone();
        let op = Op::Write {
            file,
            offset,
            length,
            buffer,
            sync,
        };
        match self.run(op)? {
            (_, Some(buffer)) => Ok(buffer),
            (other, None) => Err(surprise(&other)),
        }
    }

    /// Makes the bytes and the length of `file` durable.
    pub fn sync(&mut self, file: &File) -> Result<()> {
        self.done(Op::Sync { file: file.clone() })
    }

    /// Reserves space; a filesystem without such a call is not an error.
    pub fn allocate(&mut self, file: &File, length: u64) -> Result<()> {
        let file = file.clone();
        match self.done(Op::Allocate { file, length }) {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    /// Cuts or extends `file`.
    pub fn truncate(&mut self, file: &File, length: u64) -> Result<()> {
        let file = file.clone();
        self.done(Op::Truncate { file, length })
    }

    /// Renames within `dir`.
    pub fn rename(&mut self, dir: &File, from: &str, to: &str) -> Result<()> {
        let (dir, from, to) = (dir.clone(), from.to_owned(), to.to_owned());
        self.done(Op::Rename { dir, from, to })
    }

    /// Removes a name.
    pub fn unlink(&mut self, dir: &File, name: &str) -> Result<()> {
        let (dir, name) = (dir.clone(), name.to_owned());
        self.done(Op::Unlink { dir, name })
    }

    /// Removes a file that could not be finished, and says why it could not: a filesystem may have
    /// given it all the space there was.
    pub fn give_back<T>(&mut self, dir: &File, name: &str, why: Error) -> Result<T> {
        // What cannot be removed now is a leftover for the next open.
        let _removed = self.unlink(dir, name);
        Err(why)
    }

    /// Makes changes of names in `dir` durable.
    pub fn sync_dir(&mut self, dir: &File) -> Result<()> {
        self.done(Op::SyncDir { dir: dir.clone() })
    }

    /// Makes the next read of `file` come from the device.
    pub fn drop_cache(&mut self, file: &File) -> Result<()> {
        self.done(Op::DropCache { file: file.clone() })
    }

    /// Takes the exclusive lock of `file`, or fails with `Locked`.
    pub fn lock(&mut self, file: &File) -> Result<()> {
        self.done(Op::Lock { file: file.clone() })
    }

    /// Takes the lock of `file` together with others who share it, or fails with `Locked`.
    pub fn share(&mut self, file: &File) -> Result<()> {
        self.done(Op::Share { file: file.clone() })
    }

    /// Gives the lock of `file` back.
    pub fn unlock(&mut self, file: &File) -> Result<()> {
        self.done(Op::Unlock { file: file.clone() })
    }

    /// Keeps `lock` with the backend's own writes; see [`Backend::hold`].
    pub fn hold(&mut self, lock: &File) -> Result<()> {
        self.backend.hold(lock)
    }

    /// Waits in the backend's time.
    pub fn sleep(&mut self, duration: Duration) -> Result<()> {
        let until = self.backend.now().after(duration);
        while self.backend.now() < until {
            self.backend.poll(&mut self.finished, Wait::Until(until))?;
        }
        Ok(())
    }

    /// Refuses every operation from the moment that `wanted` is withdrawn.
    #[must_use]
    pub fn while_wanted(mut self, wanted: &Wanted) -> Self {
        self.wanted = (!planted!("open_never_withdrawn")).then(|| wanted.clone());
        self
    }

    /// From here on nothing is refused: what has begun is brought to its end.
    pub fn to_the_end(&mut self) {
        self.wanted = None;
    }

    fn file(&mut self, op: Op) -> Result<File> {
        match self.run(op)?.0 {
            Answer::File(file) => Ok(file),
            other => Err(surprise(&other)),
        }
    }

    fn done(&mut self, op: Op) -> Result<()> {
        self.run(op).map(|_| ())
    }

    fn run(&mut self, op: Op) -> Result<(Answer, Option<Buffer>)> {
        self.wanted.as_ref().map_or(Ok(()), Wanted::check)?;
        let request = Request {
            token: Token(0),
            class: Class::Foreground,
            op,
        };
        if self.backend.submit(request).is_err() {
            return Err(Error::new(
                ErrorKind::Overloaded,
                "a backend with nothing in flight refused a request",
            ));
        }
        loop {
            self.backend.poll(&mut self.finished, Wait::Forever)?;
            if let Some(finished) = self.finished.pop() {
                return finished.result.map(|answer| (answer, finished.buffer));
            }
        }
    }
}

fn surprise(answer: &Answer) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("the backend answered {answer:?} to a request that has another answer"),
    )
}
