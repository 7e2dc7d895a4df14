//! What befalls the world, as the scenario says.

use super::*;
use crate::model::scenario::{Op, What};

/// How long after a restart of all ingest peers the last one is up.
const STAGGER: Time = 300 * MS;

/// Slowest notice of a lost connection: a keep-alive that is not answered.
const SLOW_NOTICE: Time = 600 * MS;

/// After a thaw, what a peer's sockets hold comes within this.
const SOCKETS_READ: Time = 8 * MS;

impl World<'_> {
    pub(super) fn op(&mut self, number: usize) {
        let what = self.scenario.ops[number].what;
        if !matches!(what, What::Append { .. }) {
            self.say(|_| format!("--- {what}"));
        }
        let lasts = what.lasts();
        match what {
            What::Append { .. } => self.append(number, 0),
            What::Skip { partition } => {
                self.log.append(partition, None, self.now);
                self.wake_readers(partition);
            }
            What::Trim { partition, keep } => {
                self.log.trim(partition, u64::from(keep), self.now);
            }
            What::Recreate { partition } => {
                self.log.recreate(self.scenario.noise, partition, self.now);
                self.wake_readers(partition);
            }
            What::Join { client, edge, stream } => self.client_joins(client, edge, stream),
            What::Leave { client } => self.client_leaves(client),
            What::Crash { peer, lasts, disk } => self.crash(self.id(peer), lasts, disk),
            What::Outage { lasts, disk } => {
                for id in self.ingest_ids() {
                    let stagger = self.random_of(id).spread(0, STAGGER);
                    self.crash(id, lasts + stagger, disk);
                }
            }
            What::Stop { ingest, lasts } => self.stop(ingest, lasts),
            What::Freeze { peer, .. } => self.freeze(self.id(peer), number),
            What::Stutter { .. } => self.stutter(number, true),
            What::Cut { from, to, .. } => {
                let (from, to) = (self.id(from), self.id(to));
                self.net.begin_cut(from, to, number);
            }
            What::Disconnect { a, b, .. } => self.disconnect(self.id(a), self.id(b), SLOW_NOTICE),
            What::Noisy { from, to, .. } => {
                let (from, to) = (self.id(from), self.id(to));
                self.net.begin_noise(from, to, number);
            }
            What::SlowRead { ingest, delay, .. } => self.slow_reads[ingest].push((number, delay)),
            What::BrokenFeeds { .. } | What::Lies { .. } => {}
        }
        if lasts > 0 {
            self.queue.push(self.now + lasts, Happening::OpEnds(number));
        }
    }

    pub(super) fn op_ends(&mut self, number: usize) {
        match self.scenario.ops[number].what {
            What::Freeze { peer, .. } | What::Stutter { peer, .. } => self.thaw(self.id(peer), number),
            What::Cut { from, to, .. } => {
                let (from, to) = (self.id(from), self.id(to));
                self.net.end_cut(from, to, number);
            }
            What::Disconnect { a, b, .. } => self.reconnect(self.id(a), self.id(b)),
            What::Noisy { from, to, .. } => {
                let (from, to) = (self.id(from), self.id(to));
                self.net.end_noise(from, to, number);
            }
            What::SlowRead { ingest, .. } => self.slow_reads[ingest].retain(|(op, _)| *op != number),
            _ => {}
        }
    }

    pub(super) fn append(&mut self, op: usize, number: u32) {
        let What::Append { partition, stream, count, every } = self.scenario.ops[op].what else { return };
        let streams = self.streams_of(partition);
        let first = streams.iter().position(|known| *known == stream).unwrap_or(0);
        let at_once = if every == 0 { count } else { number + 1 };
        for number in number..at_once {
            let Some(stream) = streams.get((first + number as usize) % streams.len().max(1)).copied() else {
                return;
            };
            let position = self.log.append(partition, Some(stream), self.now);
            self.counts.appended += 1;
            self.say(|world| {
                let name = &world.names.streams[stream];
                format!("partition {}: {name} {}", partition + 1, ingest::short(position))
            });
        }
        self.wake_readers(partition);
        if at_once < count {
            self.queue.push(self.now + every, Happening::Append { op, number: at_once });
        }
    }

    pub(super) fn start(&mut self, id: Id) {
        if self.peers[id].is_up() {
            return;
        }
        self.peers[id].incarnation += 1;
        self.peers[id].started = self.now;
        self.say(|world| format!("{} starts", world.peers[id].peer));
        match self.peers[id].peer {
            Peer::Ingest(_) => self.start_ingest(id),
            Peer::Edge(edge) => {
                self.start_edge(id);
                self.clients_of_edge_ask(edge);
            }
        }
        self.connect_all(id);
    }

    fn crash(&mut self, id: Id, lasts: Time, disk: bool) {
        if !self.peers[id].is_up() {
            return;
        }
        let state = &mut self.peers[id];
        state.role = Role::Down;
        state.incarnation += 1;
        state.frozen.clear();
        state.inbox.clear();
        state.wake = None;
        state.sockets_read = 0;
        if !disk && let Some(disk) = self.disks.get_mut(id) {
            *disk = None;
        }
        self.disconnect_all(id);
        if let Peer::Edge(edge) = self.peers[id].peer {
            self.clients_of_edge_gone(edge);
        }
        self.queue.push(self.now + lasts, Happening::Start { peer: id });
    }

    fn stop(&mut self, id: Id, lasts: Time) {
        if !self.peers[id].frozen.is_empty() {
            return;
        }
        let now = self.local(id);
        if let Some(ingest) = self.ingest(id) {
            let rest = ingest.publisher.take_all(now);
            self.publish(id, rest);
            self.save(id);
        }
        // What was handed to the network goes out before the process ends.
        self.crash_gently(id, lasts);
    }

    fn crash_gently(&mut self, id: Id, lasts: Time) {
        let sessions = self.net.sessions(id);
        self.crash(id, lasts, true);
        self.net.restore_sessions(id, &sessions);
    }

    fn freeze(&mut self, id: Id, op: usize) {
        if self.peers[id].is_up() && !self.peers[id].frozen.contains(&op) {
            self.peers[id].frozen.push(op);
        }
    }

    /// A peer goes on. Its timers are late, and what its sockets hold comes a little later, or all at once.
    fn thaw(&mut self, id: Id, op: usize) {
        let state = &mut self.peers[id];
        let was_frozen = !state.frozen.is_empty();
        state.frozen.retain(|frozen| *frozen != op);
        if !was_frozen || !state.frozen.is_empty() || !state.is_up() {
            return;
        }
        let inbox = std::mem::take(&mut state.inbox);
        let incarnation = state.incarnation;
        let at_once = state.random.chance(300);
        self.say(|world| format!("{} goes on", world.peers[id].peer));
        let is_timer = |input: &Input| matches!(input, Input::Wake { .. });
        let (timers, rest): (Vec<_>, Vec<_>) = inbox.into_iter().partition(is_timer);
        if at_once {
            self.thawing = true;
            for input in timers.into_iter().chain(rest) {
                self.input(id, incarnation, input);
            }
            self.thawing = false;
            match self.peers[id].peer {
                Peer::Ingest(_) => self.publish_due(id),
                Peer::Edge(_) => self.drive_edge(id),
            }
            return;
        }
        for input in timers {
            self.input(id, incarnation, input);
        }
        let mut at = self.now;
        let share = SOCKETS_READ / (rest.len() as Time + 1);
        for input in rest {
            at += self.random_of(id).below(share + 1);
            self.queue.push(at, Happening::Waited { to: id, incarnation, input });
        }
        self.peers[id].sockets_read = at;
    }

    pub(super) fn stutter(&mut self, op: usize, still: bool) {
        let Op { at, what: What::Stutter { peer, lasts, every, pause } } = self.scenario.ops[op] else {
            return;
        };
        let id = self.id(peer);
        if self.now >= at + lasts {
            return;
        }
        if still {
            self.freeze(id, op);
            self.queue.push(self.now + pause.max(1), Happening::Stutter { op, still: false });
        } else {
            self.thaw(id, op);
            self.queue.push(self.now + (every - pause).max(MS), Happening::Stutter { op, still: true });
        }
    }
}
