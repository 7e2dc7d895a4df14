//! The server of feeds at an ingest peer: pages from the history, beyond that from the log, then how each stream ended.

use tickmesh_protocol::{Batch, Epoch, Event, Previous, Sequence, repair::FeedEnd};

use super::{history::After, ingest::Ingest, *};
use crate::model::scenario::What;

/// Events in one page: few, so that answers have several.
const PAGE_EVENTS: usize = 8;

/// What a stream is answered with.
struct Served {
    events: Vec<Event>,
    end: FeedEnd,
}

/// What is known of a stream after the position where a reader stands.
enum Found {
    Held { head: Option<Position> },
    Nothing,
    Look(Look),
    Lost { oldest: Option<Position> },
}

/// A part of the log to be read again.
struct Look {
    epoch: Epoch,
    from: u64,
    until: u64,
    /// The oldest event that is held, for who cannot be given what is before it.
    oldest: Option<Position>,
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

    /// Everything after a position, from the history and, where that begins too late, from the log: the rules of the node's
    /// store of feeds.
    fn serve(&self, id: Id, stream: usize, mut after: Option<Position>) -> Option<Served> {
        let ingest = self.get_ingest(id)?;
        let mut events = Vec::new();
        let mut scanned = 0;
        loop {
            let look = match self.find(ingest, stream, after, scanned) {
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
                    let oldest = Sequence::new(begin).ok().filter(|oldest| oldest.get() < look.until);
                    let oldest = oldest.map(|sequence| Position { epoch: look.epoch, sequence });
                    return Some(Served { events, end: FeedEnd::Refused { oldest: oldest.or(look.oldest) } });
                }
                begin
            } else {
                look.from
            };
            let there = self.log.stream(stream).iter().map(|truth| truth.position);
            let there =
                there.filter(|at| at.epoch == look.epoch && (from..look.until).contains(&at.sequence.get()));
            for at in there {
                let previous = match after {
                    Some(after) if after.epoch == at.epoch => Previous::At(after.sequence),
                    _ => Previous::Unknown { read_from: at.sequence },
                };
                let data = bytes::Bytes::from_static(b"1");
                let name = self.names.streams[stream].clone();
                let event = Event {
                    stream: name,
                    epoch: at.epoch,
                    sequence: at.sequence,
                    previous,
                    engine_time_us: 0,
                    data,
                };
                events.push(event);
                after = Some(at);
            }
            scanned = look.until;
        }
    }

    /// What is known of a stream after the position where a reader stands.
    fn find(&self, ingest: &Ingest, stream: usize, after: Option<Position>, scanned: u64) -> Found {
        let oldest = match ingest.history.after(stream, after) {
            After::All { head } => return Found::Held { head },
            After::From(position) => Some(position),
            After::Unknown => None,
        };
        let Some(position) = after else {
            return oldest.filter(|oldest| oldest.sequence.get() >= scanned).map_or(
                Found::Nothing,
                |oldest| {
                    let from = oldest.sequence.get();
                    Found::Look(Look { epoch: oldest.epoch, from, until: from + 1, oldest: None })
                },
            );
        };
        let Some(reading) = ingest.sequencer.reading(position.epoch) else { return Found::Lost { oldest } };
        let until = match oldest {
            Some(oldest) if oldest.epoch == position.epoch => oldest.sequence.get() + 1,
            Some(_) => return Found::Lost { oldest },
            None => reading.read_from.get(),
        };
        let from = (position.sequence.get() + 1).max(scanned);
        if from >= until {
            return if oldest.is_some() { Found::Lost { oldest } } else { Found::Nothing };
        }
        Found::Look(Look { epoch: position.epoch, from, until, oldest })
    }
}

/// A position so many numbers further.
pub(super) fn further(position: Position, ahead: u64) -> Option<Position> {
    let sequence = Sequence::new(position.sequence.get() + ahead).ok()?;
    Some(Position { sequence, ..position })
}
