//! Faults on order: the n-th operation of a kind fails, lies, or never answers.

pub use crate::io::Kind;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The operation fails with this errno. A failed write may have written some of its sectors;
    /// a failed sync leaves the bytes where they were.
    Fails(i32),
    /// A sync fails with this errno and drops the pages it could not write: cached reads still
    /// show the new bytes, later syncs succeed, and the device keeps the old ones.
    Drops(i32),
    /// The answer never comes.
    Stalls,
}

/// One fault on order.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which kind of operation.
    pub kind: Kind,
    /// Which one of that kind, counted from one at the moment of ordering.
    pub nth: u64,
    /// Every later one too.
    pub forever: bool,
    /// What happens.
    pub trouble: Trouble,
}

/// The faults on order and the operations counted so far.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    orders: Vec<(Fault, u64)>,
    counts: [u64; Kind::ALL.len()],
    /// Faults that happened.
    pub hits: u64,
}

impl Faults {
    /// Orders a fault.
    pub fn order(&mut self, fault: Fault) {
        let target = self.counts[fault.kind as usize] + fault.nth;
        self.orders.push((fault, target));
    }

    /// Whether a fault is on order.
    pub fn is_ordered(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Cancels all orders.
    pub fn clear(&mut self) {
        self.orders.clear();
    }

    /// Operations of `kind` so far.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// Counts an operation and says what is to go wrong with it.
    pub fn next(&mut self, kind: Kind) -> Option<Trouble> {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        let count = *count;
        let hit = self.orders.iter().find(|(fault, target)| {
            fault.kind == kind && (*target == count || fault.forever && *target < count)
        })?;
        self.hits += 1;
        Some(hit.0.trouble)
    }
}
