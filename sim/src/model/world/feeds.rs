//! The server of feeds at an ingest peer: pages from the history, beyond that from the log, then how each stream ended.

use tickmesh_protocol::{
    Batch, Event, Sequence,
    feed::FeedEnd,
    history::{self, Found, linked_to},
};

use super::*;
use crate::model::scenario::What;

/// Events in one page: few, so that answers have several.
const PAGE_EVENTS: usize = 8;

/// What a stream is answered with.
struct Served {
    events: Vec<Event>,
    end: FeedEnd,
}

impl World<'_> {
    pub(super) fn serve_feed(&mut self, id: Id, to: Id, feed: u32, asked: &[(usize, Option<Position>)]) {
        let warm = |stream: &usize| {
            let source = self.source_of(self.scenario.world.streams[*stream]);
            self.get_ingest(id).is_some_and(|ingest| ingest.warm[source])
        };
        if !asked.iter().all(|(stream, _)| warm(stream)) {
            self.send(id, to, Message::FeedBroken { feed });
            return;
        }
        let (mut events, mut ends) = (Vec::new(), Vec::new());
        for (stream, after) in asked {
            let Some(served) = self.serve(id, *stream, *after) else { return };
            events.extend(served.events);
            ends.push((*stream, served.end));
        }
        let Some((topic, _)) = asked.first().map(|(stream, _)| (self.names.topic_of[*stream], ())) else {
            return;
        };
        let pages: Vec<_> = events.chunks(PAGE_EVENTS).map(<[Event]>::to_vec).collect();
        let breaks_after = self.breaks_after(id, pages.len());
        for (number, events) in pages.into_iter().enumerate() {
            if breaks_after == Some(number) {
                break;
            }
            let page = Batch {
                publisher: ingest::key(id),
                boot: u64::from(self.peers[id].incarnation),
                counter: 0,
                topic: self.names.topics[topic].clone(),
                events,
                heads: Vec::new(),
            };
            self.counts.pages += 1;
            self.say(|world| format!("{} serves {}", world.peers[id].peer, ingest::told(&page)));
            self.send(id, to, Message::Page { feed, page: Rc::new(page) });
        }
        match breaks_after {
            Some(_) => self.send(id, to, Message::FeedBroken { feed }),
            None => self.send(id, to, Message::FeedEnds { feed, ends }),
        }
    }

    /// Whether, and after how many pages, this answer breaks off.
    fn breaks_after(&mut self, id: Id, pages: usize) -> Option<usize> {
        let now = self.now;
        let broken = self.scenario.ops.iter().filter_map(|op| match op.what {
            What::BrokenFeeds { ingest, lasts, per_mille } if ingest == id => {
                (op.at <= now && now < op.at + lasts).then_some(per_mille)
            }
            _ => None,
        });
        let per_mille = broken.max()?;
        let random = self.random_of(id);
        random.chance(per_mille).then(|| random.below(pages as u64 + 1) as usize)
    }

    /// How far a liar claims to be ahead now.
    pub(super) fn lie(&self, id: Id) -> Option<u64> {
        self.scenario.ops.iter().find_map(|op| match op.what {
            What::Lies { ingest, lasts, ahead } if ingest == id => {
                (op.at <= self.now && self.now < op.at + lasts).then_some(ahead)
            }
            _ => None,
        })
    }

    /// Everything after a position, from the history and, where that begins too late, from the log: as the node's store of
    /// feeds does it.
    fn serve(&self, id: Id, stream: usize, mut after: Option<Position>) -> Option<Served> {
        let ingest = self.get_ingest(id)?;
        let mut events = Vec::new();
        let mut scanned = None;
        loop {
            let read_from = |epoch| ingest.sequencer.reading(epoch).map(|reading| reading.read_from);
            let held = ingest.history.after(stream, after);
            let look = match history::find(held, after, scanned, read_from) {
                Found::Held { head } => {
                    events.extend(ingest.history.events_after(stream, after));
                    let claimed = self.lie(id).and_then(|ahead| further(head?, ahead));
                    return Some(Served { events, end: FeedEnd::Complete { head: claimed.or(head) } });
                }
                Found::Nothing => return Some(Served { events, end: FeedEnd::Complete { head: None } }),
                Found::Lost { oldest } => return Some(Served { events, end: FeedEnd::Refused { oldest } }),
                Found::Look(look) => look,
            };
            let log = self.log.partition(self.scenario.world.streams[stream]);
            let begin = if log.epoch() == look.epoch { log.begin() } else { u64::MAX };
            let from = if look.from < begin {
                if self.mutation != Some(Mutation::NeverRefuse) {
                    let oldest = look.left_by(begin);
                    return Some(Served { events, end: FeedEnd::Refused { oldest } });
                }
                begin
            } else {
                look.from
            };
            let there = self.log.stream(stream).iter().map(|truth| truth.position);
            let there =
                there.filter(|at| at.epoch == look.epoch && (from..look.until).contains(&at.sequence.get()));
            for at in there {
                let data = bytes::Bytes::from_static(b"1");
                let name = self.names.streams[stream].clone();
                let event = Event {
                    stream: name,
                    epoch: at.epoch,
                    sequence: at.sequence,
                    previous: linked_to(after, at),
                    engine_time_us: 0,
                    data,
                    signature: None,
                };
                events.push(event);
                after = Some(at);
            }
            scanned = Sequence::new(look.until).ok();
        }
    }
}

/// A position so many numbers further.
pub(super) fn further(position: Position, ahead: u64) -> Option<Position> {
    let sequence = Sequence::new(position.sequence.get() + ahead).ok()?;
    Some(Position { sequence, ..position })
}
