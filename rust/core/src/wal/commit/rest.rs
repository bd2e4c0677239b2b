//! What the committer does when there is nothing to commit: state the watermark, close, wind down.

use super::{Closing, Committer, IDLE_MARK_AFTER, Next};
use crate::{
    clock::Mono,
    error::Result,
    io::{Backend, Blocking, Wait},
    wal::frame::{self, FrameKind},
};

impl Committer {
    pub(super) fn rest_until(&self) -> Option<Mono> {
        let dirty = self.shared.durable() > self.stated;
        let resting = self.flights.is_empty() && self.rotation.is_none();
        (dirty && resting && self.closing == Closing::No)
            .then(|| self.settled_at.after(IDLE_MARK_AFTER))
    }

    pub(super) fn state_watermark(&mut self, backend: &mut dyn Backend, now: Mono) {
        if self.rest_until().is_none_or(|until| now < until) {
            return;
        }
        if !planted!("rest_keeps_the_stock") {
            self.shared.stock.rest();
        }
        let stamp = self.stamp(0);
        let spare = self.spare(frame::FRAME_HEADER_BYTES);
        // Without room for it, the header of the next segment will state the same.
        if let Ok(encoded) = self.active.writer.watermark(stamp, spare) {
            self.submit_frame(backend, FrameKind::Watermark, encoded, 0, false);
        }
    }

    fn mark_close(&mut self, backend: &mut dyn Backend) {
        let stamp = self.stamp(0);
        let spare = self.spare(frame::FRAME_HEADER_BYTES);
        match self.active.writer.close(stamp, spare) {
            Ok(encoded) => self.submit_frame(backend, FrameKind::Close, encoded, 0, false),
            Err(error) => self.fail(error),
        }
    }

    pub(super) fn step_close(&mut self, backend: &mut dyn Backend) {
        if self.closing == Closing::No && self.shared.is_close_requested() {
            self.closing = Closing::Draining;
        }
        let drained = self.consumer.is_finished() && self.flights.is_empty();
        if self.closing == Closing::Draining && drained && self.rotation.is_none() {
            self.closing = Closing::Marking;
            self.preparer.stop();
            self.mark_close(backend);
        }
    }

    /// After a failure: nothing new, nothing acknowledged; wait for the kernel's last words.
    pub(super) fn wind_down(&mut self, backend: &mut dyn Backend) -> Next {
        self.flights.clear();
        self.preparer.stop();
        self.consumer.drain(usize::MAX, drop);
        if backend.in_flight() > 0 && !self.broken {
            return Next::Wait(Wait::Forever);
        }
        Next::Done
    }

    /// An unused prepared segment and spares would only cost space; the next open would remove them
    /// anyway.
    pub(super) fn remove_leftovers(&mut self, backend: &mut dyn Backend) {
        let mut names = self.preparer.leftovers();
        let spares = self.shared.segments.spares();
        names.extend(std::iter::from_fn(|| spares.take()).map(|spare| spare.name()));
        if names.is_empty() {
            return;
        }
        let mut io = Blocking::new(backend);
        let removed: Result<()> = names
            .iter()
            .try_for_each(|name| ignore_missing(io.unlink(&self.dir, name)));
        self.shared.counters.cut(removed.is_ok());
    }
}

fn ignore_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
