//! The Redis source against a real Redis server.

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

use std::time::{Duration, Instant};

use support::{
    redis::{DURABLE, RedisCluster, RedisServer, position_of},
    source::{DEADLINE, Running},
};
use tickmesh::source::{ReadError, Record, Starts};

fn start_at(starts: Starts, server: &RedisServer, keys: &[&str], more: &str) -> Running {
    let table = format!("kind = 'redis'\nurl = {:?}\nkeys = {keys:?}\n{more}", server.url());
    Running::open(starts, false, &table)
}

fn start(server: &RedisServer, keys: &[&str], more: &str) -> Running {
    start_at(Starts::default(), server, keys, more)
}

fn positions(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.position).collect()
}

/// What was read of a key is what the server has, in its order.
fn assert_is_log(server: &RedisServer, source: &Running, key: &str) {
    let log = server.log(key);
    let expected: Vec<(u64, String)> = log.into_iter().map(|(id, value)| (position_of(&id), value)).collect();
    let read: Vec<(u64, String)> = source
        .records
        .iter()
        .filter(|record| &*record.topic == key)
        .map(|record| (record.position, String::from_utf8(record.value.to_vec()).unwrap()))
        .collect();
    assert_eq!(read, expected, "records of {key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_comes_once_in_order_and_can_be_read_again() {
    let server = RedisServer::start(DURABLE);
    server.add("trades", "*", "before the source is up");
    server.add("depth", "*", "before the source is up");
    let mut source = start(&server, &["trades", "depth"], "");
    source.partitions(2).await;
    source.ends(2).await;
    source.ready().await;
    let before_us = tickmesh::ops::metrics::now_us() / 1000 * 1000;
    server.run::<usize>(&["XTRIM", "trades", "MAXLEN", "0"]);
    server.run::<usize>(&["XTRIM", "depth", "MAXLEN", "0"]);
    for part in 0..10 {
        server.add_all("trades", part * 300..(part + 1) * 300);
        server.add_all("depth", part * 200..(part + 1) * 200);
    }
    source.records(5000).await;
    assert_is_log(&server, &source, "trades");
    assert_is_log(&server, &source, "depth");
    assert_eq!(source.begins.len(), 2, "trimming what was read is no loss: {:?}", source.begins);
    assert_ne!(source.begins[0].0, source.begins[1].0, "each key has an epoch of its own");
    assert!(
        source
            .records
            .iter()
            .all(|record| record.engine_time_us >= before_us && record.engine_time_us % 1000 == 0),
        "engine time is the id's"
    );
    source.metric("tickmesh_source_records_total{source=\"engine\"} 5000").await;
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    source.metric("tickmesh_source_brokers_up{source=\"engine\"} 1").await;
    source.metric("tickmesh_source_partitions{source=\"engine\"} 2").await;

    let first: Vec<&Record> = source.records.iter().filter(|record| &*record.topic == "trades").collect();
    let (from, until) = (first[500].position, first[700].position);
    let again = source.reader.read("trades", 0, from, until).await.unwrap();
    assert_eq!(format!("{:?}", again.records), format!("{:?}", &first[500..700]), "the same records");
    let last = first[first.len() - 1].position;
    let tail = source.reader.read("trades", 0, last, last + 9999).await.unwrap();
    assert_eq!((tail.records.len(), tail.until), (1, last + 1), "a range beyond the end gives what is there");
    let beyond = source.reader.read("trades", 0, last + 1, last + 100).await.unwrap();
    assert!(beyond.records.is_empty() && beyond.until == last + 1, "{beyond:?}");
    let unknown = source.reader.read("trades", 1, 0, 10).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: "trades".into(), partition: 1 });
    let unknown = source.reader.read("none", 0, 0, 10).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: "none".into(), partition: 0 });
    server.run::<usize>(&["XTRIM", "trades", "MAXLEN", "100"]);
    let oldest = position_of(&server.log("trades")[0].0);
    let trimmed = source.reader.read("trades", 0, from, until).await.unwrap_err();
    assert_eq!(trimmed, ReadError::Trimmed { topic: "trades".into(), partition: 0, from, oldest });
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_then_up_then_killed_loses_nothing() {
    let mut server = RedisServer::prepare(DURABLE);
    let mut source = start(&server, &["market"], "start = 'beginning'");
    source.waiting(&format!("redis 127.0.0.1:{}: cannot connect", server.port)).await;
    server.restart();
    source.waiting("no key is there of market").await;
    server.add_all("market", 0..2000);
    source.partitions(1).await;
    source.ready().await;
    source.records(700).await;
    for round in 1..4 {
        // In the middle of what somebody writes; what was not confirmed may be there or not.
        let mut connection = server.connection();
        let writer = std::thread::spawn(move || {
            for value in round * 10_000.. {
                let value = value.to_string();
                if support::redis::run::<String>(&mut connection, &["XADD", "market", "*", "value", &value])
                    .is_err()
                {
                    return;
                }
            }
        });
        let count = source.records.len();
        source.records(count + 200).await;
        server.kill();
        writer.join().unwrap();
        source.waiting("cannot connect").await;
        server.restart();
        server.add_all("market", 0..10);
    }
    let count = server.log("market").len();
    source.records(count).await;
    source.ready().await;
    assert_is_log(&server, &source, "market");
    assert_eq!(source.begins.len(), 1, "a reconnect begins nothing anew: {:?}", source.begins);
    assert!(source.registry.render().contains("tickmesh_source_errors_total{kind=\"unreachable\""));
    // With the server gone a stop must not wait for it.
    server.kill();
    source.waiting("cannot connect").await;
    assert_eq!(source.stop().await.len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_it_while_ingest_takes_nothing() {
    let server = RedisServer::start(DURABLE);
    server.add_all("flood", 0..20_000);
    let mut source = start(&server, &["flood"], "start = 'beginning'");
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
    let log: Vec<u64> = server.log("flood").iter().map(|(id, _)| position_of(id)).collect();
    assert_eq!(positions(&records), log[..records.len()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_made_later_are_read_from_their_beginning() {
    let server = RedisServer::start(DURABLE);
    server.add("later.one", "*", "before the source is up");
    server.run::<()>(&["SET", "later.text", "no stream, and no match"]);
    let mut source = start(&server, &["glob:later.*", "named"], "");
    source.ends(1).await;
    server.add("later.two", "*", "later.two");
    server.add("named", "*", "named");
    server.add("unrelated.later.three", "*", "unrelated");
    server.add("later.one", "*", "later.one");
    source.records(3).await;
    let first = |key: &str| source.firsts.contains(&source.states[&(key.into(), 0)].epoch);
    assert!(first("later.two") && first("named"), "from their beginning: {:?}", source.begins);
    for key in ["later.one", "later.two", "named"] {
        assert_eq!(source.values(key, 0), [key]);
    }
    source.metric("tickmesh_source_partitions{source=\"engine\"} 3").await;
    assert_eq!(source.stop().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_and_right_ones_taken_up() {
    const SECRETS: [&str; 2] = ["wr0ng-s3cret", "r1ght-s3cret"];
    let users = "user default off\nuser reader on >r1ght-s3cret ~* +xread +xrange +xinfo|stream +scan\n\
                 user writer on >w ~* +@all\n";
    let server = RedisServer::start(users);
    let mut writer = redis::Client::open(format!("redis://writer:w@127.0.0.1:{}", server.port))
        .and_then(|client| client.get_connection())
        .unwrap();
    let mut add = |value: &str| {
        support::redis::run::<String>(&mut writer, &["XADD", "t", "*", "value", value]).unwrap();
    };
    let file = server.folder().join("password");
    let table = |url: &str, more: &str| {
        format!(
            "kind = 'redis'\nurl = 'redis://{url}127.0.0.1:{}'\nkeys = ['glob:t']\nstart = 'beginning'\n{more}",
            server.port
        )
    };
    let mut source = Running::open(Starts::default(), false, &table("", ""));
    source.waiting("the server wants a user and a password").await;
    source.stop().await;
    add("one");
    std::fs::write(&file, SECRETS[0]).unwrap();
    source = Running::open(Starts::default(), false, &table("reader@", &format!("password_file = {file:?}")));
    source.waiting("the server refuses the user or the password").await;
    let unavailable = source.reader.read("t", 0, 0, 10).await.unwrap_err();
    let shown = format!("{unavailable} {:?} {}", source.health.readiness(), source.registry.render());
    assert!(shown.contains("kind=\"login\""), "{shown}");
    std::fs::write(&file, SECRETS[1]).unwrap();
    source.records(1).await;
    source.ready().await;
    add("two");
    source.records(2).await;
    let shown = format!("{shown} {:?} {}", source.health.readiness(), source.registry.render());
    assert!(SECRETS.iter().all(|secret| !shown.contains(secret)), "{shown}");
    assert_eq!(source.values("t", 0), ["one", "two"], "the user needs no more than is documented");
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_stream_is_told_and_read_when_it_is_one() {
    let server = RedisServer::start(DURABLE);
    server.run::<()>(&["SET", "market", "text"]);
    server.add("orders", "*", "before");
    let mut source = start(&server, &["market", "orders"], "");
    source.waiting("key market: the key holds something that is no stream").await;
    server.add("orders", "*", "others go on");
    source.records(1).await;
    server.run::<usize>(&["DEL", "market"]);
    server.add("market", "*", "a stream");
    source.records(2).await;
    source.ready().await;
    // And the other way.
    server.run::<()>(&["SET", "market", "text"]);
    server.add("orders", "*", "still");
    source.records(3).await;
    source.waiting("key market").await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_cannot_be_numbered_or_lack_their_field_are_dead_letters() {
    let server = RedisServer::start(DURABLE);
    let more = "start = 'beginning'\nkey_field = 'user'\ntime_field = 'us'";
    for (id, fields) in [
        ("7-7", &["value", "before 2020"][..]),
        (
            "1600000000000-4095",
            &["value", "last of its millisecond", "user", "alice", "us", "1600000000000123"],
        ),
        ("1600000000000-4096", &["value", "one too many"]),
        ("1600000000001-0", &["other", "no value"]),
        ("1600000000002-0", &["value", "bad time", "us", "noon"]),
        ("1600000000003-0", &["value", "good"]),
        ("9999999999999-0", &["value", "too late for any sequence"]),
    ] {
        server.run::<String>(&[&["XADD", "t", id][..], fields].concat());
    }
    let mut source = start(&server, &["t"], more);
    source.until("dead letters", |source| source.refused.len() == 5).await;
    assert_eq!(source.values("t", 0), ["last of its millisecond", "good"]);
    let first = &source.records[0];
    assert_eq!(first.position, position_of("1600000000000-4095"));
    assert_eq!((first.key.as_deref(), first.engine_time_us), (Some(&b"alice"[..]), 1_600_000_000_000_123));
    assert_eq!(
        (source.records[1].key.as_deref(), source.records[1].engine_time_us),
        (None, 1_600_000_000_003_000)
    );
    let reasons: Vec<&str> = source.refused.iter().map(|(_, reason)| &**reason).collect();
    for (reason, words) in reasons.iter().zip([
        "7-7 has no position",
        "1600000000000-4096 has no position",
        "1600000000001-0 has no field \"value\"",
        "\"us\" of the entry 1600000000002-0 is no time",
        "9999999999999-0 has no position",
    ]) {
        assert!(reason.contains(words), "{reason:?} does not say {words:?}");
    }
    assert_eq!(source.refused[0].0.value, "before 2020");
    source.ends(1).await;
    let again = source.reader.read("t", 0, 0, 1 << 52).await.unwrap();
    assert_eq!(
        format!("{:?}", again.records),
        format!("{:?}", source.records),
        "records alone are read again"
    );
    // A peer that goes on from here does not take the last one for lost.
    let starts = source.starts();
    source.stop().await;
    server.add("t", "9999999999999-1", "too late again");
    let mut source = start_at(starts, &server, &["t"], more);
    source.until("a dead letter", |source| source.refused.len() >= 2).await;
    assert!(
        source.records.is_empty() && source.begins.len() == 1,
        "{:?} {:?}",
        source.records,
        source.begins
    );
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_checked_against_the_configured_authority() {
    use support::redis::file;
    let (certificate, key, authority) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let server = RedisServer::prepare("");
    // TLS alone, on the port that was chosen.
    let settings = format!(
        "bind 127.0.0.1\nport 0\ntls-port {}\ndir {}\ntls-cert-file {}\ntls-key-file {}\ntls-auth-clients no\nsave \"\"\n",
        server.port,
        server.folder().display(),
        certificate.display(),
        key.display()
    );
    std::fs::write(server.folder().join("redis.conf"), settings).unwrap();
    let mut server = server;
    server.spawn();
    let table = |more: &str| {
        format!(
            "kind = 'redis'\nurl = 'rediss://127.0.0.1:{}'\nkeys = ['t']\nstart = 'beginning'\n{more}",
            server.port
        )
    };
    let source = Running::open(Starts::default(), false, &table(""));
    source.waiting("certificate").await;
    source.stop().await;
    let mut source = Running::open(Starts::default(), false, &table(&format!("ca_file = {authority:?}")));
    source.waiting("no key is there of t").await;
    let (client, authority) =
        (format!("rediss://127.0.0.1:{}", server.port), std::fs::read(&authority).unwrap());
    let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(authority) };
    let mut writer = redis::Client::build_with_tls(client, certificates)
        .and_then(|client| client.get_connection())
        .unwrap();
    support::redis::run::<String>(&mut writer, &["XADD", "t", "*", "value", "secret"]).unwrap();
    source.records(1).await;
    assert_eq!(source.stop().await[0].value, "secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_read_while_its_slots_move() {
    let cluster = RedisCluster::start();
    let urls: Vec<String> = cluster.nodes.iter().map(RedisServer::url).collect();
    // One on each node.
    let keys =
        ["orders.a", "orders.b", "orders.c", "orders.d", "orders.e", "orders.f", "orders.g", "orders.h"];
    let owner = |key: &str| cluster.owner(key).0;
    let add = |key: &str, value: &str| cluster.nodes[owner(key)].add(key, "*", value);
    let nodes: std::collections::BTreeSet<usize> = keys.iter().map(|key| owner(key)).collect();
    assert_eq!(nodes.len(), 3, "the keys are on all nodes");
    keys.iter().for_each(|key| _ = add(key, "first"));
    let table = format!(
        "kind = 'redis'\ncluster = true\nurl = {urls:?}\nkeys = ['glob:orders.*', 'named']\nstart = 'beginning'"
    );
    let mut source = Running::open(Starts::default(), false, &table);
    source.records(8).await;
    add("named", "first");
    source.records(9).await;
    source.metric("tickmesh_source_brokers_up{source=\"engine\"} 3").await;
    let moved = keys[0];
    let to = (owner(moved) + 1) % 3;
    cluster.move_key(moved, to, || {
        // The key is there already, and its slot not yet.
        let mut asking = redis::pipe();
        asking.cmd("ASKING").ignore().cmd("XADD").arg(moved).arg("*").arg("value").arg("on the way").ignore();
        asking.query::<()>(&mut cluster.nodes[to].connection()).unwrap();
    });
    assert_eq!(owner(moved), to);
    add(moved, "elsewhere");
    source.records(11).await;
    assert_eq!(source.values(moved, 0), ["first", "on the way", "elsewhere"]);
    assert_eq!(source.begins.len(), 9, "moving begins nothing anew: {:?}", source.begins);
    let again = source.reader.read(moved, 0, 0, 1 << 52).await.unwrap();
    assert_eq!(again.records.len(), 3, "read again at another node");
    source.ready().await;
    source.stop().await;
}
