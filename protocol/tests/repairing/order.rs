//! Any loss, order and lie between a log and a stream.

use proptest::{prelude::*, sample::Index};
use tickmesh_protocol::{
    Event, Position, Previous, Sequence,
    position::MAX_SEQUENCE,
    repair::{Fetched, MAX_HELD_EVENTS, Output},
};

use super::stream::{Put, Stream, at, complete, event, event_after, events, refused, sequence};

/// What an ingest peer made of a log: the stream in order, over some epochs, with numbers that leave some out.
fn log(steps: &[(u8, bool)]) -> Vec<Event> {
    let mut last: Option<Position> = None;
    steps
        .iter()
        .map(|(step, new_epoch)| {
            let (position, previous) = match last {
                None => (at(1, u64::from(*step)), Previous::Unknown { read_from: Sequence::ZERO }),
                Some(last) if *new_epoch => {
                    (at(last.epoch.as_u64() + 1, u64::from(*step)), Previous::Reset { after: last })
                }
                Some(last) => {
                    let number = last.sequence.get() + 1 + u64::from(*step);
                    (at(last.epoch.as_u64(), number), Previous::At(last.sequence))
                }
            };
            last = Some(position);
            event_after(position, previous)
        })
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Gossip brings one of the events that have been published.
    Gossip(Index),
    /// One more is published; whether gossip brings it in time.
    Publish(bool),
    /// Somebody claims this.
    Claim(Position),
    /// An event that no log has.
    Forged(Position, u64),
    /// A head message that tells the truth.
    Head,
    Suspect,
    /// The fetch that is due, by a server that is so many events behind, that brings at most so many and then fails.
    Fetch {
        behind: u8,
        at_most: Option<u8>,
    },
}

fn any_position() -> impl Strategy<Value = Position> {
    (0..5_u64, prop_oneof![0..400_u64, Just(MAX_SEQUENCE)]).prop_map(|(epoch, number)| at(epoch, number))
}

fn any_step(lies: bool) -> impl Strategy<Value = Step> {
    let lies = u32::from(lies);
    prop_oneof![
        20 => any::<bool>().prop_map(Step::Publish),
        8 => any::<Index>().prop_map(Step::Gossip),
        2 => Just(Step::Head),
        1 => Just(Step::Suspect),
        6 => (prop_oneof![2 => Just(0), 1 => 0..5_u8], prop::option::of(0..5_u8))
            .prop_map(|(behind, at_most)| Step::Fetch { behind, at_most }),
        2 => any_position().prop_map(Step::Claim),
        2 * lies => (any_position(), 0..400_u64).prop_map(|(position, previous)| Step::Forged(position, previous)),
    ]
}

/// A stream, and the log behind it.
struct World {
    log: Vec<Event>,
    published: usize,
    stream: Stream,
}

impl World {
    fn new(log: Vec<Event>) -> Self {
        // The first was there when the stream was joined.
        let head = log[0].position();
        Self { log, published: 1, stream: Stream::live(head) }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish(arrives) => {
                if let Some(event) = self.log.get(self.published) {
                    self.published += 1;
                    if *arrives {
                        self.stream.gossip(event);
                    }
                }
            }
            Step::Gossip(index) => {
                self.stream.gossip(&self.log[index.index(self.published)]);
            }
            Step::Claim(position) => self.stream.claimed(*position),
            Step::Suspect => self.stream.repair.suspect(self.stream.now),
            Step::Head => self.stream.claimed(self.log[self.published - 1].position()),
            Step::Forged(position, previous) => {
                let previous = sequence((*previous).min(position.sequence.get().saturating_sub(1)));
                self.stream.gossip(&event_after(*position, Previous::At(previous)));
            }
            Step::Fetch { behind, at_most } => self.fetch(usize::from(*behind), at_most.map(usize::from)),
        }
        assert!(self.stream.repair.held() <= MAX_HELD_EVENTS);
    }

    /// What a feed server does.
    fn fetch(&mut self, behind: usize, at_most: Option<usize>) {
        if self.stream.repair.fetch_due().is_none() {
            return;
        }
        let fetch = self.stream.fetch();
        let has = &self.log[..self.published.saturating_sub(behind).max(1)];
        let head = has.last().map(Event::position);
        let after = |event: &Event| Some(event.position()) == fetch.after;
        let (from, known) = match (fetch.after, has.iter().position(after)) {
            (None, _) => (0, true),
            (Some(_), Some(place)) => (place + 1, true),
            // It is further than this server, or it was forged.
            (Some(_), None) => (has.len(), self.log.iter().any(after)),
        };
        if !known {
            return self.stream.ended(fetch, refused(has.first().map(Event::position)));
        }
        for event in has[from..].iter().take(at_most.unwrap_or(usize::MAX)) {
            self.stream.fed(event);
        }
        let end = if at_most.is_some() { Fetched::Failed } else { complete(head) };
        self.stream.ended(fetch, end);
    }

    /// Everything published, told and served, as long as anything is missing.
    fn settle(&mut self) {
        self.published = self.log.len();
        self.step(&Step::Head);
        let before = self.stream.fetches;
        while self.stream.repair.is_repairing() {
            self.fetch(0, None);
            assert!(self.stream.fetches < before + 200, "it never ends");
        }
    }

    fn delivered(&self) -> Vec<Position> {
        let deliver = |output: &Output| match output {
            Output::Deliver(event) => Some(event.position()),
            _ => None,
        };
        self.stream.outputs.iter().filter_map(deliver).collect()
    }
}

fn any_log() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec((0..4_u8, prop::bool::weighted(0.03)), 2..80).prop_map(|steps| log(&steps))
}

proptest! {
    /// Whatever overtakes what, and however often it comes: delivered is everything, once, in order, without a gap.
    #[test]
    fn any_order_becomes_the_right_one(
        log in any_log(),
        order in prop::collection::vec(any::<Index>(), 0..200),
    ) {
        let mut world = World::new(log);
        world.published = world.log.len();
        for index in order {
            world.step(&Step::Gossip(index));
        }
        for index in (1..world.log.len()).rev() {
            let event = world.log[index].clone();
            world.stream.gossip(&event);
        }
        let expected: Vec<_> = world.log[1..].iter().map(Event::position).collect();
        prop_assert_eq!(world.delivered(), expected);
        prop_assert_eq!(world.stream.fetches, 0);
        prop_assert!(!world.stream.repair.is_repairing());
    }

    /// Whatever gossip loses, repeats or reorders, and whatever is claimed: with a feed that has it, delivered is
    /// everything, once, in order, without a gap, and every epoch is told.
    #[test]
    fn with_a_feed_nothing_is_lost(log in any_log(), steps in prop::collection::vec(any_step(false), 0..200)) {
        let mut world = World::new(log);
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        let expected: Vec<_> = world.log[1..].iter().map(Event::position).collect();
        prop_assert_eq!(world.delivered(), expected);
        let resets = world.stream.outputs.iter().filter(|output| matches!(output, Output::Reset(_))).count();
        prop_assert_eq!(resets as u64, world.log.last().unwrap().epoch.as_u64() - 1);
        let gaps = world.stream.outputs.iter().filter(|output| matches!(output, Output::Gap { .. })).count();
        prop_assert_eq!(gaps, 0);
        prop_assert!(world.stream.fetches as usize <= 2 * steps.len() + 20);
    }

    /// Events that no log has may be delivered, if they fit; but order is kept, what is missing is told, and it ends.
    #[test]
    fn forged_events_break_no_promise(log in any_log(), steps in prop::collection::vec(any_step(true), 0..200)) {
        let mut world = World::new(log);
        let first = world.log[0].position();
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        let mut last = first;
        let mut told = None;
        for output in &world.stream.outputs {
            match output {
                Output::Reset(epoch) => {
                    prop_assert_ne!(*epoch, last.epoch);
                    told = Some(*epoch);
                }
                Output::Gap { after } => prop_assert_eq!(*after, Some(last)),
                Output::Deliver(event) => {
                    if event.epoch == last.epoch {
                        prop_assert!(event.sequence > last.sequence);
                    } else {
                        prop_assert_eq!(told, Some(event.epoch));
                    }
                    last = event.position();
                }
            }
        }
    }

    /// A range that no server has is told exactly once, and everything else is delivered.
    #[test]
    fn a_lost_range_is_told_once(before in 1..50_u64, lost in 1..50_u64, after in 1..50_u64, arrives in any::<bool>()) {
        let mut stream = Stream::live(at(1, before));
        let oldest = before + lost + 1;
        let has = Vec::from_iter((oldest..oldest + after).map(event));
        let head = has.last().unwrap().position();
        if arrives {
            has.iter().for_each(|event| { stream.gossip(event); });
        }
        stream.claimed(head);
        while stream.repair.is_repairing() {
            let fetch = stream.fetch();
            match fetch.after {
                Some(position) if position.sequence.get() + 1 < oldest => {
                    stream.ended(fetch, refused(Some(at(1, oldest))));
                }
                _ => {
                    has.iter().for_each(|event| { stream.fed(event); });
                    stream.ended(fetch, complete(Some(head)));
                }
            }
            prop_assert!(stream.fetches < 20);
        }
        let mut expected = vec![Put::Gap(Some(at(1, before)))];
        expected.extend(events(oldest..oldest + after));
        prop_assert_eq!(stream.put_out(), expected);
    }
}
