//! Finds topics and partitions, and where they begin and end, on a thread and a client of its own: a broker that is slow
//! to answer never holds up the reading.

mod answers;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use tokio::sync::mpsc;

use self::answers::{place, young};
use super::{
    cleanup::{Cleanup, refusal},
    config::{Config, Use},
    context::{Context, Status, kind_of},
    describe::{Found, describe_topics},
    numbering::{At, Extent},
};
use crate::source::Start;

/// How often topics and partitions are looked for: a new one is read two seconds after it was made at the latest.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for one answer. A peer that stops waits for it, and must be down within two seconds.
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a topic that is gone is remembered. A broker that has just started may not know its topics for a moment;
/// the same topic then goes on where it was.
const REMEMBER_GONE: Duration = Duration::from_secs(600);

/// How long the client's queue of log lines and errors is listened to after each round.
const SERVE_WAIT: Duration = Duration::from_millis(10);
/// Errors taken after one round; a client that cannot connect makes some forty a second.
const MAX_CALLBACKS: usize = 200;

/// What the reading thread is told.
#[derive(Debug)]
pub(super) enum News {
    /// Partitions to read from now on. `log` identifies the topic within the world.
    Assign { topic: Arc<str>, log: Arc<str>, partitions: Vec<Placed> },
    /// The topic is no longer there, or another one has taken its name: stop reading it.
    Revoke { topic: Arc<str>, forget: bool },
    /// The topic is there again, and is the same: go on where it was.
    Restore { topic: Arc<str> },
    /// The answer to a question about [`Stuck`] partitions.
    Checked { checked: Vec<Checked>, complete: bool },
    /// Where the partitions end that were asked for; or nothing, if nobody could say of all.
    Ends { ends: Option<Vec<(Arc<str>, i32, i64)>> },
    /// The answer to a [`Probe`]: which are empty, and which could not be looked at. The others hold a record.
    Probed { empty: Vec<Probe>, unknown: Vec<Probe> },
}

/// What the reading thread asks.
#[derive(Debug)]
pub(super) enum Asked {
    Stuck(Vec<Stuck>),
    Probe(Vec<Probe>),
    /// Where partitions end.
    Ends(Vec<(Arc<str>, i32)>),
}

/// A partition, and where reading of it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) partition: i32,
    pub(super) at: At,
    /// The topic has grown by it: older records of its keys may be in other partitions.
    pub(super) young: bool,
}

/// Whether there is a record from `next` on, before `until`.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) next: i64,
    pub(super) until: i64,
}

/// A partition whose next offset may be gone from the log.
#[derive(Clone, Debug)]
pub(super) struct Stuck {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) next: i64,
    pub(super) term: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) stuck: Stuck,
    pub(super) extent: Extent,
    /// Whether a cut was looked for.
    pub(super) searched: bool,
}

struct Known {
    found: String,
    log: Arc<str>,
    assigned: BTreeSet<i32>,
    gone_since: Option<Instant>,
}

/// The state of the discovery thread.
pub(super) struct Discovery {
    config: Config,
    status: Arc<Status>,
    client: BaseConsumer<Context>,
    news: mpsc::Sender<News>,
    cluster: Option<String>,
    known: HashMap<Arc<str>, Known>,
    /// Partitions that were there when the source was first up and have no starting offset yet; `None` before that.
    initial: Option<BTreeSet<(String, i32)>>,
    /// Named topics that did not exist in the last round.
    missing: BTreeSet<String>,
    cleanup: Cleanup,
    /// Topics that were refused in the last round.
    refused: BTreeSet<String>,
}

/// Why a round did not end well.
struct RoundError {
    code: Option<RDKafkaErrorCode>,
    reason: String,
}

/// Whoever listened is gone.
struct Stopped;

impl Discovery {
    pub(super) fn new(
        config: Config,
        cleanup: Cleanup,
        status: Arc<Status>,
        news: mpsc::Sender<News>,
    ) -> Result<Self, KafkaError> {
        let context = Context::new("discovery", status.clone(), false);
        let client = config.client(Use::Discovery, &status.source).create_with_context(context)?;
        Ok(Self {
            config,
            status,
            client,
            news,
            cluster: None,
            known: HashMap::new(),
            initial: None,
            missing: BTreeSet::new(),
            cleanup,
            refused: BTreeSet::new(),
        })
    }

    /// Looks again and again, until the sender of questions or the receiver of news is dropped.
    pub(super) fn run(mut self, questions: &std::sync::mpsc::Receiver<Asked>) {
        let mut next_round = Instant::now();
        loop {
            match questions.recv_timeout(next_round.saturating_duration_since(Instant::now())) {
                Ok(asked) => {
                    let answered = match asked {
                        Asked::Stuck(stuck) => self.answer(stuck),
                        Asked::Probe(probes) => self.probe(probes),
                        Asked::Ends(places) => self.tell_ends(&places),
                    };
                    if answered.is_err() {
                        return;
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            next_round = Instant::now() + POLL_INTERVAL;
            self.status.figures.circuit.tries();
            let round = self.round();
            self.status.figures.circuit.note(round.is_ok());
            if round.is_ok() {
                self.status.let_in();
            }
            match round {
                Ok(Ok(())) => {}
                Ok(Err(Stopped)) => return,
                Err(error) => self.fail(&error),
            }
            self.serve_callbacks();
        }
    }

    /// Takes the log lines and errors that the client has queued, so that they are told when they happen. It has no
    /// records.
    fn serve_callbacks(&self) {
        for _ in 0..MAX_CALLBACKS {
            // Ends with the first moment without an error; log lines are taken within the call.
            if self.client.poll(SERVE_WAIT).is_none() {
                return;
            }
        }
    }

    /// Asks for the topics once and tells what is new.
    fn round(&mut self) -> Result<Result<(), Stopped>, RoundError> {
        let names = self.names()?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let descriptions = describe_topics(self.client.client(), &names, RPC_TIMEOUT)
            .map_err(|error| RoundError { code: error.code, reason: error.to_string() })?;
        let cluster = self.cluster()?;
        let mut present = Vec::new();
        let mut unsure = BTreeSet::new();
        for description in descriptions {
            match description.found {
                Ok(found) => present.push((description.topic, found)),
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
                Err(code) => {
                    self.status.figures.error(&kind_of(Some(code)));
                    tracing::warn!(source = self.status.source, topic = description.topic, %code, "cannot look at a topic");
                    unsure.insert(description.topic);
                }
            }
        }
        self.remember_initial(&present);
        let refused = self.refuse(&mut present)?;
        if let Err(stopped) = self.revoke_missing(&present, &unsure) {
            return Ok(Err(stopped));
        }
        for (topic, found) in &present {
            if let Err(stopped) = self.take(&cluster, topic, found) {
                return Ok(Err(stopped));
            }
        }
        let there = || present.iter().map(|(topic, _)| topic).chain(&unsure).chain(&refused);
        self.tell_missing(&there().map(String::as_str).collect());
        self.tell_health(unsure.first(), refused.first());
        Ok(Ok(()))
    }

    fn names(&self) -> Result<Vec<String>, RoundError> {
        let mut names: BTreeSet<String> = self.config.names().map(str::to_owned).collect();
        if self.config.has_patterns() {
            let metadata = self.client.fetch_metadata(None, RPC_TIMEOUT).map_err(|error| RoundError {
                code: error.rdkafka_error_code(),
                reason: format!("cannot list topics: {error}"),
            })?;
            let listed = metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name);
            // Kafka's own topics never hold events.
            names.extend(listed.filter(|t| !t.starts_with("__") && self.config.wants(t)).map(str::to_owned));
        }
        // One that is known is asked for by name: a listing that lacks it for a moment does not say that it is gone.
        names.extend(self.known.keys().map(|topic| topic.to_string()));
        Ok(names.into_iter().collect())
    }

    /// The id of the cluster, asked for once.
    fn cluster(&mut self) -> Result<String, RoundError> {
        if self.cluster.is_none() {
            self.cluster = self.client.client().fetch_cluster_id(RPC_TIMEOUT);
        }
        self.cluster.clone().ok_or_else(|| RoundError {
            code: None,
            reason: "the broker does not tell its cluster's id".to_owned(),
        })
    }

    fn remember_initial(&mut self, present: &[(String, Found)]) {
        if self.initial.is_some() {
            return;
        }
        let of = |(topic, found): &(String, Found)| -> Vec<(String, i32)> {
            found.partitions.iter().map(|partition| initial_of(topic, found, *partition)).collect()
        };
        // What was not known when there is something to go on from appeared since: from its beginning, too.
        let starts = self.status.starts();
        let named = |topic: &str| self.config.names().any(|name| name == topic);
        let since = |topic: &str| !starts.is_empty() && (starts.knows_topic(topic) || !named(topic));
        let all = present.iter().filter(|(topic, _)| !since(topic)).flat_map(of);
        self.initial = Some(match self.config.start {
            Start::End => all.collect(),
            Start::Beginning => BTreeSet::new(),
        });
    }

    fn revoke_missing(
        &mut self,
        present: &[(String, Found)],
        unsure: &BTreeSet<String>,
    ) -> Result<(), Stopped> {
        let present: BTreeSet<&str> = present.iter().map(|(topic, _)| topic.as_str()).collect();
        let mut forgotten = Vec::new();
        for (topic, known) in &mut self.known {
            if present.contains(&**topic) || unsure.contains(&**topic) {
                continue;
            }
            match known.gone_since {
                None => {
                    tracing::warn!(source = self.status.source, topic = &**topic, "topic is gone");
                    known.gone_since = Some(Instant::now());
                    tell(&self.news, News::Revoke { topic: topic.clone(), forget: false })?;
                }
                Some(since) if since.elapsed() > REMEMBER_GONE => forgotten.push(topic.clone()),
                Some(_) => {}
            }
        }
        for topic in forgotten {
            self.known.remove(&topic);
            tell(&self.news, News::Revoke { topic, forget: true })?;
        }
        Ok(())
    }

    /// Tells what is new about a topic that is there.
    fn take(&mut self, cluster: &str, topic: &str, found: &Found) -> Result<(), Stopped> {
        self.take_again(topic, found)?;
        let known = self.known.entry(topic.into()).or_insert_with(|| Known {
            found: found.id.clone(),
            log: format!("{cluster}/{topic}/{}", found.id).into(),
            assigned: BTreeSet::new(),
            gone_since: None,
        });
        let young = young(&self.client, &self.status, topic, known, found);
        let mut partitions = Vec::new();
        for partition in found.partitions.iter().filter(|partition| !known.assigned.contains(partition)) {
            if self.news.is_closed() {
                return Err(Stopped);
            }
            let initial = initial_of(topic, found, *partition);
            let from_end = self.initial.as_ref().is_some_and(|all| all.contains(&initial));
            // A partition without a leader has no offsets yet; the next round asks again.
            let placed =
                self.client.fetch_watermarks(topic, *partition, RPC_TIMEOUT).and_then(|watermarks| {
                    place(
                        &self.config,
                        &self.status,
                        &self.news,
                        (topic, &known.log, *partition),
                        watermarks,
                        from_end,
                    )
                });
            match placed {
                Ok(placed) => {
                    partitions.push(Placed { young: young.has(*partition), ..placed });
                    if let Some(all) = &mut self.initial {
                        all.remove(&initial);
                    }
                }
                Err(error) => {
                    self.status.figures.error(&kind_of(error.rdkafka_error_code()));
                    tracing::warn!(source = self.status.source, topic, partition, %error,
                        "cannot learn where a partition begins; trying again");
                    if nobody_answers(&error) {
                        break;
                    }
                }
            }
        }
        if partitions.is_empty() {
            return Ok(());
        }
        known.assigned.extend(partitions.iter().map(|placed| placed.partition));
        let grown = partitions.iter().filter(|placed| young.grown.contains(&placed.partition)).count();
        if grown > 0 {
            let partitions = known.assigned.len();
            tracing::error!(
                source = self.status.source,
                topic,
                partitions,
                new = grown,
                "topic has more partitions than before: keys move, and their streams go on in other epochs"
            );
            self.status.figures.grown.inc();
        }
        let name: Arc<str> = topic.into();
        tell(&self.news, News::Assign { topic: name, log: known.log.clone(), partitions })
    }

    /// Takes away topics that must not be read as they are, and gives their names.
    fn refuse(&mut self, present: &mut Vec<(String, Found)>) -> Result<BTreeSet<String>, RoundError> {
        let (status, topics) = (self.status.clone(), present.iter().map(|(topic, _)| topic.as_str()));
        let context = || Context::new("config", status, false);
        let denied = self.cleanup.look(&self.config, context, &self.status.source, topics);
        let denied = denied.map_err(|error| RoundError {
            code: error.rdkafka_error_code(),
            reason: format!("cannot ask for the settings of topics: {error}"),
        })?;
        if let Some(topic) = denied.first().filter(|topic| !self.known.contains_key(**topic)) {
            tracing::warn!(
                source = self.status.source,
                topic,
                "whether the topic is compacted is not known: the user may not describe its configuration"
            );
        }
        let refused: BTreeSet<String> = present
            .iter()
            .filter(|(topic, _)| self.cleanup.refuses(topic))
            .map(|(topic, _)| topic.clone())
            .collect();
        present.retain(|(topic, _)| !refused.contains(topic));
        for topic in refused.iter().filter(|topic| !self.refused.contains(*topic)) {
            tracing::error!(source = self.status.source, "{}", refusal(topic));
        }
        self.refused.clone_from(&refused);
        Ok(refused)
    }

    /// Tells that a topic is back, or that another has taken its name.
    fn take_again(&mut self, topic: &str, found: &Found) -> Result<(), Stopped> {
        let Some((name, known)) = self.known.get_key_value(topic) else { return Ok(()) };
        let name = name.clone();
        if known.found != found.id {
            tracing::warn!(
                source = self.status.source,
                topic,
                id = found.id,
                was = known.found,
                "topic was deleted and created again; it is another log, read from its beginning"
            );
            self.known.remove(topic);
            return tell(&self.news, News::Revoke { topic: name, forget: true });
        }
        if known.gone_since.is_none() {
            return Ok(());
        }
        tracing::info!(source = self.status.source, topic, "topic is there again");
        if let Some(known) = self.known.get_mut(topic) {
            known.gone_since = None;
        }
        tell(&self.news, News::Restore { topic: name })
    }

    /// Logs which of the topics that are named do not exist, when that changes. They may come later.
    fn tell_missing(&mut self, there: &BTreeSet<&str>) {
        let missing: BTreeSet<String> =
            self.config.names().filter(|name| !there.contains(name)).map(str::to_owned).collect();
        if missing != self.missing && !missing.is_empty() {
            tracing::warn!(source = self.status.source, ?missing, "topics do not exist yet");
        }
        self.missing = missing;
    }

    fn tell_health(&self, unsure: Option<&String>, refused: Option<&String>) {
        let reads = self.known.values().any(|known| known.gone_since.is_none() && !known.assigned.is_empty());
        if let Some(topic) = refused {
            return self.status.waiting(&refusal(topic));
        }
        match unsure {
            Some(topic) => self.status.waiting(&format!("topic {topic} cannot be looked at")),
            None if reads => self.status.answered(),
            None => {
                let topics: Vec<&str> =
                    self.config.topics.iter().map(super::config::TopicPattern::as_str).collect();
                self.status.waiting(&format!("no partition to read; no topic matches {}", topics.join(", ")));
            }
        }
    }

    fn fail(&self, error: &RoundError) {
        self.status.figures.error(&kind_of(error.code));
        self.status.waiting(&error.reason);
    }
}

/// A partition of this very topic. The name is part of it, as old brokers give all topics the same id.
fn initial_of(topic: &str, found: &Found, partition: i32) -> (String, i32) {
    (format!("{topic}/{}", found.id), partition)
}

/// Whether it is no use to ask about the next partition.
fn nobody_answers(error: &KafkaError) -> bool {
    let codes = [
        RDKafkaErrorCode::OperationTimedOut,
        RDKafkaErrorCode::RequestTimedOut,
        RDKafkaErrorCode::BrokerTransportFailure,
        RDKafkaErrorCode::AllBrokersDown,
    ];
    error.rdkafka_error_code().is_some_and(|code| codes.contains(&code))
}

/// Waits while the reading thread is busy; it takes news between two batches.
fn tell(news: &mpsc::Sender<News>, item: News) -> Result<(), Stopped> {
    news.blocking_send(item).map_err(|_| Stopped)
}
