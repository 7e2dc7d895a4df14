//! What only NATS has of its source's behaviour, against a real server; the rest is in `sources.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]

#[path = "support/nats.rs"]
mod nats;
#[path = "support/source.rs"]
mod source;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use async_nats::{
    HeaderMap,
    jetstream::{Context, stream},
};
use nats::{NatsServer, USER};
use source::{DEADLINE, Running};
use tickmesh::source::{ReadError, Starts};

const NKEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
/// Its seed, as NATS prints it in its own documents.
const NKEY_SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

fn keys(server: &NatsServer, more: &str) -> String {
    let (url, file) = (server.url(), server.password_file());
    format!("kind = 'nats'\nurl = {url:?}\nstream = 'M'\nuser = {USER:?}\npassword_file = {file:?}\n{more}")
}

fn open(server: &NatsServer, starts: Starts, more: &str) -> Running {
    Running::open(starts, false, &keys(server, more))
}

/// A stream of `m.>` with some more settings.
async fn create(server: &NatsServer, config: stream::Config) -> Context {
    let jetstream = server.jetstream().await;
    let config = stream::Config { name: "M".into(), subjects: vec!["m.>".into()], ..config };
    jetstream.create_stream(config).await.unwrap();
    jetstream
}

async fn publish(jetstream: &Context, subject: &str, value: impl ToString) {
    jetstream.publish(subject.to_owned(), value.to_string().into()).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_no_loss_and_the_subject_is_what_routes_see() {
    let server = NatsServer::start().await;
    let jetstream = create(&server, stream::Config::default()).await;
    for n in 0..10 {
        publish(&jetstream, if n % 3 == 0 { "m.trades.btc" } else { "m.other" }, n).await;
    }
    jetstream.get_stream("M").await.unwrap().delete_message(4).await.unwrap();
    let filter = "subjects = ['m.trades.*', 'm.depth.>']\nstart = 'beginning'";
    let mut source = open(&server, Starts::default(), filter);
    source.ends(1).await;
    assert_eq!(source.read(0), [(1, "0".into()), (7, "6".into()), (10, "9".into())]);
    assert!(source.records.iter().all(|record| &*record.topic == "m.trades.btc"), "{:?}", source.records);
    assert_eq!(&*source.states.values().next().unwrap().topic, "M");
    let again = source.reader.read("M", 0, 0, 10).await.unwrap();
    assert_eq!(format!("{:?}", again.records), format!("{:?}", &source.records[..2]));
    assert_eq!(again.until, 10);

    // What is not for this source is passed, so that its deletion is no loss for who was down meanwhile.
    for n in 10..40 {
        publish(&jetstream, "m.other", n).await;
    }
    source.until("all is passed", |source| source.reached.iter().any(|(_, at)| *at == 41)).await;
    let starts = source.starts();
    source.stop().await;
    jetstream.get_stream("M").await.unwrap().purge().await.unwrap();
    publish(&jetstream, "m.depth.btc.full", 40).await;
    let mut source = open(&server, starts, filter);
    source.records(1).await;
    assert_eq!(source.begins.iter().map(|begin| begin.1).collect::<Vec<_>>(), [41]);
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 0").await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_limits_took_before_it_was_read_is_told() {
    const MESSAGES: u64 = 30_000;
    let server = NatsServer::start().await;
    let jetstream = create(&server, stream::Config::default()).await;
    publish(&jetstream, "m.a", 0).await;
    let mut source = open(&server, Starts::default(), "start = 'beginning'");
    source.records(1).await;
    // Nobody takes events, so the source stands still with some asked for ahead; of the rest all but the last are deleted.
    for from in (1..MESSAGES).step_by(500) {
        let mut answers = Vec::new();
        for n in from..(from + 500).min(MESSAGES) {
            answers.push(jetstream.publish("m.a", n.to_string().into()).await.unwrap());
        }
        for answer in answers {
            answer.await.unwrap();
        }
    }
    jetstream.get_stream("M").await.unwrap().purge().keep(10_u64).await.unwrap();
    source
        .until("the last record", |source| source.records.last().is_some_and(|r| r.position == MESSAGES))
        .await;
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let ((epoch, first), (same, next)) = (source.begins[0], source.begins[1]);
    assert_eq!((first, same, next), (0, epoch, MESSAGES - 9), "on with the oldest, in the same epoch");
    let read = source.read(0);
    let lost = read.windows(2).filter(|pair| pair[0].0 + 1 != pair[1].0).count();
    assert_eq!(lost, 1, "the rest is whole");
    assert!(read.iter().all(|(position, value)| *value == (position - 1).to_string()));
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_stream_is_read_only_where_the_last_event_is_all_that_counts() {
    let server = NatsServer::start().await;
    let compacted = stream::Config { max_messages_per_subject: 1, ..stream::Config::default() };
    let jetstream = create(&server, compacted.clone()).await;
    for n in 0..20 {
        publish(&jetstream, &format!("m.{}", n % 4), n).await;
    }
    let mut refused = open(&server, Starts::default(), "start = 'beginning'");
    refused.waiting("set retain = \"last\" in all routes of this source").await;
    let mut source = Running::open(Starts::default(), true, &keys(&server, "start = 'beginning'"));
    source.ends(1).await;
    let last = [(17, "16"), (18, "17"), (19, "18"), (20, "19")].map(|(at, value)| (at, value.to_owned()));
    assert_eq!(source.read(0), last);
    let mut state = source.states.values().next().unwrap().clone();
    assert_eq!(
        source.reader.read("M", 0, 2, 21).await.unwrap().records.len(),
        4,
        "what is left of the range"
    );
    source.stop().await;
    state.next = 5;
    let mut source = Running::open([&state].into_iter().collect(), true, &keys(&server, ""));
    source.ends(1).await;
    assert_eq!(source.read(0), last);
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 0").await;
    source.stop().await;
    assert!(refused.records.is_empty());
    // The operator mends the stream, and later breaks it again.
    let config = stream::Config { name: "M".into(), subjects: vec!["m.>".into()], ..compacted };
    let whole = stream::Config { max_messages_per_subject: -1, ..config.clone() };
    jetstream.update_stream(whole).await.unwrap();
    refused.records(4).await;
    refused.ready().await;
    jetstream.update_stream(config).await.unwrap();
    refused.waiting("set retain = \"last\"").await;
    refused.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_deletes_what_was_consumed_is_refused() {
    let server = NatsServer::start().await;
    let retention = stream::RetentionPolicy::WorkQueue;
    let jetstream = create(&server, stream::Config { retention, ..stream::Config::default() }).await;
    publish(&jetstream, "m.a", 1).await;
    let source = open(&server, Starts::default(), "start = 'beginning'");
    source.waiting("give it retention \"limits\"").await;
    assert!(source.stop().await.is_empty());
    assert_eq!(
        jetstream.get_stream("M").await.unwrap().cached_info().state.messages,
        1,
        "nothing was consumed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_hold_the_engine_time() {
    let server = NatsServer::start().await;
    let jetstream = create(&server, stream::Config::default()).await;
    for time in ["1700000000123456", "yesterday"] {
        let mut headers = HeaderMap::new();
        headers.insert("Engine-Time", time);
        jetstream.publish_with_headers("m.a", headers, "1".into()).await.unwrap().await.unwrap();
    }
    let more = "start = 'beginning'\ntime_header = 'Engine-Time'";
    let mut source = open(&server, Starts::default(), more);
    source.records(2).await;
    let times: Vec<u64> = source.records.iter().map(|record| record.engine_time_us).collect();
    assert_eq!(times[0], 1_700_000_000_123_456);
    assert!(times[1] > times[0], "the server's, where the header holds none: {times:?}");
    source.stop().await;
}

/// A server that lets in who `authorization` says, and a source with the keys of `login`.
async fn with_login(authorization: &str, login: &str) -> (NatsServer, Running) {
    let mut server = NatsServer::prepare();
    server.restart().await;
    let jetstream = create(&server, stream::Config::default()).await;
    publish(&jetstream, "m.a", 1).await;
    server.kill();
    server.authorize(authorization);
    server.spawn();
    let keys = format!("kind = 'nats'\nstart = 'beginning'\nurl = {:?}\nstream = 'M'\n{login}", server.url());
    let source = Running::open(Starts::default(), false, &keys);
    (server, source)
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    format!("{:?}", path.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_read_from_files_at_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    // A token that is mended while the source runs.
    let token = file(folder.path(), "token", "of yesterday");
    let (_server, mut source) =
        with_login("authorization { token: s3cr3t }", &format!("token_file = {token}")).await;
    source.waiting("the server refuses the credentials").await;
    file(folder.path(), "token", "s3cr3t\n");
    source.records(1).await;
    source.ready().await;
    source.stop().await;

    let seed = file(folder.path(), "seed", NKEY_SEED);
    let authorization = format!("authorization {{ users: [{{ nkey: {NKEY} }}] }}");
    let (_server, mut source) = with_login(&authorization, &format!("nkey_file = {seed}")).await;
    source.records(1).await;
    source.stop().await;

    let (server, source) = with_login("", &format!("credentials_file = {token}")).await;
    source.waiting("holds no credentials as nsc makes them").await;
    let unreadable = source.reader.read("M", 0, 0, 2).await.unwrap_err();
    assert!(
        matches!(&unreadable, ReadError::Unavailable { .. }) && !unreadable.to_string().contains("s3cr3t")
    );
    source.stop().await;
    let missing =
        format!("kind = 'nats'\nurl = {:?}\nstream = 'M'\nnkey_file = '/nowhere/seed'", server.url());
    let source = Running::open(Starts::default(), false, &missing);
    source.waiting("cannot read /nowhere/seed").await;
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_by_its_certificate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        folder.join("server.pem"),
        folder.join("server.key")
    );
    let ca = format!("ca_file = {:?}", folder.join("ca.pem"));
    let (server, mut source) = with_login(&tls, &ca).await;
    source.records(1).await;
    source.stop().await;
    let other = format!(
        "kind = 'nats'\nurl = {:?}\nstream = 'M'\nca_file = {:?}",
        server.url(),
        folder.join("server.pem")
    );
    let source = Running::open(Starts::default(), false, &other);
    source.waiting("certificate").await;
    source.stop().await;
    // With an authority given, a connection without TLS is refused.
    let (_server, source) = with_login("", &ca).await;
    source.waiting("cannot connect").await;
    assert!(source.stop().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_does_not_allow_is_told() {
    let password = tempfile::tempdir().unwrap();
    let login = format!("user = 'reader'\npassword_file = {}", file(password.path(), "password", "reader"));
    let denied = "authorization { users: [{ user: reader, password: reader, permissions: { publish: [\"nothing\"], subscribe: [\"_INBOX.>\"] } }] }";
    let (_server, source) = with_login(denied, &login).await;
    source.waiting("the server says: Permissions Violation for Publish to \"$JS.API.STREAM.INFO.M\"").await;
    source.stop().await;
    let mut server = NatsServer::prepare();
    server.without_jetstream();
    server.spawn();
    let source = Running::open(Starts::default(), false, &keys(&server, ""));
    source.waiting("cannot ask JetStream for the stream").await;
    source.stop().await;
}

/// Publishes again and again, since nobody may listen yet, until it has come.
async fn publish_until_heard(
    server: &NatsServer,
    subject: &'static str,
    value: &'static str,
    source: &mut Running,
) {
    let client = server.client().await;
    let heard = |source: &Running| source.read(0).last().is_some_and(|last| last.1 == value);
    let deadline = Instant::now() + DEADLINE;
    while !heard(source) {
        assert!(Instant::now() < deadline, "{value} does not come; begins {:?}", source.begins);
        client.publish(subject, value.into()).await.unwrap();
        // Not in time: once more.
        let _ = tokio::time::timeout(Duration::from_millis(200), source.until(value, heard)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn core_nats_tells_that_it_keeps_nothing() {
    let mut server = NatsServer::start().await;
    let file = server.password_file();
    let keys = format!(
        "kind = 'nats-core'\nurl = {:?}\nsubject = 'm.>'\nuser = {USER:?}\npassword_file = {file:?}",
        server.url()
    );
    let mut source = Running::open(Starts::default(), false, &keys);
    source.ends(1).await;
    source.ready().await;
    let client = server.client().await;
    for n in 0..100 {
        client.publish(format!("m.{}", n % 3), n.to_string().into()).await.unwrap();
    }
    source.records(100).await;
    assert_eq!(source.read(0), (0..100).map(|n| (n, n.to_string())).collect::<Vec<_>>());
    assert_eq!(&*source.records[5].topic, "m.2");
    let (epoch, topic) = (source.begins[0].0, &*source.states.values().next().unwrap().topic.clone());
    let gone = source.reader.read(topic, 0, 3, 50).await.unwrap_err();
    assert_eq!(gone, ReadError::Trimmed { topic: topic.to_owned(), partition: 0, from: 3, oldest: 100 });
    assert_eq!(source.reader.read(topic, 0, 100, 150).await.unwrap().until, 100);

    server.kill();
    source.waiting("nats 127.0.0.1").await;
    server.restart().await;
    source.ends(2).await;
    assert_eq!(source.begins[1], (epoch, 101), "behind a gap, since nobody knows what was published");
    publish_until_heard(&server, "m.0", "after", &mut source).await;
    assert_eq!(source.read(0)[100], (101, "after".to_owned()));
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let starts = source.starts();
    assert!(source.firsts.is_empty());
    source.stop().await;
    let mut again = Running::open(starts, false, &keys);
    again.ends(1).await;
    assert!(
        again.begins[0].0 != epoch && again.begins[0].1 == 0,
        "another run, another epoch: {:?}",
        again.begins
    );
    again.stop().await;

    server.kill();
    server.authorize(&format!(
        "authorization {{ users: [{{ user: {USER}, password: {USER}, permissions: {{ subscribe: [\"_INBOX.>\"] }} }}] }}"
    ));
    server.spawn();
    let deaf = Running::open(Starts::default(), false, &keys);
    deaf.waiting("the server says: Permissions Violation for Subscription to \"m.>\"").await;
    deaf.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn core_nats_tells_what_a_slow_ingest_missed() {
    const MESSAGES: u64 = 60_000;
    let server = NatsServer::start().await;
    let file = server.password_file();
    let keys = format!(
        "kind = 'nats-core'\nurl = {:?}\nsubject = 'm'\nuser = {USER:?}\npassword_file = {file:?}",
        server.url()
    );
    let mut source = Running::open(Starts::default(), false, &keys);
    source.ends(1).await;
    let client = server.client().await;
    // Nobody takes events: the channel fills, then what the connection holds.
    for n in 0..MESSAGES {
        client.publish("m", n.to_string().into()).await.unwrap();
    }
    client.flush().await.unwrap();
    source.metric("tickmesh_source_errors_total{kind=\"slow\",source=\"engine\"} 1").await;
    source.until("it goes on behind a gap", |source| source.begins.len() > 1).await;
    publish_until_heard(&server, "m", "last", &mut source).await;
    for pair in source.read(0).windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let linked = before.0 + 1 == after.0;
        let values = before.1.parse::<u64>().ok().zip(after.1.parse::<u64>().ok());
        if let Some((before, after)) = values {
            assert_eq!(linked, before + 1 == after, "what is missing is told, and nothing else");
        }
        assert!(linked || source.begins.iter().any(|begin| begin.1 == after.0), "{pair:?}");
    }
    source.stop().await;
}
