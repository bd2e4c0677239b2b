//! The loop against a backend that does nothing by itself: a test decides what is answered, when,
//! and how, so that every race can be played in both orders.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Inbox, bytes, count, is_indeterminate, kind};
use crate::{
    clock::{Clock, ManualClock, Mono},
    error::{Error, ErrorKind, Result},
    io::{
        Answer, Backend, Buffer, Cancelled, File, Finished, Leftovers, Op, Request, Token, Wait,
        Wake, program::cancelled,
    },
    ioloop::{
        Answered, Ask, Handle, Id, IoLoop, Reply, Settings, Sink, SlowOperation, Turned,
        handle::Message,
        table::{Row, Waiter},
    },
    sync::lock,
};

#[derive(Default)]
struct Strings {
    taken: Vec<Request>,
    cancels: Vec<Token>,
    ready: Vec<Finished>,
    waits: Vec<Wait>,
    /// What the next cancel says.
    cancel: Option<Cancelled>,
    /// Sees to the bytes of receives that lost their owner.
    takes_over: bool,
    /// What the next poll fails with.
    broken: Option<Error>,
    /// The next poll panics.
    panics: bool,
    shutdowns: Vec<Option<Duration>>,
    capacity: Option<usize>,
    due: Option<Mono>,
}

#[derive(Clone, Default)]
struct Puppet(Arc<Mutex<Strings>>);

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

impl Backend for Puppet {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        lock(&self.0).taken.push(request);
        Ok(())
    }

    fn cancel(&mut self, token: Token) -> Cancelled {
        let mut strings = lock(&self.0);
        strings.cancels.push(token);
        strings.cancel.take().unwrap_or(Cancelled::Asked)
    }

    fn disown(&mut self, _token: Token) -> bool {
        lock(&self.0).takes_over
    }

    fn poll(&mut self, out: &mut Vec<Finished>, wait: Wait) -> Result<()> {
        let mut strings = lock(&self.0);
        strings.waits.push(wait);
        assert!(!strings.panics, "as told");
        out.append(&mut strings.ready);
        strings.broken.take().map_or(Ok(()), Err)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(Nobody)
    }

    fn now(&self) -> Mono {
        Mono(0)
    }

    fn in_flight(&self) -> usize {
        let strings = lock(&self.0);
        strings.taken.len() + strings.ready.len()
    }

    fn capacity(&self) -> usize {
        lock(&self.0).capacity.unwrap_or(usize::MAX)
    }

    fn due(&self) -> Option<Mono> {
        lock(&self.0).due
    }

    fn hold(&mut self, _lock: &File) -> Result<()> {
        Ok(())
    }

    fn let_go(&mut self) {}

    fn shutdown(&mut self, budget: Option<Duration>) -> Leftovers {
        let mut strings = lock(&self.0);
        strings.shutdowns.push(budget);
        Leftovers {
            requests: strings.taken.len() as u64,
            bytes: strings.taken.iter().map(|one| one.op.buffer_bytes()).sum(),
        }
    }
}

/// A clock that says how often it was read.
#[derive(Debug, Clone, Default)]
struct Watched {
    clock: ManualClock,
    reads: Arc<AtomicU64>,
}

impl Clock for Watched {
    fn now(&self) -> Mono {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.clock.now()
    }

    fn wall_ns(&self) -> i64 {
        0
    }
}

struct Stage {
    engine: IoLoop,
    handle: Option<Handle>,
    inbox: Arc<Inbox>,
    puppet: Puppet,
    clock: Watched,
    next: u64,
}

const TICK: Duration = Duration::from_millis(5);

fn stage(size: usize) -> Stage {
    stage_with(Settings {
        size,
        ..Settings::default()
    })
}

fn stage_with(settings: Settings) -> Stage {
    let puppet = Puppet::default();
    let clock = Watched::default();
    let (engine, handle) =
        IoLoop::new(Box::new(puppet.clone()), Arc::new(clock.clone()), settings).unwrap();
    Stage {
        engine,
        handle: Some(handle),
        inbox: Arc::default(),
        puppet,
        clock,
        next: 0,
    }
}

fn file() -> File {
    File::from_number(1)
}

fn read() -> Ask {
    Ask::Read {
        file: file(),
        offset: 0,
        length: 8,
        partial: false,
    }
}

fn write() -> Ask {
    Ask::Write {
        file: file(),
        offset: 0,
        buffers: vec![Buffer::zeroed(8)],
        sync: false,
    }
}

fn sync() -> Ask {
    Ask::Sync {
        file: file(),
        data_only: true,
    }
}

fn recv() -> Ask {
    Ask::Recv {
        socket: file(),
        length: 8,
        exact: true,
    }
}

impl Stage {
    fn handle(&self) -> &Handle {
        self.handle.as_ref().unwrap()
    }

    fn ask(&mut self, ask: Ask, timeout_ms: Option<u64>) -> Id {
        self.next += 1;
        let deadline =
            timeout_ms.map(|millis| self.clock.now().after(Duration::from_millis(millis)));
        let sink = self.inbox.sink();
        self.handle()
            .submit(ask, deadline, sink, self.next)
            .unwrap()
    }

    fn turn(&mut self) -> Turned {
        self.engine.turn(Wait::Never)
    }

    fn pass(&mut self, millis: u64) {
        self.clock.clock.advance(Duration::from_millis(millis));
        self.turn();
    }

    fn in_flight(&self) -> usize {
        lock(&self.puppet.0).taken.len()
    }

    fn cancels(&self) -> usize {
        lock(&self.puppet.0).cancels.len()
    }

    fn ops(&self) -> Vec<&'static str> {
        let strings = lock(&self.puppet.0);
        let name = |request: &Request| match request.op {
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::SyncData { .. } => "sync",
            Op::Recv { .. } => "recv",
            _ => "other",
        };
        strings.taken.iter().map(name).collect()
    }

    /// Answers the request at `at` among those in flight, and turns.
    fn answer(&mut self, at: usize, result: Result<Answer>) {
        {
            let mut strings = lock(&self.puppet.0);
            let request = strings.taken.remove(at);
            strings.ready.push(Finished {
                token: request.token,
                buffer: request.op.into_buffer(),
                result,
            });
        }
        self.turn();
    }

    fn stop(&mut self, at: usize, done: usize) {
        self.answer(at, Err(cancelled(done)));
    }
}

#[test]
fn what_waits_for_admission_holds_its_own_row_and_no_memory() {
    // The queue has no bound, so what waits in it must be small: of ten thousand reads, those in
    // flight have memory and no other, and each of the others is a message or a row. When their
    // callers lose interest, nothing of them is left.
    const EACH: usize = size_of::<Row>() + size_of::<Waiter>() + size_of::<Message>();
    const _: () = assert!(EACH <= 512);
    let mut stage = stage(8);
    let large = || Ask::Read {
        file: file(),
        offset: 0,
        length: 1 << 16,
        partial: false,
    };
    let ids: Vec<_> = (0..10_000).map(|_| stage.ask(large(), None)).collect();
    stage.turn();
    let held: u64 = {
        let strings = lock(&stage.puppet.0);
        strings.taken.iter().map(|one| one.op.buffer_bytes()).sum()
    };
    let in_flight = stage.in_flight() as u64;
    assert_eq!((in_flight, held), (7, 7 << 16), "one place is kept");
    assert_eq!(stage.handle().statistics().pending, 10_000);
    for id in &ids[7..] {
        stage.handle().forget(*id);
    }
    stage.turn();
    assert_eq!(stage.handle().statistics().pending, 7);
    assert!(
        stage.engine.lanes_kept() <= 7 + 64,
        "tokens of rows that left"
    );
}

/// Looks at the statistics whenever it is answered, in the middle of a turn.
struct Onlooker {
    handle: Handle,
    seen: Mutex<Vec<u64>>,
}

impl Sink for Onlooker {
    fn answer(&self, _answered: Answered) {
        lock(&self.seen).push(self.handle.statistics().pending);
    }

    fn closed(&self, _tag: u64, _left: Leftovers) {}
}

#[test]
fn what_is_pending_is_true_in_the_middle_of_a_turn() {
    // Whoever waits until nothing is pending may rely on it: a request that a turn has taken from
    // the queue and not yet told of is counted, one that is being answered is not, and what is
    // only a message about a request never was one.
    let mut stage = stage(8);
    stage.clock.clock.advance(Duration::from_secs(1));
    let onlooker = Arc::new(Onlooker {
        handle: stage.handle().clone(),
        seen: Mutex::default(),
    });
    let first = stage.ask(write(), None);
    let late = Arc::<Onlooker>::clone(&onlooker);
    stage
        .handle()
        .submit(write(), Some(Mono(0)), late, 0)
        .unwrap();
    stage.turn();
    assert_eq!(*lock(&onlooker.seen), [1], "the first is pending");
    stage.handle().forget(first);
    assert_eq!(stage.handle().statistics().pending, 1, "the write goes on");
    stage.answer(0, Ok(Answer::Count(8)));
    assert_eq!(stage.handle().statistics().pending, 0);
    let last = Arc::<Onlooker>::clone(&onlooker);
    stage.handle().submit(write(), None, last, 0).unwrap();
    stage.turn();
    stage.answer(0, Ok(Answer::Count(8)));
    assert_eq!(*lock(&onlooker.seen), [1, 0], "over when it is answered");
}

#[test]
fn a_turn_is_due_when_the_backend_says_so() {
    // Whoever turns it from outside comes back for the first of its own deadlines and the backend's.
    let mut stage = stage(8);
    stage.ask(read(), None);
    stage.turn();
    let due = |stage: &Stage, at| {
        lock(&stage.puppet.0).due = at;
        stage.engine.next_deadline()
    };
    let mine = due(&stage, None);
    assert_eq!(due(&stage, Some(Mono(1))), Some(Mono(1)));
    assert_eq!(
        due(&stage, Some(Mono(u64::MAX))),
        mine.or(Some(Mono(u64::MAX)))
    );
}

#[test]
fn a_deadline_in_the_past_is_never_submitted() {
    // Not even for a moment: the backend does not see it, and no cancel is sent.
    let mut stage = stage(8);
    stage.clock.clock.advance(Duration::from_secs(1));
    let now = stage.clock.now();
    for (tag, deadline) in [(1, Mono(0)), (2, now)] {
        let sink = stage.inbox.sink();
        stage
            .handle()
            .submit(write(), Some(deadline), sink, tag)
            .unwrap();
        stage.turn();
        assert!(!is_indeterminate(stage.inbox.take(tag)));
    }
    assert_eq!((stage.in_flight(), stage.cancels()), (0, 0));
}

#[test]
fn a_deadline_passes_while_waiting_for_admission() {
    // It leaves the queue with a timeout, and what comes after it takes the free place.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    stage.ask(write(), Some(20));
    stage.ask(read(), None);
    stage.turn();
    assert_eq!(stage.ops(), ["recv"]);
    stage.pass(30);
    assert!(!is_indeterminate(stage.inbox.take(2)));
    assert_eq!(stage.cancels(), 0);
    stage.answer(0, Ok(Answer::Count(8)));
    stage.turn();
    assert_eq!(stage.ops(), ["read"]);
}

#[test]
fn a_full_success_wins_over_the_cancel() {
    // The deadline passed and the kernel was asked to stop; it was done already.
    let mut stage = stage(8);
    stage.ask(read(), Some(20));
    stage.turn();
    stage.pass(19);
    assert_eq!(stage.cancels(), 0);
    stage.pass(6);
    assert_eq!((stage.cancels(), stage.inbox.len()), (1, 0));
    stage.answer(0, Ok(Answer::Count(8)));
    assert_eq!(bytes(stage.inbox.take(1)).len(), 8);
    assert_eq!(stage.handle().statistics().cancelled_late, 1);
}

#[test]
fn partial_progress_after_the_cancel_is_a_timeout() {
    // What was received stays lost, and is counted in the error.
    let mut stage = stage(8);
    stage.ask(recv(), Some(20));
    stage.turn();
    stage.pass(25);
    stage.stop(0, 3);
    let error = stage.inbox.take(1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.number("done"), Some(3));
    assert_eq!(error.number("indeterminate"), Some(0));
    assert_eq!(stage.handle().statistics().cancelled_stopped, 1);
}

#[test]
fn a_cancel_that_nobody_asked_for_is_an_error_of_its_own() {
    // The kernel may cancel by itself; that is not a timeout.
    let mut stage = stage(8);
    stage.ask(read(), Some(20));
    stage.turn();
    stage.stop(0, 0);
    let error = stage.inbox.take(1).unwrap_err();
    assert_eq!(
        (error.kind(), error.errno()),
        (ErrorKind::Io, Some(libc::ECANCELED))
    );
}

#[test]
fn a_waiter_is_answered_one_tick_after_the_cancel() {
    // A disk that hangs must not mean an await that hangs; the place stays taken until the
    // kernel's last word, and the late answer reaches nobody.
    let mut stage = stage(1);
    stage.ask(read(), Some(20));
    stage.turn();
    stage.pass(25);
    assert_eq!(stage.inbox.len(), 0, "not before the kernel had its tick");
    stage.pass(10);
    assert!(!is_indeterminate(stage.inbox.take(1)));
    stage.ask(read(), None);
    stage.turn();
    assert_eq!(stage.in_flight(), 1, "the place is not free");
    stage.answer(0, Ok(Answer::Count(8)));
    assert_eq!(stage.inbox.len(), 0);
    stage.turn();
    assert_eq!(stage.in_flight(), 1, "now it is");
    stage.answer(0, Ok(Answer::Count(8)));
    assert_eq!(bytes(stage.inbox.take(2)).len(), 8);
}

#[test]
fn timeouts_of_writes_and_syncs_are_indeterminate() {
    // Stopped or not answered at all: nobody knows what reached the disk.
    for ask in [write as fn() -> Ask, sync] {
        for stops in [false, true] {
            let mut stage = stage(8);
            stage.ask(ask(), Some(20));
            stage.turn();
            stage.pass(25);
            if stops {
                stage.stop(0, 0);
            } else {
                stage.pass(10);
            }
            assert!(is_indeterminate(stage.inbox.take(1)));
        }
    }
}

#[test]
fn a_request_taken_back_between_submissions_is_a_timeout_at_once() {
    // It waited to be submitted again: completed locally, nothing was sent to the kernel.
    let mut stage = stage(8);
    stage.ask(recv(), Some(20));
    stage.turn();
    {
        let mut strings = lock(&stage.puppet.0);
        strings.cancel = Some(Cancelled::Taken);
        let request = strings.taken.remove(0);
        strings.ready.push(Finished {
            token: request.token,
            buffer: request.op.into_buffer(),
            result: Err(cancelled(2)),
        });
    }
    // In one turn the deadline passes, the request is taken back, and the answer is collected.
    stage.pass(25);
    assert!(!is_indeterminate(stage.inbox.take(1)));
    assert_eq!(stage.handle().statistics().cancelled_before, 1);
}

#[test]
fn a_reused_place_is_not_cancelled_by_the_old_deadline() {
    // The first request is over before its deadline; the second sits in its place then.
    let mut stage = stage(1);
    stage.ask(read(), Some(20));
    stage.turn();
    stage.answer(0, Ok(Answer::Count(8)));
    stage.inbox.take(1).unwrap();
    stage.ask(read(), Some(1000));
    stage.turn();
    stage.pass(100);
    assert_eq!((stage.cancels(), stage.inbox.len()), (0, 0));
    stage.answer(0, Ok(Answer::Count(8)));
    stage.inbox.take(2).unwrap();
}

#[test]
fn a_place_reused_between_a_deadline_and_its_turn_is_spared() {
    // A deadline passes, and before the loop acts on it the request is forgotten and its place
    // given to another: the old deadline must not end the new request.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    let gone = stage.ask(read(), Some(20));
    stage.turn();
    stage.clock.clock.advance(Duration::from_millis(30));
    // Its own deadline has the wheel moved on, which finds the old one due.
    stage.ask(read(), Some(1000));
    stage.handle().forget(gone);
    stage.ask(read(), None);
    stage.turn();
    assert_eq!(stage.inbox.len(), 0);
    for _ in 0..3 {
        stage.answer(0, Ok(Answer::Count(8)));
        stage.turn();
    }
    assert_eq!(stage.inbox.order(), [1, 3, 4]);
}

#[test]
fn a_caller_gone_before_the_first_submission_costs_nothing() {
    // A read that nobody waits for any more is never submitted, nor answered.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    let gone = stage.ask(read(), Some(1000));
    stage.turn();
    stage.handle().forget(gone);
    stage.answer(0, Ok(Answer::Count(8)));
    stage.turn();
    assert_eq!((stage.in_flight(), stage.inbox.len()), (0, 1));
    let seen = stage.handle().statistics();
    assert_eq!((seen.orphaned, seen.pending), (1, 0));
    // Its deadline went with it.
    stage.pass(2000);
    assert_eq!(stage.inbox.len(), 1);
}

#[test]
fn a_caller_gone_in_flight_ends_a_read_and_not_a_write() {
    // A read is cancelled and its memory kept until the answer; a write and a sync go on.
    let mut stage = stage(8);
    let ids = [read(), write(), sync()].map(|ask| stage.ask(ask, None));
    stage.turn();
    for id in ids {
        stage.handle().forget(id);
    }
    stage.turn();
    assert_eq!((stage.cancels(), stage.in_flight()), (1, 3));
    stage.stop(0, 0);
    stage.answer(0, Ok(Answer::Count(8)));
    stage.answer(0, Ok(Answer::Done));
    assert_eq!(stage.inbox.len(), 0);
    let seen = stage.handle().statistics();
    assert_eq!((seen.orphaned, seen.completed, seen.pending), (3, 3, 0));
}

#[test]
fn a_success_for_nobody_is_put_back_once() {
    // A receive whose caller was gone brings bytes all the same: they go to the stash of its socket,
    // by the backend if it says so, by the loop if not, unless another receive was begun.
    for (takes_over, others, kept) in [(false, 0, 8), (true, 0, 0), (false, 1, 0)] {
        let mut stage = stage(8);
        lock(&stage.puppet.0).takes_over = takes_over;
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        let socket = File::duplicate_socket(number, Arc::default()).unwrap();
        let recv = || Ask::Recv {
            socket: socket.clone(),
            length: 8,
            exact: true,
        };
        let id = stage.ask(recv(), None);
        for _ in 0..others {
            stage.ask(recv(), None);
        }
        stage.turn();
        stage.handle().forget(id);
        stage.turn();
        stage.answer(0, Ok(Answer::Count(8)));
        let stash = socket.stash().unwrap();
        assert_eq!(stash.take(&mut [0; 16]), kept);
        assert!(!stage.inbox.has(1));
    }
}

#[test]
fn a_forgotten_write_that_waits_is_still_written() {
    // Losing interest in a write is not taking it back.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    let id = stage.ask(write(), None);
    stage.turn();
    stage.handle().forget(id);
    stage.answer(0, Ok(Answer::Count(8)));
    stage.turn();
    assert_eq!(stage.ops(), ["write"]);
}

#[test]
fn forgetting_twice_or_too_late_is_harmless() {
    // Ids are never reused, so a late loss of interest hits nobody.
    let mut stage = stage(8);
    let first = stage.ask(read(), None);
    stage.turn();
    stage.answer(0, Ok(Answer::Count(8)));
    stage.inbox.take(1).unwrap();
    stage.ask(read(), None);
    stage.turn();
    stage.handle().forget(first);
    stage.handle().forget(first);
    stage.handle().forget(Id(u64::MAX));
    stage.turn();
    assert_eq!(stage.cancels(), 0);
    stage.answer(0, Ok(Answer::Count(8)));
    stage.inbox.take(2).unwrap();
}

#[test]
fn a_sync_does_not_wait_behind_bulk_reads() {
    // An eighth of the places is kept for those who wait for durability.
    let mut stage = stage(16);
    for _ in 0..100 {
        stage.ask(read(), None);
    }
    stage.turn();
    assert_eq!(stage.in_flight(), 14);
    stage.ask(sync(), None);
    stage.turn();
    assert_eq!(stage.ops().last(), Some(&"sync"));
    assert_eq!(stage.in_flight(), 15);
}

#[test]
fn bulk_does_not_starve_behind_syncs() {
    // While both wait, those who wait for durability leave an eighth of the places to the others;
    // where there is only one place they take turns.
    for (size, syncs) in [(16, 14), (2, 1)] {
        let mut stage = stage(size);
        for _ in 0..100 {
            stage.ask(sync(), None);
        }
        stage.ask(read(), None);
        stage.turn();
        let ops = stage.ops();
        assert_eq!(ops.iter().position(|op| *op == "read"), Some(syncs));
        assert_eq!(stage.in_flight(), size);
    }
    let mut stage = stage(1);
    for ask in [sync, sync, read, sync] {
        stage.ask(ask(), None);
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        stage.turn();
        seen.extend(stage.ops());
        stage.answer(0, Ok(Answer::Count(8)));
    }
    assert_eq!(seen, ["sync", "read", "sync", "sync"]);
}

#[test]
fn what_was_forgotten_in_its_batch_leaves_nothing() {
    // The lanes hold no tokens of requests that came and went before anybody looked.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    stage.turn();
    for _ in 0..1000 {
        let id = stage.ask(recv(), None);
        stage.handle().forget(id);
        stage.turn();
    }
    assert_eq!(stage.engine.lanes.len(), 0);
}

#[test]
fn requests_go_into_flight_in_the_order_they_came() {
    // Each lane is first in, first out, whatever left in between.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    let asks = [read, write, read, write, read].map(|ask| stage.ask(ask(), None));
    stage.turn();
    stage.handle().forget(asks[2]);
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(stage.ops());
        stage.answer(0, Ok(Answer::Count(8)));
        stage.turn();
    }
    assert_eq!(seen, ["recv", "read", "write", "write", "read"]);
    assert_eq!(stage.inbox.order(), [1, 2, 3, 5, 6]);
}

#[test]
fn a_backend_smaller_than_the_table_is_waited_for() {
    // What it would refuse is not given to it.
    let mut stage = stage(8);
    lock(&stage.puppet.0).capacity = Some(2);
    for _ in 0..4 {
        stage.ask(read(), None);
    }
    stage.turn();
    assert_eq!(stage.in_flight(), 2);
    stage.answer(0, Ok(Answer::Count(8)));
    stage.turn();
    assert_eq!(stage.in_flight(), 2);
}

#[test]
fn a_full_intake_gives_the_request_back() {
    // Who may not wait learns at once; the request comes back whole.
    let mut stage = stage(1);
    stage.ask(recv(), None);
    stage.turn();
    let sink = stage.inbox.sink();
    stage
        .handle()
        .try_submit(write(), None, sink.clone(), 77)
        .unwrap();
    let (ask, error) = stage
        .handle()
        .try_submit(write(), None, sink, 78)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(matches!(ask, Ask::Write { buffers, .. } if buffers.len() == 1));
    stage.answer(0, Ok(Answer::Count(8)));
    stage.turn();
    stage.answer(0, Ok(Answer::Count(8)));
    assert_eq!(count(stage.inbox.take(77)), 8);
}

#[test]
fn nothing_to_time_means_no_clock_and_no_wake() {
    // An idle loop sleeps for ever, and a loop without deadlines is woken by answers alone.
    let mut stage = stage(8);
    stage.engine.turn(Wait::Forever);
    let before = stage.clock.reads.load(Ordering::Relaxed);
    for _ in 0..10 {
        stage.engine.turn(Wait::Forever);
    }
    assert_eq!(stage.clock.reads.load(Ordering::Relaxed), before);
    stage.ask(recv(), None);
    stage.engine.turn(Wait::Forever);
    let strings = lock(&stage.puppet.0);
    assert!(strings.waits.iter().all(|wait| *wait == Wait::Forever));
}

#[test]
fn a_wait_ends_at_the_next_deadline() {
    // Neither earlier, which would be a busy loop, nor more than a tick later.
    let mut stage = stage(8);
    stage.ask(recv(), Some(52));
    stage.engine.turn(Wait::Forever);
    let wait = lock(&stage.puppet.0).waits.pop().unwrap();
    let Wait::Until(until) = wait else {
        panic!("{wait:?}");
    };
    let at = until.since(Mono(0));
    assert!(at >= Duration::from_millis(52) && at <= Duration::from_millis(52) + TICK);
}

#[test]
fn what_a_program_asks_beyond_any_file_is_refused_at_the_door() {
    // Nothing was accepted, so no answer comes.
    let stage = stage(8);
    let ask = Ask::Read {
        file: file(),
        offset: u64::MAX,
        length: 2,
        partial: false,
    };
    let sink = stage.inbox.sink();
    let refused = stage.handle().submit(ask, None, sink, 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(stage.handle().statistics().submitted, 0);
}

#[test]
fn a_length_that_no_memory_fits_is_an_error() {
    // The loop goes on; the row is freed like any other.
    let mut stage = stage(8);
    let ask = Ask::Read {
        file: file(),
        offset: 0,
        length: isize::MAX as usize - 4096,
        partial: false,
    };
    stage.ask(ask, None);
    stage.turn();
    assert_eq!(kind(stage.inbox.take(1)), ErrorKind::TooLarge);
    assert_eq!(stage.handle().statistics().pending, 0);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    // Zero for size or tick has no meaning; a size is rounded up to a power of two.
    let good = Settings::default();
    for bad in [
        Settings { size: 0, ..good },
        Settings {
            size: 1 << 20,
            ..good
        },
        Settings {
            tick: Duration::ZERO,
            ..good
        },
        Settings {
            slow_after: Duration::ZERO,
            ..good
        },
    ] {
        assert_eq!(bad.checked().unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(Settings { size: 100, ..good }.checked().unwrap().size, 128);
}

#[test]
fn a_slow_disk_is_told_of_while_it_is_slow() {
    // Once while it lasts and once when it is over; a peer that takes its time is not a disk.
    let mut stage = stage(8);
    let id = stage.ask(write(), None);
    stage.ask(recv(), None);
    stage.turn();
    stage.pass(900);
    assert!(stage.handle().slow_operations().is_empty());
    stage.pass(200);
    stage.pass(5000);
    let seen = stage.handle().statistics();
    assert_eq!((seen.slow_now, seen.slow), (1, 1));
    assert!(seen.oldest >= Duration::from_secs(6));
    stage.answer(0, Ok(Answer::Count(8)));
    let events = stage.handle().slow_operations();
    let told = |event: &SlowOperation| (event.id, event.over);
    assert_eq!(
        events.iter().map(told).collect::<Vec<_>>(),
        [(id, false), (id, true)]
    );
    assert_eq!(events[1].age, Duration::from_millis(6100));
    assert_eq!(stage.handle().statistics().slow_now, 0);
}

#[test]
fn a_slow_one_tells_where_it_is_whoever_still_waits() {
    // Also of those whose waiter left before anybody called them slow: a write that was given up,
    // a write and a read whose deadlines passed.
    let mut stage = stage(8);
    let ids = [
        stage.ask(write(), None),
        stage.ask(write(), None),
        stage.ask(write(), Some(20)),
        stage.ask(read(), Some(20)),
    ];
    stage.turn();
    stage.handle().forget(ids[1]);
    stage.pass(100);
    stage.pass(10);
    assert_eq!(stage.inbox.len(), 2);
    stage.pass(2000);
    let told = |events: Vec<SlowOperation>| {
        let one = |event: SlowOperation| (event.id, event.place.path, event.place.offset);
        events.into_iter().map(one).collect::<Vec<_>>()
    };
    let expected: Vec<_> = (1..5)
        .zip(ids)
        .map(|(tag, id)| (id, Some(Path::new(&format!("/of/{tag}")).into()), Some(tag)))
        .collect();
    assert_eq!(told(stage.handle().slow_operations()), expected);
    for _ in ids {
        stage.answer(0, Ok(Answer::Count(8)));
    }
    assert_eq!(told(stage.handle().slow_operations()), expected);
}

#[test]
fn a_backend_that_fails_poisons_and_answers_everybody() {
    // Waiting, in flight, and whoever comes later: the first cause, and nothing is freed twice.
    let mut stage = stage(1);
    stage.ask(write(), None);
    stage.ask(read(), None);
    stage.turn();
    lock(&stage.puppet.0).broken = Some(Error::from_errno(libc::EBADF, "io_uring_enter"));
    assert_eq!(stage.turn(), Turned::Over);
    for tag in [1, 2] {
        let error = stage.inbox.take(tag).unwrap_err();
        assert_eq!(
            (error.kind(), error.errno()),
            (ErrorKind::Poisoned, Some(libc::EBADF))
        );
    }
    let sink = stage.inbox.sink();
    let refused = stage.handle().submit(read(), None, sink, 9).unwrap_err();
    assert_eq!(
        (refused.kind(), refused.errno()),
        (ErrorKind::Poisoned, Some(libc::EBADF))
    );
    assert_eq!(stage.turn(), Turned::Over);
    assert_eq!(stage.handle().statistics().leaked_requests, 1);
}

#[test]
fn a_panic_poisons_instead_of_spreading() {
    // The process is a program's, not ours to end; what the kernel may touch is leaked.
    let mut stage = stage(8);
    stage.ask(read(), None);
    stage.turn();
    let holders = Arc::strong_count(&stage.puppet.0);
    lock(&stage.puppet.0).panics = true;
    assert_eq!(stage.turn(), Turned::Over);
    assert_eq!(
        Arc::strong_count(&stage.puppet.0),
        holders,
        "the backend was freed"
    );
    assert_eq!(kind(stage.inbox.take(1)), ErrorKind::Poisoned);
    assert!(stage.handle().poison().is_some());
    assert!(lock(&stage.puppet.0).shutdowns.is_empty());
}

mod end {
    use super::*;

    fn closing(budget: Option<Duration>) -> Stage {
        stage_with(Settings {
            size: 2,
            shutdown_timeout: budget,
            ..Settings::default()
        })
    }

    fn close(stage: &Stage) {
        stage.handle().close(None, Some((stage.inbox.sink(), 0)));
    }

    #[test]
    fn an_idle_loop_is_over_at_once() {
        // And says so to who closed it, to who asks later, and to who submits after it.
        let mut stage = closing(None);
        close(&stage);
        assert_eq!(stage.turn(), Turned::Over);
        assert_eq!(stage.inbox.ended(), Some(Leftovers::default()));
        close(&stage);
        let sink = stage.inbox.sink();
        let refused = stage.handle().submit(read(), None, sink, 1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Closed);
    }

    #[test]
    fn the_last_handle_closes() {
        // Clones keep it open; nobody needs to say that nobody is left.
        let mut stage = closing(None);
        let clone = stage.handle().clone();
        stage.handle = None;
        assert_eq!(stage.turn(), Turned::On);
        drop(clone);
        assert_eq!(stage.turn(), Turned::Over);
    }

    #[test]
    fn without_a_budget_everything_is_served() {
        // A full table and a queue behind it: what was accepted is done, nothing new is taken.
        let mut stage = closing(None);
        for _ in 0..5 {
            stage.ask(write(), None);
        }
        close(&stage);
        for _ in 0..5 {
            assert_eq!(stage.turn(), Turned::On);
            stage.clock.clock.advance(Duration::from_secs(3600));
            stage.answer(0, Ok(Answer::Count(8)));
        }
        assert_eq!(stage.turn(), Turned::Over);
        assert_eq!(stage.inbox.order(), [1, 2, 3, 4, 5]);
        assert_eq!(stage.inbox.ended(), Some(Leftovers::default()));
    }

    #[test]
    fn without_a_budget_deadlines_still_pass() {
        // In flight and waiting: both are answered in time while the loop drains.
        let mut stage = closing(None);
        stage.ask(recv(), Some(20));
        stage.ask(recv(), Some(40));
        close(&stage);
        stage.turn();
        assert_eq!(stage.in_flight(), 1);
        stage.pass(25);
        stage.stop(0, 0);
        assert!(!is_indeterminate(stage.inbox.take(1)));
        stage.turn();
        stage.pass(20);
        stage.stop(0, 0);
        assert!(!is_indeterminate(stage.inbox.take(2)));
        assert_eq!(stage.turn(), Turned::Over);
    }

    #[test]
    fn a_spent_budget_cancels_and_waits_for_the_answers() {
        // What waits is answered; what is in flight is cancelled and answers for itself.
        let mut stage = closing(Some(Duration::from_millis(100)));
        for _ in 0..2 {
            stage.ask(write(), None);
        }
        stage.ask(read(), None);
        close(&stage);
        stage.turn();
        stage.pass(99);
        assert_eq!((stage.cancels(), stage.inbox.len()), (0, 0));
        stage.pass(2);
        assert_eq!(stage.cancels(), stage.in_flight());
        assert!(stage.inbox.len() > 0);
        while stage.in_flight() > 0 {
            stage.stop(0, 0);
        }
        stage.turn();
        assert_eq!(stage.inbox.len(), 3);
        assert_eq!(stage.inbox.ended(), Some(Leftovers::default()));
    }

    #[test]
    fn what_does_not_answer_is_left_behind_and_counted() {
        // Deliberately: the memory is leaked with the backend, the waiters are told.
        for deadline in [None, Some(10_000)] {
            let mut stage = closing(Some(Duration::from_millis(100)));
            stage.ask(write(), deadline);
            stage.turn();
            close(&stage);
            stage.turn();
            stage.pass(101);
            assert_eq!(stage.cancels(), 1);
            stage.pass(1000);
            let error = stage.inbox.take(1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Abandoned);
            assert_eq!(error.number("indeterminate"), Some(1));
            let left = stage.inbox.ended().unwrap();
            assert_eq!((left.requests, left.bytes), (1, 8));
            let seen = stage.handle().statistics();
            assert_eq!(
                (seen.leaked_requests, seen.leaked_bytes, seen.abandoned),
                (1, 8, 1)
            );
            assert_eq!(lock(&stage.puppet.0).shutdowns, [Some(Duration::ZERO)]);
        }
    }

    #[test]
    fn a_later_close_can_shorten_the_wait() {
        // The program exits: the engine has no time for what it waited for patiently.
        let mut stage = closing(None);
        stage.ask(recv(), None);
        close(&stage);
        stage.pass(100_000);
        stage.handle().close(Some(Duration::from_millis(50)), None);
        stage.turn();
        assert_eq!(stage.cancels(), 0);
        stage.pass(60);
        assert_eq!(stage.cancels(), 1);
        stage.pass(1000);
        assert_eq!(kind(stage.inbox.take(1)), ErrorKind::Abandoned);
    }

    #[test]
    fn a_submission_that_comes_after_the_end_is_answered_by_its_submitter() {
        // It passed the door while the loop was open and reached the queue when it was over.
        let mut stage = closing(None);
        close(&stage);
        assert_eq!(stage.turn(), Turned::Over);
        let sink = stage.inbox.sink();
        stage.handle().accept(read(), None, sink, 7, true);
        assert_eq!(kind(stage.inbox.take(7)), ErrorKind::Closed);
        assert_eq!(stage.handle().statistics().pending, 0);
    }

    #[test]
    fn a_submission_that_raced_the_end_is_answered() {
        // It was accepted before the close and reaches the loop after it: served like the others.
        let mut stage = closing(None);
        stage.ask(read(), None);
        close(&stage);
        stage.turn();
        assert_eq!(stage.in_flight(), 1);
        stage.answer(0, Ok(Answer::Count(8)));
        stage.turn();
        assert!(matches!(stage.inbox.take(1), Ok(Reply::Bytes { .. })));
    }
}
