//! The Kafka source against a real Apache Kafka broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]

mod support {
    pub mod kafka;
}

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::producer::Producer;
use support::kafka::{KafkaBroker, KafkaProducer};
use tickmesh::{
    config::{Faults, Section},
    ops::{
        health::{Health, State},
        metrics::Registry,
    },
    source::{
        LogReader, Place, ReadError, Record, Source, SourceEvent, Starts, kafka::Kafka,
        metrics::SourceMetrics,
    },
};
use tickmesh_protocol::{Epoch, Sequence, checkpoint::PartitionState};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

/// A source that runs, and everything it has said.
struct Running {
    events: mpsc::Receiver<SourceEvent>,
    reader: Arc<dyn LogReader>,
    health: Health,
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<()>,
    begins: Vec<(Epoch, u64)>,
    /// How far each partition is read, as ingest keeps it.
    states: BTreeMap<(Arc<str>, u32), PartitionState>,
    /// Epochs that said at their beginning that nothing of them was before.
    firsts: Vec<Epoch>,
    reached: Vec<(Epoch, u64)>,
    records: Vec<Record>,
}

impl Running {
    fn start(brokers: &str, topics: &[&str], more: &str) -> Self {
        Self::start_at(Starts::default(), brokers, topics, more)
    }

    fn start_at(starts: Starts, brokers: &str, topics: &[&str], more: &str) -> Self {
        let table = format!("brokers = {brokers:?}\ntopics = {topics:?}\n{more}");
        let faults = Faults::default();
        let mut section = Section::root(table.parse().unwrap(), faults.clone());
        let config = tickmesh::source::kafka::Config::read(&mut section);
        assert_eq!(faults.take(), []);
        let (health, registry) = (Health::default(), Registry::new());
        let metrics = SourceMetrics::new(&registry);
        let source = Kafka::new("engine", config.unwrap(), &metrics, health.condition("source engine"));
        let (sender, events) = mpsc::channel(16);
        let (reader, stop) = (source.reader(), CancellationToken::new());
        let task = tokio::spawn(Box::new(source).run(starts, sender, stop.clone()));
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
        }
    }

    /// Takes events until `done` holds.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
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
                    let place = (record.topic.clone(), record.partition);
                    let state = self.states.get_mut(&place).expect("a partition begins before its records");
                    assert_eq!(state.epoch, record.epoch, "the epoch that began last: {record:?}");
                    assert!(state.next <= record.position, "in order: {record:?}");
                    state.next = record.position + 1;
                    state.term = record.term;
                }
                self.records.extend(records);
            }
        }
    }

    async fn records(&mut self, count: usize) {
        self.until(&format!("{count} records"), |running| running.records.len() >= count).await;
    }

    async fn partitions(&mut self, count: usize) {
        self.until(&format!("{count} partitions"), |running| running.begins.len() >= count).await;
    }

    /// What a peer goes on from that stops now.
    fn starts(&self) -> Starts {
        self.states.values().collect()
    }

    /// Waits until this many partitions have been read up to the end of their log.
    async fn ends(&mut self, count: usize) {
        self.until(&format!("the end of {count} partitions"), |running| running.reached.len() >= count).await;
    }

    fn values(&self, topic: &str, partition: u32) -> Vec<String> {
        self.records
            .iter()
            .filter(|record| &*record.topic == topic && record.partition == partition)
            .map(|record| String::from_utf8(record.value.to_vec()).unwrap())
            .collect()
    }

    async fn health(&self, what: &str, right: impl Fn(&State) -> bool) {
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

    async fn ready(&self) {
        self.health("ready", |state| *state == State::Ready).await;
    }

    async fn waiting(&self, part: &str) {
        let right = |state: &State| matches!(state, State::Waiting { reason } if reason.contains(part));
        self.health(part, right).await;
    }

    async fn metric(&mut self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.registry.render().lines().any(|shown| shown == line) {
            assert!(Instant::now() < deadline, "no {line} in:\n{}", self.registry.render());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the source and gives all it has said.
    async fn stop(mut self) -> Vec<Record> {
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
fn assert_complete(records: &[Record], from: u64) {
    let mut next: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for record in records {
        let next = next.entry((record.topic.to_string(), record.partition)).or_insert(from);
        assert_eq!(record.position, *next, "position in {} {}", record.topic, record.partition);
        *next += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_comes_once_in_order_and_can_be_read_again() {
    let broker = KafkaBroker::shared();
    broker.create_topic("all", 4).await;
    let producer = broker.producer();
    for partition in 0..4 {
        producer.send("all", partition, Some("before the source is up"));
    }
    producer.flush();
    let mut source = Running::start(&broker.bootstrap(), &["all"], "");
    source.partitions(4).await;
    source.ready().await;
    let before_us = tickmesh::ops::metrics::now_us() / 1000 * 1000;
    for number in 0..5000 {
        producer.send("all", number % 4, Some(&number.to_string()));
    }
    producer.send("all", 0, None);
    producer.flush();
    source.records(5001).await;

    assert!(source.begins.iter().all(|(_, position)| *position == 1), "reading begins at the end");
    assert_complete(&source.records, 1);
    for partition in 0..4_u32 {
        let mut values = source.values("all", partition);
        if partition == 0 {
            assert_eq!(values.pop().as_deref(), Some(""), "a tombstone is an empty value");
        }
        let sent: Vec<String> = (0..1250).map(|n| (n * 4 + partition).to_string()).collect();
        assert_eq!(values, sent, "values of partition {partition}");
    }
    let mut epochs: Vec<u64> = source.begins.iter().map(|(epoch, _)| epoch.as_u64()).collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 4, "each partition has an epoch of its own");
    let times = source.records.iter().map(|record| record.engine_time_us);
    assert!(
        times.clone().all(|time| time >= before_us && time % 1000 == 0),
        "engine time is Kafka's: {times:?}"
    );
    source.metric("tickmesh_source_records_total{source=\"engine\"} 5001").await;
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    source.metric("tickmesh_source_brokers_up{source=\"engine\"} 1").await;
    source.metric("tickmesh_source_partitions{source=\"engine\"} 4").await;

    let again = source.reader.read("all", 2, 500, 700).await.unwrap().records;
    let first: Vec<&Record> =
        source.records.iter().filter(|r| r.partition == 2 && (500..700).contains(&r.position)).collect();
    assert_eq!(format!("{again:?}"), format!("{first:?}"), "the same records are read again");
    let tail = source.reader.read("all", 2, 1250, 9999).await.unwrap();
    assert_eq!((tail.records.len(), tail.until), (1, 1251), "a range beyond the end gives what is there");
    let beyond = source.reader.read("all", 2, 1251, 1260).await.unwrap();
    assert!(beyond.records.is_empty() && beyond.until == 1251, "{beyond:?}");
    let unknown = source.reader.read("all", 9, 0, 10).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: "all".into(), partition: 9 });
    let unknown = source.reader.read("none", 0, 0, 10).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: "none".into(), partition: 0 });
    let both = tokio::join!(source.reader.read("all", 0, 0, 300), source.reader.read("all", 1, 0, 300));
    assert_eq!(
        (both.0.unwrap().records.len(), both.1.unwrap().records.len()),
        (300, 300),
        "two readers at once"
    );
    broker.delete_records("all", 3, 100).await;
    let trimmed = source.reader.read("all", 3, 50, 200).await.unwrap_err();
    assert_eq!(trimmed, ReadError::Trimmed { topic: "all".into(), partition: 3, from: 50, oldest: 100 });
    assert_eq!(source.stop().await.len(), 5001);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_partitions_made_later_are_read_from_their_beginning() {
    let broker = KafkaBroker::shared();
    broker.create_topic("later.one", 1).await;
    let mut source = Running::start(&broker.bootstrap(), &["^later\\.", "named"], "");
    source.partitions(1).await;
    broker.create_topic("later.two", 2).await;
    broker.create_topic("unrelated.later.three", 1).await;
    broker.create_topic("named", 1).await;
    broker.add_partitions("later.one", 2).await;
    let producer = broker.producer();
    for (topic, partition) in [
        ("later.one", 0),
        ("later.one", 1),
        ("later.two", 0),
        ("later.two", 1),
        ("unrelated.later.three", 0),
        ("named", 0),
    ] {
        producer.send(topic, partition, Some(topic));
    }
    producer.flush();
    source.partitions(5).await;
    source.records(5).await;
    assert!(
        source.begins.iter().all(|(_, position)| *position == 0),
        "from the beginning: {:?}",
        source.begins
    );
    let records = source.stop().await;
    assert_complete(&records, 0);
    assert!(records.iter().all(|record| &*record.topic != "unrelated.later.three"));
    assert_eq!(records.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_transactions_are_never_seen() {
    let broker = KafkaBroker::shared();
    broker.create_topic("bank", 1).await;
    let mut source = Running::start(&broker.bootstrap(), &["bank"], "start = 'beginning'");
    source.partitions(1).await;
    let producer = KafkaProducer::new(broker.client().set("transactional.id", "teller"));
    let native = producer.native();
    native.init_transactions(DEADLINE).unwrap();
    for number in 0..6 {
        native.begin_transaction().unwrap();
        for part in ["a", "b"] {
            producer.send("bank", 0, Some(&format!("{number}{part}")));
        }
        if number % 2 == 0 {
            native.commit_transaction(DEADLINE).unwrap();
        } else {
            producer.flush();
            native.abort_transaction(DEADLINE).unwrap();
        }
    }
    source.records(6).await;
    let committed = ["0a", "0b", "2a", "2b", "4a", "4b"];
    assert_eq!(source.values("bank", 0), committed);
    // The last thing in the log is the marker of an aborted transaction: reading again must not wait for a record.
    let again = source.reader.read("bank", 0, 0, 1000).await.unwrap().records;
    assert_eq!(again.iter().map(|record| record.value.clone()).collect::<Vec<_>>(), committed);
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    assert_eq!(source.stop().await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_created_again_is_another_epoch() {
    let broker = KafkaBroker::shared();
    broker.create_topic("phoenix", 1).await;
    let mut source = Running::start(&broker.bootstrap(), &["phoenix"], "");
    source.partitions(1).await;
    let producer = broker.producer();
    for number in 0..10 {
        producer.send("phoenix", 0, Some(&number.to_string()));
    }
    producer.flush();
    source.records(10).await;
    broker.delete_topic("phoenix").await;
    broker.create_topic("phoenix", 1).await;
    source.partitions(2).await;
    // A producer that has seen the old topic may still hold its id.
    let producer = broker.producer();
    for number in 100..120 {
        producer.send("phoenix", 0, Some(&number.to_string()));
    }
    producer.flush();
    source.records(30).await;
    let (old, new) = (source.begins[0], source.begins[1]);
    assert_ne!(old.0, new.0, "the epoch is another");
    assert_eq!(new.1, 0, "read from the beginning");
    let reread = source.reader.read("phoenix", 0, 0, 5).await.unwrap().records;
    assert!(reread.len() == 5 && reread.iter().all(|record| record.epoch == new.0), "{reread:?}");
    let records = source.stop().await;
    assert_eq!(records.len(), 30);
    assert!(records[..10].iter().all(|record| record.epoch == old.0));
    assert!(records[10..].iter().all(|record| record.epoch == new.0));
    assert_complete(&records[..10], 0);
    assert_complete(&records[10..], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_retention_took_is_noticed() {
    let broker = KafkaBroker::shared();
    broker.create_topic("short", 1).await;
    let more =
        "start = 'beginning'\n[properties]\n'queued.min.messages' = 1\n'queued.max.messages.kbytes' = 1";
    let producer = broker.producer();
    let value = "x".repeat(10_000);
    let write = |count| {
        for _ in 0..count {
            producer.send("short", 0, Some(&value));
            producer.flush();
        }
    };
    write(1);
    let mut source = Running::start(&broker.bootstrap(), &["short"], more);
    source.records(1).await;
    // Nobody takes events, so the source stands still with a few records fetched ahead; the rest is deleted.
    write(400);
    broker.delete_records("short", 0, 390).await;
    source.until("the last record", |running| running.records.iter().any(|r| r.position == 400)).await;
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let (_, position) = source.begins[source.begins.len() - 1];
    assert_eq!(position, 390, "reading goes on at the oldest record, and says so");
    let records = source.stop().await;
    let mut positions: Vec<u64> = records.iter().map(|record| record.position).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "no record twice");
    positions.retain(|position| *position >= 390);
    assert_eq!(positions, (390..=400).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_it_while_ingest_takes_nothing() {
    let broker = KafkaBroker::shared();
    broker.create_topic("flood", 1).await;
    let producer = broker.producer();
    for number in 0..20_000 {
        producer.send("flood", 0, Some(&number.to_string()));
    }
    producer.flush();
    let mut source = Running::start(&broker.bootstrap(), &["flood"], "start = 'beginning'");
    let deadline = Instant::now() + DEADLINE;
    while source.events.len() < source.events.max_capacity() {
        assert!(Instant::now() < deadline, "waited in vain for a full channel: {}", source.events.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    source.stop.cancel();
    let ended = tokio::time::timeout(DEADLINE, &mut source.task).await;
    ended.expect("the source ends though its channel is full").unwrap();
    let records = source.stop().await;
    assert!(records.len() < 20_000, "the source waited");
    assert_complete(&records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_then_up_then_killed_loses_nothing() {
    let mut broker = KafkaBroker::prepare();
    let mut source = Running::start(&broker.bootstrap(), &["market"], "start = 'beginning'");
    source.waiting(&format!("kafka {}", broker.bootstrap())).await;
    broker.restart();
    source.waiting("no topic matches market").await;
    broker.create_topic("market", 4).await;
    source.partitions(4).await;
    source.ready().await;

    let producer = broker.producer();
    for number in 0..2000 {
        producer.send("market", number % 4, Some(&number.to_string()));
    }
    producer.flush();
    source.records(700).await;
    broker.kill();
    source.waiting("kafka").await;
    // Written while the broker is down: the producer keeps them until it is back.
    for number in 2000..4000 {
        producer.send("market", number % 4, Some(&number.to_string()));
    }
    broker.restart();
    producer.flush();
    source.records(4000).await;
    source.ready().await;
    assert_complete(&source.records, 0);
    assert_eq!(source.begins.len(), 4, "a reconnect begins nothing anew: {:?}", source.begins);
    for partition in 0..4_u32 {
        let sent: Vec<String> = (0..1000).map(|n| (n * 4 + partition).to_string()).collect();
        assert_eq!(source.values("market", partition), sent);
    }
    assert!(source.registry.render().contains("tickmesh_source_errors_total{kind=\"AllBrokersDown\""));
    // With the broker gone a stop must not wait for it.
    broker.kill();
    source.waiting("kafka").await;
    assert_eq!(source.stop().await.len(), 4000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_told_and_a_stop_ends_it() {
    // Bound and not listened on for Kafka: connections are taken and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let source = Running::start(&address, &["market"], "");
    source.waiting(&format!("kafka {address}: cannot describe topics")).await;
    let unavailable = source.reader.read("market", 0, 0, 10).await.unwrap_err();
    assert!(matches!(unavailable, ReadError::Unavailable { .. }), "{unavailable}");
    assert!(source.stop().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_on_exactly_where_it_is_told() {
    let broker = KafkaBroker::shared();
    broker.create_topic("resume.a", 2).await;
    broker.create_topic("resume.b", 1).await;
    broker.create_topic("resume.empty", 1).await;
    let producer = broker.producer();
    let write = |topic: &str, partition: i32, values: std::ops::Range<u32>| {
        values.for_each(|value| producer.send(topic, partition, Some(&value.to_string())));
        producer.flush();
    };
    let topics = ["^resume\\."];
    let mut source = Running::start(&broker.bootstrap(), &topics, "");
    source.partitions(4).await;
    source.ends(4).await;
    write("resume.a", 0, 0..100);
    write("resume.a", 1, 0..50);
    write("resume.b", 0, 0..10);
    source.records(160).await;
    let (starts, epochs) = (source.starts(), source.states.clone());
    source.stop().await;

    // Nobody reads meanwhile: more is written, partitions and topics appear, one topic is made anew.
    write("resume.a", 0, 100..200);
    broker.add_partitions("resume.a", 3).await;
    broker.create_topic("resume.new", 1).await;
    broker.delete_topic("resume.b").await;
    broker.create_topic("resume.b", 1).await;
    let producer = broker.producer();
    for topic in ["resume.new", "resume.b"] {
        (0..10).for_each(|value| producer.send(topic, 0, Some(&value.to_string())));
    }
    (0..10).for_each(|value| producer.send("resume.a", 2, Some(&value.to_string())));
    producer.flush();

    let mut source = Running::start_at(starts, &broker.bootstrap(), &topics, "");
    source.ends(6).await;
    let begun = |topic: &str, partition| {
        source
            .begins
            .iter()
            .find(|(epoch, _)| *epoch == source.states[&(topic.into(), partition)].epoch)
            .unwrap()
            .1
    };
    assert_eq!((begun("resume.a", 0), begun("resume.a", 1)), (100, 50), "where it was");
    assert_eq!(
        (begun("resume.a", 2), begun("resume.new", 0), begun("resume.b", 0)),
        (0, 0, 0),
        "what is new"
    );
    assert_eq!(begun("resume.empty", 0), 0);
    let values = |range: std::ops::Range<u32>| range.map(|value| value.to_string()).collect::<Vec<_>>();
    assert_eq!(source.values("resume.a", 0), values(100..200));
    assert!(source.values("resume.a", 1).is_empty());
    for (topic, partition) in [("resume.a", 2), ("resume.new", 0), ("resume.b", 0)] {
        assert_eq!(source.values(topic, partition), values(0..10), "{topic} {partition}");
    }
    for (place, state) in &epochs {
        let same = source.states[place].epoch == state.epoch;
        assert_eq!(same, &*place.0 != "resume.b", "only a topic made anew has another epoch: {place:?}");
    }
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_nobody_read_is_told() {
    let broker = KafkaBroker::shared();
    broker.create_topic("trimmed", 1).await;
    let producer = broker.producer();
    (0..100).for_each(|value| producer.send("trimmed", 0, Some(&value.to_string())));
    producer.flush();
    let mut source = Running::start(&broker.bootstrap(), &["trimmed"], "start = 'beginning'");
    source.ends(1).await;
    let mut state = source.states.values().next().unwrap().clone();
    source.stop().await;
    broker.delete_records("trimmed", 0, 60).await;
    state.next = 20;
    let mut source = Running::start_at([&state].into_iter().collect(), &broker.bootstrap(), &["trimmed"], "");
    source.ends(1).await;
    assert_eq!(source.begins, [(state.epoch, 60)], "the oldest record, in the same epoch");
    assert!(source.firsts.is_empty(), "there was something of the epoch before");
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let records = source.stop().await;
    assert_complete(&records, 60);
    assert_eq!(records.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_reached_though_nothing_to_read_is_there() {
    let broker = KafkaBroker::shared();
    for topic in ["ends.bank", "ends.empty", "ends.full"] {
        broker.create_topic(topic, 1).await;
    }
    let teller = KafkaProducer::new(broker.client().set("transactional.id", "ends"));
    teller.native().init_transactions(DEADLINE).unwrap();
    for commit in [true, false, false] {
        teller.native().begin_transaction().unwrap();
        (0..5).for_each(|value| teller.send("ends.bank", 0, Some(&value.to_string())));
        teller.flush();
        if commit {
            teller.native().commit_transaction(DEADLINE).unwrap();
        } else {
            teller.native().abort_transaction(DEADLINE).unwrap();
        }
    }
    let producer = broker.producer();
    (0..3000).for_each(|value| producer.send("ends.full", 0, Some(&value.to_string())));
    producer.flush();
    // All three are partition 0 of their topic, which is all that librdkafka tells of an end.
    let mut source = Running::start(&broker.bootstrap(), &["^ends\\."], "start = 'beginning'");
    source.ends(3).await;
    let reached = |topic: &str| {
        let epoch = source.states[&(topic.into(), 0)].epoch;
        source.reached.iter().filter(|(of, _)| *of == epoch).map(|(_, at)| *at).collect::<Vec<_>>()
    };
    assert_eq!(reached("ends.bank"), [18], "five records and a marker each");
    assert_eq!(reached("ends.empty"), [0]);
    assert_eq!(reached("ends.full"), [3000]);
    assert_eq!(source.values("ends.bank", 0).len(), 5);
    let starts = source.starts();
    source.stop().await;
    // What lies between the last record and the end is no record that was lost.
    let mut source = Running::start_at(starts, &broker.bootstrap(), &["^ends\\."], "");
    source.ends(3).await;
    assert_eq!(source.begins.len(), 3);
    teller.native().begin_transaction().unwrap();
    teller.send("ends.bank", 0, Some("more"));
    teller.native().commit_transaction(DEADLINE).unwrap();
    source.records(1).await;
    assert_eq!(source.values("ends.bank", 0), ["more"]);
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 0").await;
    source.stop().await;
}

/// Writes records one by one, so that each has a batch of its own in the log's file.
fn write_singly(producer: &KafkaProducer, topic: &str, values: std::ops::Range<u32>) {
    for value in values {
        producer.send(topic, 0, Some(&value.to_string()));
        producer.flush();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_goes_on_in_another_epoch() {
    let mut broker = KafkaBroker::start();
    broker.create_topic("fragile", 1).await;
    write_singly(&broker.producer(), "fragile", 0..30);
    let address = broker.bootstrap();
    let mut live = Running::start(&address, &["fragile"], "start = 'beginning'");
    live.records(30).await;
    let mut down = Running::start(&address, &["fragile"], "start = 'beginning'");
    down.records(30).await;
    let kept = down.starts();
    down.stop().await;
    // A checkpoint of a release without terms.
    let old = live.states.values().next().unwrap().clone();
    let untold: Starts = [&PartitionState { term: None, ..old.clone() }].into_iter().collect();

    broker.kill();
    broker.cut_log("fragile", 0, 20);
    broker.restart();
    // Written anew under the lost offsets, but not as many: the log ends before what was read.
    let mut short = Running::start_at(kept.clone(), &address, &["fragile"], "");
    short.partitions(1).await;
    write_singly(&broker.producer(), "fragile", 100..105);
    let mut without = Running::start_at(untold, &address, &["fragile"], "");
    without.partitions(1).await;
    live.records(35).await;
    short.records(5).await;
    let (epoch, at) = live.begins[1];
    assert_ne!(epoch, old.epoch);
    assert_eq!(at, 20, "where the log was cut");
    assert!(live.firsts.contains(&epoch), "nothing of the epoch was before");
    assert_eq!(live.values("fragile", 0)[30..], ["100", "101", "102", "103", "104"]);
    assert_eq!(short.begins, [(epoch, 20)], "the same from a checkpoint");
    assert_eq!(short.values("fragile", 0), ["100", "101", "102", "103", "104"]);
    assert_eq!(without.begins, [(epoch, 25)], "in the same epoch, though from its present end");
    live.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;

    // The log grows beyond what was read before: only the leader epoch of the last record tells.
    write_singly(&broker.producer(), "fragile", 105..130);
    for source in [&mut live, &mut short, &mut without] {
        source
            .until("the last record", |running| running.records.last().is_some_and(|r| r.position == 49))
            .await;
        assert!(source.records.iter().filter(|r| r.position >= 30).all(|r| r.epoch == epoch));
    }
    let mut late = Running::start_at(kept, &address, &["fragile"], "");
    late.until("the last record", |running| {
        running.records.iter().filter(|r| r.epoch == epoch).count() == 30
    })
    .await;
    assert_eq!(late.begins, [(old.epoch, 30), (epoch, 20)]);
    assert!(late.records.iter().all(|record| record.epoch == epoch), "nothing new under the old epoch");
    let again = late.reader.read("fragile", 0, 20, 25).await.unwrap();
    assert!(
        again.epoch == epoch && again.records.iter().all(|record| record.epoch == epoch),
        "read again in the epoch it is in"
    );
    // A peer that starts from a sibling goes on in the newest epoch.
    let mut both: Starts = [&old].into_iter().collect();
    both.add(late.states.values().next().unwrap());
    let mut sibling = Running::start_at(both, &address, &["fragile"], "");
    sibling.ends(1).await;
    assert_eq!(sibling.begins, [(epoch, 50)]);
    let place = Place { position: 50, term: late.records[29].term };
    assert!(place.term.is_some() && place.term != old.term, "{place:?} after {old:?}");
    assert_eq!(sibling.starts().of(epoch), Some(place), "what is known is kept though nothing comes");
    for source in [live, short, without, late, sibling] {
        source.stop().await;
    }
}
