//! The next segment, made ready in the background so that a commit never pays for it.
//!
//! ```text
//! open tmp -> allocate -> zero-fill -> sync -> rename to its name -> sync directory -> ready
//!
//! open a spare -> take it alone -> has it one name? -> allocate -> wipe its header
//!    -> zero-fill what was cut off -> mark its end -> sync -> let go of it -> rename, and so on
//! ```
//!
//! Whatever goes wrong with a spare, a reader that still has it open included, it is removed and a
//! new file is made. So it is if the file has another name: that one is somebody's copy. A new file
//! that cannot be made ready is removed before that is told: a filesystem may have given it all the
//! space there was.
//!
//! # Always true
//!
//! 1. At most one request of the preparer is in flight, always of the background class.
//! 2. The file carries its final name only after its zeros are durable, those over an old header
//!    included, so a segment without a valid header is one that was never used.
//! 3. It only ever writes to a file that holds no frame of the log as it is now, that nobody reads
//!    and that has no other name.
//! 4. A file is not locked any more when it gets its final name: who finds a segment locked takes
//!    it for one that was dropped.
//!
//! Zero-filling ahead of need lets a commit overwrite blocks that already exist: a data-sync then
//! carries no change of size or extents. It writes every byte twice, so a log that writes large
//! groups is given allocated, unwritten space instead.

use crate::{
    error::{Error, Result},
    ids::SegmentId,
    io::{Access, Answer, Backend, Buffer, Class, File, Finished, Op, Request, Status, Token},
};

use crate::wal::{
    recycle::{Mark, Spare},
    segment,
};

/// Bytes of one zero-filling write: large enough for the device's full bandwidth, small enough
/// not to hold up a foreground write behind it for more than about a millisecond.
const FILL_BYTES: usize = 1 << 20;

/// What the next segment shall be.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) id: SegmentId,
    pub(crate) bytes: u64,
    pub(crate) fill: bool,
    /// Whether frames will be written with direct I/O.
    pub(crate) direct: bool,
    /// The unit of direct I/O.
    pub(crate) block_bytes: usize,
    /// A file that is there already, and what its last sector shall say meanwhile.
    pub(crate) spare: Option<(Spare, Mark)>,
}

impl Plan {
    /// The name under which the file is made ready.
    fn draft_name(&self) -> String {
        match &self.spare {
            Some((spare, _)) => spare.name(),
            None => segment::prepared_name(self.id),
        }
    }

    /// Whether all of its space was written to, by zeros or as a spare.
    fn is_written(&self) -> bool {
        self.fill || self.spare.is_some()
    }

    /// Where zeros are missing.
    fn first_fill(&self) -> Option<u64> {
        match &self.spare {
            Some((spare, _)) => (spare.bytes < self.bytes).then_some(spare.bytes),
            None => self.fill.then_some(0),
        }
    }
}

#[derive(Debug)]
enum Step {
    Open,
    /// Of a spare: alone, or not at all.
    Lock,
    /// Of a spare: what else it is called.
    Count,
    Allocate,
    /// Of a spare: its header.
    Wipe,
    Fill {
        offset: u64,
    },
    /// Of a spare: its last sector.
    Mark,
    Sync,
    /// Of a spare: what was done to it is durable.
    Unlock,
    Rename,
    SyncDir,
    Reopen,
    /// Of a spare that cannot be used.
    Discard,
    /// Of a new file that cannot be made ready, and why not.
    GiveBack(Error),
}

#[derive(Debug)]
enum State {
    Idle,
    Working {
        plan: Plan,
        file: Option<File>,
        step: Step,
    },
    Ready {
        plan: Plan,
        file: File,
    },
    Failed {
        plan: Plan,
        error: Error,
    },
}

/// Makes one segment at a time.
#[derive(Debug)]
pub(crate) struct Preparer {
    dir: File,
    state: State,
    /// Fill through the page cache, because the filesystem has no direct I/O.
    buffered: bool,
    zeros: Option<Buffer>,
    busy: bool,
    /// No further step is taken: the log is closing or has failed.
    is_stopped: bool,
}

impl Preparer {
    pub(crate) fn new(dir: File) -> Self {
        Self {
            dir,
            state: State::Idle,
            buffered: false,
            zeros: None,
            busy: false,
            is_stopped: false,
        }
    }

    /// Nothing asked for, nothing ready.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Starts on `plan`. Only when idle or failed.
    pub(crate) fn start(&mut self, plan: Plan, backend: &mut dyn Backend, token: Token) {
        debug_assert!(!self.busy);
        self.state = State::Working {
            plan,
            file: None,
            step: Step::Open,
        };
        self.submit(backend, token);
    }

    /// Lets the step in flight finish and takes no other one.
    pub(crate) fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Takes the prepared segment, if it is ready.
    pub(crate) fn take(&mut self) -> Option<(Plan, File)> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Ready { plan, file } => Some((plan, file)),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Why the last attempt failed.
    pub(crate) fn failure(&self) -> Option<&Error> {
        match &self.state {
            State::Failed { error, .. } => Some(error),
            _ => None,
        }
    }

    /// The names that an unfinished or unused preparation may have left in the directory.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let plan = match &self.state {
            State::Idle => return Vec::new(),
            State::Working { plan, .. }
            | State::Ready { plan, .. }
            | State::Failed { plan, .. } => plan,
        };
        vec![plan.draft_name(), segment::segment_name(plan.id)]
    }

    /// Takes the answer to this preparer's request and asks for the next step.
    pub(crate) fn on_finished(
        &mut self,
        finished: Finished,
        backend: &mut dyn Backend,
        token: Token,
    ) {
        self.busy = false;
        let State::Working { plan, file, step } = std::mem::replace(&mut self.state, State::Idle)
        else {
            return;
        };
        if let Some(buffer) = finished.buffer.filter(|_| !matches!(step, Step::Mark)) {
            self.zeros = Some(buffer);
        }
        if self.is_stopped {
            let error = Error::new(crate::ErrorKind::Closed, "the log is closing");
            self.state = State::Failed { plan, error };
            return;
        }
        self.state = self.next(plan, file, step, finished.result);
        if matches!(self.state, State::Working { .. }) {
            self.submit(backend, token);
        }
    }

    fn next(
        &mut self,
        plan: Plan,
        file: Option<File>,
        step: Step,
        result: Result<Answer>,
    ) -> State {
        // Removed or not: the next open tries again.
        if let Step::GiveBack(error) = step {
            return State::Failed { plan, error };
        }
        let answer = match result {
            _ if matches!(step, Step::Discard) => return without_spare(plan),
            Ok(answer) => answer,
            Err(error) => return self.on_error(plan, file, step, error),
        };
        let is_spare = plan.spare.is_some();
        let (file, step) = match (step, answer) {
            (Step::Open, Answer::File(file)) if is_spare => (Some(file), first_of_spare()),
            (Step::Open, Answer::File(file)) => (Some(file), Step::Allocate),
            (Step::Lock, _) => (file, Step::Count),
            (Step::Count, Answer::Status(status)) if !is_alone(&status) => (None, Step::Discard),
            (Step::Count, Answer::Status(_)) => (file, Step::Allocate),
            (Step::Allocate, _) if is_spare && !planted!("spare_keeps_its_header") => {
                (file, Step::Wipe)
            }
            (Step::Allocate | Step::Wipe, _) => (file, after_header(&plan)),
            (Step::Fill { offset }, _) if offset + (FILL_BYTES as u64) < plan.bytes => {
                let offset = offset + FILL_BYTES as u64;
                (file, Step::Fill { offset })
            }
            (Step::Fill { .. }, _) => (file, after_fill(&plan)),
            (Step::Mark, _) => (file, Step::Sync),
            (Step::Sync, _) if is_spare && !planted!("spare_renamed_while_locked") => {
                (file, Step::Unlock)
            }
            (Step::Sync | Step::Unlock, _) => (file, Step::Rename),
            (Step::Rename, _) if planted!("no_directory_sync") => (file, Step::Reopen),
            (Step::Rename, _) => (file, Step::SyncDir),
            (Step::SyncDir, _) => (file, Step::Reopen),
            (Step::Reopen, Answer::File(file)) => {
                if plan.is_written() {
                    file.note_written();
                }
                return State::Ready { plan, file };
            }
            (step, answer) => {
                let error = Error::new(
                    crate::ErrorKind::Io,
                    format!("unexpected answer {answer:?} while preparing a segment ({step:?})"),
                );
                return State::Failed { plan, error };
            }
        };
        State::Working { plan, file, step }
    }

    /// Direct I/O and `fallocate` are conveniences here: without them the step is done another way.
    /// So is a spare: without it a new file is made.
    fn on_error(&mut self, plan: Plan, file: Option<File>, step: Step, error: Error) -> State {
        let unsupported = error.kind() == crate::ErrorKind::Unsupported;
        match step {
            Step::Open if unsupported && !self.buffered => {
                self.buffered = true;
                State::Working { plan, file, step }
            }
            Step::Allocate if unsupported && plan.spare.is_none() => State::Working {
                file,
                step: after_header(&plan),
                plan,
            },
            // From the renaming on it is a spare no longer.
            Step::Rename | Step::SyncDir | Step::Reopen => State::Failed { plan, error },
            _ if plan.spare.is_some() && !planted!("spare_trouble_is_fatal") => State::Working {
                plan,
                file: None,
                step: Step::Discard,
            },
            _ if planted!("failed_draft_keeps_the_disk") => State::Failed { plan, error },
            _ => State::Working {
                plan,
                file: None,
                step: Step::GiveBack(error),
            },
        }
    }

    fn submit(&mut self, backend: &mut dyn Backend, token: Token) {
        let Some(op) = self.operation() else { return };
        let request = Request {
            token,
            class: Class::Background,
            op,
        };
        match backend.submit(request) {
            Ok(()) => self.busy = true,
            Err(_refused) => self.give_up(),
        }
    }

    /// The table was full. A later rotation starts over.
    fn give_up(&mut self) {
        if let State::Working { plan, .. } = std::mem::replace(&mut self.state, State::Idle) {
            let error = Error::new(
                crate::ErrorKind::Overloaded,
                "the I/O backend had no room for a background request",
            );
            self.state = State::Failed { plan, error };
        }
    }

    fn operation(&mut self) -> Option<Op> {
        let State::Working { plan, file, step } = &self.state else {
            return None;
        };
        let dir = self.dir.clone();
        let has_file = || file.clone();
        Some(match step {
            Step::Open => Op::Open {
                dir,
                name: plan.draft_name(),
                access: match plan.spare {
                    Some(_) => Access::WRITE.direct(!self.buffered),
                    None => Access {
                        open: crate::io::Open::Any,
                        ..Access::CREATE.direct(!self.buffered)
                    },
                },
            },
            Step::Lock => Op::Lock { file: has_file()? },
            Step::Count => Op::Stat { file: has_file()? },
            Step::Allocate => Op::Allocate {
                file: has_file()?,
                length: plan.bytes,
            },
            Step::Wipe => blank(&mut self.zeros, plan, has_file()?, 0, plan.block_bytes),
            Step::Fill { offset } => {
                let length = FILL_BYTES.min((plan.bytes - offset) as usize);
                blank(&mut self.zeros, plan, has_file()?, *offset, length)
            }
            Step::Mark => Op::Write {
                file: has_file()?,
                offset: plan.bytes - plan.block_bytes as u64,
                length: plan.block_bytes,
                buffer: plan.spare.as_ref()?.1.encode(plan.block_bytes),
                sync: false,
            },
            Step::Sync => Op::Sync { file: has_file()? },
            Step::Unlock => Op::Unlock { file: has_file()? },
            Step::Rename => Op::Rename {
                dir,
                from: plan.draft_name(),
                to: segment::segment_name(plan.id),
            },
            Step::SyncDir => Op::SyncDir { dir },
            Step::Reopen => Op::Open {
                dir,
                name: segment::segment_name(plan.id),
                access: Access::WRITE.direct(plan.direct),
            },
            Step::Discard | Step::GiveBack(_) => Op::Unlink {
                dir,
                name: plan.draft_name(),
            },
        })
    }
}

/// A spare that somebody still reads must not be changed.
fn first_of_spare() -> Step {
    if planted!("spare_taken_while_shared") {
        Step::Allocate
    } else {
        Step::Lock
    }
}

/// Whether a file has the one name that we know. A copy made of hard links shares the bytes.
fn is_alone(status: &Status) -> bool {
    status.links == 1 || planted!("spare_with_another_name")
}

fn after_header(plan: &Plan) -> Step {
    match plan.first_fill() {
        Some(offset) => Step::Fill { offset },
        None => after_fill(plan),
    }
}

fn after_fill(plan: &Plan) -> Step {
    if plan.spare.is_some() && !planted!("spare_without_a_mark") {
        Step::Mark
    } else if planted!("rename_before_sync") {
        Step::Rename
    } else {
        Step::Sync
    }
}

/// Removed or not, a spare that could not be used is left alone: the next open removes it.
fn without_spare(plan: Plan) -> State {
    State::Working {
        plan: Plan {
            spare: None,
            ..plan
        },
        file: None,
        step: Step::Open,
    }
}

/// Zeros over a stretch of the file.
fn blank(zeros: &mut Option<Buffer>, plan: &Plan, file: File, offset: u64, length: usize) -> Op {
    let all = FILL_BYTES.min(plan.bytes as usize);
    Op::Write {
        file,
        offset,
        length,
        buffer: zeros.take().unwrap_or_else(|| Buffer::zeroed(all)),
        sync: false,
    }
}
