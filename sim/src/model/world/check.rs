//! What must be true, whatever happens.

use std::fmt;

use tickmesh_protocol::{Batch, Event, Previous, repair::MAX_HELD_EVENTS};

use super::*;

/// What an event may wait for a leader that died.
const LONG_WAIT: Time = 150 * MS;

/// How often each ingest peer may repeat something on a topic without any fault: a new topic has no leader before its readers
/// have joined it and heard one another.
const AT_A_BEGINNING: usize = 2;

/// What is repeated within this is one time: until a yielding peer has heard the other.
const ONE_EPISODE: Time = 30 * MS;

/// The first thing that was wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    pub fault: Fault,
    /// Microseconds since the world began.
    pub at: Time,
    pub text: String,
}

/// Kinds of what can be wrong. A shorter scenario that fails must fail in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Fault {
    /// A client misses an event, and was not told, or was told although the event could still be had.
    Lost,
    /// A client gets an event again, or after a newer one.
    Doubled,
    /// A client gets what no log ever had.
    Invented,
    /// A new epoch without a reset, or the other way round.
    Reset,
    /// A gap is told where nothing ever went wrong.
    Gap,
    /// A subscription begins before events that everybody knew.
    JoinedBehind,
    /// A client still lacks something long after everything is healed.
    Stuck,
    /// An ingest peer publishes what it read before it was warm.
    PublishedCold,
    /// An event that ingest peers read live was never published.
    NeverPublished,
    /// An event was published twice where nothing ever went wrong.
    PublishedAgain,
    /// An edge holds more than it may.
    Unbounded,
    /// The world does not come to rest.
    Endless,
}

/// What became of an event on the bus.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Published {
    times: u32,
    /// When it was published first.
    first: Time,
    /// An ingest peer read it before it was warm, and left it to the feeds.
    replayed: bool,
    /// Whoever published something newer had not read this, and said so.
    skipped: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t={}  {}", Span(self.at), self.text)
    }
}

impl World<'_> {
    /// Whether a client may go without an event, when it gets a later one.
    pub(super) fn may_be_missing(
        &self,
        stream: usize,
        lost: usize,
        got: usize,
        told: bool,
        crossing: bool,
    ) -> bool {
        let events = self.log.stream(stream);
        let (lost, got) = (&events[lost], &events[got]);
        if told {
            // From one epoch to another, a server that no longer holds the end of the old one cannot know what it misses.
            return lost.gone.is_some() || lost.position.epoch == got.position.epoch && crossing;
        }
        // The last events of a partition before it was made anew: a peer that never read them cannot know that there were any.
        let everybody = (1 << self.ingest_ids().len()) - 1;
        let restarted = self.ingest_ids().any(|id| self.peers[id].incarnation > 1);
        let everybody_knew = lost.read_by == everybody && !restarted;
        lost.gone.is_some() && lost.position.epoch != got.position.epoch && !everybody_knew
    }

    pub(super) fn everybody_has_everything(&self) -> bool {
        self.clients.iter().flatten().all(|client| self.lacks(client).is_none())
    }

    /// What a client still lacks.
    fn lacks(&self, client: &Client) -> Option<String> {
        if !client.wants {
            return None;
        }
        let Some(live) = client.live else { return Some("it is not subscribed".into()) };
        let events = self.log.stream(client.stream);
        let lost = (live.next..events.len()).find(|index| self.can_be_known(client.stream, *index))?;
        Some(format!("it never got {}", ingest::short(events[lost].position)))
    }

    /// Whether an event must reach the clients: some ingest peer has read it and the log still has it, or all of them hold it.
    fn can_be_known(&self, stream: usize, index: usize) -> bool {
        let truth = &self.log.stream(stream)[index];
        let position = truth.position;
        if truth.gone.is_none() && (self.scenario.world.from_oldest || !self.began_unknowing) {
            return true;
        }
        let mut ingests = self.ingest_ids().filter_map(|id| self.get_ingest(id));
        if truth.gone.is_some() {
            return ingests.all(|ingest| ingest.history.holds(stream, position));
        }
        ingests.any(|ingest| {
            let reading = ingest.sequencer.reading(position.epoch);
            reading.is_some_and(|reading| reading.read_from <= position.sequence)
        })
    }

    pub(super) fn check_end(&mut self) {
        let lacking = self.clients.iter().enumerate().find_map(|(number, client)| {
            let client = client.as_ref()?;
            let text = self.lacks(client)?;
            Some(format!("client {} of {}: {text}", number + 1, self.names.streams[client.stream]))
        });
        if let Some(text) = lacking {
            self.fail(Fault::Stuck, format!("{text}, {} after everything was healed", Span(SETTLE)));
            return;
        }
        self.check_published();
        if self.scenario.only_deaths() {
            self.count_waits();
        }
        for id in self.ingest_ids() {
            if let Some(ingest) = self.get_ingest(id) {
                let counts = ingest.publisher.counts();
                self.counts.takeovers += counts.takeovers;
                self.counts.yields += counts.yields;
            }
        }
    }

    /// What an ingest peer that still runs read live is published by somebody, unless somebody took it for known. An event of
    /// which that is not true.
    pub(super) fn unpublished(&self) -> Option<(usize, usize)> {
        let left = |(stream, index): &&(usize, usize)| {
            let published = self.published[*stream].get(*index).copied().unwrap_or_default();
            let unpublished = published.times == 0 && !published.replayed && !published.skipped;
            // A leader that could not read any more what another one read need not know of it.
            unpublished && self.log.stream(*stream)[*index].gone.is_none()
        };
        let mut ingests = self.ingest_ids().filter_map(|id| self.get_ingest(id));
        ingests.find_map(|ingest| ingest.offered.iter().find(left).copied())
    }

    fn count_waits(&mut self) {
        for stream in 0..self.scenario.world.streams.len() {
            for (index, published) in self.published[stream].iter().enumerate().filter(|(_, it)| it.times > 0)
            {
                let wait = published.first.saturating_sub(self.log.stream(stream)[index].appended);
                self.counts.longest_wait_us = self.counts.longest_wait_us.max(wait);
                self.counts.waited += 1;
                self.counts.waited_long += u64::from(wait > LONG_WAIT);
            }
        }
    }

    fn check_published(&mut self) {
        if let Some((stream, index)) = self.unpublished() {
            let position = ingest::short(self.log.stream(stream)[index].position);
            let text = format!("{} {position} was never published", self.names.streams[stream]);
            self.fail(Fault::NeverPublished, text);
        }
    }

    pub(super) fn note_published(&mut self, id: Id, batch: &Batch) {
        let (mut again, now) = (None, self.now);
        for event in &batch.events {
            let Some(stream) = self.names.stream(&event.stream) else { continue };
            let Some(index) = self.log.index_of(stream, event.position()) else {
                let text =
                    format!("{} {} is published, which no log ever had", event.stream, event.position());
                self.fail(Fault::Invented, text);
                return;
            };
            self.counts.published += 1;
            self.note_left(stream, index);
            if let Previous::Unknown { read_from } = event.previous {
                self.note_skipped(stream, index, Position { sequence: read_from, ..event.position() });
            }
            let published = self.published_at(stream, index);
            published.times += 1;
            if published.times == 1 {
                published.first = now;
            }
            let at = ingest::short(event.position());
            if published.times > 1 {
                self.counts.published_again += 1;
                again = Some(format!("{} {at} is published again, and there was no fault", event.stream));
            }
            let partition = self.scenario.world.streams[stream];
            if self.get_ingest(id).is_some_and(|ingest| !ingest.partitions[partition].reached) {
                let text =
                    format!("{} publishes {} {at} before it is warm", self.peers[id].peer, event.stream);
                self.fail(Fault::PublishedCold, text);
            }
        }
        if let (Some(text), Some(topic)) = (again, self.names.topic(&batch.topic)) {
            let (times, last) = &mut self.repeated[topic];
            *times += usize::from(self.now > *last + ONE_EPISODE);
            *last = self.now;
            if self.scenario.is_calm() && *times > AT_A_BEGINNING * self.scenario.world.ingests.len() {
                self.fail(Fault::PublishedAgain, text);
            }
        }
    }

    /// Events of a stream before the `index`th that its publisher never read.
    fn note_skipped(&mut self, stream: usize, index: usize, read_from: Position) {
        for earlier in (0..index).rev() {
            let position = self.log.stream(stream)[earlier].position;
            if position.epoch != read_from.epoch {
                return;
            }
            if position.sequence < read_from.sequence {
                self.published_at(stream, earlier).skipped = true;
            }
        }
    }

    /// What of older epochs was not published by now need not be any more: edges have gone on.
    fn note_left(&mut self, stream: usize, index: usize) {
        let epoch = self.log.stream(stream)[index].position.epoch;
        if self.published_epoch[stream].replace(epoch) == Some(epoch) {
            return;
        }
        for earlier in 0..index {
            if self.log.stream(stream)[earlier].position.epoch != epoch {
                self.published_at(stream, earlier).skipped = true;
            }
        }
    }

    pub(super) fn note_replayed(&mut self, stream: usize, index: Option<usize>, event: &Event) {
        let Some(index) = index else { return };
        self.published_at(stream, index).replayed = true;
        if let Previous::Unknown { read_from } = event.previous {
            self.note_skipped(stream, index, Position { sequence: read_from, ..event.position() });
        }
    }

    /// An ingest peer starts with a state that holds everything up to here.
    pub(super) fn note_known(&mut self, stream: usize, index: Option<usize>) {
        for index in 0..index.map_or(0, |index| index + 1) {
            self.published_at(stream, index).replayed = true;
        }
    }

    fn published_at(&mut self, stream: usize, index: usize) -> &mut Published {
        let published = &mut self.published[stream];
        if published.len() <= index {
            published.resize(index + 1, Published::default());
        }
        &mut published[index]
    }

    pub(super) fn check_held(&mut self, id: Id, held: usize) {
        if held > MAX_HELD_EVENTS {
            self.fail(Fault::Unbounded, format!("{} holds {held} events of one stream", self.peers[id].peer));
        }
    }
}
