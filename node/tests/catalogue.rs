//! Sources and routes that change while peers run: two ingest peers, an edge, and a real Redis.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests are tests, too"
)]

#[path = "support/node.rs"]
mod node;
#[allow(clippy::duplicate_mod, reason = "the file of each server stands alone")]
#[path = "support/ports.rs"]
mod ports;
#[path = "support/redis.rs"]
mod redis_server;

use std::{
    collections::BTreeMap,
    fs,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{SinkExt, StreamExt};
use node::{DEADLINE, Network, Node, Ports, Role, wait_until};
use ports::free_port;
use redis_server::{DURABLE, RedisServer};
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const INGEST: [&str; 2] = ["ingest-1", "ingest-2"];
const KEYS: [&str; 2] = ["market.x", "market.y"];
/// Changes in the long form of the test, and in `./test`.
const CHANGES: (u32, u32) = (100, 5);
/// Records of a stream before and after, for comparison, and after each change: who watches sees changes, not a storm of commands.
const QUIET: usize = 500;
const BETWEEN: usize = 100;

struct Rig {
    network: Network,
    redis: RedisServer,
    ingest: Vec<Node>,
    edge: Node,
    runtime: Runtime,
}

impl Rig {
    /// `more`: sections of the ingest peers' configurations.
    fn start(more: impl Fn(&RedisServer, &Network) -> String) -> Self {
        let (network, redis) = (Network::new(), RedisServer::start(DURABLE));
        for key in KEYS {
            let () = redis.run(&["XGROUP", "CREATE", key, "nobody", "$", "MKSTREAM"]);
        }
        let publishers = INGEST.map(|name| network.key(name));
        let more = more(&redis, &network);
        let peers = INGEST.map(|name| (name, free_port()));
        let (ingest, bootstrap) = network.start_ingest(peers, &publishers, &more);
        let role = Role {
            name: "edge-1",
            region: "us-east",
            roles: "[\"edge\"]",
            ports: Ports::default(),
            node: "",
            ops: "",
            more: "",
        };
        let edge = network.start(&role, &publishers, &bootstrap);
        let rig = Self { network, redis, ingest, edge, runtime: Runtime::new().unwrap() };
        rig.wait_ready();
        rig
    }

    fn wait_ready(&self) {
        self.ingest.iter().chain([&self.edge]).for_each(Node::wait_ready);
        wait_until("the ingest peers know one another", || {
            self.ingest.iter().all(|node| node.get("/mesh").1.matches("\"boot\"").count() == 2).then_some(())
        });
    }

    fn admin(&self, ingest: usize, arguments: &[&str]) -> Output {
        self.network.admin(&self.ingest[ingest], arguments)
    }

    /// Changes the catalogue, with what is to be added.
    fn change(&self, ingest: usize, add: &str, arguments: &[&str]) -> Result<String, String> {
        fs::write(self.network.folder().join("add.toml"), add).unwrap();
        let output = self.admin(ingest, &[&["change", "--add", "add.toml"], arguments].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn version(&self, ingest: usize) -> f64 {
        self.ingest[ingest].metric("tickmesh_catalogue_version", "")
    }

    fn connect(&self) -> Client {
        let (socket, _) = self.runtime.block_on(connect_async(self.edge.url())).unwrap();
        Client { socket, said: None, latencies: Vec::new(), events: BTreeMap::new() }
    }
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The last message that was no data.
    said: Option<Value>,
    /// Microseconds from the record to here, of the streams whose route does not change.
    latencies: Vec<u64>,
    /// Sequence, previous and data of each stream.
    events: BTreeMap<String, Vec<(u64, Option<u64>, Value)>>,
}

impl Client {
    async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next message that is no data; data is kept.
    async fn control(&mut self) -> Option<Value> {
        let message = timeout(DEADLINE, self.socket.next()).await.expect("the edge says something");
        let Message::Text(text) = message.expect("the connection stays open").unwrap() else { return None };
        let message: Value = serde_json::from_str(&text).unwrap();
        let Some(stream) = message["stream"].as_str() else {
            if message["event"] != "heartbeat" {
                self.said = Some(message.clone());
            }
            return Some(message);
        };
        let event =
            (message["sequence"].as_u64().unwrap(), message["previous"].as_u64(), message["data"].clone());
        if let Some(written) = event.2["t"].as_u64() {
            self.latencies.push(now_us().saturating_sub(written));
        }
        self.events.entry(stream.to_owned()).or_default().push(event);
        None
    }

    /// Subscribes until it is confirmed; the positions.
    async fn subscribe(&mut self, streams: &[&str]) -> Value {
        loop {
            self.send(json!({"action": "subscribe", "id": 1, "streams": streams})).await;
            let answer = loop {
                match self.control().await {
                    Some(answer) if answer["event"] == "subscribed" => break answer,
                    _ => {}
                }
            };
            if answer["rejected"].as_array().unwrap().is_empty() {
                return answer["positions"].clone();
            }
        }
    }

    async fn until(
        &mut self,
        what: &str,
        done: impl Fn(&BTreeMap<String, Vec<(u64, Option<u64>, Value)>>) -> bool,
    ) {
        let receive = async {
            while !done(&self.events) {
                self.control().await;
            }
        };
        if timeout(DEADLINE, receive).await.is_err() {
            let counts: BTreeMap<_, _> = self.events.iter().map(|(of, events)| (of, events.len())).collect();
            panic!("waited in vain until {what}; received so far: {counts:?}; said last: {:?}", self.said);
        }
    }

    fn of(&self, stream: &str) -> &[(u64, Option<u64>, Value)] {
        self.events.get(stream).map_or(&[], Vec::as_slice)
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// The median and the 99th percentile, in milliseconds.
fn shown(mut latencies: Vec<u64>) -> String {
    latencies.sort_unstable();
    let at = |percent: usize| {
        latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)] as f64 / 1000.0
    };
    format!("p50 {:.1} ms, p99 {:.1} ms of {}", at(50), at(99), latencies.len())
}

/// Fails if an event was missed or doubled.
fn assert_linked(stream: &str, events: &[(u64, Option<u64>, Value)]) {
    for pair in events.windows(2) {
        assert_eq!(pair[1].1, Some(pair[0].0), "{stream}: a gap in {pair:?}");
    }
}

/// Writes records to both keys until it is told to stop; how many each has.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Writer {
    fn start(redis: &RedisServer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut connection) = (stop.clone(), redis.connection());
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                for key in KEYS {
                    let value = json!({"k": &key[7..], "n": number, "t": now_us()}).to_string();
                    redis::cmd("XADD").arg(&[key, "*", "value", &value]).exec(&mut connection).unwrap();
                }
                number += 1;
                thread::sleep(Duration::from_millis(2));
            }
            number
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn source(redis: &RedisServer, name: &str, keys: &[&str]) -> String {
    format!(
        "[[source]]\nname = {name:?}\nkind = \"redis\"\nurl = {:?}\nkeys = {keys:?}\nstart = \"beginning\"\n",
        redis.url()
    )
}

/// A route of everything, with a mark in its events.
fn marked(name: &str, mark: u32) -> String {
    format!(
        "[[route]]\nname = {name:?}\nsource = \"engine\"\nchannel = {name:?}\nkey = \".k\"\ndata = '{{n: .n, mark: {mark}}}'\n"
    )
}

const TRADES: &str = "[[route]]\nsource = \"engine\"\nchannel = \"trades\"\nkey = \".k\"\n";

#[test]
fn routes_change_under_load_and_the_others_flow_on() {
    let changes = if std::env::var_os("TICKMESH_CATALOGUE").is_some_and(|form| form == "long") {
        CHANGES.0
    } else {
        CHANGES.1
    };
    let mut rig = Rig::start(|redis, _| source(redis, "engine", &KEYS) + TRADES);
    let writer = Writer::start(&rig.redis);
    rig.change(0, &marked("tail", 0), &[]).unwrap();
    let streams = ["trades.x", "trades.y", "tail.x", "tail.y"];
    // Who stands before the first event of all cannot be given what is no longer in a history.
    let (mut client, positions) = wait_until("every stream has an event", || {
        let mut client = rig.connect();
        let positions = rig.runtime.block_on(client.subscribe(&streams));
        streams.iter().all(|stream| !positions[*stream].is_null()).then_some((client, positions))
    });
    let flow =
        |client: &mut Client, records: usize| {
            let until = client.of("trades.x").len() + records;
            rig.runtime.block_on(client.until("records have come", |events| {
                events.get("trades.x").is_some_and(|of| of.len() >= until)
            }));
        };
    let quiet = |client: &mut Client| {
        client.latencies.clear();
        flow(client, QUIET);
        shown(std::mem::take(&mut client.latencies))
    };
    println!("without changes   {}", quiet(&mut client));
    for mark in 1..=changes {
        // One, then the other, is asked; operators of the rest begin and end as well.
        let candles = if mark % 2 == 1 {
            "[[route]]\nname = \"count\"\nsource = \"engine\"\nchannel = \"count\"\nkey = \".k\"\n\
             ticker = { price = \".n\", quantity = \"1\" }\n"
        } else {
            ""
        };
        let remove: &[&str] = if mark % 2 == 0 { &["--remove-route", "count"] } else { &[] };
        let add = marked("tail", mark) + candles;
        // The client reads on meanwhile, and until something comes by this version.
        let said = thread::scope(|scope| {
            let changed = scope.spawn(|| rig.change(mark as usize % 2, &add, remove));
            rig.runtime.block_on(client.until("the change is seen", |events| {
                ["tail.x", "tail.y"].iter().all(|stream| {
                    events
                        .get(*stream)
                        .and_then(|of| of.last())
                        .is_some_and(|(.., data)| data["mark"] == mark)
                })
            }));
            changed.join().unwrap().unwrap()
        });
        assert!(said.starts_with(&format!("version {}", mark + 1)), "{said}");
        flow(&mut client, BETWEEN);
    }
    println!("{changes} changes   {}", shown(std::mem::take(&mut client.latencies)));
    println!("without changes   {}", quiet(&mut client));
    let records = writer.end();
    rig.runtime.block_on(client.until("all has come", |events| {
        streams.iter().all(|stream| {
            events.get(*stream).and_then(|of| of.last()).is_some_and(|(.., data)| data["n"] == records - 1)
        })
    }));
    for stream in streams {
        let events = client.of(stream);
        assert_linked(stream, events);
        let numbers: Vec<_> = events.iter().map(|(.., data)| data["n"].as_u64().unwrap()).collect();
        let all: Vec<_> = (numbers[0]..records).collect();
        assert_eq!(numbers, all, "{stream}");
        let marks: Vec<_> = events.iter().filter_map(|(.., data)| data["mark"].as_u64()).collect();
        assert!(marks.is_sorted(), "{stream}: {marks:?}");
    }
    assert_eq!([rig.version(0), rig.version(1)], [f64::from(changes) + 1.0; 2]);
    for node in &rig.ingest {
        assert_eq!(node.metric("tickmesh_catalogue_late_total", ""), 0.0);
        assert_eq!(node.metric("tickmesh_catalogue_undecided_total", ""), 0.0);
    }
    // Each peer alone, killed and started again, makes the same of the log.
    for alone in [0, 1] {
        rig.ingest[alone].restart();
        rig.ingest[alone].wait_ready();
        rig.ingest[1 - alone].kill();
        // Nor does the edge remember anything.
        rig.edge.restart();
        rig.edge.wait_ready();
        let mut late = rig.connect();
        rig.runtime.block_on(late.send(json!({"action": "resume", "id": 2, "positions": positions})));
        rig.runtime.block_on(late.until("everything is there again", |events| {
            streams.iter().all(|stream| events.get(*stream).map_or(0, Vec::len) >= client.of(stream).len())
        }));
        for stream in streams {
            assert!(late.of(stream) == client.of(stream), "{stream} is not the same again");
        }
        rig.ingest[1 - alone].restart();
        rig.wait_ready();
        assert_eq!(rig.version(1 - alone), f64::from(changes) + 1.0);
    }
}

#[test]
fn what_is_wrong_is_refused_whole() {
    let mut rig = Rig::start(|redis, _| source(redis, "engine", &KEYS) + TRADES);
    let good = marked("tail", 0);
    let route = |more: &str| {
        format!("[[route]]\nname = \"bad\"\nsource = \"engine\"\nchannel = \"bad\"\nkey = \".k\"\n{more}")
    };
    for (bad, arguments, reason) in [
        (route("data = '{'"), &[][..], "route \"bad\": data:"),
        (route("datum = '.'"), &[], "datum: no such key"),
        (route("retain = \"everything\""), &[], "retain"),
        (route("").replace("engine", "engin"), &[], "no source is named \"engin\""),
        (
            route("").replace("\"bad\"\nkey", "\"trades\"\nretain = \"last\"\nkey"),
            &[],
            "do not agree on channel \"trades\"",
        ),
        (route("").replace("name = \"bad\"\n", ""), &[], "route[1] has no name"),
        ("[node]\nname = \"x\"".into(), &[], "only [[source]] and [[route]] can be changed"),
        (String::new(), &["--remove-route", "nothing"], "no route \"nothing\" is in the catalogue"),
        (
            source(&rig.redis, "engine", &["other"]),
            &[],
            "source \"engine\" is in the peer's configuration file",
        ),
        (
            source(&rig.redis, "more", &["market.x"]) + "password_file = \"../secret\"",
            &[],
            "is not in the folder of the peer's configuration",
        ),
        ("[[source]]\nname = \"more\"\nkind = \"tape\"".into(), &[], "\"tape\" is no kind of source"),
        (
            "[[source]]\nname = \"more\"\nkind = \"kafka\"\nbrokers = \"a:1\"\ntopics = [\"t\"]\n\
             properties = { \"plugin.library.paths\" = \"/tmp/mine.so\" }"
                .into(),
            &[],
            "plugin.library.paths can be set in the peer's configuration file only",
        ),
    ] {
        let refused = rig.change(0, &format!("{good}{bad}"), arguments).unwrap_err();
        assert!(refused.contains(reason), "{refused}");
        let refused =
            rig.change(0, &format!("{good}{bad}"), &[arguments, &["--dry-run"]].concat()).unwrap_err();
        assert!(refused.contains(reason), "{refused}");
    }
    assert_eq!([rig.version(0), rig.version(1)], [0.0, 0.0], "nothing of it was done");
    fs::write(rig.network.folder().join("record.json"), r#"{"k":"x","n":36200.50}"#).unwrap();
    let shown = rig.change(1, &good, &["--dry-run", "--sample", "record.json"]).unwrap();
    assert!(
        shown.contains("tail.x {\"n\":36200.50,\"mark\":0}") && shown.contains("the change could be made"),
        "{shown}"
    );
    assert_eq!([rig.version(0), rig.version(1)], [0.0, 0.0]);

    // Without one of those who have to agree, only if it is meant so.
    rig.ingest[1].kill();
    wait_until("it is missed", || (!rig.ingest[0].get("/mesh").1.contains("\"siblings\":[{")).then_some(()));
    let refused = rig.change(0, &good, &[]).unwrap_err();
    assert!(refused.contains("these are not connected"), "{refused}");
    rig.change(0, &good, &["--without-absent"]).unwrap();
    rig.ingest[1].restart();
    wait_until("it has taken over the change", || (rig.version(1) == 1.0).then_some(()));
}

#[test]
fn files_of_a_folder_are_a_change() {
    let mut rig = Rig::start(|redis, network| {
        let folder = network.folder().join("catalogue.d");
        fs::create_dir(&folder).unwrap();
        let file = source(redis, "engine", &["market.x"]) + &marked("tail", 1);
        fs::write(folder.join("engine.toml"), file).unwrap();
        "[ingest]\ncatalogue = \"catalogue.d\"\n[dead_letters]\ntopic = \"letters\"\n".into()
    });
    rig.redis.add("market.x", "*", r#"{"k":"x","n":0}"#);
    let mut client = rig.connect();
    rig.runtime.block_on(client.subscribe(&["tail.x"]));
    let file = rig.network.folder().join("catalogue.d").join("more.toml");
    // What is wrong changes nothing, and is told.
    fs::write(&file, "[[route]]\nname = \"more\"\n").unwrap();
    let log = || fs::read_to_string(rig.network.folder().join("ingest-1.log")).unwrap();
    wait_until("the fault is told", || {
        log().contains("route \\\"more\\\": source: is missing").then_some(())
    });
    assert_eq!([rig.version(0), rig.version(1)], [0.0, 0.0]);
    // Another source and its route.
    let more = marked("more", 7).replace("engine", "second");
    fs::write(&file, source(&rig.redis, "second", &["market.y"]) + &more).unwrap();
    wait_until("both have it", || (rig.version(0) == 1.0 && rig.version(1) == 1.0).then_some(()));
    rig.redis.add("market.y", "*", r#"{"k":"y","n":1}"#);
    rig.redis.add("market.x", "*", r#"{"k":"x","n":2}"#);
    rig.runtime.block_on(client.subscribe(&["more.y"]));
    rig.redis.add("market.y", "*", r#"{"k":"y","n":3}"#);
    rig.runtime.block_on(client.until("both sources give", |events| {
        let has = |stream: &str, n: u64| {
            events.get(stream).is_some_and(|of| of.iter().any(|(.., data)| data["n"] == n))
        };
        has("more.y", 3) && has("tail.x", 2)
    }));
    let listed = rig.admin(0, &["catalogue"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("name = \"second\"") && !listed.contains("redis://"), "{listed}");
    // An operator does not change what files say.
    let refused = rig.change(0, "", &["--remove-route", "more"]).unwrap_err();
    assert!(refused.contains("is in a file of the peers' folder"), "{refused}");
    // What its route could not take comes back, once that is mended.
    let letters = |command: &str| {
        rig.network.tickmesh(&["dead-letters", command, "--config", "ingest-1.toml", "--source", "second"])
    };
    rig.redis.add("market.y", "*", r#"{"n":5}"#);
    wait_until("it is a dead letter", || letters("list").ends_with("1 letters").then_some(()));
    let mended = more.replace("key = \".k\"", "key = '.k // \"y\"'");
    fs::write(&file, source(&rig.redis, "second", &["market.y"]) + &mended).unwrap();
    wait_until("both have it", || (rig.version(0) == 2.0 && rig.version(1) == 2.0).then_some(()));
    let replayed = letters("replay");
    assert!(replayed.starts_with("1 put back"), "{replayed}");
    rig.runtime.block_on(client.until("it is an event", |events| {
        events.get("more.y").is_some_and(|of| of.iter().any(|(.., data)| data["n"] == 5))
    }));
    // A peer that is killed has it again; and the source goes with its file.
    rig.ingest[0].restart();
    rig.wait_ready();
    assert_eq!(rig.version(0), 2.0);
    fs::remove_file(&file).unwrap();
    wait_until("both have it", || (rig.version(0) == 3.0 && rig.version(1) == 3.0).then_some(()));
    rig.wait_ready();
    assert!(!rig.ingest[0].get("/readyz").1.contains("second"));
    rig.redis.add("market.x", "*", r#"{"k":"x","n":4}"#);
    rig.runtime.block_on(client.until("the other goes on", |events| {
        events.get("tail.x").is_some_and(|of| of.iter().any(|(.., data)| data["n"] == 4))
    }));
}
