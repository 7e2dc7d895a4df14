//! Fetches of an edge: streams that lack something are gathered by topic, and servers asked in turn as [`Fetching`] says.

use tickmesh_protocol::{
    Batch, PublisherKey,
    feed::FeedEnd,
    fetching::Fetching,
    repair::{Fetched, Output, Way},
};

use super::{ingest, *};

/// How long a server may be silent before another is asked.
const FEED_TIMEOUT: Time = 1000 * MS;

/// One fetch under way.
pub(super) struct Running {
    fetching: Fetching,
    /// Stream, its generation and the number that its machine gave to the fetch.
    streams: Vec<(usize, u32, u32)>,
    /// Names the question to the server that is asked now.
    pub(super) feed: u32,
    server: Id,
    pub(super) times_out: Time,
    /// A page that a mutation holds back.
    pub(super) held_back: Option<Rc<Batch>>,
}

impl World<'_> {
    pub(super) fn begin_fetches(&mut self, id: Id) {
        let now = self.local(id);
        for topic in 0..self.names.topics.len() {
            let topic_of = self.names.topic_of.clone();
            let Some(edge) = self.edge(id) else { return };
            let (mut streams, mut wanted, mut attempt) = (Vec::new(), Vec::new(), 0);
            let of_topic =
                edge.streams.iter_mut().enumerate().filter(|(stream, _)| topic_of[*stream] == topic);
            for (stream, found) in of_topic {
                let Some(found) = found else { continue };
                if let Some(fetch) = found.repair.begin_fetch(now) {
                    streams.push((stream, found.generation, fetch.id));
                    wanted.push((stream, fetch.after));
                    attempt = attempt.max(fetch.attempt);
                }
            }
            if streams.is_empty() {
                continue;
            }
            let connected = edge.connected.clone();
            let servers: Vec<PublisherKey> =
                self.ingest_ids().filter(|id| connected[*id]).map(ingest::key).collect();
            let wanted = wanted
                .into_iter()
                .map(|(stream, after)| (self.names.streams[stream].clone(), after))
                .collect();
            let fetching = Fetching::new(&self.names.topics[topic], wanted, servers, attempt);
            self.counts.fetches += 1;
            let running = Running { fetching, streams, feed: 0, server: id, times_out: 0, held_back: None };
            self.ask_next(id, running);
        }
    }

    /// Asks the next server, or ends the fetch if there is none.
    fn ask_next(&mut self, id: Id, mut running: Running) {
        match running.fetching.next_ask() {
            Some(ask) => {
                let streams = ask.streams.iter();
                let streams: Vec<_> =
                    streams.filter_map(|(name, after)| Some((self.names.stream(name)?, *after))).collect();
                let server = ingest::peer_of(&ask.server);
                let times_out = self.now + FEED_TIMEOUT;
                let Some(edge) = self.edge(id) else { return };
                let feed = edge.number();
                edge.running.push(Running { feed, server, times_out, ..running });
                self.say(|world| {
                    let wanted = streams.iter().map(|(stream, after)| {
                        let after = after.map_or("the beginning".to_owned(), ingest::short);
                        format!("{} after {after}", world.names.streams[*stream])
                    });
                    let wanted = wanted.collect::<Vec<_>>().join(", ");
                    format!("{} asks {} for {wanted}", world.peers[id].peer, world.peers[server].peer)
                });
                self.send(id, server, Message::AskFeed { feed, streams });
            }
            None => self.fetch_ended(id, running),
        }
    }

    fn fetch_ended(&mut self, id: Id, running: Running) {
        let now = self.local(id);
        for (name, fetched) in running.fetching.results() {
            let Some(stream) = self.names.stream(&name) else { continue };
            let known = running.streams.iter().find(|(known, ..)| *known == stream).copied();
            let Some((_, generation, number)) = known else { continue };
            self.say(|world| format!("{}'s fetch of {name} ended: {}", world.peers[id].peer, told(&fetched)));
            let mut outputs: Vec<Output> = Vec::new();
            let Some(found) = self.edge(id).and_then(|edge| edge.stream(stream, generation)) else {
                continue;
            };
            found.repair.fetched(number, fetched, now, &mut outputs);
            self.put_out(id, stream, outputs);
        }
        self.drive_edge(id);
    }

    fn take_running(&mut self, id: Id, feed: u32) -> Option<Running> {
        let edge = self.edge(id)?;
        let at = edge.running.iter().position(|running| running.feed == feed)?;
        Some(edge.running.remove(at))
    }

    pub(super) fn edge_page(&mut self, id: Id, feed: u32, page: &Rc<Batch>) {
        let times_out = self.now + FEED_TIMEOUT;
        let Some(edge) = self.edge(id) else { return };
        let Some(running) = edge.running.iter_mut().find(|running| running.feed == feed) else { return };
        running.times_out = times_out;
        let mut page = Some(Rc::clone(page));
        self.altered_page(id, feed, &mut page);
        let Some(page) = page else { return };
        for event in &page.events {
            let Some(stream) = self.names.stream(&event.stream) else { continue };
            let Some(edge) = self.edge(id) else { return };
            let Some(running) = edge.running.iter_mut().find(|running| running.feed == feed) else { return };
            running.fetching.passed(event);
            let known = running.streams.iter().find(|(known, ..)| *known == stream).copied();
            // The stream may have been left, and joined again, since.
            let current = known.is_some_and(|(_, generation, _)| edge.stream(stream, generation).is_some());
            if current {
                self.edge_event(id, stream, event, Way::Feed);
            }
        }
    }

    pub(super) fn feed_ends(&mut self, id: Id, _from: Id, feed: u32, ends: &[(usize, FeedEnd)]) {
        let Some(mut running) = self.take_running(id, feed) else { return };
        let ends: Vec<_> =
            ends.iter().map(|(stream, end)| (self.names.streams[*stream].clone(), *end)).collect();
        running.fetching.ended(&ends);
        self.ask_next(id, running);
    }

    pub(super) fn feed_broken(&mut self, id: Id, feed: u32) {
        let Some(mut running) = self.take_running(id, feed) else { return };
        running.fetching.failed();
        self.ask_next(id, running);
    }

    /// A connection is lost: what was asked over it is never answered.
    pub(super) fn server_lost(&mut self, id: Id, server: Id) {
        while let Some(feed) = self.edge(id).and_then(|edge| {
            edge.running.iter().find(|running| running.server == server).map(|running| running.feed)
        }) {
            self.feed_broken(id, feed);
        }
    }

    /// Asks another server instead of one that says nothing.
    pub(super) fn fetch_timeouts(&mut self, id: Id) {
        let now = self.now;
        while let Some(feed) = self.edge(id).and_then(|edge| {
            edge.running.iter().find(|running| running.times_out <= now).map(|running| running.feed)
        }) {
            self.feed_broken(id, feed);
        }
    }
}

fn told(fetched: &Fetched) -> String {
    let position = |position: &Option<Position>| position.map_or("nothing".to_owned(), ingest::short);
    match fetched {
        Fetched::Ended(FeedEnd::Complete { head }) => format!("complete, head {}", position(head)),
        Fetched::Ended(FeedEnd::Refused { oldest }) => format!("refused, oldest {}", position(oldest)),
        Fetched::Failed => "failed".into(),
    }
}
