//! Runs a log through everything a crash can do to it, several lives deep.
//!
//! One life: open the log, carry out some operations, and stop at every event of the disk. At
//! each of these moments every legal state of the disk is taken, opened and held against the
//! ledger of that moment; some of these states begin another life, whose moments, those inside
//! its recovery included, are taken apart in the same way. Others begin after a kill, where the
//! page cache survives and the dead owner's last writes come late.
//!
//! # Always true
//!
//! 1. The same plan and the same operations visit the same states in the same order.
//! 2. A workload's first life is stopped only within its last operation: the moments before
//!    belong to the workload without it.
//! 3. Who watches is asked before every state, every kill and every life. Once he has said stop,
//!    nothing more is begun, and the report says how much of what was known was tried.

use std::{cell::RefCell, fmt::Debug, rc::Rc, sync::Arc, time::Duration};

use super::{
    crash::{CrashPoint, Model, Seen},
    disk::SimDisk,
    fault::Fault,
    flight::Zombies,
    image::Image,
    oracle::{Ledger, Monitor, Verdict},
    random::mix,
    world::{Event, Settings, World},
};
use crate::sync::{Mutex, lock};

/// The oracle that says a log does not go on: no violation where something was made to fail.
pub const LIVENESS: &str = "O8";

/// How many images are remembered; one that is met again after so many others counts again.
const REMEMBERED: usize = 1 << 25;

/// The ledger and the monitor of one life, shared with the disk's hook.
#[derive(Debug, Clone)]
pub struct Book(Arc<Mutex<Pages>>);

#[derive(Debug)]
struct Pages {
    ledger: Ledger,
    monitor: Monitor,
    moments: Vec<Moment>,
    is_on: bool,
    waits_for_fault: bool,
    seen: (u64, u64),
    plan: Plan,
}

/// A moment at which the disk stops.
#[derive(Debug)]
struct Moment {
    event: Event,
    point: CrashPoint,
    ledger: Ledger,
    kills: Vec<(Zombies, SimDisk)>,
}

impl Book {
    fn new(ledger: Ledger, plan: Plan, is_on: bool) -> Self {
        Self(Arc::new(Mutex::new(Pages {
            ledger,
            monitor: Monitor::default(),
            moments: Vec::new(),
            is_on,
            waits_for_fault: false,
            seen: (u64::MAX, u64::MAX),
            plan,
        })))
    }

    /// The ledger.
    pub fn with<R>(&self, f: impl FnOnce(&mut Ledger) -> R) -> R {
        f(&mut lock(&self.0).ledger)
    }

    /// The log acknowledged everything up to `lsn`: checks O3, O6 and O11.
    pub fn acknowledge(&self, disk: &SimDisk, lsn: u64) -> Verdict {
        // The hook takes the world first and then the book.
        disk.with(|world| {
            let pages = &mut *lock(&self.0);
            let before = pages.ledger.acknowledged();
            pages.ledger.acknowledge(lsn)?;
            for lsn in before + 1..=lsn {
                let value = pages.ledger.expected(lsn).unwrap_or_default();
                pages.monitor.acknowledged(world, &value)?;
            }
            Ok(())
        })
    }
}

impl Pages {
    fn see(&mut self, world: &World, event: &Event) {
        self.monitor.see(world, event);
        if self.waits_for_fault && world.faults.hits == 0 {
            return;
        }
        let now = (world.version(), self.ledger.fingerprint());
        if !self.is_on || now == self.seen {
            return;
        }
        self.seen = now;
        let draw = mix(world.digest() ^ self.plan.model.seed);
        let kills = match self.plan.kill_one_in {
            0 => Vec::new(),
            one_in if !draw.is_multiple_of(one_in) => Vec::new(),
            _ => kills(world, draw >> 32),
        };
        self.moments.push(Moment {
            event: *event,
            point: CrashPoint::capture(world, self.plan.model),
            ledger: self.ledger.clone(),
            kills,
        });
    }
}

/// The world after its owner was killed, with what was in flight landing in different ways.
fn kills(world: &World, draw: u64) -> Vec<(Zombies, SimDisk)> {
    let count = world.changes_in_flight().min(4);
    let subsets = (0..1_u64 << count).rev();
    let zombies = subsets.map(|lands| Zombies {
        lands,
        after_events: mix(draw ^ lands) % 24,
        after: Duration::from_millis(10),
    });
    zombies
        .map(|zombies| (zombies, world.killed(zombies)))
        .collect()
}

/// A log under test.
pub trait Subject {
    /// An open log.
    type Session;
    /// Something to do with it.
    type Op: Clone + Debug;

    /// Opens the log on `disk` and holds what it shows against the book.
    fn open(&self, disk: &SimDisk, book: &Book) -> Verdict<Self::Session>;

    /// Carries out `op`, writing down in the book what is given and what is acknowledged.
    fn perform(
        &self,
        disk: &SimDisk,
        session: &mut Self::Session,
        op: &Self::Op,
        book: &Book,
    ) -> Verdict;

    /// Recovers without going on, and holds what is shown against the book.
    fn probe(&self, disk: &SimDisk, book: &Book) -> Verdict {
        self.open(disk, book).map(drop)
    }

    /// What a life that begins in a crash state does; chosen by `draw`.
    fn next_ops(&self, draw: u64) -> Vec<Self::Op>;
}

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The rules of a power cut; its seed chooses wherever a choice is left.
    pub model: Model,
    /// Of the disks.
    pub settings: Settings,
    /// Lives, the first included.
    pub depth: usize,
    /// One in so many states begins another life.
    pub nest_one_in: u64,
    /// One in so many moments of the first life is also a kill; zero: none.
    pub kill_one_in: u64,
    /// The same, of later lives but the last, which has none.
    pub kill_later_one_in: u64,
    /// Segments of an earlier life must not be written to.
    pub seals: bool,
    /// One in so many states is recovered twice.
    pub twice_one_in: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            model: Model::default(),
            settings: Settings::default(),
            depth: 3,
            nest_one_in: 16,
            kill_one_in: 4,
            kill_later_one_in: 4,
            seals: true,
            twice_one_in: 8,
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Sequences of operations.
    pub workloads: u64,
    /// Moments taken apart.
    pub moments: u64,
    /// Crash states opened and checked: equal ones once, unless something else was promised.
    pub states: u64,
    /// Of these, disks whose bytes and names nobody saw before.
    pub distinct: u64,
    /// States that began a second, third, ... life.
    pub lives: u64,
    /// Worlds opened after a kill.
    pub kills: u64,
    /// Recoveries repeated.
    pub twice: u64,
    /// Operations that failed on order.
    pub faults: u64,
    /// States that the moments found so far stand for, equal ones included.
    pub known: u64,
    /// Of these, those whose image was made; all of them, unless the run was stopped.
    pub tried: u64,
    /// Tells this history from others: the same plan and workloads give the same.
    pub digest: u64,
}

impl Report {
    /// Adds another report.
    pub fn add(&mut self, other: Self) {
        self.workloads += other.workloads;
        self.moments += other.moments;
        self.states += other.states;
        self.distinct += other.distinct;
        self.lives += other.lives;
        self.kills += other.kills;
        self.twice += other.twice;
        self.faults += other.faults;
        self.known += other.known;
        self.tried += other.tried;
        self.digest = mix(self.digest ^ other.digest);
    }
}

/// Is told how far an explorer is; whether it should go on.
pub type Watch<'a> = Box<dyn FnMut(&Report) -> bool + 'a>;

/// Visits states and counts them.
pub struct Explorer<'a, S: Subject> {
    subject: &'a S,
    plan: Plan,
    images: Seen,
    visited: Rc<RefCell<Seen>>,
    watch: Option<Watch<'a>>,
    is_stopped: bool,
    /// So far.
    pub report: Report,
}

impl<'a, S: Subject> Explorer<'a, S> {
    /// Nothing visited yet.
    pub fn new(subject: &'a S, plan: Plan) -> Self {
        Self {
            subject,
            plan,
            images: Seen::default(),
            visited: Rc::default(),
            watch: None,
            is_stopped: false,
            report: Report::default(),
        }
    }

    /// The same, watched: it stops in the middle when `watch` says so.
    #[must_use]
    pub fn watched(mut self, watch: Watch<'a>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Whether it was told to stop.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    fn goes_on(&mut self) -> bool {
        if let Some(watch) = self.watch.as_mut().filter(|_| !self.is_stopped) {
            self.is_stopped = !watch(&self.report);
        }
        !self.is_stopped
    }

    /// What `ops` do when `fault` happens in their life, and every crash after it. Whether the
    /// fault happened.
    pub fn fault(&mut self, ops: &[S::Op], fault: Fault) -> Verdict<bool> {
        self.begin_workload();
        let disk = SimDisk::new(self.plan.settings);
        disk.with(|world| world.faults.order(fault));
        self.life(&disk, Ledger::default(), ops, 0)
            .map_err(|error| error.at(format!("{fault:?} in workload {ops:?}")))?;
        let hits = disk.with(|world| world.faults.hits);
        self.report.faults += hits;
        Ok(hits > 0)
    }

    /// Every crash within the last of `ops`, and what follows from it.
    pub fn workload(&mut self, ops: &[S::Op]) -> Verdict {
        self.begin_workload();
        let disk = SimDisk::new(self.plan.settings);
        self.life(&disk, Ledger::default(), ops, 0)
            .map_err(|error| error.at(format!("workload {ops:?}")))
    }

    fn begin_workload(&mut self) {
        self.report.workloads += 1;
        if self.images.len() > REMEMBERED {
            self.images.clear();
            self.visited.borrow_mut().clear();
        }
    }

    fn life(&mut self, disk: &SimDisk, ledger: Ledger, ops: &[S::Op], depth: usize) -> Verdict {
        if !self.goes_on() {
            return Ok(());
        }
        let has_fault = disk.with(|world| world.faults.is_ordered());
        let only_last = depth == 0 && !ops.is_empty() && !has_fault;
        let mut plan = self.plan;
        if depth + 1 >= plan.depth {
            plan.kill_one_in = 0;
        } else if depth > 0 {
            plan.kill_one_in = plan.kill_later_one_in;
        }
        let book = Book::new(ledger, plan, !only_last);
        lock(&book.0).waits_for_fault = has_fault;
        let hook = book.clone();
        disk.with(|world| {
            if plan.seals {
                lock(&book.0).monitor.seal(world);
            }
            world.set_hook(Some(Box::new(move |world, event| {
                lock(&hook.0).see(world, event);
            })));
        });
        let outcome = self.run(disk, ops, &book);
        disk.with(|world| world.set_hook(None));
        disk.kill(Zombies {
            lands: 0,
            ..Zombies::default()
        });
        let moments = {
            let mut pages = lock(&book.0);
            pages.monitor.verdict()?;
            std::mem::take(&mut pages.moments)
        };
        match outcome {
            // The log may stop; what it must not do has been checked.
            Err(stop) if stop.oracle == LIVENESS && disk.with(|world| world.faults.hits > 0) => {}
            outcome => drop(outcome?),
        }
        self.report.digest = mix(self.report.digest ^ disk.with(|world| world.digest()));
        self.report.known += moments
            .iter()
            .map(|one| one.point.states_count())
            .sum::<u64>();
        for moment in moments {
            self.take_apart(&moment, depth)
                .map_err(|error| error.at(format!("life {depth}, event {:?}", moment.event)))?;
        }
        Ok(())
    }

    fn run(&self, disk: &SimDisk, ops: &[S::Op], book: &Book) -> Verdict<S::Session> {
        let mut session = self.subject.open(disk, book)?;
        for (place, op) in ops.iter().enumerate() {
            if place + 1 == ops.len() {
                lock(&book.0).is_on = true;
            }
            self.subject.perform(disk, &mut session, op, book)?;
        }
        Ok(session)
    }

    fn take_apart(&mut self, moment: &Moment, depth: usize) -> Verdict {
        if !self.goes_on() {
            return Ok(());
        }
        self.report.moments += 1;
        for (zombies, disk) in &moment.kills {
            if !self.goes_on() {
                return Ok(());
            }
            self.report.kills += 1;
            let ops = self
                .subject
                .next_ops(mix(moment.event.number ^ zombies.lands));
            self.life(disk, moment.ledger.clone(), &ops, depth + 1)
                .map_err(|error| error.at(format!("killed, {zombies:?}, then {ops:?}")))?;
        }
        let salt = moment.ledger.fingerprint();
        let visited = self.visited.clone();
        let mut verdict = Ok(());
        let tried = moment
            .point
            .states(salt, &visited, &mut |image, mark, digits| {
                if !self.goes_on() {
                    return false;
                }
                verdict = self
                    .state(image, mark, &moment.ledger, depth)
                    .map_err(|error| error.at(format!("state {digits:?}")));
                verdict.is_ok() && !self.is_stopped
            });
        self.report.tried += tried;
        verdict
    }

    fn state(&mut self, image: &Image, mark: u64, ledger: &Ledger, depth: usize) -> Verdict {
        self.report.states += 1;
        self.report.distinct += u64::from(self.images.insert(mark));
        let draw = mix(mark ^ self.plan.model.seed);
        let disk = SimDisk::from_image(image, self.plan.settings);
        if depth + 1 < self.plan.depth && draw.is_multiple_of(self.plan.nest_one_in) {
            self.report.lives += 1;
            let ops = self.subject.next_ops(draw >> 16);
            return self
                .life(&disk, ledger.clone(), &ops, depth + 1)
                .map_err(|error| error.at(format!("then {ops:?}")));
        }
        let book = Book::new(ledger.clone(), self.plan, false);
        self.subject.probe(&disk, &book)?;
        if (draw >> 8).is_multiple_of(self.plan.twice_one_in) {
            self.report.twice += 1;
            disk.kill(Zombies::default());
            let probe = self.subject.probe(&disk.new_process(), &book);
            probe.map_err(|error| error.at("recovered twice"))?;
        }
        Ok(())
    }
}

/// The number of operation sequences of at most `most` operations out of `alphabet`.
pub fn sequences_count(alphabet: usize, most: u32) -> u64 {
    (0..=most).map(|length| (alphabet as u64).pow(length)).sum()
}

/// The sequence with this number: shorter ones come first.
pub fn sequence<T: Clone>(alphabet: &[T], mut number: u64) -> Vec<T> {
    let base = alphabet.len() as u64;
    let mut length = 0;
    while number >= base.pow(length) {
        number -= base.pow(length);
        length += 1;
    }
    let digit = |place| number / base.pow(place) % base;
    (0..length)
        .rev()
        .map(|place| alphabet[digit(place) as usize].clone())
        .collect()
}
