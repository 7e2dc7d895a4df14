//! `tickmesh client` comes back by itself: with processes that are killed under it, and tokens that expire.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod support {
    pub mod client;
    pub mod node;
}

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{
    client::{Client, assert_linked},
    node::{Network, Node, Ports, Role, wait_until},
};

const STREAMS: [&str; 2] = ["trades.btc_usdt", "depth.btc_usdt"];

fn market() -> String {
    let origin_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    format!(
        "[[source]]\nname = \"market\"\nkind = \"embedded\"\nsymbols = [\"btc_usdt\"]\nrate = 200\norigin = {origin_ms}\n"
    )
}

fn role<'a>(name: &'a str, region: &'a str, roles: &'a str, more: &'a str) -> Role<'a> {
    Role { name, region, roles, ports: Ports::default(), node: "", ops: "", more }
}

/// A running `tickmesh client`. Killed when dropped.
struct Follower {
    child: Child,
    events: PathBuf,
    said: PathBuf,
}

impl Follower {
    /// With files of this name for what it prints.
    fn start(folder: &Path, name: &str, urls: &[String], arguments: &[&str]) -> Self {
        let (events, said) = (folder.join(format!("{name}.events")), folder.join(format!("{name}.said")));
        let child = Command::new(env!("CARGO_BIN_EXE_tickmesh"))
            .current_dir(folder)
            .args(["client", "--format", "json"])
            .args(urls.iter().flat_map(|url| ["--url", url]))
            .args(arguments)
            .arg("--subscribe")
            .args(STREAMS)
            .stdout(File::create(&events).unwrap())
            .stderr(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        Self { child, events, said }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// What it has printed: sequences by stream, in their order.
    fn events(&self) -> BTreeMap<String, Vec<u64>> {
        let mut events: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let text = fs::read_to_string(&self.events).unwrap();
        // The last line may still be in the making.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let event: Value = serde_json::from_str(line).unwrap();
            let stream = event["stream"].as_str().unwrap().to_owned();
            events.entry(stream).or_default().push(event["sequence"].as_u64().unwrap());
        }
        events
    }

    /// Waits until it has printed so many events of each stream.
    fn wait_for_events(&self, count: usize) {
        wait_until(&format!("the client prints {count} events of each stream"), || {
            let events = self.events();
            STREAMS.iter().all(|stream| events.get(*stream).is_some_and(|of| of.len() >= count)).then_some(())
        });
    }

    fn wait_until_says(&self, words: &str) {
        wait_until(&format!("the client says {words:?}"), || self.said().contains(words).then_some(()));
    }

    fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.ended()
    }

    fn ended(&mut self) -> ExitStatus {
        wait_until("the client ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_edge_is_killed_goes_on_at_another_and_after_its_own_end() {
    let network = Network::new();
    let publishers = [network.key("ingest-1")];
    for edge in ["eu-1", "us-1", "ap-1"] {
        network.key(edge);
    }
    let role = |name, region, roles, more| Role {
        name,
        region,
        roles,
        ports: Ports::default(),
        node: "",
        ops: "",
        more,
    };
    let market = market();
    let ingest = network.start(&role("ingest-1", "eu-west", "[\"ingest\"]", &market), &publishers, &[]);
    let [mut eu, us, ap]: [Node; 3] = [("eu-1", "eu-west"), ("us-1", "us-east"), ("ap-1", "ap-northeast")]
        .map(|(name, region)| {
            let edge = role(name, region, "[\"edge\"]", "");
            network.start(&edge, &publishers, std::slice::from_ref(&ingest.mesh))
        });
    let mut witness = Client::connect(&ap.url()).await;
    witness.subscribe_until_confirmed(&STREAMS).await;

    let urls = [eu.url(), us.url()];
    let resume = ["--resume", "positions.json"];
    let mut first = Follower::start(network.folder(), "first", &urls, &resume);
    first.wait_for_events(20);
    eu.kill();
    first.wait_until_says("connected to us-1");
    let printed = first.events().values().map(Vec::len).max().unwrap();
    first.wait_for_events(printed + 20);
    assert!(first.terminate().success(), "{}", first.said());
    assert!(first.said().contains("resumed 2 streams"), "{}", first.said());

    // What comes while it does not run.
    let counts = witness.events.values().map(Vec::len).max().unwrap_or_default();
    let more = |events: &BTreeMap<String, Vec<_>>| events.values().all(|of| of.len() > counts + 20);
    witness.receive_until("the market goes on", more).await;
    let mut second = Follower::start(network.folder(), "second", &urls, &resume);
    second.wait_for_events(40);
    assert!(second.terminate().success(), "{}", second.said());

    for stream in STREAMS {
        let mut printed = first.events().remove(stream).unwrap();
        printed.extend(second.events().remove(stream).unwrap());
        let (from, to) = (printed[0], *printed.last().unwrap());
        let reaches = |events: &BTreeMap<String, Vec<support::client::Received>>| {
            events.get(stream).and_then(|of| of.last()).is_some_and(|last| last.sequence >= to)
        };
        witness.receive_until("the witness has seen as much", reaches).await;
        assert_linked(stream, &witness.events[stream]);
        let seen = witness.events[stream].iter().map(|event| event.sequence);
        let seen: Vec<u64> = seen.filter(|sequence| (from..=to).contains(sequence)).collect();
        assert_eq!(printed, seen, "{stream}");
    }
}

#[test]
fn a_token_file_is_read_again_and_without_a_new_token_the_end_is_told() {
    let network = Network::new();
    let folder = network.folder();
    fs::write(folder.join("jwt.secret"), "a secret of thirty-two bytes or so").unwrap();
    let token = |file: &str, life: &str| {
        let made = Command::new(env!("CARGO_BIN_EXE_tickmesh"))
            .current_dir(folder)
            .args(["token", "--sub", "alice", "--secret-file", "jwt.secret", "--ttl", life])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::write(folder.join(file), made.stdout).unwrap();
    };
    let auth = "[auth.jwt]\nalgorithm = \"HS256\"\nsecret_file = \"jwt.secret\"\nleeway = \"1s\"\n";
    let publishers = [network.key("ingest-1")];
    network.key("edge-1");
    let market = market();
    let ingest = network.start(&role("ingest-1", "eu-west", "[\"ingest\"]", &market), &publishers, &[]);
    let edge = role("edge-1", "eu-west", "[\"edge\"]", auth);
    let node = network.start(&edge, &publishers, std::slice::from_ref(&ingest.mesh));

    // Both are warned at once: the edge does so a minute before the end.
    token("renewed.token", "50s");
    token("forgotten.token", "10s");
    let urls = [node.url()];
    let mut renewed = Follower::start(folder, "renewed", &urls, &["--token-file", "renewed.token"]);
    let mut forgotten = Follower::start(folder, "forgotten", &urls, &["--token-file", "forgotten.token"]);
    renewed.wait_until_says("the token expires soon");
    token("renewed.token", "1h");
    renewed.wait_until_says("the new token is accepted");
    let printed = renewed.events().values().map(Vec::len).max().unwrap_or_default();
    renewed.wait_for_events(printed + 5);
    assert!(renewed.terminate().success(), "{}", renewed.said());
    assert_eq!(renewed.said().matches("connected to").count(), 1, "in session: {}", renewed.said());

    assert!(!forgotten.ended().success());
    assert!(forgotten.said().contains("closed with 4401"), "{}", forgotten.said());
    assert!(!forgotten.said().contains("eyJ"), "no token is shown: {}", forgotten.said());
}
