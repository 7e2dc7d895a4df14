//! A scenario: how a world is made and what befalls it, as a list that can be shortened and read.

mod generate;
mod story;

pub use generate::generate;
pub use story::{Span, story, stream_name};

use super::queue::Time;

/// Peers of one kind at most: their sets are bits of a number, and more of them find nothing that four do not.
pub const MAX_PEERS: usize = 4;

/// A world and what befalls it. Everything in it is decided before it runs; the same scenario always takes the same course.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Decides delays, losses and everything else that chance decides while the world runs.
    pub noise: u64,
    pub world: Shape,
    /// What befalls the world, by time.
    pub ops: Vec<Op>,
}

/// What a world is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub partitions: Vec<PartitionShape>,
    /// The partition of each stream.
    pub streams: Vec<usize>,
    pub ingests: Vec<IngestShape>,
    pub edges: Vec<EdgeShape>,
    /// What every message takes, at least and at most.
    pub delay: (Time, Time),
    /// Messages of the bus lost in a thousand, at all times.
    pub loss: u64,
    /// Messages of the bus that come twice, in a thousand.
    pub doubled: u64,
    /// Batches that wait for one receiver at most.
    pub inbox: usize,
    /// Events an ingest peer's history holds.
    pub ring: usize,
    pub checkpoint_every: Time,
    /// Whether a peer that knows nothing begins at the beginning of the log, or else at its end.
    pub from_oldest: bool,
    /// How long an ingest peer that comes to others waits before it ranks.
    pub settle: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionShape {
    /// Which source it belongs to.
    pub source: usize,
    /// Where its numbers begin.
    pub first: u64,
    /// Records there before the world begins.
    pub before: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngestShape {
    pub starts: Time,
    pub clock: Clock,
    /// How long after a record was written this peer reads it, at most.
    pub read_delay: Time,
    /// Sources for which this peer is only a standby, as bits.
    pub standby: u8,
}

impl IngestShape {
    /// 0 in the home region of a source, larger in standby regions.
    pub fn tier(&self, source: usize) -> u8 {
        self.standby >> source & 1
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeShape {
    pub clock: Clock,
}

/// A clock that shows another time than the world's, and goes at another pace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    pub ahead: Time,
    /// Microseconds too fast in a second; negative: too slow.
    pub drift: i64,
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub at: Time,
    pub what: What,
}

/// A peer, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Ingest(usize),
    Edge(usize),
}

/// What can happen. Everything but the log's own life and the clients is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Records of a partition, for its streams in turn from one on.
    Append { partition: usize, stream: usize, count: u32, every: Time },
    /// A position that holds no record, as markers of transactions do.
    Skip { partition: usize },
    /// The log forgets all but its newest records.
    Trim { partition: usize, keep: u32 },
    /// The log is deleted and made anew.
    Recreate { partition: usize },
    /// A client subscribes to a stream at an edge.
    Join { client: usize, edge: usize, stream: usize },
    /// It unsubscribes.
    Leave { client: usize },
    /// A peer dies and comes back; with or without what its disk held.
    Crash { peer: Peer, lasts: Time, disk: bool },
    /// All ingest peers die at once.
    Outage { lasts: Time, disk: bool },
    /// An ingest peer is told to end, publishes what it has, and comes back.
    Stop { ingest: usize, lasts: Time },
    /// A peer does nothing at all, then goes on as if nothing had been.
    Freeze { peer: Peer, lasts: Time },
    /// A peer gets the processor only now and then.
    Stutter { peer: Peer, lasts: Time, every: Time, pause: Time },
    /// Everything sent from one peer to another vanishes; nobody is told.
    Cut { from: Peer, to: Peer, lasts: Time },
    /// The connection between two peers is lost; each is told after a while.
    Disconnect { a: Peer, b: Peer, lasts: Time },
    /// Messages of the bus from one peer to another are lost, doubled, and come late.
    Noisy { from: Peer, to: Peer, lasts: Time, loss: u64, doubled: u64, late: Time },
    /// An ingest peer reads the log late.
    SlowRead { ingest: usize, lasts: Time, delay: Time },
    /// Answers of an ingest peer's feeds end in the middle, so many in a thousand.
    BrokenFeeds { ingest: usize, lasts: Time, per_mille: u64 },
    /// An ingest peer claims that streams are further than they are.
    Lies { ingest: usize, lasts: Time, ahead: u64 },
}

impl What {
    /// How long it lasts; nothing for what happens at once.
    pub fn lasts(&self) -> Time {
        match *self {
            Self::Append { count, every, .. } => Time::from(count.saturating_sub(1)) * every,
            Self::Skip { .. }
            | Self::Trim { .. }
            | Self::Recreate { .. }
            | Self::Join { .. }
            | Self::Leave { .. } => 0,
            Self::Crash { lasts, .. }
            | Self::Outage { lasts, .. }
            | Self::Stop { lasts, .. }
            | Self::Freeze { lasts, .. }
            | Self::Stutter { lasts, .. }
            | Self::Cut { lasts, .. }
            | Self::Disconnect { lasts, .. }
            | Self::Noisy { lasts, .. }
            | Self::SlowRead { lasts, .. }
            | Self::BrokenFeeds { lasts, .. }
            | Self::Lies { lasts, .. } => lasts,
        }
    }

    /// What reports call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Append { .. } => "append",
            Self::Skip { .. } => "skip",
            Self::Trim { .. } => "trim",
            Self::Recreate { .. } => "recreate",
            Self::Join { .. } => "join",
            Self::Leave { .. } => "leave",
            Self::Crash { .. } => "crash",
            Self::Outage { .. } => "outage",
            Self::Stop { .. } => "stop",
            Self::Freeze { .. } => "freeze",
            Self::Stutter { .. } => "stutter",
            Self::Cut { .. } => "cut",
            Self::Disconnect { .. } => "disconnect",
            Self::Noisy { .. } => "noisy link",
            Self::SlowRead { .. } => "slow read",
            Self::BrokenFeeds { .. } => "broken feeds",
            Self::Lies { .. } => "false claims",
        }
    }

    /// Whether a world with this in it cannot be held to "no duplicates, no gaps".
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Append { .. } | Self::Skip { .. } | Self::Join { .. } | Self::Leave { .. })
    }
}

impl Scenario {
    /// When everything that befalls the world is over.
    pub fn ends(&self) -> Time {
        let last = self.ops.iter().map(|op| op.at + op.what.lasts()).max().unwrap_or(0);
        self.world.ingests.iter().map(|ingest| ingest.starts).fold(last, Time::max)
    }

    /// Whether all that goes wrong is that single ingest peers of several die.
    pub fn only_deaths(&self) -> bool {
        let world = &self.world;
        let death = |what: &What| matches!(what, What::Crash { peer: Peer::Ingest(_), .. });
        world.loss == 0
            && world.ingests.len() > 1
            && world.ingests.iter().all(|ingest| ingest.starts == 0)
            && self.ops.iter().all(|op| !op.what.is_fault() || death(&op.what))
            && self.ops.iter().filter(|op| death(&op.what)).count() == 1
    }

    /// Whether nothing ever goes wrong.
    pub fn is_calm(&self) -> bool {
        let world = &self.world;
        world.loss == 0
            && world.doubled == 0
            && world.ingests.iter().all(|ingest| ingest.starts == 0)
            && !self.ops.iter().any(|op| op.what.is_fault())
    }
}

impl What {
    /// The peers it names.
    fn peers(&self) -> [Option<Peer>; 2] {
        match *self {
            Self::Crash { peer, .. } | Self::Freeze { peer, .. } | Self::Stutter { peer, .. } => {
                [Some(peer), None]
            }
            Self::Stop { ingest, .. }
            | Self::SlowRead { ingest, .. }
            | Self::BrokenFeeds { ingest, .. }
            | Self::Lies { ingest, .. } => [Some(Peer::Ingest(ingest)), None],
            Self::Cut { from, to, .. } | Self::Noisy { from, to, .. } => [Some(from), Some(to)],
            Self::Disconnect { a, b, .. } => [Some(a), Some(b)],
            Self::Join { edge, .. } => [Some(Peer::Edge(edge)), None],
            Self::Append { .. }
            | Self::Skip { .. }
            | Self::Trim { .. }
            | Self::Recreate { .. }
            | Self::Leave { .. }
            | Self::Outage { .. } => [None, None],
        }
    }
}

/// What may be taken out of a world, because nothing names it.
impl Scenario {
    fn names(&self, peer: Peer) -> bool {
        self.ops.iter().any(|op| op.what.peers().contains(&Some(peer)))
    }

    pub(super) fn names_last_ingest(&self) -> bool {
        self.names(Peer::Ingest(self.world.ingests.len() - 1))
    }

    pub(super) fn names_last_edge(&self) -> bool {
        self.names(Peer::Edge(self.world.edges.len() - 1))
    }

    pub(super) fn names_last_stream(&self) -> bool {
        let last = self.world.streams.len() - 1;
        self.ops.iter().any(|op| match op.what {
            What::Append { stream, .. } | What::Join { stream, .. } => stream == last,
            _ => false,
        })
    }

    pub(super) fn names_last_partition(&self) -> bool {
        let last = self.world.partitions.len() - 1;
        self.world.streams.contains(&last)
            || self.ops.iter().any(|op| match op.what {
                What::Append { partition, .. }
                | What::Skip { partition }
                | What::Trim { partition, .. }
                | What::Recreate { partition } => partition == last,
                _ => false,
            })
    }
}
