//! What a request does: turned into an effect when it is submitted, carried out when it is
//! answered or lands.

use super::{
    content::{Piece, SECTOR},
    fault::Trouble,
    flight::{Effect, Flight, Target},
    volume::Ino,
    world::{Handle, Lock, World},
};
use crate::{
    error::{Error, ErrorKind, Result},
    io::{Access, Answer, Buffer, File, Op, Open, Status},
};

/// Turns requests into effects.
impl World {
    fn handle(&self, file: &File) -> Option<(usize, &Handle)> {
        let number = file.number()? as usize;
        self.handles.get(number).map(|handle| (number, handle))
    }

    fn dir(&self, file: &File, then: impl FnOnce(usize) -> Effect) -> Effect {
        match self.handle(file) {
            Some((
                _,
                Handle {
                    target: Target::Dir(dir),
                    ..
                },
            )) => then(*dir),
            Some(_) => refused(libc::ENOTDIR),
            None => refused(libc::EBADF),
        }
    }

    fn file(&self, file: &File, then: impl FnOnce(Ino, &Handle, usize) -> Effect) -> Effect {
        match self.handle(file) {
            Some((
                number,
                handle @ Handle {
                    target: Target::File(ino),
                    ..
                },
            )) => then(*ino, handle, number),
            Some(_) => refused(libc::EISDIR),
            None => refused(libc::EBADF),
        }
    }

    fn named(&self, file: &File, names: &[&str], then: impl FnOnce(usize) -> Effect) -> Effect {
        if names.iter().all(|name| is_name(name)) {
            return self.dir(file, then);
        }
        Effect::Refused(Error::invalid("not a name for a file"))
    }

    /// What an operation will do. Paths and sockets belong to programs; this machine runs none.
    #[allow(clippy::too_many_lines, reason = "one arm for each operation")]
    pub(super) fn plan(&self, op: Op) -> (Effect, Option<Buffer>, Option<File>) {
        let (effect, file) = match op {
            Op::OpenDir { path, create } => (Effect::OpenDir { path, create }, None),
            Op::Open { dir, name, access } => {
                let then = |at| Effect::Open {
                    dir: at,
                    name: name.clone(),
                    access,
                };
                (self.named(&dir, &[&name], then), Some(dir))
            }
            Op::List { dir } => (self.dir(&dir, |dir| Effect::List { dir }), Some(dir)),
            Op::Rename { dir, from, to } => {
                let then = |at| Effect::Rename {
                    dir: at,
                    from: from.clone(),
                    to: to.clone(),
                };
                (self.named(&dir, &[&from, &to], then), Some(dir))
            }
            Op::Unlink { dir, name } => {
                let then = |at| Effect::Unlink {
                    dir: at,
                    name: name.clone(),
                };
                (self.named(&dir, &[&name], then), Some(dir))
            }
            Op::SyncDir { dir } => (self.dir(&dir, |dir| Effect::SyncDir { dir }), Some(dir)),
            Op::Length { file } => (
                self.file(&file, |ino, _, _| Effect::Length { ino }),
                Some(file),
            ),
            Op::Stat { file } => (
                self.file(&file, |ino, _, _| Effect::Stat { ino }),
                Some(file),
            ),
            Op::Sync { file } | Op::SyncData { file } => (
                self.file(&file, |ino, _, _| Effect::Sync { ino }),
                Some(file),
            ),
            Op::DropCache { file } => (
                self.file(&file, |ino, _, _| Effect::DropCache { ino }),
                Some(file),
            ),
            Op::Lock { file } => (
                self.file(&file, |ino, _, handle| Effect::Lock {
                    ino,
                    handle,
                    is_shared: false,
                }),
                Some(file),
            ),
            Op::Share { file } => (
                self.file(&file, |ino, _, handle| Effect::Lock {
                    ino,
                    handle,
                    is_shared: true,
                }),
                Some(file),
            ),
            Op::Unlock { file } => (
                self.file(&file, |ino, _, handle| Effect::Unlock { ino, handle }),
                Some(file),
            ),
            Op::Allocate { file, length } => (self.plan_resize(&file, length, false), Some(file)),
            Op::Truncate { file, length } => (self.plan_resize(&file, length, true), Some(file)),
            Op::Read {
                file,
                offset,
                length,
                buffer,
            } => {
                let effect = self.plan_read(&file, offset, length, &buffer);
                return (effect, Some(buffer), Some(file));
            }
            Op::Write {
                file,
                offset,
                length,
                buffer,
                sync,
            } => {
                let effect = self.plan_write(&file, offset, length, &buffer, sync);
                return (effect, Some(buffer), Some(file));
            }
            _ => (refused(libc::EOPNOTSUPP), None),
        };
        (effect, None, file)
    }

    fn status(&self, ino: Ino) -> Status {
        Status {
            inode: ino as u64,
            links: self.volume.links(ino),
            length: self.volume.inodes[ino].cache.length(),
            // Another time for each content, which is all that can be asked of one.
            modified_ns: self.volume.inodes[ino].cache.fingerprint() as i64,
            ..Status::default()
        }
    }

    fn plan_resize(&self, file: &File, length: u64, may_cut: bool) -> Effect {
        self.file(file, |ino, handle, _| match handle.write {
            false => refused(libc::EBADF),
            true if !may_cut && !self.settings.allocate => refused(libc::EOPNOTSUPP),
            true => Effect::Resize {
                ino,
                length,
                may_cut,
            },
        })
    }

    fn plan_read(&self, file: &File, offset: u64, length: usize, buffer: &Buffer) -> Effect {
        self.file(file, |ino, handle, _| {
            if let Some(refusal) = check_span(handle, offset, length, buffer) {
                return refusal;
            }
            let direct = handle.direct;
            Effect::Read {
                ino,
                offset,
                length,
                direct,
            }
        })
    }

    fn plan_write(
        &self,
        file: &File,
        offset: u64,
        length: usize,
        buffer: &Buffer,
        sync: bool,
    ) -> Effect {
        self.file(file, |ino, handle, _| {
            if !handle.write {
                return refused(libc::EBADF);
            }
            if let Some(refusal) = check_span(handle, offset, length, buffer) {
                return refusal;
            }
            let pieces = Piece::split(offset, &buffer[..length]);
            Effect::Write {
                ino,
                pieces,
                offset,
                length,
                sync,
            }
        })
    }
}

/// Carries effects out.
impl World {
    pub(super) fn carry_out(
        &mut self,
        flight: &Flight,
        buffer: Option<&mut Buffer>,
        seq: u64,
    ) -> Result<Answer> {
        let operation = flight.kind.name();
        let outcome = match &flight.effect {
            Effect::Refused(error) => return Err(error.clone()),
            Effect::OpenDir { path, create } => {
                self.volume.open_dir(path, *create).map(|(dir, _)| {
                    self.volume.dirs[dir].is_durable |= *create;
                    self.new_handle(Target::Dir(dir), Access::READ)
                })
            }
            Effect::Open { dir, name, access } => self.open(*dir, name, *access, seq),
            Effect::List { dir } => Ok(self.names(*dir)),
            Effect::Length { ino } => Ok(Answer::Length(self.status(*ino).length)),
            Effect::Stat { ino } => Ok(Answer::Status(Box::new(self.status(*ino)))),
            Effect::Read {
                ino,
                offset,
                length,
                direct,
            } => self.read(*ino, *offset, *length, *direct, buffer),
            Effect::Write {
                ino,
                pieces,
                offset,
                length,
                sync,
            } => self
                .write(*ino, pieces, *offset, *length, seq)
                .inspect(|_| {
                    if *sync {
                        self.volume.flush_range(*ino, pieces, seq);
                    }
                }),
            Effect::Sync { ino } => {
                self.volume.flush(*ino, flight.submitted);
                Ok(Answer::Done)
            }
            Effect::Resize {
                ino,
                length,
                may_cut,
            } => self.resize(*ino, *length, *may_cut, seq),
            Effect::Rename { dir, from, to } => self.volume.rename(*dir, from, to, seq).map(done),
            Effect::Unlink { dir, name } => self.volume.unlink(*dir, name, seq).map(done),
            Effect::SyncDir { dir } => {
                self.volume.sync_dir(*dir, flight.submitted);
                Ok(Answer::Done)
            }
            Effect::DropCache { ino } => {
                self.volume.drop_cache(*ino);
                Ok(Answer::Done)
            }
            Effect::Unlock { ino, handle } => {
                self.locks
                    .retain(|lock| lock.ino != *ino || lock.handle != *handle);
                Ok(Answer::Done)
            }
            Effect::Lock {
                ino,
                handle,
                is_shared,
            } => return self.lock(flight.seat, *ino, *handle, *is_shared),
        };
        outcome.map_err(|errno| Error::from_errno(errno, operation))
    }

    /// What a fault leaves behind, and its error.
    pub(super) fn suffer(&mut self, flight: &Flight, trouble: Trouble, seq: u64) -> Error {
        let errno = match (trouble, &flight.effect) {
            (Trouble::Drops(errno), Effect::Sync { ino }) => {
                self.volume.lose(*ino);
                errno
            }
            (
                Trouble::Drops(errno),
                Effect::Write {
                    ino,
                    pieces,
                    offset,
                    length,
                    ..
                },
            ) => {
                let _ = self.write(*ino, pieces, *offset, *length, seq);
                self.volume.lose(*ino);
                errno
            }
            (
                Trouble::Fails(errno),
                Effect::Write {
                    ino,
                    pieces,
                    offset,
                    ..
                },
            ) => {
                let count = self.random.below(pieces.len() as u64 + 1) as usize;
                let size = pieces[..count].len() * SECTOR;
                let _ = self.write(*ino, &pieces[..count], *offset, size, seq);
                errno
            }
            (Trouble::Fails(errno) | Trouble::Drops(errno), _) => errno,
            (Trouble::Stalls, _) => libc::EIO,
        };
        Error::from_errno(errno, flight.kind.name())
    }

    fn open(&mut self, dir: usize, name: &str, access: Access, seq: u64) -> Result<Answer, i32> {
        if access.direct && !self.settings.direct {
            return Err(libc::EOPNOTSUPP);
        }
        let ino = match (self.volume.lookup(dir, name), access.open) {
            (Some(_), Open::New) => return Err(libc::EEXIST),
            (None, Open::Existing) => return Err(libc::ENOENT),
            (Some(ino), _) => ino,
            (None, _) => self.volume.create(dir, name, seq),
        };
        Ok(self.new_handle(Target::File(ino), access))
    }

    fn names(&self, dir: usize) -> Answer {
        let entries = self.volume.dirs[dir].entries.iter().rev();
        Answer::Names(entries.map(|(name, _)| name.to_string()).collect())
    }

    fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        direct: bool,
        buffer: Option<&mut Buffer>,
    ) -> Result<Answer, i32> {
        let Some(buffer) = buffer else {
            return Err(libc::EFAULT);
        };
        let inode = &self.volume.inodes[ino];
        let out = &mut buffer[..length];
        let count = if direct && !inode.lost.is_empty() {
            inode.uncached().read(offset, out)
        } else {
            inode.cache.read(offset, out)
        };
        count.map(Answer::Count).map_err(|_| libc::EIO)
    }

    fn write(
        &mut self,
        ino: Ino,
        pieces: &[Piece],
        offset: u64,
        length: usize,
        seq: u64,
    ) -> Result<Answer, i32> {
        let end = offset + length as u64;
        if length > 0 {
            self.reserve(ino, end)?;
        }
        self.volume.write(ino, pieces, end, seq);
        Ok(Answer::Count(length))
    }

    fn resize(&mut self, ino: Ino, length: u64, may_cut: bool, seq: u64) -> Result<Answer, i32> {
        let before = self.volume.inodes[ino].cache.length();
        if may_cut || length > before {
            let room = if may_cut {
                Ok(())
            } else {
                self.reserve(ino, length)
            };
            if room.is_err() {
                // As ext4 does: what there was of it is the file's.
                let all = before + self.room();
                self.volume.resize(ino, all, seq);
                return room.map(|()| Answer::Done);
            }
            self.volume.resize(ino, length, seq);
        }
        Ok(Answer::Done)
    }

    fn reserve(&self, ino: Ino, end: u64) -> Result<(), i32> {
        if self.settings.capacity_bytes == u64::MAX {
            return Ok(());
        }
        let grows = end.saturating_sub(self.volume.inodes[ino].cache.length());
        if grows > self.room() {
            Err(libc::ENOSPC)
        } else {
            Ok(())
        }
    }

    fn room(&self) -> u64 {
        let used = self.volume.used_bytes();
        self.settings.capacity_bytes.saturating_sub(used)
    }

    fn lock(&mut self, seat: usize, ino: Ino, handle: usize, is_shared: bool) -> Result<Answer> {
        let process = self.seats[seat].process;
        let mut locks = std::mem::take(&mut self.locks);
        locks.retain(|lock| self.is_held(lock));
        self.locks = locks;
        let is_mine = |lock: &Lock| lock.handle == handle && lock.process == process;
        let mut others = self.locks.iter().filter(|lock| lock.ino == ino);
        if others.any(|lock| !(is_mine(lock) || is_shared && lock.is_shared)) {
            return Err(Error::new(
                ErrorKind::Locked,
                "somebody else holds the lock",
            ));
        }
        // Taken again, it becomes what is asked for now.
        self.locks.retain(|lock| lock.ino != ino || !is_mine(lock));
        let file = self.handles[handle].file.clone();
        self.locks.push(Lock {
            ino,
            handle,
            process,
            is_shared,
            file,
        });
        Ok(Answer::Done)
    }

    /// A living process holds a lock while it keeps the handle open; a dead one while a backend
    /// that was told to hold it has changes in flight.
    pub(super) fn is_held(&self, lock: &Lock) -> bool {
        if self.is_alive(lock.process) {
            return lock.file.holders() > 2;
        }
        self.seats.iter().enumerate().any(|(number, seat)| {
            seat.process == lock.process
                && seat
                    .holds
                    .iter()
                    .any(|file| file.number() == lock.file.number())
                && self.flights.iter().any(|one| one.seat == number)
        })
    }
}

fn done((): ()) -> Answer {
    Answer::Done
}

fn refused(errno: i32) -> Effect {
    Effect::Refused(Error::from_errno(errno, "a request"))
}

fn check_span(handle: &Handle, offset: u64, length: usize, buffer: &Buffer) -> Option<Effect> {
    let end = offset.checked_add(length as u64);
    if length > buffer.len() || end.is_none_or(|end| end > i64::MAX as u64) {
        let error = Error::invalid("the transfer lies outside its buffer or any file");
        return Some(Effect::Refused(error));
    }
    let is_odd = handle.direct && !is_aligned(offset, length);
    is_odd.then(|| refused(libc::EINVAL))
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

fn is_aligned(offset: u64, length: usize) -> bool {
    let sector = SECTOR as u64;
    offset.is_multiple_of(sector) && (length as u64).is_multiple_of(sector)
}
