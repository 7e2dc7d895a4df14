//! A world in virtual time: peers made of the machines of `tickmesh_protocol`, a log, a network and clients, and a queue of
//! what happens next. Nothing in it knows a clock, a thread or chance other than the scenario's, so it takes the same
//! course each time.
//!
//! The peers here are what the async code around the machines does, without the async: see [`ingest`] and [`edge`].

mod altered;
mod check;
mod clients;
mod edge;
mod edge_fetch;
mod feeds;
mod history;
mod ingest;
mod names;
mod net;
mod ops;

use std::rc::Rc;

use tickmesh_protocol::{Moment, Position};

use self::{clients::Client, edge::Edge, ingest::Ingest, names::Names, net::Net};
use super::{
    log::Log,
    mutation::Mutation,
    queue::{MS, Queue, Time},
    random::Random,
    scenario::{Clock, Peer, Scenario, Span},
};

pub use check::{Failure, Fault};
pub use net::Message;

/// How long after everything is healed a client may still lack something. Machines that fail pause for two seconds at most
/// before they try again; a head message and some fetches come on top.
pub const SETTLE: Time = 8000 * MS;

/// How often it is looked whether everybody has everything.
const LOOK_EVERY: Time = 100 * MS;

/// How long a world goes on when everybody has everything, to see whether something comes twice.
const AFTERGLOW: Time = 700 * MS;

/// Steps of one world at most. The largest takes a tenth; more means that machines chase one another without an end.
const MAX_STEPS: u64 = 2_000_000;

/// What one world showed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub failure: Option<Failure>,
    pub counts: Counts,
    /// What happened, line by line, if that was asked for.
    pub trace: Vec<String>,
    /// Of everything that was delivered, in order: equal courses have equal ones.
    pub digest: u64,
}

/// Figures of a world, or the sum over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub steps: u64,
    pub appended: u64,
    /// Events in batches, those published twice included.
    pub published: u64,
    pub published_again: u64,
    pub delivered: u64,
    pub duplicates: u64,
    pub resets: u64,
    pub gaps_told: u64,
    pub fetches: u64,
    pub pages: u64,
    pub takeovers: u64,
    pub yields: u64,
    pub lost_messages: u64,
    /// Where nothing but single ingest peers died: how long an event waited until it was published, at most, in microseconds.
    pub longest_wait_us: u64,
    /// Events there, and those that waited longer than 150 ms.
    pub waited: u64,
    pub waited_long: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.appended += other.appended;
        self.published += other.published;
        self.published_again += other.published_again;
        self.delivered += other.delivered;
        self.duplicates += other.duplicates;
        self.resets += other.resets;
        self.gaps_told += other.gaps_told;
        self.fetches += other.fetches;
        self.pages += other.pages;
        self.takeovers += other.takeovers;
        self.yields += other.yields;
        self.lost_messages += other.lost_messages;
        self.longest_wait_us = self.longest_wait_us.max(other.longest_wait_us);
        self.waited += other.waited;
        self.waited_long += other.waited_long;
    }
}

/// Runs a scenario to its end, or to the first thing that is wrong.
pub fn run(scenario: &Scenario, mutation: Option<Mutation>, trace: bool) -> Outcome {
    let mut world = World::new(scenario, mutation, trace);
    world.run();
    world.outcome()
}

/// Number of a peer: first the ingest peers, then the edges.
type Id = usize;

struct World<'a> {
    scenario: &'a Scenario,
    mutation: Option<Mutation>,
    now: Time,
    queue: Queue<Happening>,
    log: Log,
    names: Names,
    peers: Vec<PeerState>,
    net: Net,
    clients: Vec<Option<Client>>,
    random: Random,
    /// When all faults end.
    healed: Time,
    counts: Counts,
    failure: Option<Failure>,
    trace: Option<Vec<String>>,
    digest: u64,
    /// What became of each event on the bus, by stream.
    published: Vec<Vec<check::Published>>,
    /// The epoch of the event of each stream that was published last.
    published_epoch: Vec<Option<tickmesh_protocol::Epoch>>,
    /// How often something was repeated on each topic, and when last.
    repeated: Vec<(usize, Time)>,
    /// What each ingest peer's disk holds.
    disks: Vec<Option<Rc<ingest::Saved>>>,
    /// Operations that make an ingest peer read late, with the delay.
    slow_reads: Vec<Vec<(usize, Time)>>,
    /// An ingest peer had to begin without knowing anything, while the world was going on.
    began_unknowing: bool,
    /// A peer takes what came while it was frozen; it decides nothing before it has seen all of it.
    thawing: bool,
}

struct PeerState {
    peer: Peer,
    clock: Clock,
    /// Rises with each start.
    incarnation: u32,
    role: Role,
    /// Operations that hold it frozen now.
    frozen: Vec<usize>,
    random: Random,
    /// What came while it was frozen.
    inbox: Vec<Input>,
    /// The pending wake, if there is one.
    wake: Option<Time>,
    /// When what waited in its sockets has been read.
    sockets_read: Time,
    started: Time,
}

enum Role {
    Down,
    Ingest(Box<Ingest>),
    Edge(Box<Edge>),
}

/// Something that happens at a time.
enum Happening {
    /// An operation of the scenario begins.
    Op(usize),
    /// It ends.
    OpEnds(usize),
    /// A record of an `Append`.
    Append {
        op: usize,
        number: u32,
    },
    /// A stutter stands still, or goes on.
    Stutter {
        op: usize,
        still: bool,
    },
    /// Something comes to a peer, if it is still the one it was meant for.
    Input {
        to: Id,
        incarnation: u32,
        input: Input,
    },
    /// Something that waited in the sockets of a peer that was frozen.
    Waited {
        to: Id,
        incarnation: u32,
        input: Input,
    },
    Start {
        peer: Id,
    },
    /// A client asks (again).
    Ask {
        client: usize,
    },
    Look,
}

/// What comes to a peer.
enum Input {
    Message {
        from: Id,
        session: u32,
        message: Message,
    },
    Connected(Id),
    Disconnected(Id),
    /// The time that a machine asked for.
    Wake {
        due: Time,
    },
    /// The log has something.
    Read {
        partition: usize,
    },
    /// An ingest peer tells its state, and saves it.
    Beat,
    Checkpoint,
    /// No sibling has given its state.
    Alone,
}

impl Input {
    /// Whether it comes by a socket.
    fn is_received(&self) -> bool {
        matches!(self, Self::Message { .. } | Self::Connected(_) | Self::Disconnected(_))
    }
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, mutation: Option<Mutation>, trace: bool) -> Self {
        let shape = &scenario.world;
        let first: Vec<u64> = shape.partitions.iter().map(|partition| partition.first).collect();
        let ingests = shape.ingests.iter().enumerate().map(|(n, shape)| (Peer::Ingest(n), shape.clock));
        let edges = shape.edges.iter().enumerate().map(|(n, shape)| (Peer::Edge(n), shape.clock));
        let peers = ingests.chain(edges).enumerate();
        let chance = |id: usize| Random::of(scenario.noise, 10 + id as u64);
        let peers: Vec<_> =
            peers.map(|(id, (peer, clock))| PeerState::new(peer, clock, chance(id))).collect();
        let mut world = Self {
            scenario,
            mutation,
            now: 0,
            queue: Queue::default(),
            log: Log::new(scenario.noise, &first, shape.streams.len()),
            names: Names::new(shape.streams.len()),
            net: Net::new(scenario, peers.len()),
            peers,
            clients: Vec::new(),
            random: Random::of(scenario.noise, 0),
            healed: scenario.ends(),
            counts: Counts::default(),
            failure: None,
            trace: trace.then(Vec::new),
            digest: 0,
            published: vec![Vec::new(); shape.streams.len()],
            published_epoch: vec![None; shape.streams.len()],
            repeated: vec![(0, 0); shape.streams.len()],
            disks: vec![None; shape.ingests.len()],
            slow_reads: vec![Vec::new(); shape.ingests.len()],
            began_unknowing: false,
            thawing: false,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for partition in 0..self.scenario.world.partitions.len() {
            let streams = self.streams_of(partition);
            for number in 0..self.scenario.world.partitions[partition].before as usize {
                let stream = streams.get(number % streams.len().max(1)).copied();
                self.log.append(partition, stream, 0);
            }
        }
        for (number, ingest) in self.scenario.world.ingests.iter().enumerate() {
            self.queue.push(ingest.starts, Happening::Start { peer: number });
        }
        for number in 0..self.scenario.world.edges.len() {
            self.queue.push(0, Happening::Start { peer: self.scenario.world.ingests.len() + number });
        }
        for (number, op) in self.scenario.ops.iter().enumerate() {
            self.queue.push(op.at, Happening::Op(number));
        }
        self.queue.push(self.healed + LOOK_EVERY, Happening::Look);
    }

    fn run(&mut self) {
        let until = self.healed + SETTLE;
        // Since when everybody has had everything.
        let mut complete = None;
        while self.failure.is_none() {
            let Some((at, happening)) = self.queue.pop() else { break };
            if at > until {
                break;
            }
            self.now = at;
            self.counts.steps += 1;
            if self.counts.steps > MAX_STEPS {
                self.fail(Fault::Endless, format!("{MAX_STEPS} steps and no end"));
                return;
            }
            if matches!(happening, Happening::Look) {
                let all = self.everybody_has_everything() && self.unpublished().is_none();
                complete = complete.filter(|_| all).or(all.then_some(self.now));
                if complete.is_some_and(|since| since + AFTERGLOW <= self.now) {
                    break;
                }
                self.queue.push(self.now + LOOK_EVERY, Happening::Look);
                continue;
            }
            self.happen(happening);
        }
        if self.failure.is_none() {
            self.check_end();
        }
    }

    fn outcome(self) -> Outcome {
        let (trace, digest) = (self.trace.unwrap_or_default(), self.digest);
        Outcome { failure: self.failure, counts: self.counts, trace, digest }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Op(number) => self.op(number),
            Happening::OpEnds(number) => self.op_ends(number),
            Happening::Append { op, number } => self.append(op, number),
            Happening::Stutter { op, still } => self.stutter(op, still),
            Happening::Start { peer } => self.start(peer),
            Happening::Ask { client } => self.ask(client),
            Happening::Input { to, incarnation, input } => {
                let sockets_read = self.peers[to].sockets_read;
                if self.now < sockets_read && input.is_received() {
                    // It is behind what waited.
                    self.queue.push(sockets_read, Happening::Input { to, incarnation, input });
                } else {
                    self.input(to, incarnation, input);
                }
            }
            Happening::Waited { to, incarnation, input } => self.input(to, incarnation, input),
            Happening::Look => {}
        }
    }

    /// Gives something to a peer, or keeps it until the peer is no longer frozen.
    fn input(&mut self, to: Id, incarnation: u32, input: Input) {
        if self.peers[to].incarnation != incarnation || !self.peers[to].is_up() {
            return;
        }
        if !self.peers[to].frozen.is_empty() {
            self.keep_for_later(to, input);
            return;
        }
        if let Input::Message { from, session, .. } = &input
            && !self.net.is_current(*from, to, *session)
        {
            return;
        }
        match self.peers[to].peer {
            Peer::Ingest(_) => self.ingest_input(to, input),
            Peer::Edge(_) => self.edge_input(to, input),
        }
    }

    fn keep_for_later(&mut self, to: Id, input: Input) {
        let is_batch = |input: &Input| matches!(input, Input::Message { message: Message::Batch(_), .. });
        let limit = self.scenario.world.inbox;
        let waiting = || self.peers[to].inbox.iter().filter(|kept| is_batch(kept)).count();
        if is_batch(&input) && waiting() >= limit {
            self.counts.lost_messages += 1;
            self.say(|world| format!("{} has no room for a batch", world.peers[to].peer));
            return;
        }
        self.peers[to].inbox.push(input);
    }

    /// Puts something in the queue for a peer as it is now.
    fn later(&mut self, to: Id, after: Time, input: Input) {
        let incarnation = self.peers[to].incarnation;
        self.queue.push(self.now + after, Happening::Input { to, incarnation, input });
    }

    /// Wakes a peer when its own clock shows a time, unless it will be woken before.
    fn wake_at(&mut self, id: Id, due: Option<Moment>) {
        let Some(due) = due else { return };
        let state = &self.peers[id];
        // A timer does not fire twice within a tenth of a millisecond.
        let at = state.clock.world_time(due).max(self.now + MS / 10);
        if state.wake.is_some_and(|wake| wake <= at) {
            return;
        }
        self.peers[id].wake = Some(at);
        let incarnation = self.peers[id].incarnation;
        self.queue.push(at, Happening::Input { to: id, incarnation, input: Input::Wake { due: at } });
    }

    fn random_of(&mut self, id: Id) -> &mut Random {
        &mut self.peers[id].random
    }

    /// What a peer's clock shows.
    fn local(&self, id: Id) -> Moment {
        self.peers[id].clock.local(self.now)
    }

    fn edge_id(&self, edge: usize) -> Id {
        self.scenario.world.ingests.len() + edge
    }

    fn id(&self, peer: Peer) -> Id {
        match peer {
            Peer::Ingest(number) => number,
            Peer::Edge(number) => self.edge_id(number),
        }
    }

    fn ingest_ids(&self) -> std::ops::Range<Id> {
        0..self.scenario.world.ingests.len()
    }

    fn streams_of(&self, partition: usize) -> Vec<usize> {
        let homes = self.scenario.world.streams.iter().enumerate();
        homes.filter(|(_, home)| **home == partition).map(|(stream, _)| stream).collect()
    }

    fn source_of(&self, partition: usize) -> usize {
        self.scenario.world.partitions[partition].source
    }

    /// Adds a line to the trace. The line is only made if somebody wants it.
    fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("t={}  {}", Span(self.now), line(self));
            if let Some(trace) = &mut self.trace {
                trace.push(line);
            }
        }
    }

    fn fail(&mut self, fault: Fault, text: String) {
        if self.failure.is_none() {
            self.say(|_| format!("FAILURE: {text}"));
            self.failure = Some(Failure { fault, at: self.now, text });
        }
    }
}

impl PeerState {
    fn new(peer: Peer, clock: Clock, random: Random) -> Self {
        Self {
            peer,
            clock,
            incarnation: 0,
            role: Role::Down,
            frozen: Vec::new(),
            random,
            inbox: Vec::new(),
            wake: None,
            sockets_read: 0,
            started: 0,
        }
    }

    fn is_up(&self) -> bool {
        !matches!(self.role, Role::Down)
    }
}

impl Clock {
    fn local(&self, now: Time) -> Moment {
        let drifted = i128::from(now) * i128::from(1_000_000 + self.drift) / 1_000_000;
        Moment::after(std::time::Duration::from_micros(self.ahead + drifted as u64))
    }

    /// The world's time when this clock shows `local`, rounded up.
    fn world_time(&self, local: Moment) -> Time {
        let shown = local.since_start().as_micros() as u64;
        let drifted = i128::from(shown.saturating_sub(self.ahead));
        (drifted * 1_000_000 / i128::from(1_000_000 + self.drift)) as u64 + 1
    }
}
