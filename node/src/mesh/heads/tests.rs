use tickmesh_protocol::{head::Head, policy::ChannelPolicy};

use super::*;

fn topic() -> Topic {
    Topic::spanning(&"trades.btc_usdt".parse().unwrap())
}

fn request() -> HeadRequest {
    HeadRequest { topic: topic(), streams: vec!["trades.btc_usdt".parse().unwrap()] }
}

fn reply() -> HeadReply {
    HeadReply {
        heads: vec![Head::Empty],
        read: Vec::new(),
        left: Vec::new(),
        policy: ChannelPolicy::default(),
    }
}

fn publishers() -> Vec<PublisherKey> {
    rank::ranked(&topic(), (0..3).map(|n| PublisherKey([n; 32])))
}

#[test]
fn the_best_publisher_is_asked_first_then_the_next_and_all_again_later() {
    let (answer, mut answered) = oneshot::channel();
    let mut questions = Questions::default();
    let id = questions.add(request(), answer).unwrap();
    let start = Instant::now();
    assert!(questions.assign(id, []).is_none(), "nobody is there");
    for publisher in publishers() {
        assert_eq!(questions.assign(id, publishers()).map(|(to, _)| to), Some(publisher));
        assert!(questions.assign(id, publishers()).is_none(), "one at a time");
        questions.refused(id, start);
    }
    assert!(questions.assign(id, publishers()).is_none(), "all have refused");
    questions.tidy(start + RETRY_AFTER / 2);
    assert!(questions.assign(id, publishers()).is_none(), "not at once");
    questions.tidy(start + RETRY_AFTER);
    assert_eq!(questions.assign(id, publishers()).map(|(to, _)| to), Some(publishers()[0]));
    // An answer of the wrong length is no answer.
    assert!(!questions.answered(id, HeadReply { heads: vec![Head::Empty; 2], ..reply() }, start));
    assert!(answered.try_recv().is_err());
    assert_eq!(questions.assign(id, publishers()).map(|(to, _)| to), Some(publishers()[1]));
    assert!(questions.answered(id, reply(), start));
    assert_eq!(answered.try_recv().unwrap(), Ok(reply()));
    assert!(questions.open.is_empty() && questions.load.is_empty() && questions.waiting.is_empty());
}

#[test]
fn questions_are_bounded_and_those_nobody_waits_for_make_room() {
    let mut questions = Questions::default();
    let waiting: Vec<_> = (0..MAX_OPEN)
        .map(|_| {
            let (answer, answered) = oneshot::channel();
            questions.add(request(), answer).unwrap();
            answered
        })
        .collect();
    let (answer, mut answered) = oneshot::channel();
    assert!(questions.add(request(), answer).is_none());
    assert_eq!(answered.try_recv().unwrap(), Err(HeadError::Overloaded));
    let (mut asked, mut at) = (0, None);
    while let Some(id) = questions.next_waiting(at) {
        asked += usize::from(questions.assign(id, publishers()).is_some());
        at = Some(id);
    }
    assert_eq!(asked, 3 * MAX_ASKED_PER_PEER);
    assert!(publishers().iter().all(|publisher| !questions.has_room(publisher)));
    drop(waiting);
    questions.tidy(Instant::now());
    assert!(questions.open.is_empty() && questions.load.is_empty() && questions.waiting.is_empty());
}

fn asked(unsubscribed: u64) -> Asked {
    Asked { unsubscribed, request: request() }
}

#[test]
fn a_question_is_held_until_the_subscription_it_means_is_seen() {
    let topic = topic().to_string();
    let mut seen = Subscriptions::default();
    let mut held = Held::default();
    let now = Instant::now();
    // Subscribe, unsubscribe, subscribe again; asked after all of it.
    held.hold(1, asked(1), "answer", now).unwrap();
    assert!(held.ready(&1, &seen).is_empty());
    seen.subscribed(1, &topic);
    assert!(held.ready(&1, &seen).is_empty(), "the old subscription is about to end");
    seen.unsubscribed(1, &topic);
    assert!(held.ready(&1, &seen).is_empty());
    seen.subscribed(1, "/tickmesh/1/all/trades/0");
    seen.subscribed(2, &topic);
    assert!(held.ready(&1, &seen).is_empty(), "another topic, another peer");
    seen.subscribed(1, &topic);
    assert_eq!(held.ready(&1, &seen), vec![(request(), "answer")]);
    assert!(held.0.is_empty());
}

#[test]
fn held_questions_are_bounded_and_expire() {
    let mut held = Held::default();
    let now = Instant::now();
    for n in 0..MAX_HELD_PER_PEER {
        held.hold(1, asked(0), n, now).unwrap();
    }
    assert_eq!(held.hold(1, asked(0), 999, now), Err(999));
    held.hold(2, asked(0), 1000, now + HOLD_TIMEOUT / 2).unwrap();
    assert_eq!(held.expired(now + HOLD_TIMEOUT).len(), MAX_HELD_PER_PEER);
    held.forget(&2);
    assert!(held.0.is_empty());
    for peer in 0..MAX_HELD as u64 {
        held.hold(peer, asked(0), 0, now).unwrap();
    }
    assert_eq!(held.hold(u64::MAX, asked(0), 7, now), Err(7));
}
