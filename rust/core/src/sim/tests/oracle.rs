use super::super::*;

fn oracle(verdict: Verdict) -> &'static str {
    verdict.map_or_else(|error| error.oracle, |()| "none")
}

/// Three values of which the second and third are one batch; the first is acknowledged.
fn ledger() -> (Ledger, Vec<Vec<u8>>) {
    let mut ledger = Ledger::default();
    let mut values = ledger.give(&[40]);
    values.extend(ledger.give(&[5, 700]));
    ledger.acknowledge(1).unwrap();
    (ledger, values)
}

fn shows(ledger: &Ledger, first: u64, values: &[&[u8]]) -> &'static str {
    let next = first + values.len() as u64;
    let shown = (first..).zip(values.iter().copied());
    oracle(ledger.clone().recovered(first, shown, next))
}

#[test]
fn a_ledger_accepts_what_is_right_and_nothing_else() {
    // Each broken promise is told by its own name.
    let (mut ledger, values) = ledger();
    let [one, two, three] = [&values[0][..], &values[1][..], &values[2][..]];
    assert_eq!(shows(&ledger, 1, &[one, two, three]), "none");
    assert_eq!(shows(&ledger, 1, &[one]), "none");
    assert_eq!(shows(&ledger, 1, &[]), "O1");
    assert_eq!(shows(&ledger, 2, &[two, three]), "O1");
    assert_eq!(shows(&ledger, 1, &[one, two]), "O5");
    assert_eq!(shows(&ledger, 1, &[one, three]), "O3");
    assert_eq!(shows(&ledger, 1, &[one, two, three, one]), "O4");
    let hole = [(1, one), (3, three)];
    assert_eq!(oracle(ledger.clone().recovered(1, hole, 4)), "O2");
    assert_eq!(oracle(ledger.clone().recovered(1, [(1, one)], 3)), "O2");
    ledger.truncate(2);
    assert_eq!(shows(&ledger, 2, &[two, three]), "none");
    assert_eq!(shows(&ledger, 3, &[three]), "O1");
}

#[test]
fn what_was_shown_stays_and_what_was_dropped_is_gone() {
    // A recovery is a promise: later ones show the same.
    let (mut ledger, values) = ledger();
    let [one, two, three] = [&values[0][..], &values[1][..], &values[2][..]];
    let mut shown = ledger.clone();
    shown.recovered(1, (1..).zip([one, two, three]), 4).unwrap();
    assert_eq!(shows(&shown, 1, &[one]), "O1");
    ledger.recovered(1, [(1, one)], 2).unwrap();
    assert_eq!(shows(&ledger, 1, &[one, two, three]), "O4");
    let again = ledger.give(&[5]);
    assert_ne!(again[0], values[1]);
    assert_eq!(shows(&ledger, 1, &[one, two]), "O3");
}

#[test]
fn nothing_is_acknowledged_after_a_failure() {
    // Until the log is opened again.
    let (mut ledger, values) = ledger();
    ledger.fail();
    assert_eq!(oracle(ledger.acknowledge(1)), "none");
    assert_eq!(oracle(ledger.acknowledge(2)), "O6");
    ledger.recovered(1, [(1, &values[0][..])], 2).unwrap();
    ledger.give(&[5]);
    assert_eq!(oracle(ledger.acknowledge(2)), "none");
    assert_eq!(oracle(ledger.acknowledge(3)), "O3");
}

#[test]
fn a_cursor_is_where_it_was_left() {
    // At the acknowledged position or the one asked for since, and once shown it stays.
    let (mut ledger, _) = ledger();
    assert_eq!(oracle(ledger.clone().cursor_recovered(1)), "O1");
    ledger.move_cursor(1);
    assert_eq!(oracle(ledger.clone().cursor_recovered(0)), "none");
    ledger.cursor_recovered(1).unwrap();
    assert_eq!(oracle(ledger.clone().cursor_recovered(0)), "O1");
    ledger.move_cursor(2);
    ledger.cursor_moved();
    assert_eq!(oracle(ledger.clone().cursor_recovered(1)), "O1");
    assert_eq!(oracle(ledger.cursor_recovered(2)), "O2");
}

#[test]
fn values_are_told_apart() {
    // A value is known by its bytes alone, whatever its length; longer ones check themselves.
    for length in [1, 2, 15, 16, 17, 511, 512, 513, 1536] {
        assert_eq!(value(7, length).len(), length);
        assert_eq!(value(7, length), value(7, length));
        assert_ne!(value(7, length), value(8, length));
    }
    assert_ne!(value(7, 16)[..15], value(7, 17)[..15]);
}

#[test]
fn sequences_are_numbered_without_gap_or_repetition() {
    // Shorter ones first, each once.
    let all: Vec<_> = (0..sequences_count(3, 3))
        .map(|number| sequence(&[0, 1, 2], number))
        .collect();
    assert_eq!(all.len(), 1 + 3 + 9 + 27);
    assert_eq!(all[..4], [vec![], vec![0], vec![1], vec![2]]);
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
}
