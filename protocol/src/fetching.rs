//! One fetch of some streams of a topic: which servers are asked for which of them, in which order, until each is decided.
//!
//! A stream is *complete* as soon as one server gave all it has. It is *refused* only when every server that could be asked
//! refused it: what one no longer has, another may. Anything else has *failed*, and is tried again later.
//!
//! A worked example with servers A and B, for streams x and y. A refuses x and completes y; B is asked for x alone and goes
//! away: x has failed, y is complete.

use std::collections::{HashMap, VecDeque};

use crate::{Event, Position, PublisherKey, StreamName, Topic, feed::FeedEnd, rank::ranked, repair::Fetched};

/// Streams in one fetch at most.
pub const MAX_FETCH_STREAMS: usize = 1024;

/// A fetch under way.
#[derive(Clone, Debug)]
pub struct Fetching {
    servers: VecDeque<PublisherKey>,
    streams: Vec<Wanted>,
    /// Places in `streams`.
    places: HashMap<StreamName, usize>,
    asked_nobody: bool,
}

#[derive(Clone, Debug)]
struct Wanted {
    name: StreamName,
    after: Option<Position>,
    decided: Option<FeedEnd>,
    /// The newest among the oldest events of those who refused.
    refused: Option<FeedEnd>,
    /// The server asked last has not answered for it so far.
    open: bool,
    /// A server was asked and did not answer.
    failed: bool,
}

/// What to ask one server for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub server: PublisherKey,
    pub streams: Vec<(StreamName, Option<Position>)>,
}

impl Fetching {
    /// Of streams of one topic, after the positions. The servers are asked in the order of their rank, beginning with the
    /// `attempt`th, so that who was asked in vain before comes last.
    pub fn new(
        topic: &Topic,
        streams: Vec<(StreamName, Option<Position>)>,
        servers: impl IntoIterator<Item = PublisherKey>,
        attempt: u32,
    ) -> Self {
        let mut servers: VecDeque<_> = ranked(topic, servers).into();
        if !servers.is_empty() {
            servers.rotate_left(attempt as usize % servers.len());
        }
        let wanted =
            |(name, after)| Wanted { name, after, decided: None, refused: None, open: false, failed: false };
        let streams: Vec<_> = streams.into_iter().map(wanted).collect();
        let places = streams.iter().enumerate().map(|(place, wanted)| (wanted.name.clone(), place)).collect();
        Self { servers, streams, places, asked_nobody: true }
    }

    /// Whom to ask next, and for what; nobody if all is decided or all were asked.
    pub fn next_ask(&mut self) -> Option<Ask> {
        self.failed();
        let streams: Vec<_> = self
            .streams
            .iter()
            .filter(|wanted| wanted.decided.is_none())
            .map(|wanted| (wanted.name.clone(), wanted.after))
            .collect();
        if streams.is_empty() {
            return None;
        }
        let server = self.servers.pop_front()?;
        self.asked_nobody = false;
        for wanted in self.streams.iter_mut().filter(|wanted| wanted.decided.is_none()) {
            wanted.open = true;
        }
        Some(Ask { server, streams })
    }

    /// Servers that have not been asked.
    pub fn others(&self) -> usize {
        self.servers.len()
    }

    /// An event came from the server asked last; another one need not send it again.
    pub fn passed(&mut self, event: &Event) {
        if let Some(wanted) = self.wanted(&event.stream) {
            wanted.after = Some(event.position());
        }
    }

    /// The server asked last is done with these streams.
    pub fn ended(&mut self, ends: &[(StreamName, FeedEnd)]) {
        for (name, end) in ends {
            let undecided = |wanted: &&mut Wanted| wanted.decided.is_none();
            let Some(wanted) = self.wanted(name).filter(undecided) else { continue };
            wanted.open = false;
            match end {
                FeedEnd::Complete { .. } => wanted.decided = Some(*end),
                // The first who refused is the best ranked.
                FeedEnd::Refused { oldest } if oldest.is_some() || wanted.refused.is_none() => {
                    wanted.refused = wanted.refused.filter(has_oldest).or(Some(*end));
                }
                FeedEnd::Refused { .. } => {}
            }
        }
    }

    /// The server asked last will not answer any more; what it answered before counts.
    pub fn failed(&mut self) {
        for wanted in &mut self.streams {
            wanted.failed |= std::mem::take(&mut wanted.open);
        }
    }

    fn wanted(&mut self, name: &StreamName) -> Option<&mut Wanted> {
        self.streams.get_mut(*self.places.get(name)?)
    }

    /// How it ended for each stream, when there is nobody else to ask.
    pub fn results(mut self) -> impl Iterator<Item = (StreamName, Fetched)> {
        self.failed();
        let asked_nobody = self.asked_nobody;
        self.streams.into_iter().map(move |wanted| {
            let result = match (wanted.decided, wanted.refused) {
                (Some(end), _) => Fetched::Ended(end),
                (None, Some(refused)) if !wanted.failed && !asked_nobody => Fetched::Ended(refused),
                _ => Fetched::Failed,
            };
            (wanted.name, result)
        })
    }
}

fn has_oldest(end: &FeedEnd) -> bool {
    matches!(end, FeedEnd::Refused { oldest: Some(_) })
}
