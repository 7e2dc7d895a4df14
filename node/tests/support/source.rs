//! A source that runs in a test, and everything it has said. Self-contained: any integration test may take it in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]
#![allow(dead_code, reason = "each integration test takes in this file and uses a part of it")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tickmesh::{
    config::reader::{Faults, Section},
    ops::{
        health::{Health, State},
        metrics::Registry,
    },
    source::{Config, LogReader, Record, SourceEvent, Starts, metrics::SourceMetrics},
};
use tickmesh_protocol::{Epoch, Sequence, checkpoint::PartitionState};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// A source that runs, and everything it has said.
pub struct Running {
    pub events: mpsc::Receiver<SourceEvent>,
    pub reader: Arc<dyn LogReader>,
    pub health: Health,
    pub registry: Registry,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
    pub begins: Vec<(Epoch, u64)>,
    /// How far each partition is read, as ingest keeps it.
    pub states: BTreeMap<(Arc<str>, u32), PartitionState>,
    /// Epochs that said at their beginning that nothing of them was before.
    pub firsts: Vec<Epoch>,
    pub reached: Vec<(Epoch, u64)>,
    pub records: Vec<Record>,
    /// Dead letters, with their reasons.
    pub refused: Vec<(Record, String)>,
}

impl Running {
    /// A Kafka source that nothing is known of.
    pub fn start(brokers: &str, topics: &[&str], more: &str) -> Self {
        Self::start_at(Starts::default(), brokers, topics, more)
    }

    /// A Kafka source.
    pub fn start_at(starts: Starts, brokers: &str, topics: &[&str], more: &str) -> Self {
        Self::open(
            starts,
            false,
            &format!("kind = 'kafka'\nbrokers = {brokers:?}\ntopics = {topics:?}\n{more}"),
        )
    }

    /// A source of any kind, by the keys of its `[[source]]`.
    pub fn open(starts: Starts, retains_last: bool, keys: &str) -> Self {
        let faults = Faults::default();
        let table = format!("name = 'engine'\n{keys}");
        let section = Section::root(table.parse().expect("a table"), faults.clone());
        let config = Config::read(section, Path::new(""));
        assert_eq!(faults.take(), []);
        let (health, registry) = (Health::default(), Registry::new());
        let metrics = SourceMetrics::new(&registry);
        let source = config.unwrap().open(retains_last, &metrics, health.condition("source engine"));
        let (sender, events) = mpsc::channel(16);
        let (reader, stop) = (source.reader(), CancellationToken::new());
        let task = tokio::spawn(source.run(starts, sender, stop.clone()));
        Self {
            events,
            reader,
            health,
            registry,
            stop,
            task,
            begins: Vec::new(),
            states: BTreeMap::new(),
            firsts: Vec::new(),
            reached: Vec::new(),
            records: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Takes events until `done` holds.
    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !done(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            match event {
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("the source ended while waiting for {what}"),
                Err(_) => panic!(
                    "waited in vain for {what}; {} records, begins {:?}, health {:?}",
                    self.records.len(),
                    self.begins,
                    self.health.readiness()
                ),
            }
        }
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Begin { topic, partition, epoch, position, first, term } => {
                self.begins.push((epoch, position));
                self.firsts.extend(first.then_some(epoch));
                let read_from = Sequence::new(position).unwrap();
                let state = PartitionState {
                    epoch,
                    topic: topic.clone(),
                    partition,
                    next: position,
                    read_from,
                    term,
                };
                self.states.insert((topic, partition), state);
            }
            SourceEvent::Reached { epoch, position } => {
                let state = self.states.values_mut().find(|state| state.epoch == epoch).expect("it began");
                assert!(state.next <= position, "all before {position} was given: {state:?}");
                state.next = position;
                self.reached.push((epoch, position));
            }
            SourceEvent::Records(records) => {
                assert!(!records.is_empty(), "records are never empty");
                for record in &records {
                    let state = self.states.values_mut().find(|state| state.epoch == record.epoch);
                    let state = state.expect("of the epoch that its partition began last");
                    assert!(state.next <= record.position, "in order: {record:?}");
                    state.next = record.position + 1;
                    state.term = record.term;
                }
                self.records.extend(records);
            }
            SourceEvent::Refused { record, reason, next } => {
                let state = self.states.values_mut().find(|state| state.epoch == record.epoch);
                let state = state.expect("a partition begins before its records");
                assert!(state.next <= next, "in order: {record:?}");
                state.next = next;
                state.term = record.term.or(state.term);
                self.refused.push((record, reason));
            }
        }
    }

    pub async fn records(&mut self, count: usize) {
        self.until(&format!("{count} records"), |running| running.records.len() >= count).await;
    }

    pub async fn partitions(&mut self, count: usize) {
        self.until(&format!("{count} partitions"), |running| running.begins.len() >= count).await;
    }

    /// What a peer goes on from that stops now.
    pub fn starts(&self) -> Starts {
        self.states.values().collect()
    }

    /// What was read of a partition: position and value.
    pub fn read(&self, partition: u32) -> Vec<(u64, String)> {
        let of = |record: &Record| (record.position, String::from_utf8(record.value.to_vec()).unwrap());
        self.records.iter().filter(|record| record.partition == partition).map(of).collect()
    }

    /// Waits until this many partitions have been read up to the end of their log.
    pub async fn ends(&mut self, count: usize) {
        self.until(&format!("the end of {count} partitions"), |running| running.reached.len() >= count).await;
    }

    pub fn values(&self, topic: &str, partition: u32) -> Vec<String> {
        self.records
            .iter()
            .filter(|record| &*record.topic == topic && record.partition == partition)
            .map(|record| String::from_utf8(record.value.to_vec()).unwrap())
            .collect()
    }

    pub async fn health(&self, what: &str, right: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let readiness = self.health.readiness();
            if readiness.conditions.values().all(&right) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for health to be {what}: {readiness:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ready(&self) {
        self.health("ready", |state| *state == State::Ready).await;
    }

    pub async fn waiting(&self, part: &str) {
        let right = |state: &State| matches!(state, State::Waiting { reason } if reason.contains(part));
        self.health(part, right).await;
    }

    pub async fn metric(&mut self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.registry.render().lines().any(|shown| shown == line) {
            assert!(Instant::now() < deadline, "no {line} in:\n{}", self.registry.render());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the source and gives all it has said.
    pub async fn stop(mut self) -> Vec<Record> {
        self.stop.cancel();
        if !self.task.is_finished() {
            let ended = tokio::time::timeout(DEADLINE, &mut self.task).await;
            ended.expect("the source ends when it is told to").expect("the source does not panic");
        }
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        self.records
    }
}

/// Positions of each partition rise without a gap from `from`; for logs without transactions.
pub fn assert_complete(records: &[Record], from: u64) {
    let mut next: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for record in records {
        let next = next.entry((record.topic.to_string(), record.partition)).or_insert(from);
        assert_eq!(record.position, *next, "position in {} {}", record.topic, record.partition);
        *next += 1;
    }
}
