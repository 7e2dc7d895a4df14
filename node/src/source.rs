//! Sources: one connector per kind of event log, all behind one trait.
//!
//! Ordering: the records of one partition arrive in the order of their positions, each position once; nothing is said
//! about the order between partitions. A source that loses its server keeps trying and goes on at the position where it
//! was: it never skips and never repeats. Where the log itself lost something it says so by another
//! [`SourceEvent::Begin`]:
//!
//! - records before the position to read next were deleted: it goes on at the oldest, in the same epoch;
//! - the log lost its end, and gives the same positions again to other records: it goes on where the log was cut, in
//!   another epoch. A number that a client has seen never comes with other contents.

pub mod embedded;
pub mod kafka;
pub mod metrics;
pub mod nats;
pub mod redis;
pub mod writing;

mod generations;
mod starts;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tickmesh_protocol::{Epoch, catalogue::check_name, policy::ChannelPolicy};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::starts::{Place, Start, Starts};
use self::{metrics::SourceMetrics, writing::LogWriter};
use crate::{config::reader::Section, ops::health::Condition};

/// Largest record that is taken from a log, in bytes; larger ones are dead letters.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// Positions of ranges that are read again, where every position may hold a record; the smallest holds eight of the largest.
const STEPS: [u64; 4] = [4096, 512, 64, 8];

/// One `[[source]]` of the configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What routes and metrics call it.
    pub name: String,
    pub kind: Kind,
}

/// The kinds of logs that can be read, each with its own settings.
#[derive(Clone, Debug)]
pub enum Kind {
    Kafka(kafka::Config),
    Nats(nats::Config),
    NatsCore(nats::CoreConfig),
    Redis(redis::Config),
    Embedded(embedded::Config),
}

impl Kind {
    /// As `kind` of the configuration says it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kafka(_) => "kafka",
            Self::Nats(_) => "nats",
            Self::NatsCore(_) => "nats-core",
            Self::Redis(_) => "redis",
            Self::Embedded(_) => "embedded",
        }
    }
}

impl Config {
    /// Reads and ends a `[[source]]` table; files that it names are relative to `folder`. `None` if a fault makes it useless;
    /// every fault is noted.
    pub fn read(mut section: Section, folder: &Path) -> Option<Self> {
        let name: Option<String> = section.required("name").filter(|name: &String| {
            check_name(name).inspect_err(|invalid| section.fault("name", invalid)).is_ok()
        });
        let kind: Option<String> = section.required("kind");
        let kind = match kind.as_deref() {
            Some("kafka") => kafka::Config::read(&mut section, folder).map(Kind::Kafka),
            Some("nats") => nats::Config::read(&mut section, folder).map(Kind::Nats),
            Some("nats-core") => nats::CoreConfig::read(&mut section, folder).map(Kind::NatsCore),
            Some("redis") => redis::Config::read(&mut section, folder).map(Kind::Redis),
            Some("embedded") => embedded::Config::read(&mut section).map(Kind::Embedded),
            Some(other) => {
                section.fault(
                    "kind",
                    format!("{other:?} is no kind of source; known: kafka, nats, nats-core, redis, embedded"),
                );
                // Which other keys are right is not known.
                return None;
            }
            None => return None,
        };
        section.finish();
        Some(Self { name: name?, kind: kind? })
    }

    /// The channels of the streams in its records, where they pass as they are; `None` if that is known to nobody.
    pub fn channels(&self) -> Option<&'static [&'static str]> {
        match self.kind {
            Kind::Kafka(_) | Kind::Nats(_) | Kind::NatsCore(_) | Kind::Redis(_) => None,
            Kind::Embedded(_) => Some(&embedded::CHANNELS),
        }
    }

    /// Whether each of its topics is a log of its own.
    pub fn has_topics(&self) -> bool {
        match self.kind {
            Kind::Kafka(_) | Kind::Redis(_) => true,
            Kind::Nats(_) | Kind::NatsCore(_) | Kind::Embedded(_) => false,
        }
    }

    /// What is done for the clients of one of its own channels, where it knows them.
    pub fn policy(&self, channel: &str) -> Option<ChannelPolicy> {
        match self.kind {
            Kind::Kafka(_) | Kind::Nats(_) | Kind::NatsCore(_) | Kind::Redis(_) => None,
            Kind::Embedded(_) => Some(embedded::policy(channel)),
        }
    }

    /// What writes to its log; `None` where there is nothing that could be read again.
    pub fn writer(&self) -> Option<Box<dyn LogWriter>> {
        match &self.kind {
            Kind::Kafka(config) => Some(Box::new(kafka::Writer::new(config.clone(), &self.name))),
            Kind::Nats(config) => Some(Box::new(nats::Writer::new(config.clone(), &self.name))),
            Kind::Redis(config) => Some(Box::new(redis::Writer::new(config.clone()))),
            Kind::NatsCore(_) | Kind::Embedded(_) => None,
        }
    }

    /// Whether it reads a topic, as far as its configuration tells.
    pub fn reads(&self, topic: &str) -> bool {
        match &self.kind {
            Kind::Kafka(config) => config.wants(topic),
            Kind::Redis(config) => config.keys.iter().any(|key| key == topic),
            // Subjects may stand for any; what comes of them is seen when it comes.
            Kind::Nats(_) | Kind::NatsCore(_) | Kind::Embedded(_) => false,
        }
    }

    /// Makes the source; nothing is read or connected before [`Source::run`]. `retains_last`: all its routes retain the last
    /// event of a stream, so its log need not hold more than that.
    pub fn open(self, retains_last: bool, metrics: &SourceMetrics, condition: Condition) -> Box<dyn Source> {
        match self.kind {
            Kind::Kafka(config) => {
                Box::new(kafka::Kafka::new(&self.name, config, retains_last, metrics, condition))
            }
            Kind::Nats(config) => {
                Box::new(nats::Nats::new(&self.name, config, retains_last, metrics, condition))
            }
            Kind::NatsCore(config) => Box::new(nats::core::Core::new(&self.name, config, metrics, condition)),
            Kind::Redis(config) => Box::new(redis::Redis::new(&self.name, config, metrics, condition)),
            Kind::Embedded(config) => {
                Box::new(embedded::Embedded::new(&self.name, config, metrics, condition))
            }
        }
    }
}

/// One record of a log.
#[derive(Clone, Debug)]
pub struct Record {
    /// What the log itself calls what it is about: a Kafka topic, a key of Redis, the subject of a NATS message. Routes take it by this. Where it
    /// is read again, the [`SourceEvent::Begin`] of its epoch says.
    pub topic: Arc<str>,
    pub partition: u32,
    /// Strictly increasing within the partition: a Kafka offset, made of the id of an entry of Redis.
    pub position: u64,
    /// What gives `position` its meaning: log identity, partition, numbering rule.
    pub epoch: Epoch,
    /// What shows later whether the log still holds this record, or lost its end: of Kafka the leader epoch under which it was
    /// written, of Redis a digest. Only the source knows what it means; it is given that of the last record when it goes on.
    pub term: Option<u32>,
    /// What the log itself keys it by, where it does.
    pub key: Option<Bytes>,
    pub value: Bytes,
    /// When the engine wrote it: microseconds since 1970 UTC; zero where the log says nothing.
    pub engine_time_us: u64,
}

impl Record {
    /// What of it came from outside.
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len()
    }
}

/// What a source says.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// Reading of a partition begins at `position`: everything from there on will come.
    Begin {
        /// The log's own name for the place: a Kafka topic, a JetStream stream. With it and the partition it is read again.
        topic: Arc<str>,
        partition: u32,
        epoch: Epoch,
        position: u64,
        /// Nothing of the epoch is or ever was before `position`.
        first: bool,
        /// The term of the last record before `position`, if it is known: until a record comes, a checkpoint's.
        term: Option<u32>,
    },
    /// Everything before `position` was given, and that was the log's end then. Comes after those records, at least once
    /// for every [`SourceEvent::Begin`]; at once, where a partition holds nothing.
    Reached { epoch: Epoch, position: u64 },
    /// Records of any partitions, never empty.
    Records(Vec<Record>),
    /// A record that cannot become an event, and why: a dead letter. If its position has no meaning, its term is `None`.
    Refused {
        record: Record,
        reason: String,
        /// The position that comes next in its partition.
        next: u64,
    },
}

/// A log that is read live.
pub trait Source: Send {
    /// Reads until `stop`, into a bounded channel: when ingest is slow the source waits, and the log keeps the rest.
    /// A partition that `starts` knows begins exactly there; others as configured. A topic or partition that appears
    /// later, or did so while nobody read, begins at its beginning.
    fn run(
        self: Box<Self>,
        starts: Starts,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()>;

    /// A second, independent way into the same log, for re-reading.
    fn reader(&self) -> Arc<dyn LogReader>;
}

/// Most positions in one range that is read again; callers page.
pub const MAX_READ_POSITIONS: u64 = 100_000;
/// Most bytes in one answer.
const MAX_READ_BYTES: usize = 64 * 1024 * 1024;
/// Requests that may wait for the one that is served; more are refused, as their clients would time out anyway.
const WAITING_READS: usize = 64;
/// Longest that one range may take once its turn has come.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Reads ranges of a log again, by position.
pub trait LogReader: Send + Sync {
    /// Reads the records of a partition with positions in `from..until`, as far as the log has them.
    ///
    /// # Errors
    /// [`ReadError`] says whether it is worth another try.
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        until: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>>;

    /// How many positions to read at once: usually, and fewer where those hold too much.
    fn steps(&self) -> &'static [u64] {
        &STEPS
    }
}

/// A stretch of a log that was read again.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The epoch that the partition is in now; the numbers of another one mean something else.
    pub epoch: Epoch,
    /// Everything before this position is here: the end that was asked for, or the log's if that comes first; or beyond that end
    /// the next record, where nothing is or ever will be before it. Never less than where reading began.
    pub until: u64,
    /// In the order of their positions, of which some may be missing: nothing is or ever will be there.
    pub records: Vec<Record>,
}

/// Why a range cannot be read again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("partition {partition} of {topic} no longer holds position {from}; the oldest is {oldest}")]
    Trimmed { topic: String, partition: u32, from: u64, oldest: u64 },
    #[error("no partition {partition} of {topic}")]
    UnknownPartition { topic: String, partition: u32 },
    #[error("the range of {topic} is too long or holds too many bytes; read it in pieces")]
    TooLarge { topic: String },
    #[error("cannot read {topic}: {reason}")]
    Unavailable { topic: String, reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::Faults;

    fn read(text: &str) -> (Option<Config>, String) {
        let faults = Faults::default();
        let config = Config::read(Section::root(text.parse().unwrap(), faults.clone()), Path::new(""));
        let faults: Vec<_> = faults.take().into_iter().map(|f| format!("{}: {}", f.key, f.reason)).collect();
        (config, faults.join("\n"))
    }

    #[test]
    fn all_kinds_are_read() {
        let (config, faults) = read("name = 'engine'\nkind = 'kafka'\nbrokers = 'a:1'\ntopics = ['t']");
        assert_eq!(faults, "");
        assert!(matches!(config.unwrap().kind, Kind::Kafka(_)));
        let (config, faults) = read("name = 'engine'\nkind = 'nats'\nurl = 'nats://a'\nstream = 'MARKET'");
        assert_eq!(faults, "");
        assert!(matches!(config.unwrap().kind, Kind::Nats(_)));
        let (config, faults) = read("name = 'engine'\nkind = 'redis'\nurl = 'redis://a'\nkeys = ['t']");
        assert_eq!(faults, "");
        assert!(matches!(config.unwrap().kind, Kind::Redis(_)));
        let (config, faults) = read("name = 'demo'\nkind = 'embedded'");
        assert_eq!(faults, "");
        assert!(matches!(config.unwrap().kind, Kind::Embedded(_)));
    }

    #[test]
    fn faults_are_told() {
        let (config, faults) = read("name = 'A b'\nkind = 'pulsar'");
        assert!(config.is_none());
        assert!(
            faults.contains("name: ") && faults.contains("known: kafka, nats, nats-core, redis, embedded"),
            "{faults}"
        );
        let (config, faults) = read("brokers = 'a:1'");
        assert!(config.is_none());
        assert!(faults.contains("name: is missing") && faults.contains("kind: is missing"), "{faults}");
        let (_, faults) = read("name = 'x'\nkind = 'kafka'\nbrokers = 'a:1'\ntopics = ['t']\nseed = 4");
        assert!(faults.contains("seed: no such key"), "{faults}");
    }
}
