//! The decision table, row by row, without a byte of a disk.

use crate::wal::{
    frame::FrameFault,
    scan::Stop,
    verdict::{Evidence, Later, Proof, Tail, Unreadable, Verdict, judge},
};

const TAIL: Tail = Tail {
    stop: Stop::Fault(FrameFault::Empty),
    cut_short: false,
    later: Later::None,
    unreadable: Unreadable::None,
    residue: false,
};

fn tail(tail: Tail) -> Verdict {
    judge(Evidence::Tail(tail))
}

fn is_damage(evidence: Evidence) -> bool {
    matches!(judge(evidence), Verdict::Damage(_))
}

#[test]
fn nothing_promised_is_lost_at_a_torn_tail() {
    // Without proof that the missing frame was durable, the tail is cut, not refused.
    assert_eq!(tail(TAIL), Verdict::End);
    assert_eq!(
        tail(Tail {
            residue: true,
            ..TAIL
        }),
        Verdict::Torn
    );
    assert_eq!(
        tail(Tail {
            later: Later::Unproven,
            residue: true,
            ..TAIL
        }),
        Verdict::Torn
    );
    let bad = Stop::Fault(FrameFault::BodyChecksum);
    assert_eq!(
        tail(Tail {
            stop: bad,
            residue: true,
            ..TAIL
        }),
        Verdict::Torn
    );
    let bad = Stop::Fault(FrameFault::Unreadable);
    let unreadable = Unreadable::Near;
    assert_eq!(
        tail(Tail {
            stop: bad,
            unreadable,
            residue: true,
            ..TAIL
        }),
        Verdict::Torn
    );
    assert_eq!(
        tail(Tail {
            stop: Stop::Full,
            ..TAIL
        }),
        Verdict::End
    );
}

#[test]
fn proof_of_a_promise_is_damage_whatever_else_is_seen() {
    // Each proof stands for itself, and a torn look does not excuse it.
    let stops = [
        Stop::Fault(FrameFault::Empty),
        Stop::Fault(FrameFault::Magic),
        Stop::Fault(FrameFault::HeaderChecksum),
        Stop::Fault(FrameFault::BodyChecksum),
        Stop::Fault(FrameFault::Short),
        Stop::Fault(FrameFault::Unreadable),
    ];
    for stop in stops {
        for proof in [
            Proof::Durable,
            Proof::Window,
            Proof::OutOfLine,
            Proof::AfterClose,
        ] {
            for unreadable in [Unreadable::None, Unreadable::Near, Unreadable::Far] {
                let later = Later::Proof(proof);
                let evidence = Tail {
                    stop,
                    later,
                    unreadable,
                    residue: true,
                    ..TAIL
                };
                assert!(is_damage(Evidence::Tail(evidence)), "{evidence:?}");
            }
        }
        let evidence = Tail {
            stop,
            unreadable: Unreadable::Far,
            residue: true,
            ..TAIL
        };
        assert!(is_damage(Evidence::Tail(evidence)));
        let evidence = Tail {
            stop,
            cut_short: true,
            residue: true,
            ..TAIL
        };
        assert!(is_damage(Evidence::Tail(evidence)));
    }
    let stop = Stop::Fault(FrameFault::Contradiction("x"));
    assert_eq!(tail(Tail { stop, ..TAIL }), Verdict::Damage("x"));
}

#[test]
fn a_closed_log_ends_at_its_close_frame() {
    // A closed segment may be short or full of rubbish behind the close, but nothing may follow.
    for cut_short in [false, true] {
        for residue in [false, true] {
            let evidence = Tail {
                stop: Stop::Closed,
                cut_short,
                residue,
                ..TAIL
            };
            assert_eq!(tail(evidence), Verdict::Closed);
        }
    }
    let later = Later::Proof(Proof::AfterClose);
    assert!(is_damage(Evidence::Tail(Tail {
        stop: Stop::Closed,
        later,
        ..TAIL
    })));
}

#[test]
fn files_are_judged_by_what_vouches_for_them() {
    // Only an unused file at the end is no loss.
    assert_eq!(
        judge(Evidence::NoHeader {
            last: true,
            trace: false
        }),
        Verdict::NeverUsed
    );
    assert!(is_damage(Evidence::NoHeader {
        last: true,
        trace: true
    }));
    assert!(is_damage(Evidence::NoHeader {
        last: false,
        trace: false
    }));
    assert!(is_damage(Evidence::Missing));
    assert!(is_damage(Evidence::Foreign));
    assert!(is_damage(Evidence::Disagrees));
    assert!(is_damage(Evidence::ShortOfSuccessor));
    assert!(is_damage(Evidence::BrokenInside));
}
