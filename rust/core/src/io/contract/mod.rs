//! What every backend owes, as tests: one function for each rule, one file for each theme.
//!
//! A backend's own tests say how to make a [`World`] and let [`contract_tests!`] write one test
//! for each rule. The same suite runs on every backend, bare and wrapped. A new rule is a function
//! in the file of its theme and a name in that file's row of [`contract_tests!`].
//!
//! [`contract_tests!`]: crate::contract_tests

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this is a test suite; it panics to say that a rule is broken"
)]

pub mod answers;
pub mod ends;
pub mod files;
pub mod program;
pub mod transfer;
pub mod waits;

use std::{
    any::Any,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Access, Answer, Backend, Blocking, Buffer, Class, Disk, File, Finished, Op, Open, Request,
    Token, Wait,
};
use crate::error::{ErrorKind, Result};

/// A disk under test and an empty directory on it.
pub struct World {
    /// Makes the backends.
    pub disk: Box<dyn Disk>,
    /// The directory; it exists, and belongs to this world alone.
    pub path: PathBuf,
    /// Waits take real time, other threads may wake, and there is a kernel behind it.
    pub real: bool,
    /// Dropped last; removes the directory.
    pub keep: Box<dyn Any>,
}

impl World {
    fn backend(&self) -> Box<dyn Backend> {
        self.disk.backend().unwrap()
    }

    fn dir(&self, backend: &mut dyn Backend) -> File {
        Blocking::new(backend).open_dir(&self.path, false).unwrap()
    }

    fn file(&self, backend: &mut dyn Backend, name: &str) -> File {
        let dir = self.dir(backend);
        let access = Access {
            open: Open::Any,
            ..Access::WRITE
        };
        Blocking::new(backend).open(&dir, name, access).unwrap()
    }
}

/// A directory of the machine that is removed with the world; for the `keep` of a real one.
pub struct Place(PathBuf);

impl Place {
    /// Makes an empty directory with `name` in its name.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("millrace-{}-{count}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs an ignored test of this test binary in a process of its own, for what changes a process
/// for good: limits, filters, deaths. Panics with its output if it fails.
pub fn in_own_process(test: &str) {
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program)
        .args([
            "--exact",
            test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} in its own process: {}\n{said}\n{complained}",
        output.status
    );
}

fn filled(length: usize, seed: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(31).wrapping_add(seed);
    }
    buffer
}

fn write(file: &File, offset: u64, buffer: Buffer, sync: bool) -> Op {
    Op::Write {
        file: file.clone(),
        offset,
        length: buffer.len(),
        buffer,
        sync,
    }
}

fn request(token: u64, class: Class, op: Op) -> Request {
    Request {
        token: Token(token),
        class,
        op,
    }
}

fn foreground(token: u64, op: Op) -> Request {
    request(token, Class::Foreground, op)
}

/// Polls until nothing is in flight.
fn finish(backend: &mut dyn Backend) -> Vec<Finished> {
    let mut out = Vec::new();
    while backend.in_flight() > 0 {
        backend.poll(&mut out, Wait::Forever).unwrap();
    }
    out
}

fn run(backend: &mut dyn Backend, op: Op) -> Finished {
    backend.submit(foreground(7, op)).unwrap();
    let mut out = finish(backend);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].token, Token(7));
    out.remove(0)
}

fn refused_as(result: Result<Answer>, kind: ErrorKind) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
}

fn read(backend: &mut dyn Backend, file: &File, offset: u64, length: usize) -> Vec<u8> {
    let buffer = Buffer::zeroed(length);
    let (count, buffer) = Blocking::new(backend)
        .read(file, offset, length, buffer)
        .unwrap();
    buffer[..count].to_vec()
}

/// Writes one test for each rule; the argument is a function from a test's name to a
/// [`World`](crate::io::contract::World).
#[macro_export]
macro_rules! contract_tests {
    ($world:path) => {
        $crate::contract_tests! { @each $world, transfer:
            bytes_come_back_as_written
            a_read_ends_early_only_at_the_end
            a_transfer_stays_inside_its_length
            an_empty_transfer_is_no_error
            a_buffer_comes_back_with_an_error
        }
        $crate::contract_tests! { @each $world, answers:
            every_request_is_finished_exactly_once
            a_full_table_gives_the_request_back
            a_request_keeps_its_file_open
            background_never_delays_foreground
        }
        $crate::contract_tests! { @each $world, waits:
            a_wait_lasts_as_long_as_told
            a_wait_ends_when_something_finishes
            a_wake_before_a_poll_is_kept_once
            no_wake_is_lost_in_a_race
            wakes_and_answers_do_not_hide_each_other
            signals_do_not_disturb
        }
        $crate::contract_tests! { @each $world, files:
            a_bad_name_is_refused
            opening_keeps_to_what_was_asked
            a_directory_is_made_when_asked_for
            names_move_and_files_stay
            lengths_follow_their_orders
            a_lock_has_one_holder
            a_shared_lock_keeps_others_from_having_it_alone
            a_held_lock_is_free_at_once_when_let_go
        }
        $crate::contract_tests! { @each $world, program:
            a_program_never_holds_up_the_owner
            a_list_of_buffers_is_written_in_order
            sockets_deliver_what_was_asked_for
            what_would_wait_for_ever_is_refused
            names_are_answered_as_by_plain_calls
            descriptors_are_closed_once
            a_stream_keeps_its_order
            a_cancel_leaves_the_line_in_order
            a_cancelled_request_is_answered_once
            a_cancel_that_is_late_is_ignored
            a_stuck_call_does_not_hold_up_the_end
        }
        $crate::contract_tests! { @each $world, ends:
            shutdown_accounts_for_everything
            a_dropped_backend_leaves_the_disk_usable
        }
    };
    (@each $world:path, $theme:ident: $($rule:ident)*) => {
        $(
            #[test]
            fn $rule() {
                // What is believed is said by the rule of this name.
                $crate::io::contract::$theme::$rule(&$world(stringify!($rule)));
            }
        )*
    };
}
