//! Few or many: which of the two should turn a log that either may turn.
//!
//! A loop that turns its log itself saves two hand-overs between threads for each group. With many
//! tasks all of a group share them, and with large groups copying and checksums would take time
//! from the loop that it needs for its tasks. So few are for the loop, and many, or much, for a
//! thread; also where a thread waits beside a loop, which may be stuck in a call of its own.
//!
//! # Always true
//!
//! Between the two bounds nothing changes, and one answer changes nothing: a load that swings has to
//! stay on the other side for a while. Going back takes longer than going.

/// Records under way that are many...
const MANY: u64 = 192;
/// ...and few.
const FEW: u64 = 96;

/// Bytes of a group that are as good as many records...
const MUCH: u64 = 64 << 10;
/// ...and as few.
const LITTLE: u64 = 32 << 10;

/// Answers in a row after which many are believed...
const MANY_ANSWERS: u32 = 4;
/// ...and few.
const FEW_ANSWERS: u32 = 32;

/// For so many answers a thread that came to wait beside a loop is remembered.
const MIXED_ANSWERS: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    is_many: bool,
    /// Answers for which a thread beside a loop is still remembered.
    mixed: u32,
    /// Answers in a row that said the opposite.
    against: u32,
}

impl Crowd {
    /// Some were answered while so many records were under way, they included, and groups were so
    /// large; `is_mixed`: a thread waits beside a loop. Whether they are many.
    pub(crate) fn answered(&mut self, under_way: u64, group_bytes: u64, is_mixed: bool) -> bool {
        self.mixed = if is_mixed {
            MIXED_ANSWERS
        } else {
            self.mixed.saturating_sub(1)
        };
        let is_mixed = self.mixed > 0;
        let (is_against, enough) = if self.is_many {
            let is_few = under_way <= FEW && group_bytes <= LITTLE && !is_mixed;
            (is_few, FEW_ANSWERS)
        } else {
            let is_many = under_way >= MANY || group_bytes >= MUCH || is_mixed;
            (is_many, MANY_ANSWERS)
        };
        self.against = if is_against { self.against + 1 } else { 0 };
        if self.against >= enough {
            self.is_many = !self.is_many;
            self.against = 0;
        }
        self.is_many
    }

    /// Nobody is left.
    pub(crate) fn disperse(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(crowd: &mut Crowd, under_way: u64, answers: u32) -> bool {
        let mut is_many = crowd.is_many;
        for _ in 0..answers {
            is_many = crowd.answered(under_way, 0, false);
        }
        is_many
    }

    #[test]
    fn it_takes_some_answers_to_be_many_and_more_to_be_few() {
        // A few large groups in a row hand over, one does not; back it takes eight times as long.
        let mut crowd = Crowd::default();
        assert!(!after(&mut crowd, MANY, MANY_ANSWERS - 1));
        assert!(after(&mut crowd, MANY, 1));
        assert!(after(&mut crowd, FEW, FEW_ANSWERS - 1));
        assert!(!after(&mut crowd, FEW, 1));
    }

    #[test]
    fn a_load_that_swings_changes_nothing() {
        // One answer on the old side, or between the bounds, starts the count again.
        let mut crowd = Crowd::default();
        for _ in 0..20 {
            assert!(!after(&mut crowd, MANY, MANY_ANSWERS - 1));
            assert!(!after(&mut crowd, MANY - 1, 1));
        }
        assert!(after(&mut crowd, MANY, MANY_ANSWERS));
        for _ in 0..20 {
            assert!(after(&mut crowd, FEW, FEW_ANSWERS - 1));
            assert!(after(&mut crowd, FEW + 1, 1));
        }
    }

    #[test]
    fn large_groups_and_a_thread_beside_a_loop_count_as_many() {
        // However few records there are; and when everybody is gone it begins anew.
        for (group_bytes, is_mixed) in [(MUCH, false), (0, true)] {
            let mut crowd = Crowd::default();
            let mut seen = (0..MANY_ANSWERS).map(|_| crowd.answered(1, group_bytes, is_mixed));
            assert_eq!(seen.by_ref().last(), Some(true));
            assert!(after(&mut crowd, 1, 1));
            crowd.disperse();
            assert!(!after(&mut crowd, 1, 1));
        }
        let mut crowd = Crowd::default();
        assert!(after(&mut crowd, MANY, MANY_ANSWERS));
        for _ in 0..2 * FEW_ANSWERS {
            assert!(crowd.answered(1, LITTLE + 1, false));
        }
    }
}
