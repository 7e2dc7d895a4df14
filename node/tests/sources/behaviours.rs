//! What every source does, whatever log it reads. Each behaviour has a log of its own name; those that leave the server alive
//! share one.

use std::{collections::BTreeSet, time::Duration};

use tickmesh::{
    ops::metrics::now_us,
    source::{ReadError, Starts},
};
use tickmesh_protocol::Epoch;
use tokio::time::Instant;

use crate::{
    log::{Log, Restorable, values},
    source::{DEADLINE, Running},
};

/// The source of a log, with `start` as given.
fn open<L: Log>(starts: Starts, start: &str, keys: &str) -> Running {
    Running::open(starts, false, &format!("kind = {:?}\nstart = {start:?}\n{keys}", L::KIND))
}

fn texts(read: &[(u64, String)]) -> Vec<String> {
    read.iter().map(|(_, value)| value.clone()).collect()
}

/// What was read of each partition is what the log holds from some value on, each position once and in order.
async fn assert_is_log<L: Log>(log: &L, name: &str, source: &Running, from: usize) {
    for partition in 0..L::PARTITIONS {
        let (read, held) = (source.read(partition), log.contents(name, partition).await);
        assert!(read.is_sorted_by(|a, b| a.0 < b.0), "{name} {partition}: positions rise");
        assert!(
            read == held[from..],
            "{name} {partition}: {} read, {} in the log",
            read.len(),
            held.len() - from
        );
    }
}

async fn append_all<L: Log>(log: &L, name: &str, numbers: std::ops::Range<u32>) {
    for partition in 0..L::PARTITIONS {
        log.append(name, partition, &values(partition, numbers.clone())).await;
    }
}

/// All behaviours that leave the server alive, at the same time.
pub async fn without_a_fault<L: Log>(log: &L) {
    // One after the other would wait for each other's polls; but pairs are enough for a machine of two cores.
    tokio::join!(reads_again_what_it_read(log), goes_on_where_it_is_told(log));
    tokio::join!(waits_for_a_log(log), tells_what_was_deleted(log));
    tokio::join!(a_log_made_again_is_another_epoch(log), a_stop_ends_it(log));
    tokio::join!(tells_wrong_credentials(log), tells_a_wrong_address(log));
}

async fn reads_again_what_it_read<L: Log>(log: &L) {
    let name = "suite-again";
    let partitions = L::PARTITIONS as usize;
    log.create(name).await;
    append_all(log, name, 0..50).await;
    let mut source = open::<L>(Starts::default(), "end", &log.keys(name));
    source.partitions(partitions).await;
    source.ends(partitions).await;
    source.ready().await;
    let before_us = now_us() / 1000 * 1000;
    append_all(log, name, 50..1300).await;
    source.records(1250 * partitions).await;
    assert_is_log(log, name, &source, 50).await;
    let epochs: BTreeSet<u64> = source.begins.iter().map(|(epoch, _)| epoch.as_u64()).collect();
    assert_eq!(epochs.len(), partitions, "each partition has an epoch of its own");
    assert!(source.firsts.is_empty(), "something was there before");
    let times: Vec<u64> = source.records.iter().map(|record| record.engine_time_us).collect();
    assert!(times.iter().all(|time| *time >= before_us), "engine time is the log's");
    for (metric, value) in
        [("records_total", 1250 * partitions), ("lag", 0), ("brokers_up", 1), ("partitions", partitions)]
    {
        source.metric(&format!("tickmesh_source_{metric}{{source=\"engine\"}} {value}")).await;
    }

    for state in source.states.clone().into_values() {
        let first: Vec<_> = source.records.iter().filter(|r| r.partition == state.partition).collect();
        let (from, until) = (first[400].position, first[700].position);
        let range = source.reader.read(&state.topic, state.partition, from, until).await.unwrap();
        assert_eq!(format!("{:?}", range.records), format!("{:?}", &first[400..700]), "the same records");
        assert_eq!((range.epoch, range.until), (state.epoch, until));
        let end = state.next;
        let tail = source.reader.read(&state.topic, state.partition, end - 1, end + 9_000).await.unwrap();
        assert_eq!((tail.records.len(), tail.until), (1, end), "a range beyond the end gives what is there");
        let beyond = source.reader.read(&state.topic, state.partition, end, end + 9).await.unwrap();
        assert!(beyond.records.is_empty() && beyond.until == end, "{beyond:?}");
    }
    let state = source.states.values().next().unwrap().clone();
    let of = source.records.iter().filter(|record| record.partition == state.partition);
    let whole = of.map(|record| record.position).nth_back(599).unwrap()..state.next;
    let read = || source.reader.read(&state.topic, state.partition, whole.start, whole.end);
    let both = tokio::join!(read(), read());
    assert_eq!((both.0.unwrap().records.len(), both.1.unwrap().records.len()), (600, 600), "two at once");
    for (topic, partition) in [(&*state.topic, 99), ("none", 0)] {
        let unknown = source.reader.read(topic, partition, 0, 10).await.unwrap_err();
        assert_eq!(unknown, ReadError::UnknownPartition { topic: topic.into(), partition });
    }
    let long = source.reader.read(&state.topic, state.partition, 0, u64::MAX).await.unwrap_err();
    assert!(matches!(long, ReadError::TooLarge { .. }), "{long}");
    source.stop().await;
}

async fn goes_on_where_it_is_told<L: Log>(log: &L) {
    let name = "suite-onward";
    let partitions = L::PARTITIONS as usize;
    log.create(name).await;
    let mut source = open::<L>(Starts::default(), "beginning", &log.keys(name));
    source.ends(partitions).await;
    assert_eq!(source.firsts.len(), partitions, "nothing of the epochs is or was before");
    append_all(log, name, 0..200).await;
    source.records(200 * partitions).await;
    let (starts, states) = (source.starts(), source.states.clone());
    source.stop().await;
    append_all(log, name, 200..300).await;
    let mut source = open::<L>(starts, "end", &log.keys(name));
    source.ends(partitions).await;
    for state in states.values() {
        assert!(source.begins.contains(&(state.epoch, state.next)), "exactly there: {:?}", source.begins);
    }
    assert_eq!(source.records.len(), 100 * partitions);
    assert_is_log(log, name, &source, 200).await;
    let moved = source.registry.render().contains("positions_lost_total{source=\"engine\"} 0");
    assert!(moved, "nothing was lost");
    source.stop().await;
    let mut source = open::<L>(Starts::default(), "beginning", &log.keys(name));
    source.ends(partitions).await;
    assert_is_log(log, name, &source, 0).await;
    source.stop().await;
}

async fn waits_for_a_log<L: Log>(log: &L) {
    let name = "suite-later";
    let mut source = open::<L>(Starts::default(), "end", &log.keys(name));
    source.waiting(L::MISSING).await;
    log.create(name).await;
    append_all(log, name, 0..20).await;
    source.records(20 * L::PARTITIONS as usize).await;
    assert_is_log(log, name, &source, 0).await;
    source.ready().await;
    source.stop().await;
}

async fn tells_what_was_deleted<L: Log>(log: &L) {
    let name = "suite-trimmed";
    log.create(name).await;
    log.append(name, 0, &values(0, 0..100)).await;
    let mut source = open::<L>(Starts::default(), "beginning", &log.keys(name));
    source.records(100).await;
    let mut state = source.states.values().find(|state| state.partition == 0).unwrap().clone();
    log.keep_last(name, 0, 40).await;
    let from = source.records[10].position;
    let trimmed = source.reader.read(&state.topic, 0, from, state.next).await.unwrap_err();
    let oldest = log.contents(name, 0).await[0].0;
    assert_eq!(trimmed, ReadError::Trimmed { topic: state.topic.to_string(), partition: 0, from, oldest });
    assert_eq!(source.reader.read(&state.topic, 0, oldest, state.next).await.unwrap().records.len(), 40);
    state.next = source.records[20].position;
    source.stop().await;
    let mut source = open::<L>([&state].into_iter().collect(), "end", &log.keys(name));
    source.records(40).await;
    assert!(
        source.begins.contains(&(state.epoch, oldest)),
        "the oldest, in the same epoch: {:?}",
        source.begins
    );
    assert!(!source.firsts.contains(&state.epoch), "there was something of the epoch before");
    assert_eq!(source.read(0), log.contents(name, 0).await);
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    source.stop().await;
}

async fn a_log_made_again_is_another_epoch<L: Log>(log: &L) {
    let name = "suite-phoenix";
    let partitions = L::PARTITIONS as usize;
    log.create(name).await;
    let mut source = open::<L>(Starts::default(), "end", &log.keys(name));
    source.ends(partitions).await;
    append_all(log, name, 0..20).await;
    source.records(20 * partitions).await;
    let (old, starts) = (source.states.clone(), source.starts());
    log.delete(name).await;
    log.create(name).await;
    source.partitions(2 * partitions).await;
    append_all(log, name, 100..110).await;
    source.records(30 * partitions).await;
    let is_new = |epoch: Epoch| old.values().all(|state| state.epoch != epoch);
    assert_eq!(
        source.firsts.iter().filter(|epoch| is_new(**epoch)).count(),
        partitions,
        "{:?}",
        source.firsts
    );
    let (before, after) = source.records.split_at(20 * partitions);
    assert!(
        before.iter().all(|record| !is_new(record.epoch)) && after.iter().all(|record| is_new(record.epoch))
    );
    let state = source.states.values().next().unwrap().clone();
    let again = source.reader.read(&state.topic, state.partition, 0, state.next).await.unwrap();
    assert!(again.epoch == state.epoch && again.records.len() == 10, "read again in the epoch it is in");
    source.stop().await;
    // Who was down meanwhile finds the same: lower positions, and all of them.
    let mut source = open::<L>(starts, "end", &log.keys(name));
    source.records(10 * partitions).await;
    assert!(source.begins.iter().all(|(epoch, _)| is_new(*epoch)));
    assert_is_log(log, name, &source, 0).await;
    source.stop().await;
}

async fn a_stop_ends_it<L: Log>(log: &L) {
    const RECORDS: u32 = 20_000;
    let name = "suite-flood";
    log.create(name).await;
    log.append(name, 0, &values(0, 0..RECORDS)).await;
    let mut source = open::<L>(Starts::default(), "beginning", &log.keys(name));
    let deadline = Instant::now() + DEADLINE;
    while source.events.len() < source.events.max_capacity() {
        assert!(Instant::now() < deadline, "waited in vain for a full channel: {}", source.events.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    source.stop.cancel();
    let ended = tokio::time::timeout(DEADLINE, &mut source.task).await;
    ended.expect("the source ends though its channel is full").unwrap();
    let records = source.stop().await;
    assert!(records.len() < RECORDS as usize, "the source waited");
    assert!(
        records.iter().zip(values(0, 0..RECORDS)).all(|(record, value)| record.value == value),
        "in order"
    );
}

async fn tells_wrong_credentials<L: Log>(log: &L) {
    let name = "suite-secret";
    log.create(name).await;
    append_all(log, name, 0..5).await;
    let source = open::<L>(Starts::default(), "beginning", &log.wrong_keys(name));
    source.waiting(L::REFUSED).await;
    let refused = source.reader.read(name, 0, 0, 10).await.unwrap_err();
    assert!(matches!(refused, ReadError::Unavailable { .. }), "{refused}");
    assert!(source.stop().await.is_empty());
    let mut source = open::<L>(Starts::default(), "beginning", &log.keys(name));
    source.records(5 * L::PARTITIONS as usize).await;
    source.stop().await;
}

async fn tells_a_wrong_address<L: Log>(log: &L) {
    // Bound, and nobody speaks the log's protocol: connections are taken and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let source = open::<L>(Starts::default(), "end", &log.keys_at("market", Some(&address)));
    source.waiting(&format!("{} {address}: cannot ", L::KIND)).await;
    let unavailable = source.reader.read("market", 0, 0, 10).await.unwrap_err();
    assert!(matches!(unavailable, ReadError::Unavailable { .. }), "{unavailable}");
    assert!(source.stop().await.is_empty());
}

/// The server is down at first, then up, then killed under load in the middle of a batch, and started again.
pub async fn a_killed_server_loses_and_doubles_nothing<L: Log>(log: &mut L) {
    const BATCH: u32 = 2000;
    let name = "suite-market";
    let partitions = L::PARTITIONS as usize;
    let mut source = open::<L>(Starts::default(), "beginning", &log.keys(name));
    source.waiting(&format!("{} ", L::KIND)).await;
    log.start().await;
    source.waiting(L::MISSING).await;
    log.create(name).await;
    source.ends(partitions).await;
    source.ready().await;
    let mut written = 0;
    for killed in 1..=L::KILLS {
        append_all(log, name, written..written + BATCH).await;
        // A part of the batch is on its way.
        source.records(written as usize * partitions + 500).await;
        log.kill();
        source.waiting(&format!("{} ", L::KIND)).await;
        log.start().await;
        written += BATCH;
        append_all(log, name, written..written + BATCH).await;
        written += BATCH;
        source.records(written as usize * partitions).await;
        source.ready().await;
        assert_eq!(
            source.begins.len(),
            partitions,
            "kill {killed}: nothing begins anew: {:?}",
            source.begins
        );
    }
    for partition in 0..L::PARTITIONS {
        assert!(
            texts(&source.read(partition)) == values(partition, 0..written),
            "{partition}: not what was written"
        );
    }
    assert_is_log(log, name, &source, 0).await;
    // With the server gone a stop must not wait for it.
    log.kill();
    source.waiting(&format!("{} ", L::KIND)).await;
    assert_eq!(source.stop().await.len(), written as usize * partitions);
}

/// The server comes back with less than was read, and gives the same positions to other records.
pub async fn a_log_that_lost_its_end_is_another_epoch<L: Restorable>(log: &mut L) {
    let name = "suite-fragile";
    log.start().await;
    log.create(name).await;
    log.append(name, 0, &values(0, 0..50)).await;
    let mut live = open::<L>(Starts::default(), "beginning", &log.keys(name));
    live.records(50).await;
    log.kill();
    log.back_up();
    log.start().await;
    log.append(name, 0, &values(0, 50..80)).await;
    live.records(80).await;
    let old = live.states.values().next().unwrap().clone();

    // It comes back while nobody writes: shorter than what was read.
    log.kill();
    log.put_back();
    log.start().await;
    live.partitions(2).await;
    let mut short = open::<L>([&old].into_iter().collect(), "end", &log.keys(name));
    short.ends(1).await;
    let epoch = live.begins[1].0;
    assert_ne!(epoch, old.epoch);
    assert_eq!(short.begins, [(epoch, live.begins[1].1)], "the same from a checkpoint");
    // And grows beyond that. What a checkpoint keeps of time may be no more than the second.
    let second = now_us() / 1_000_000;
    while now_us() / 1_000_000 == second {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    log.append(name, 0, &values(0, 100..160)).await;
    let mut long = open::<L>([&old].into_iter().collect(), "end", &log.keys(name));
    let held = log.contents(name, 0).await;
    for (source, whole) in [(&mut live, false), (&mut short, true), (&mut long, true)] {
        source.records(if whole { 60 } else { 140 }).await;
        assert_eq!(source.begins.last().unwrap().0, epoch);
        let read = source.read(0);
        assert!(read[read.len() - 60..] == held[50..], "all that was written anew");
        assert!(source.records[read.len() - 60..].iter().all(|record| record.epoch == epoch));
        assert!(source.firsts.contains(&epoch), "nothing of the epoch was before");
        source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    }
    assert_eq!(long.begins.len(), 1, "from a checkpoint, too, though the log is long enough");
    let again = live.reader.read(&old.topic, 0, held[50].0, held[60].0).await.unwrap();
    assert!(again.epoch == epoch && again.records.len() == 10, "{again:?}");
    for source in [live, short, long] {
        source.stop().await;
    }
}
