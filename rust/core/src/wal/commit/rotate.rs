//! From one segment to the next.
//!
//! ```text
//! active is full -> frames in flight land -> next is prepared -> its header is durable -> switch
//! ```
//!
//! The header of the next segment states where this one ended, so it is written only when that is
//! final and durable; from then on nothing behind that end exists.

use super::{
    Active, Closing, Committer, FILL_BELOW_GROUP_BYTES, PREPARE_AFTER_SHARE, Purpose, Rotation,
    prepare::Plan,
};
use crate::{
    ids::SegmentId,
    io::{Backend, Class, File, Op, Request},
    wal::{frame::FrameWriter, recycle::Mark, segment},
};

impl Committer {
    pub(super) fn prepare_ahead(&mut self, backend: &mut dyn Backend) {
        let total = self.active.segment_bytes();
        let used = total - self.active.writer.room();
        // While the header of the next segment is being written, "next" is about to change.
        let due = used >= total / PREPARE_AFTER_SHARE && self.rotation.is_none();
        if due && self.preparer.is_idle() && self.closing == Closing::No {
            self.start_preparing(backend);
        }
    }

    fn start_preparing(&mut self, backend: &mut dyn Backend) {
        let active = self.active.writer.header();
        let id = SegmentId(active.segment.0 + 1);
        // A cut that comes late would shorten the file that its segment has become.
        let is_quiet = self.cuts == 0;
        let spare = is_quiet
            .then(|| self.shared.segments.spares().take())
            .flatten();
        let plan = Plan {
            id,
            bytes: self.shared.settings.segment_bytes,
            fill: self.group_bytes < FILL_BELOW_GROUP_BYTES,
            direct: self.direct,
            block_bytes: active.limits.block_bytes as usize,
            spare: spare.map(|spare| (spare, Mark::new(active, id))),
        };
        self.preparer
            .start(plan, backend, Purpose::Prepare.token(0));
    }

    pub(super) fn rotate(&mut self, backend: &mut dyn Backend) {
        if !matches!(self.rotation, Some(Rotation::Waiting)) || !self.flights.is_empty() {
            return;
        }
        if let Some((plan, file)) = self.preparer.take() {
            return self.write_header(backend, &plan, file);
        }
        if self.preparer.is_idle() {
            return self.start_preparing(backend);
        }
        let Some(error) = self.preparer.failure().cloned() else {
            return;
        };
        if self.prepare_retried {
            return self.fail(error);
        }
        self.prepare_retried = true;
        self.start_preparing(backend);
    }

    fn write_header(&mut self, backend: &mut dyn Backend, plan: &Plan, file: File) {
        let old = self.active.writer.header();
        let header = segment::SegmentHeader {
            segment: plan.id,
            base: self.next,
            predecessor: Some(self.active.writer.end()),
            limits: segment::SegmentLimits {
                segment_bytes: plan.bytes,
                ..old.limits
            },
            created_ns: self.clock.wall_ns(),
            is_recycled: plan.spare.is_some(),
            ..old.clone()
        };
        let (buffer, crc) = header.encode();
        let length = buffer.len();
        let fresh = Active {
            file: file.clone(),
            writer: FrameWriter::new(header, crc),
        };
        let op = Op::Write {
            file,
            offset: 0,
            length,
            buffer,
            sync: true,
        };
        if planted!("header_after_first_frame") {
            self.rotation = None;
            self.submit(backend, Purpose::Header.token(0), Class::Foreground, op);
            return self.switch_to(fresh, backend);
        }
        self.rotation = Some(Rotation::Header(fresh));
        self.submit(backend, Purpose::Header.token(0), Class::Foreground, op);
    }

    pub(super) fn switch_to(&mut self, fresh: Active, backend: &mut dyn Backend) {
        let old = std::mem::replace(&mut self.active, fresh);
        self.rotation = None;
        self.prepare_retried = false;
        let end = old.writer.end();
        let fresh = &self.active;
        self.shared
            .segments
            .rotated(end, fresh.writer.header().clone(), fresh.writer.end().chain);
        self.shared.counters.rotated();
        let op = Op::Truncate {
            file: old.file,
            length: end.offset,
        };
        let token = Purpose::Cut.token(0);
        let class = Class::Background;
        match backend.submit(Request { token, class, op }) {
            Ok(()) => self.cuts += 1,
            Err(_refused) => self.shared.counters.cut(false),
        }
    }
}
