//! Where the Redis source goes on after a restart, and when its server lost something, against a real Redis server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]

mod support {
    pub mod redis;
    pub mod source;
}

use std::{collections::HashSet, sync::Arc};

use support::{
    redis::{DURABLE, LOSSY, RedisServer, position_of},
    source::Running,
};
use tickmesh::{
    ingest::rescan::{Log, Rescan, Wanted},
    ops::metrics::Registry,
    source::Starts,
};
use tickmesh_protocol::Previous;
use tokio_util::sync::CancellationToken;

fn start_at(starts: Starts, server: &RedisServer, keys: &[&str], more: &str) -> Running {
    let table = format!("kind = 'redis'\nurl = {:?}\nkeys = {keys:?}\n{more}", server.url());
    Running::open(starts, false, &table)
}

fn start(server: &RedisServer, keys: &[&str], more: &str) -> Running {
    start_at(Starts::default(), server, keys, more)
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_on_exactly_where_it_is_told() {
    let server = RedisServer::start(DURABLE);
    let keys = ["glob:resume.*"];
    for key in ["resume.a", "resume.b", "resume.still"] {
        server.add(key, "*", "before");
    }
    let mut source = start(&server, &keys, "");
    source.ends(3).await;
    server.add_all("resume.a", 0..100);
    server.add_all("resume.b", 0..50);
    source.records(150).await;
    let (starts, states) = (source.starts(), source.states.clone());
    source.stop().await;

    // Nobody reads meanwhile: more is written, what was read is trimmed, a key appears.
    server.add_all("resume.a", 100..200);
    server.run::<usize>(&["XTRIM", "resume.b", "MAXLEN", "0"]);
    server.add_all("resume.new", 0..30);
    let mut source = start_at(starts, &server, &keys, "");
    source.records(130).await;
    source.ends(4).await;
    assert_eq!(source.values("resume.a", 0), numbers(100..200));
    assert_eq!(source.values("resume.new", 0), numbers(0..30), "a key that nobody knew");
    for key in ["resume.a", "resume.b", "resume.still"] {
        let place = (Arc::<str>::from(key), 0);
        assert!(
            source.begins.contains(&(states[&place].epoch, states[&place].next)),
            "{key}: {:?}",
            source.begins
        );
    }
    assert!(source.registry.render().contains("tickmesh_source_positions_lost_total{source=\"engine\"} 0"));
    server.add_all("resume.b", 50..60);
    source.records(140).await;
    assert_eq!(source.values("resume.b", 0), numbers(50..60));
    assert_eq!(source.begins.len(), 4, "trimming what was read is no loss: {:?}", source.begins);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_before_it_was_read_is_told_and_deleted_entries_are_no_fault() {
    let server = RedisServer::start(DURABLE);
    server.add("short", "*", "first");
    let mut source = start(&server, &["short"], "start = 'beginning'");
    source.records(1).await;
    // Nobody takes events, so the source stands still with some entries read ahead; the rest is trimmed.
    for part in 0..40 {
        server.add_all("short", part * 1000..(part + 1) * 1000);
    }
    let deleted = server.log("short")[20_000].0.clone();
    let kept = server.log("short")[39_500].0.clone();
    server.run::<usize>(&["XDEL", "short", &deleted]);
    server.run::<usize>(&["XTRIM", "short", "MINID", &kept]);
    let last = position_of(&server.log("short").last().unwrap().0);
    source.until("the last record", |source| source.records.last().is_some_and(|r| r.position == last)).await;
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let (epoch, position) = source.begins[1];
    assert_eq!((source.begins.len(), epoch), (2, source.begins[0].0), "in the same epoch");
    assert_eq!(position, position_of(&kept), "reading goes on at the oldest entry, and says so");
    let records = source.records.iter().map(|record| record.position).collect::<Vec<_>>();
    assert!(records.is_sorted_by(|a, b| a < b), "no record twice");

    // Entries that are deleted by name, the one read last among them, are holes.
    server.add_all("short", 0..10);
    let log = server.log("short");
    source.records(records.len() + 10).await;
    for (id, _) in &log[log.len() - 5..] {
        server.run::<usize>(&["XDEL", "short", id]);
    }
    server.add_all("short", 10..20);
    source.records(records.len() + 20).await;
    assert_eq!(source.begins.len(), 2, "a hole is no loss: {:?}", source.begins);
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_made_anew_is_another_epoch_whatever_its_ids_are() {
    let server = RedisServer::start(DURABLE);
    let mut source = start(&server, &["phoenix"], "start = 'beginning'");
    source.waiting("no key is there of phoenix").await;
    for number in 0..10 {
        server.add("phoenix", &format!("1700000000{number:03}-0"), &number.to_string());
    }
    source.records(10).await;
    // The same ids, and then later ones. At once, and with a moment in which the key is not there.
    for (round, from) in [(1, 1_700_000_000_000_u64), (2, 1_800_000_000_000)] {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("DEL").arg("phoenix").ignore();
        for number in 0..20 {
            let (id, value) = (format!("{}-0", from + number), format!("{round}/{number}"));
            pipe.cmd("XADD").arg("phoenix").arg(id).arg("value").arg(value).ignore();
        }
        pipe.query::<()>(&mut server.connection()).unwrap();
        let read = 10 + 20 * round;
        source.records(read).await;
        let (epoch, position) = source.begins[round];
        assert_eq!(position, 0, "read from the beginning");
        assert!(source.firsts.contains(&epoch) && epoch != source.begins[round - 1].0);
        assert!(source.records[read - 20..].iter().all(|record| record.epoch == epoch));
        let reread = source.reader.read("phoenix", 0, 0, 1 << 52).await.unwrap().records;
        assert_eq!(format!("{reread:?}"), format!("{:?}", &source.records[read - 20..]));
    }
    server.run::<usize>(&["DEL", "phoenix"]);
    source.waiting("no key is there of phoenix").await;
    server.add("phoenix", "1700000000000-0", "again");
    source.records(51).await;
    assert_eq!(source.begins.len(), 4, "{:?}", source.begins);
    assert_eq!(source.stop().await.len(), 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_end_begins_another_epoch_at_every_peer() {
    let mut server = RedisServer::start(LOSSY);
    server.add_all("market", 0..100);
    let mut source = start(&server, &["market"], "start = 'beginning'");
    let mut away = start(&server, &["market"], "start = 'beginning'");
    source.records(100).await;
    away.records(100).await;
    server.run::<()>(&["SAVE"]);
    server.add_all("market", 100..150);
    source.records(150).await;
    away.records(150).await;
    let (starts, old) = (away.starts(), source.begins[0].0);
    away.stop().await;
    server.kill();
    source.waiting("cannot connect").await;
    // The ids of lost entries are given again, to others, before anybody can look.
    let lost: Vec<u64> = source.records[100..].iter().map(|record| record.position).collect();
    server.restart();
    let kept = server.log("market");
    assert_eq!(kept.len(), 100, "the server lost what it had confirmed");
    let mut pipe = redis::pipe();
    for (number, position) in lost.iter().enumerate().take(20) {
        let id = format!("{}-{}", (position >> 12) + 1_577_836_800_000, position & 4095);
        pipe.cmd("XADD").arg("market").arg(id).arg("value").arg(format!("new {number}")).ignore();
    }
    pipe.query::<()>(&mut server.connection()).unwrap();
    server.add("market", "*", "newest");
    source.records(171).await;
    let (new, position) = source.begins[1];
    assert_ne!(new, old, "numbers that were seen come again, so the epoch is another");
    assert_eq!(position, position_of(&kept[99].0) + 1, "exactly where it was cut");
    assert!(source.firsts.contains(&new), "nothing of the new epoch was missed");
    let values: Vec<String> =
        (0..20).map(|number| format!("new {number}")).chain(["newest".to_owned()]).collect();
    assert_eq!(source.values("market", 0)[150..], values);
    assert!(source.records[150..].iter().all(|record| record.epoch == new));

    // Who was away finds the entry gone that it read last, and comes to the same epoch.
    let mut back = start_at(starts, &server, &["market"], "");
    back.ends(1).await;
    assert_eq!(back.begins[0].0, new);
    server.add("market", "*", "for both");
    back.until("the last record", |back| back.records.iter().any(|record| record.value == "for both")).await;
    source.records(172).await;
    assert_eq!(back.records.last().map(|r| r.epoch), source.records.last().map(|r| r.epoch));
    source.stop().await;
    back.stop().await;

    // And one that lost all of it.
    let mut source = start(&server, &["market"], "start = 'beginning'");
    source.records(122).await;
    server.kill();
    std::fs::remove_file(server.folder().join("dump.rdb")).unwrap();
    server.restart();
    server.add("market", "*", "after all is lost");
    source.records(123).await;
    assert_ne!(source.begins[1].0, source.begins[0].0);
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_quiet_stream_is_read_again_in_few_steps() {
    let server = RedisServer::start(DURABLE);
    // Two entries within a millisecond, hours of nothing, one entry, and hours of nothing.
    let ids = ["1700000000000-0", "1700000000000-1", "1700010000000-0", "1700030000000-5"];
    for (number, id) in ids.into_iter().enumerate() {
        server.add("quiet", id, &format!("{{\"stream\":\"trades.btc\",\"data\":{number}}}"));
    }
    let mut source = start(&server, &["quiet"], "start = 'beginning'");
    source.records(4).await;
    let epoch = source.begins[0].0;
    let registry = Registry::new();
    let log = Log {
        source: "engine".to_owned(),
        reader: source.reader.clone(),
        routes: Arc::from([]),
        channels: None,
    };
    let stop = CancellationToken::new();
    let rescan =
        Rescan::new(vec![log], Arc::new(HashSet::new()), Arc::default(), 1 << 20, &registry, stop.clone());
    let rescan = rescan.unwrap();
    let (mut from, until) = (position_of(ids[0]), position_of(ids[3]) + 1);
    let mut read = Vec::new();
    while from < until {
        let wanted = Wanted { source: "engine", epoch, topic: "quiet", partition: 0, from, until };
        let part = rescan.read(wanted).await.unwrap();
        assert!(part.next > from, "it goes on");
        from = part.next;
        read.extend(part.iter().map(|event| (event.sequence.get(), event.data.clone(), event.previous)));
    }
    let positions: Vec<u64> = read.iter().map(|(sequence, ..)| *sequence).collect();
    assert_eq!(positions, ids.map(position_of));
    assert!(matches!(read[1].2, Previous::At(before) if before.get() == positions[0]));
    let shown = registry.render();
    let reads = shown.lines().find_map(|line| line.strip_prefix("tickmesh_log_rereads_total ")).unwrap();
    assert!(reads.parse::<u64>().unwrap() <= 4, "hours without an entry are passed over: {reads} reads");
    stop.cancel();
    source.stop().await;
}
