//! The network: messages of the bus (gossip), which may be lost, doubled and overtaken, and messages of streams (questions,
//! feeds), which keep their order and vanish only with the connection, as over TCP.

use std::sync::Arc;

use super::*;
use crate::model::scenario::What;
use tickmesh_protocol::{Batch, Epoch, feed::FeedEnd};

/// What peers send one another.
#[derive(Clone, Debug)]
pub enum Message {
    /// On the bus.
    Batch(Rc<Batch>),
    /// The topics that the sender has joined, as bits.
    Topics(u32),
    /// Where do these streams stand?
    AskHeads {
        question: u32,
        streams: Vec<usize>,
    },
    Heads {
        question: u32,
        heads: Vec<(usize, Option<Position>)>,
        /// Streams without any event have none before these positions, one per epoch.
        read: Arc<[Position]>,
        /// Epochs that the streams have left.
        left: Vec<(usize, Vec<Epoch>)>,
    },
    /// "Not me, not now."
    HeadsRefused {
        question: u32,
    },
    /// Tell me whenever your state changes.
    AskStatus,
    /// Whether the sender is warm, by source.
    Status(Vec<bool>),
    /// Give me what you know, to start from.
    AskState,
    State(Option<Rc<ingest::Saved>>),
    /// Give me what follows these positions.
    AskFeed {
        feed: u32,
        streams: Vec<(usize, Option<Position>)>,
    },
    Page {
        feed: u32,
        page: Rc<Batch>,
    },
    FeedEnds {
        feed: u32,
        ends: Vec<(usize, FeedEnd)>,
    },
    /// Busy, warming, or broken off.
    FeedBroken {
        feed: u32,
    },
}

/// Connections between all peers.
pub(super) struct Net {
    peers: usize,
    links: Vec<Link>,
}

/// One direction of a connection.
struct Link {
    random: Random,
    /// Rises whenever the connection is lost: what was on its way then never arrives.
    session: u32,
    /// Reasons for having no connection.
    down: u32,
    /// Cuts that are in force, as numbers of operations.
    cuts: Vec<usize>,
    /// Noise that is in force, as numbers of operations.
    noise: Vec<usize>,
    /// When the last message of a stream arrives.
    last_stream: Time,
    /// When the receiver was last told about the connection.
    last_notice: Time,
}

impl Net {
    pub(super) fn new(scenario: &Scenario, peers: usize) -> Self {
        let link = |number: usize| Link {
            random: Random::of(scenario.noise, 100 + number as u64),
            session: 0,
            down: 0,
            cuts: Vec::new(),
            noise: Vec::new(),
            last_stream: 0,
            last_notice: 0,
        };
        Self { peers, links: (0..peers * peers).map(link).collect() }
    }

    fn link(&mut self, from: Id, to: Id) -> &mut Link {
        &mut self.links[from * self.peers + to]
    }

    fn get(&self, from: Id, to: Id) -> &Link {
        &self.links[from * self.peers + to]
    }

    /// Whether what was sent in a session may still arrive.
    pub(super) fn is_current(&self, from: Id, to: Id, session: u32) -> bool {
        self.get(from, to).session == session
    }

    /// The sessions of everything that a peer sends.
    pub(super) fn sessions(&self, id: Id) -> Vec<u32> {
        (0..self.peers).map(|to| self.get(id, to).session).collect()
    }

    /// What the peer had sent in these sessions still arrives.
    pub(super) fn restore_sessions(&mut self, id: Id, sessions: &[u32]) {
        for (to, session) in sessions.iter().enumerate() {
            self.link(id, to).session = *session;
        }
    }

    pub(super) fn begin_cut(&mut self, from: Id, to: Id, op: usize) {
        self.link(from, to).cuts.push(op);
    }

    pub(super) fn end_cut(&mut self, from: Id, to: Id, op: usize) {
        self.link(from, to).cuts.retain(|cut| *cut != op);
    }

    pub(super) fn begin_noise(&mut self, from: Id, to: Id, op: usize) {
        self.link(from, to).noise.push(op);
    }

    pub(super) fn end_noise(&mut self, from: Id, to: Id, op: usize) {
        self.link(from, to).noise.retain(|noise| *noise != op);
    }
}

impl World<'_> {
    /// Sends something, if there is a connection.
    pub(super) fn send(&mut self, from: Id, to: Id, message: Message) {
        if self.net.get(from, to).down > 0 || !self.peers[to].is_up() {
            return;
        }
        match message {
            Message::Batch(_) => self.send_bus(from, to, message),
            _ => self.send_stream(from, to, message),
        }
    }

    fn send_bus(&mut self, from: Id, to: Id, message: Message) {
        let shape = &self.scenario.world;
        // What was disturbed before the world is healed may be lost, nothing after.
        let healed = self.now >= self.healed;
        let (mut loss, mut doubled) = if healed { (0, 0) } else { (shape.loss, shape.doubled) };
        let mut late = 0;
        let link = self.net.link(from, to);
        for op in &link.noise {
            if let What::Noisy { loss: more, doubled: again, late: by, .. } = self.scenario.ops[*op].what {
                loss = loss.max(more);
                doubled = doubled.max(again);
                late = late.max(by);
            }
        }
        let copies = 1 + u64::from(link.random.chance(doubled));
        for _ in 0..copies {
            let link = self.net.link(from, to);
            let delay = link.random.between(shape.delay.0, shape.delay.1) + link.random.below(late + 1);
            let lost = link.random.chance(loss) || !link.cuts.is_empty();
            let (session, delay) = (link.session, delay.max(link.last_notice.saturating_sub(self.now)));
            if lost {
                self.counts.lost_messages += 1;
                self.say(|world| {
                    format!("a batch of {} to {} is lost", world.peers[from].peer, world.peers[to].peer)
                });
            } else {
                self.later(to, delay, Input::Message { from, session, message: message.clone() });
            }
        }
    }

    fn send_stream(&mut self, from: Id, to: Id, message: Message) {
        let shape = &self.scenario.world;
        let link = self.net.link(from, to);
        let delay = link.random.between(shape.delay.0, shape.delay.1);
        // TCP sends again until the cut is over.
        let stalled = link.cuts.iter().map(|op| {
            let op = &self.scenario.ops[*op];
            op.at + op.what.lasts()
        });
        let leaves = stalled.fold(self.now, Time::max);
        // Nothing comes over a connection before it is there.
        let arrives = (leaves + delay).max(link.last_stream).max(link.last_notice);
        link.last_stream = arrives;
        let session = link.session;
        let after = arrives - self.now;
        self.later(to, after, Input::Message { from, session, message });
    }

    /// The connection between two peers is lost: what is on its way is gone, each learns of it after a while.
    pub(super) fn disconnect(&mut self, a: Id, b: Id, slowest: Time) {
        for (from, to) in [(a, b), (b, a)] {
            let link = self.net.link(from, to);
            link.session += 1;
            link.down += 1;
            link.last_stream = 0;
            if link.down == 1 {
                let after = link.random.spread(100, slowest);
                self.notice(from, to, after, Input::Disconnected(from));
            }
        }
    }

    /// One reason fewer for having no connection.
    pub(super) fn reconnect(&mut self, a: Id, b: Id) {
        for (from, to) in [(a, b), (b, a)] {
            let link = self.net.link(from, to);
            link.down = link.down.saturating_sub(1);
            if link.down == 0 && self.peers[from].is_up() && self.peers[to].is_up() {
                let after = self.net.link(from, to).random.spread(100, 30 * MS);
                self.notice(from, to, after, Input::Connected(from));
            }
        }
    }

    /// Tells a peer that has just started, and all others, that they are connected.
    pub(super) fn connect_all(&mut self, id: Id) {
        for other in 0..self.peers.len() {
            if other == id || !self.peers[other].is_up() || self.net.get(id, other).down > 0 {
                continue;
            }
            for (from, to) in [(id, other), (other, id)] {
                let after = self.net.link(from, to).random.spread(100, 20 * MS);
                self.notice(from, to, after, Input::Connected(from));
            }
        }
    }

    /// The connections of a peer that has died are lost.
    pub(super) fn disconnect_all(&mut self, id: Id) {
        for other in 0..self.peers.len() {
            if other == id {
                continue;
            }
            for (from, to) in [(id, other), (other, id)] {
                let link = self.net.link(from, to);
                link.session += 1;
                link.last_stream = 0;
            }
            if self.peers[other].is_up() && self.net.get(id, other).down == 0 {
                let after = self.net.link(id, other).random.spread(100, 400 * MS);
                self.notice(id, other, after, Input::Disconnected(id));
            }
        }
    }

    /// Notices about one peer keep their order.
    fn notice(&mut self, about: Id, to: Id, after: Time, input: Input) {
        let at = (self.now + after).max(self.net.get(about, to).last_notice + 1);
        self.net.link(about, to).last_notice = at;
        let after = at - self.now;
        self.later(to, after, input);
    }
}
