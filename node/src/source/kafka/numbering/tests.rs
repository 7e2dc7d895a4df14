//! The decisions, over logs made up.

use proptest::prelude::*;
use tickmesh_protocol::{Sequence, checkpoint::PartitionState};

use super::*;

const LOG: &str = "cluster/trades/0123";

fn extent(low: i64, high: i64, cut: Option<i64>) -> Extent {
    Extent { low, high, cut }
}

fn after(next: i64, extent: Extent) -> Option<At> {
    move_on(At { generation: 1, next, term: Some(4), high: 0, first: false }, extent)
}

#[test]
fn what_is_there_is_read_on() {
    assert_eq!(after(5, extent(0, 9, None)), None);
    assert_eq!(after(9, extent(0, 9, None)), None);
    assert_eq!(after(0, extent(0, 0, None)), None);
}

#[test]
fn what_was_trimmed_stays_in_its_epoch() {
    let moved = At { generation: 1, next: 5, term: None, high: 9, first: false };
    assert_eq!(after(4, extent(5, 9, None)), Some(moved));
}

#[test]
fn a_log_that_lost_its_end_is_in_another_epoch() {
    let moved = |next, term, first, high| Some(At { generation: 2, next, term, high, first });
    assert_eq!(after(10, extent(0, 9, Some(7))), moved(7, Some(4), true, 9));
    assert_eq!(after(8, extent(0, 9, Some(7))), moved(7, Some(4), true, 9));
    assert_eq!(after(10, extent(0, 9, None)), moved(9, None, false, 9), "where it was cut is not known");
    assert_eq!(after(8, extent(9, 20, Some(7))), moved(9, None, false, 20), "and trimmed since");
}

#[test]
fn the_newest_generation_counts() {
    let state = |generation, next| PartitionState {
        epoch: epoch_of(LOG, 3, generation),
        topic: "trades".into(),
        partition: 3,
        next,
        read_from: Sequence::ZERO,
        term: None,
    };
    let starts: Starts = [state(0, 200), state(2, 160)].iter().collect();
    assert_eq!(known(&starts, LOG, 3), Some((2, Place { position: 160, term: None })));
    assert_eq!(known(&starts, LOG, 4), None);
    assert_eq!(known(&starts, "cluster/trades/4567", 3), None, "the topic was made anew");
    assert_eq!(known(&Starts::default(), LOG, 3), None);
    assert_eq!(epoch_of(LOG, 3, 0), Epoch::of(LOG, 3, "offset"));
    assert_ne!(epoch_of(LOG, 3, 1), epoch_of(LOG, 3, 0));
}

/// A log: offsets and terms of records, with holes.
fn first_after(log: &[(i64, u32)]) -> impl Fn(i64) -> Result<Option<Found>, ()> {
    move |from| {
        let found = log.iter().find(|(offset, _)| *offset >= from);
        Ok(found.map(|(offset, term)| Found { offset: *offset, term: Some(*term) }))
    }
}

#[test]
fn the_example_of_the_module() {
    let log: Vec<(i64, u32)> = (0..150).map(|n| (n, 4)).chain((150..=160).map(|n| (n, 5))).collect();
    assert_eq!(find_cut(200, 4, 0..=161, first_after(&log)), Ok(Some(150)));
    assert_eq!(find_cut(120, 4, 0..=161, first_after(&log)), Ok(None));
    // Nothing was written anew yet: the next record is the first.
    assert_eq!(find_cut(200, 4, 0..=150, first_after(&log[..150])), Ok(Some(150)));
    // The log grew beyond what was read.
    let log: Vec<(i64, u32)> = (0..150).map(|n| (n, 4)).chain((150..300).map(|n| (n, 5))).collect();
    assert_eq!(find_cut(200, 4, 0..=300, first_after(&log)), Ok(Some(150)));
    assert_eq!(find_cut(200, 5, 0..=300, first_after(&log)), Ok(None));
    // All of it is new, or nothing is left.
    assert_eq!(find_cut(200, 4, 150..=300, first_after(&log[150..])), Ok(Some(150)));
    assert_eq!(find_cut(200, 4, 0..=0, first_after(&[])), Ok(Some(0)));
    assert_eq!(find_cut(0, 4, 0..=0, first_after(&[])), Ok(None));
}

#[test]
fn an_error_ends_the_search() {
    assert_eq!(find_cut(200, 4, 0..=100, |_| Err("no broker")), Err("no broker"));
}

proptest! {
    #[test]
    fn the_first_later_record_is_found(
        kept in 0..200usize, lost in 0..50usize, anew in 0..100usize, gaps in prop::collection::vec(1..4i64, 350),
        terms in prop::collection::vec(0..2u32, 350), first in 0..1000i64,
    ) {
        let mut offset = first;
        let mut term = 3;
        let mut old = Vec::new();
        for index in 0..kept + lost {
            old.push((offset, term));
            offset += gaps[index];
            term += terms[index];
        }
        let last_term = old.last().map_or(3, |(_, term)| *term);
        let next = old.last().map_or(first, |(offset, _)| offset + 1);
        let mut log = old[..kept].to_vec();
        let kept_end = log.last().map_or(first, |(offset, _)| offset + 1);
        let mut offset = if lost == 0 { next } else { kept_end };
        for gap in &gaps[..anew] {
            log.push((offset, last_term + 1));
            offset += gap;
        }
        let high = log.last().map_or(first, |(offset, _)| offset + 1);
        let found = find_cut(next, last_term, first..=high, first_after(&log)).unwrap();
        // Only a shorter log, or a new record where an old one was, tells anything.
        let right = (lost > 0).then_some(kept_end);
        prop_assert_eq!(found, right);
    }
}
