//! The model finds bugs: each is put in on purpose, around the machines, and must be found within so many seeds.

use tickmesh_sim::model::{
    mutation::Mutation,
    scenario, shrink,
    world::{self, Fault, Outcome},
};

/// Runs seeds from zero on until the bug shows, and makes its story short.
#[allow(clippy::panic, clippy::print_stderr, reason = "only tests call it")]
fn found(mutation: Mutation, within: u64, as_one_of: &[Fault]) {
    let run =
        |seed| world::run(&scenario::generate(seed), Some(mutation), false).failure.map(|it| (seed, it));
    let (seed, failure) = (0..within)
        .find_map(run)
        .unwrap_or_else(|| panic!("{mutation:?} is not found within {within} seeds"));
    assert!(as_one_of.contains(&failure.fault), "{mutation:?} shows at seed {seed} as {failure:?}");
    // It is the mutation that fails, not the world.
    let sound = world::run(&scenario::generate(seed), None, false);
    assert_eq!(sound.failure, None, "seed {seed} fails without any mutation");

    let whole = scenario::generate(seed);
    let (short, in_short) = shrink::shrink(whole.clone(), failure.clone(), Some(mutation));
    assert_eq!(in_short.fault, failure.fault);
    assert!(short.ops.len() <= whole.ops.len());
    eprintln!("{mutation:?}: seed {seed}, {} of {} needed", short.ops.len(), whole.ops.len());
    for line in scenario::story(&short) {
        eprintln!("    {line}");
    }
    eprintln!("    => {in_short}");
}

#[test]
fn a_skipped_check_of_previous_is_found_within_200_seeds() {
    found(Mutation::SkipPreviousCheck, 200, &[Fault::Lost]);
}

#[test]
fn a_held_event_forgotten_at_the_hand_over_is_found_within_200_seeds() {
    found(Mutation::ForgetHeld, 200, &[Fault::Lost, Fault::Stuck]);
}

#[test]
fn a_takeover_without_backlog_is_found_within_200_seeds() {
    found(Mutation::TakeOverWithoutBacklog, 200, &[Fault::NeverPublished]);
}

#[test]
fn a_follower_that_forgets_what_it_has_not_seen_is_found_within_2000_seeds() {
    found(Mutation::ForgetUnseen, 2000, &[Fault::NeverPublished]);
}

#[test]
fn going_back_to_an_old_epoch_is_found_within_10000_seeds() {
    found(Mutation::GoBackToOldEpoch, 10_000, &[Fault::Doubled, Fault::Reset]);
}

#[test]
fn an_epoch_that_begins_untold_is_found_within_300_seeds() {
    found(Mutation::ForgetReset, 300, &[Fault::Reset]);
}

#[test]
fn publishing_before_warm_is_found_within_100_seeds() {
    found(Mutation::PublishBeforeWarm, 100, &[Fault::PublishedCold]);
}

#[test]
fn a_claimed_head_that_is_believed_is_found_within_200_seeds() {
    found(Mutation::BelieveClaimedHead, 200, &[Fault::Lost, Fault::Stuck]);
}

#[test]
fn the_last_page_of_a_catch_up_dropped_is_found_within_200_seeds() {
    found(Mutation::DropLastPage, 200, &[Fault::Stuck, Fault::Lost]);
}

#[test]
fn a_join_without_head_is_found_within_100_seeds() {
    found(Mutation::JoinWithoutHead, 100, &[Fault::JoinedBehind, Fault::Lost]);
}

#[test]
fn idle_tails_without_heads_are_found_within_2000_seeds() {
    found(Mutation::TellNoHeads, 2000, &[Fault::Stuck]);
}

#[test]
fn a_start_at_the_end_of_the_log_is_found_within_200_seeds() {
    found(Mutation::StartAtEnd, 200, &[Fault::Stuck]);
}

#[test]
fn a_feed_that_leaves_out_what_is_gone_is_found_within_1000_seeds() {
    found(Mutation::NeverRefuse, 1000, &[Fault::Lost, Fault::Stuck]);
}

#[test]
fn delivered_duplicates_are_found_within_50_seeds() {
    found(Mutation::DeliverDuplicates, 50, &[Fault::Doubled]);
}

#[test]
fn a_seed_always_takes_the_same_course() {
    let course = |seed| -> Outcome { world::run(&scenario::generate(seed), None, true) };
    for seed in 0..200 {
        let (one, other) = (course(seed), course(seed));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!((one.digest, one.counts), (other.digest, other.counts), "seed {seed}");
    }
}

#[test]
fn a_thousand_seeds_pass() {
    for seed in 0..1000 {
        let outcome = world::run(&scenario::generate(seed), None, false);
        assert_eq!(outcome.failure, None, "seed {seed}: tickmesh-sim model --first-seed {seed} --seeds 1");
    }
}
