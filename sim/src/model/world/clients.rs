//! Clients: what each one is told, compared with the log at once.

use tickmesh_protocol::{Epoch, repair::Output};

use super::*;

/// A client that was refused asks again after this.
const ASK_AGAIN: Time = 200 * MS;

/// One subscription.
pub(super) struct Client {
    pub(super) edge: usize,
    pub(super) stream: usize,
    pub(super) wants: bool,
    asked: Time,
    /// Events of the stream that every ingest peer knew to be published when the client asked.
    floor: Option<usize>,
    pub(super) live: Option<Live>,
}

/// A confirmed subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    /// The event that must come next, as an index of the stream's events.
    pub(super) next: usize,
    /// Nothing was known of the stream: an older event may come first.
    open: bool,
    epoch: Option<Epoch>,
    reset: Option<Epoch>,
    gap: bool,
}

impl World<'_> {
    pub(super) fn client_joins(&mut self, client: usize, edge: usize, stream: usize) {
        while self.clients.len() <= client {
            self.clients.push(None);
        }
        self.clients[client] = Some(Client { edge, stream, wants: true, asked: 0, floor: None, live: None });
        self.ask(client);
    }

    pub(super) fn client_leaves(&mut self, client: usize) {
        let Some(Some(gone)) = self.clients.get_mut(client) else { return };
        let (edge, stream) = (gone.edge, gone.stream);
        gone.wants = false;
        gone.live = None;
        self.unsubscribe(self.edge_id(edge), stream, client);
    }

    pub(super) fn ask(&mut self, client: usize) {
        let Some(Some(asker)) = self.clients.get(client) else { return };
        let (edge, stream, wants) = (self.edge_id(asker.edge), asker.stream, asker.wants);
        if !wants || asker.live.is_some() || !self.peers[edge].is_up() {
            return;
        }
        if !self.peers[edge].frozen.is_empty() {
            self.queue.push(self.now + ASK_AGAIN, Happening::Ask { client });
            return;
        }
        let floor = self.known_to_all(stream);
        if let Some(Some(asker)) = self.clients.get_mut(client) {
            asker.asked = self.now;
            asker.floor = floor;
        }
        self.subscribe(edge, stream, client);
    }

    /// The question was asked before, for another client: the answer may be older.
    pub(super) fn asked_before(&mut self, client: usize) {
        if let Some(Some(client)) = self.clients.get_mut(client) {
            client.floor = None;
        }
    }

    /// Events of a stream that every ingest peer knows to be published.
    fn known_to_all(&self, stream: usize) -> Option<usize> {
        let name = &self.names.streams[stream];
        let known = self.ingest_ids().map(|id| {
            let head = self.get_ingest(id)?.publisher.head(name)?;
            Some(self.log.index_of(stream, head)? + 1)
        });
        known.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    pub(super) fn clients_of_edge_gone(&mut self, edge: usize) {
        for client in self.clients.iter_mut().flatten().filter(|client| client.edge == edge) {
            client.live = None;
        }
    }

    pub(super) fn clients_of_edge_ask(&mut self, edge: usize) {
        for (number, client) in self.clients.iter().enumerate() {
            if client.as_ref().is_some_and(|client| client.edge == edge && client.wants) {
                self.queue.push(self.now + MS, Happening::Ask { client: number });
            }
        }
    }

    /// The edge could not say where the stream stands.
    pub(super) fn refused(&mut self, client: usize) {
        self.say(|_| format!("client {} is refused", client + 1));
        self.queue.push(self.now + ASK_AGAIN, Happening::Ask { client });
    }

    /// "Subscribed: everything after this position will come."
    /// Or: "there is no event before these positions, and everything after them will come."
    pub(super) fn confirmed(
        &mut self,
        number: usize,
        position: Option<Position>,
        read: &[Position],
        fresh: bool,
    ) {
        self.say(|world| {
            let at = position.map_or("nothing".into(), ingest::short);
            let stream = world.clients[number].as_ref().map_or(0, |client| client.stream);
            format!("client {} is subscribed to {} at {at}", number + 1, world.names.streams[stream])
        });
        let Some(Some(client)) = self.clients.get(number) else { return };
        let stream = client.stream;
        let index = position.and_then(|position| self.log.index_of(stream, position));
        if let (Some(position), None) = (position, index) {
            let text = format!("client {} is subscribed at {position}, which no event has", number + 1);
            self.fail(Fault::Invented, text);
            return;
        }
        let next = index.map_or_else(|| self.events_before(stream, read), |index| index + 1);
        let restarted = self.ingest_ids().any(|id| self.peers[id].started > client.asked);
        let behind = client.floor.is_some_and(|floor| next < floor);
        if fresh && behind && !restarted {
            let text = format!(
                "client {} is subscribed before events that every ingest peer had published when it asked",
                number + 1
            );
            self.fail(Fault::JoinedBehind, text);
            return;
        }
        let live = Live {
            next,
            open: position.is_none(),
            epoch: position.map(|position| position.epoch),
            reset: None,
            gap: false,
        };
        if let Some(Some(client)) = self.clients.get_mut(number) {
            client.live = Some(live);
        }
    }

    /// Events of a stream before the first that is not before these positions.
    fn events_before(&self, stream: usize, read: &[Position]) -> usize {
        let partition = self.log.partition(self.scenario.world.streams[stream]);
        let newest = read
            .iter()
            .filter_map(|read| Some((partition.generation(read.epoch)?, *read)))
            .max_by_key(|(g, _)| *g);
        let Some((generation, read)) = newest else { return 0 };
        let before = |at: Position| match partition.generation(at.epoch) {
            Some(known) if known == generation => at.sequence < read.sequence,
            known => known < Some(generation),
        };
        let events = self.log.stream(stream);
        events.iter().rposition(|event| before(event.position)).map_or(0, |last| last + 1)
    }

    pub(super) fn client_output(&mut self, number: usize, output: &Output) {
        let Some(Some(Client { stream, live: Some(live), .. })) = self.clients.get(number) else { return };
        let (stream, mut live) = (*stream, *live);
        match output {
            Output::Reset(epoch) => {
                self.counts.resets += 1;
                self.say(|_| format!("client {} is told that a new epoch begins", number + 1));
                if live.epoch == Some(*epoch) || live.reset.is_some() {
                    self.fail(
                        Fault::Reset,
                        format!("client {} is told a reset to {epoch} twice", number + 1),
                    );
                }
                live.reset = Some(*epoch);
            }
            Output::Gap { .. } => {
                self.counts.gaps_told += 1;
                self.say(|_| format!("client {} is told a gap", number + 1));
                if self.scenario.is_calm() {
                    self.fail(
                        Fault::Gap,
                        format!("client {} is told a gap, and there was no fault", number + 1),
                    );
                }
                live.gap = true;
            }
            Output::Deliver(event) => {
                self.counts.delivered += 1;
                let mixed = (number as u64) << 48 ^ event.epoch.as_u64() ^ event.sequence.get();
                self.digest = (self.digest.rotate_left(5) ^ mixed).wrapping_mul(0x517c_c1b7_2722_0a95);
                self.say(|_| {
                    format!("client {} gets {} {}", number + 1, event.stream, ingest::short(event.position()))
                });
                self.check_delivered(number, stream, event.position(), &live);
                if let Some(index) = self.log.index_of(stream, event.position()) {
                    live = Live {
                        next: index + 1,
                        open: false,
                        epoch: Some(event.epoch),
                        reset: None,
                        gap: false,
                    };
                }
            }
        }
        if let Some(Some(client)) = self.clients.get_mut(number) {
            client.live = Some(live);
        }
    }

    fn check_delivered(&mut self, number: usize, stream: usize, position: Position, live: &Live) {
        let client = number + 1;
        let name = self.names.streams[stream].clone();
        let at = ingest::short(position);
        let Some(index) = self.log.index_of(stream, position) else {
            self.fail(Fault::Invented, format!("client {client} gets {name} {at}, which no log ever had"));
            return;
        };
        if live.epoch.is_some_and(|epoch| epoch != position.epoch) && live.reset != Some(position.epoch) {
            let text = format!("client {client} gets {name} {at} of a new epoch without a reset");
            self.fail(Fault::Reset, text);
        }
        if live.reset.is_some_and(|epoch| epoch != position.epoch) {
            let text = format!("client {client} is told a reset, but then gets {name} {at}");
            self.fail(Fault::Reset, text);
        }
        if index < live.next && !live.open {
            self.fail(Fault::Doubled, format!("client {client} gets {name} {at} again, or too late"));
        }
        let crossing = live.epoch != Some(position.epoch);
        if let Some(lost) =
            (live.next..index).find(|lost| !self.may_be_missing(stream, *lost, index, live.gap, crossing))
        {
            let truth = self.log.stream(stream)[lost];
            let told = if live.gap { "although that could still be had" } else { "and nobody said so" };
            let missing = ingest::short(truth.position);
            let text = format!("client {client} gets {name} {at}, but never got {missing}, {told}");
            self.fail(Fault::Lost, text);
        }
    }
}
