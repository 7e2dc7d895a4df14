//! The server of feeds at an ingest peer: pages from the history, beyond that from the log, then how each stream ended.

use tickmesh_protocol::{Batch, Event, Sequence, repair::FeedEnd, sequencer::Sequencer};

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

    fn serve(&self, id: Id, stream: usize, after: Option<Position>) -> Option<Served> {
        let ingest = self.get_ingest(id)?;
        let head = ingest.sequencer.last(&self.names.streams[stream]);
        let claimed = self.lie(id).and_then(|ahead| further(head?, ahead)).or(head);
        let complete = |events| Served { events, end: FeedEnd::Complete { head: claimed } };
        if let Some(after) = after {
            if let Some(events) = ingest.history.after(stream, after).filter(|events| {
                // Nothing held proves nothing, unless the asker stands at the head.
                !events.is_empty() || head == Some(after) || ingest.history.holds(stream, after)
            }) {
                return Some(complete(events));
            }
            if head == Some(after) {
                return Some(complete(Vec::new()));
            }
        }
        let (oldest, events) = self.read_again(id, stream, after)?;
        match events {
            Some(events) => Some(complete(events)),
            None if self.mutation == Some(Mutation::NeverRefuse) => {
                let (_, events) = self.read_again(id, stream, None)?;
                Some(complete(events.unwrap_or_default()))
            }
            None => {
                let oldest = ingest.history.oldest(stream).or(oldest);
                Some(Served { events: Vec::new(), end: FeedEnd::Refused { oldest } })
            }
        }
    }

    /// Reads the log again, from after a position up to where this peer has read. The oldest event that the log still has of
    /// the stream, and the events, unless something is missing before them.
    fn read_again(
        &self,
        id: Id,
        stream: usize,
        after: Option<Position>,
    ) -> Option<(Option<Position>, Option<Vec<Event>>)> {
        let ingest = self.get_ingest(id)?;
        let partition = self.scenario.world.streams[stream];
        let (epoch, until) = ingest.partitions[partition].next?;
        let log = self.log.partition(partition);
        if epoch != log.epoch() {
            // What this peer has read is no longer there.
            return Some((None, None));
        }
        let from = match after {
            Some(after) if after.epoch == epoch => after.sequence.get() + 1,
            Some(_) => return Some((self.oldest_in_log(stream, until), None)),
            None => log.begin(),
        };
        if from < log.begin() {
            return Some((self.oldest_in_log(stream, until), None));
        }
        let mut sequencer = Sequencer::default();
        sequencer.begin(epoch, Sequence::new(from).ok()?);
        let name = &self.names.streams[stream];
        let truth = self.log.stream(stream).iter().map(|truth| truth.position);
        let range = truth.filter(|at| at.epoch == epoch && (from..until).contains(&at.sequence.get()));
        let events = range.filter_map(|at| {
            let (sequence, previous) = sequencer.next(name, epoch, at.sequence.get()).ok()?;
            let data = bytes::Bytes::from_static(b"1");
            Some(Event { stream: name.clone(), epoch, sequence, previous, engine_time_us: 0, data })
        });
        Some((None, Some(events.collect())))
    }

    fn oldest_in_log(&self, stream: usize, until: u64) -> Option<Position> {
        let mut there = self.log.stream(stream).iter().filter(|truth| truth.gone.is_none());
        there.next().map(|truth| truth.position).filter(|at| at.sequence.get() < until)
    }
}

/// A position so many numbers further.
pub(super) fn further(position: Position, ahead: u64) -> Option<Position> {
    let sequence = Sequence::new(position.sequence.get() + ahead).ok()?;
    Some(Position { sequence, ..position })
}
