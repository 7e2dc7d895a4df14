//! Where the Kafka source goes on after a restart, and what of its log can be read again, against a real broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]

mod support {
    pub mod kafka;
    pub mod source;
}

use std::{collections::HashSet, sync::Arc};

use rdkafka::producer::Producer;
use support::{
    kafka::{KafkaBroker, KafkaProducer},
    source::{DEADLINE, Running},
};
use tickmesh::{
    ingest::rescan::{Log, Rescan, RescanError, Wanted},
    ops::metrics::Registry,
    source::{Place, ReadError, Starts},
    transform::{Makes, RouteConfig, table::fixed},
};
use tickmesh_protocol::{Epoch, Previous, checkpoint::PartitionState};
use tokio_util::sync::CancellationToken;

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
async fn the_end_is_reached_though_nothing_to_read_is_there() {
    let broker = KafkaBroker::shared();
    for topic in ["ends.bank", "ends.empty", "ends.full", "ends.open"] {
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
    let open = KafkaProducer::new(broker.client().set("transactional.id", "open"));
    open.native().init_transactions(DEADLINE).unwrap();
    open.native().begin_transaction().unwrap();
    (0..3).for_each(|value| open.send("ends.open", 0, Some(&value.to_string())));
    open.flush();
    // All of them are partition 0 of their topic, which is all that librdkafka tells of an end.
    let mut source = Running::start(&broker.bootstrap(), &["^ends\\."], "start = 'beginning'");
    source.ends(4).await;
    let reached = |topic: &str| {
        let epoch = source.states[&(topic.into(), 0)].epoch;
        source.reached.iter().filter(|(of, _)| *of == epoch).map(|(_, at)| *at).collect::<Vec<_>>()
    };
    assert_eq!(reached("ends.bank"), [18], "five records and a marker each");
    assert_eq!(reached("ends.empty"), [0]);
    assert_eq!(reached("ends.full"), [3000]);
    assert_eq!(reached("ends.open"), [0], "what is not decided yet is not passed");
    assert_eq!(source.values("ends.bank", 0).len(), 5);
    let read = source.records.len();
    open.native().commit_transaction(DEADLINE).unwrap();
    source.records(read + 3).await;
    let starts = source.starts();
    source.stop().await;
    // What lies between the last record and the end is no record that was lost.
    let mut source = Running::start_at(starts, &broker.bootstrap(), &["^ends\\."], "");
    source.ends(4).await;
    assert_eq!(source.begins.len(), 4);
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

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_read_again_once_for_all_who_wait() {
    let broker = KafkaBroker::shared();
    broker.create_topic("again", 2).await;
    let producer = broker.producer();
    for number in 0..6000 {
        let text = format!(r#"{{"s": "S{}", "p": "{number}.50"}}"#, number % 3);
        producer.send("again", 1, Some(&text));
    }
    producer.flush();
    let mut source = Running::start(&broker.bootstrap(), &["again"], "start = 'beginning'");
    source.ends(2).await;
    let epoch = source.states[&("again".into(), 1)].epoch;
    let route = RouteConfig {
        makes: Makes::Data("{price: .p}".into()),
        ..RouteConfig::new("engine", "again", "trades", ".s | ascii_downcase")
    };
    let registry = Registry::new();
    let log = Log {
        source: "engine".into(),
        reader: source.reader.clone(),
        routes: fixed(&[route]),
        channels: None,
    };
    let private = Arc::new(HashSet::new());
    let rescan =
        Rescan::new(vec![log], private, Arc::default(), 1 << 24, &registry, CancellationToken::new())
            .unwrap();
    let wanted = |from, until| Wanted { source: "engine", epoch, topic: "again", partition: 1, from, until };
    let all = futures_util::future::join_all((0..50).map(|_| rescan.read(wanted(4100, 5000)))).await;
    for part in all {
        let part = part.unwrap();
        assert_eq!((part.len(), part.next), (900, 5000));
        assert_eq!(part[0].stream.as_str(), format!("trades.s{}", 4100 % 3));
        assert_eq!(&part[0].data[..], br#"{"price":"4100.50"}"#);
        assert_eq!(part[0].previous, Previous::At(tickmesh_protocol::Sequence::new(4097).unwrap()));
    }
    let shown = registry.render();
    for line in ["log_rereads_total 1", "log_reread_records_total 1904", "log_reread_shared_total 49"] {
        assert!(shown.lines().any(|shown| shown == format!("tickmesh_{line}")), "no {line} in:\n{shown}");
    }
    broker.delete_records("again", 1, 1000).await;
    let trimmed = rescan.read(wanted(500, 1200)).await.unwrap_err();
    let gone = ReadError::Trimmed { topic: "again".into(), partition: 1, from: 500, oldest: 1000 };
    assert_eq!(trimmed, RescanError::Read(gone));
    assert_eq!(rescan.read(wanted(1000, 1200)).await.unwrap().len(), 200);
    // A topic made anew has the same positions, and not the events that had them.
    broker.delete_topic("again").await;
    broker.create_topic("again", 2).await;
    let error = rescan.read(wanted(5999, 6000)).await.map(|part| part.len());
    assert_eq!(error, Ok(1), "what is kept is what was there");
    let other =
        rescan.read(Wanted { partition: 0, epoch: Epoch::from_u64(1), ..wanted(0, 10) }).await.unwrap_err();
    assert!(matches!(other, RescanError::OtherEpoch { .. }), "{other}");
    let gone = rescan.read(wanted(9000, 9001)).await.unwrap_err();
    assert!(matches!(gone, RescanError::OtherEpoch { asked, .. } if asked == epoch), "{gone}");
    source.stop().await;
}
