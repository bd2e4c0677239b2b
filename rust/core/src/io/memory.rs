//! A disk in memory: one directory, no crashes, and no time but what is waited for. For tests that
//! try millions of damaged stores; what a power cut leaves is the simulated disk's business.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    Access, Answer, Backend, Buffer, Disk, File, Finished, Leftovers, Op, Open, Request, Wait, Wake,
};
use crate::{
    clock::Mono,
    error::{Error, ErrorKind, Result},
    sync::{Mutex, lock},
};

/// The unit that [`MemoryDisk::spoil`] makes unreadable, in bytes.
const SECTOR: u64 = 512;

#[derive(Debug, Default)]
struct Node {
    bytes: Vec<u8>,
    bad: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Content {
    names: BTreeMap<String, usize>,
    nodes: Vec<Node>,
    changes: u64,
}

/// One directory of files in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Content>>);

impl MemoryDisk {
    /// Puts a file there, or replaces its bytes.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut content = lock(&self.0);
        let node = content.node(name);
        content.nodes[node].bytes.clear();
        content.nodes[node].bytes.extend_from_slice(bytes);
    }

    /// The bytes of a file.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let content = lock(&self.0);
        let node = content.names.get(name)?;
        Some(content.nodes[*node].bytes.clone())
    }

    /// Changes the bytes of a file behind everybody's back.
    pub fn edit<R>(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut content = lock(&self.0);
        let node = content.node(name);
        edit(&mut content.nodes[node].bytes)
    }

    /// Removes a file; whoever has it open keeps it.
    pub fn remove(&self, name: &str) {
        lock(&self.0).names.remove(name);
    }

    /// Makes the sector with this byte unreadable.
    pub fn spoil(&self, name: &str, offset: u64) {
        let mut content = lock(&self.0);
        let node = content.node(name);
        content.nodes[node].bad.insert(offset / SECTOR);
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        lock(&self.0).names.keys().cloned().collect()
    }

    /// How many requests changed anything.
    pub fn changes(&self) -> u64 {
        lock(&self.0).changes
    }

    /// A copy that shares nothing.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::default();
        for name in self.names() {
            copy.put(&name, &self.get(&name).unwrap_or_default());
        }
        copy
    }
}

impl Content {
    fn node(&mut self, name: &str) -> usize {
        if let Some(node) = self.names.get(name) {
            return *node;
        }
        self.nodes.push(Node::default());
        self.names.insert(name.to_owned(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn file(&mut self, file: &File) -> Result<&mut Node> {
        let node = file.number().and_then(|number| number.checked_sub(1));
        node.and_then(|node| self.nodes.get_mut(node as usize))
            .ok_or_else(|| Error::from_errno(libc::EBADF, "use a file"))
    }

    fn open(&mut self, name: &str, access: Access) -> Result<Answer> {
        let there = self.names.contains_key(name);
        match access.open {
            Open::Existing if !there => return Err(Error::from_errno(libc::ENOENT, "open")),
            Open::New if there => return Err(Error::from_errno(libc::EEXIST, "open")),
            _ => {}
        }
        self.changes += u64::from(!there);
        Ok(Answer::File(File::from_number(self.node(name) as u64 + 1)))
    }

    fn read(&mut self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<Answer> {
        let node = self.file(file)?;
        let end = (node.bytes.len() as u64).min(offset + buffer.len() as u64);
        let Some(count) = end.checked_sub(offset) else {
            return Ok(Answer::Count(0));
        };
        if node
            .bad
            .range(offset / SECTOR..end.div_ceil(SECTOR))
            .next()
            .is_some()
        {
            return Err(Error::from_errno(libc::EIO, "read"));
        }
        buffer[..count as usize].copy_from_slice(&node.bytes[offset as usize..end as usize]);
        Ok(Answer::Count(count as usize))
    }

    fn write(&mut self, file: &File, offset: u64, bytes: &[u8]) -> Result<Answer> {
        self.changes += 1;
        let node = self.file(file)?;
        let end = offset as usize + bytes.len();
        let length = node.bytes.len().max(end);
        node.bytes.resize(length, 0);
        node.bytes[offset as usize..end].copy_from_slice(bytes);
        Ok(Answer::Count(bytes.len()))
    }

    fn rename(&mut self, from: &str, to: String) -> Result<Answer> {
        let Some(node) = self.names.remove(from) else {
            return Err(Error::from_errno(libc::ENOENT, "rename"));
        };
        self.changes += 1;
        self.names.insert(to, node);
        Ok(Answer::Done)
    }

    fn unlink(&mut self, name: &str) -> Result<Answer> {
        self.changes += 1;
        match self.names.remove(name) {
            Some(_) => Ok(Answer::Done),
            None => Err(Error::from_errno(libc::ENOENT, "unlink")),
        }
    }

    fn carry_out(&mut self, op: Op) -> (Result<Answer>, Option<Buffer>) {
        let result = match op {
            Op::Read {
                file,
                offset,
                length,
                mut buffer,
            } => {
                return (
                    self.read(&file, offset, &mut buffer[..length]),
                    Some(buffer),
                );
            }
            Op::Write {
                file,
                offset,
                length,
                buffer,
                ..
            } => {
                return (self.write(&file, offset, &buffer[..length]), Some(buffer));
            }
            Op::OpenDir { .. } => Ok(Answer::File(File::from_number(0))),
            Op::Open { name, access, .. } => self.open(&name, access),
            Op::List { .. } => Ok(Answer::Names(self.names.keys().cloned().collect())),
            Op::Length { file } => self
                .file(&file)
                .map(|node| Answer::Length(node.bytes.len() as u64)),
            Op::Truncate { file, length } => {
                self.changes += 1;
                self.file(&file).map(|node| {
                    node.bytes.resize(length as usize, 0);
                    Answer::Done
                })
            }
            Op::Rename { from, to, .. } => self.rename(&from, to),
            Op::Unlink { name, .. } => self.unlink(&name),
            _ => Ok(Answer::Done),
        };
        (result, None)
    }
}

impl Disk for MemoryDisk {
    fn backend(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(MemoryBackend {
            disk: self.clone(),
            finished: VecDeque::new(),
            now: Mono(0),
        }))
    }
}

struct MemoryBackend {
    disk: MemoryDisk,
    finished: VecDeque<Finished>,
    now: Mono,
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Backend for MemoryBackend {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let (result, buffer) = lock(&self.disk.0).carry_out(request.op);
        let token = request.token;
        self.finished.push_back(Finished {
            token,
            buffer,
            result,
        });
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        match wait {
            _ if !self.finished.is_empty() => {}
            Wait::Never => {}
            Wait::Until(instant) => self.now = self.now.max(instant),
            Wait::Forever => {
                let what = "a wait that nothing can end";
                return Err(Error::new(ErrorKind::Abandoned, what));
            }
        }
        out.extend(self.finished.drain(..));
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }

    fn now(&self) -> Mono {
        self.now
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }

    fn hold(&mut self, _lock: &File) -> Result<()> {
        Ok(())
    }

    fn let_go(&mut self) {}

    fn shutdown(&mut self, _budget: Option<Duration>) -> Leftovers {
        Leftovers::default()
    }
}
