//! What an ingest peer makes of a core: Kafka → route, jq, sequence, sign, publish to an edge, as fast as it goes; beside it a bare
//! rdkafka consumer that only counts the same records. Rounds take turns in one run, each reader is a process of its own, and what is
//! compared is the CPU that each takes for a record, as the broker, the edge and a client need their share of the machine.
//!
//! The rows after it say which threads of the peer took it. Needs Java and Kafka's jars: `./test` fetches them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark stops at any fault"
)]

#[path = "../tests/support/kafka.rs"]
mod kafka;
#[path = "../tests/support/node.rs"]
mod node;

use std::{
    collections::BTreeMap,
    env, fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kafka::KafkaBroker;
use node::{Network, Node, Ports, Role, wait_until};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use tokio::runtime::Runtime;

const TOPIC: &str = "market.trades";
const PARTITIONS: usize = 4;
const SYMBOLS: usize = 16;
const ROUNDS: usize = 3;
const RECORDS: usize = 200_000;
/// Read before anything is measured.
const WARMING: usize = 2_000;

/// Where the bare consumer finds the broker and the offset from which it reads each partition.
const TASK: &str = "INGEST_BARE_CONSUMER";

const ROUTE: &str = "[[route]]\nsource = \"engine\"\ntopic = \"market.trades\"\nchannel = \"trades\"\nkey = '.symbol | ascii_downcase'\n\
                     data = '{price: .p, quantity: .q, side, timestamp: .t}'\n";

fn main() {
    if let Ok(task) = env::var(TASK) {
        return count(&task);
    }
    let rig = Rig::start();
    rig.produce(0, WARMING);
    rig.wait_published(WARMING);
    let (mut bare, mut ingest) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let written = WARMING + round * RECORDS;
        let (before, begun) = (threads(rig.ingest.pid()), Instant::now());
        rig.produce(written, RECORDS);
        rig.wait_published(written + RECORDS);
        let took = begun.elapsed();
        let used = since(&before, &threads(rig.ingest.pid()));
        println!("round={round} reader=tickmesh records={RECORDS} took_ms={}", took.as_millis());
        ingest.push(used);
        bare.push(rig.count_bare(written / PARTITIONS));
    }
    rig.wait_delivered(WARMING + ROUNDS * RECORDS);
    report(&mut bare, &ingest);
}

/// Medians, in microseconds of CPU for each record.
fn report(bare: &mut [f64], ingest: &[BTreeMap<String, u64>]) {
    let per_record = |nanoseconds: u64| nanoseconds as f64 / 1000.0 / RECORDS as f64;
    let median = |figures: &mut [f64]| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let mut names: Vec<&String> = ingest.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    for name in names {
        let mut of_thread: Vec<_> =
            ingest.iter().map(|round| per_record(round.get(name).copied().unwrap_or(0))).collect();
        println!("thread={name} cpu_us_per_record={:.2}", median(&mut of_thread));
    }
    let mut whole: Vec<_> = ingest.iter().map(|round| per_record(round.values().sum())).collect();
    let (bare, whole) = (median(bare), median(&mut whole));
    println!(
        "ingest bare_cpu_us={bare:.2} tickmesh_cpu_us={whole:.2} bare_records_per_core_s={:.0} tickmesh_records_per_core_s={:.0} ratio={:.3}",
        1e6 / bare,
        1e6 / whole,
        bare / whole
    );
}

struct Rig {
    broker: KafkaBroker,
    ingest: Node,
    edge: Node,
    client: Child,
    _network: Network,
}

impl Rig {
    fn start() -> Self {
        let broker = KafkaBroker::start();
        Runtime::new().unwrap().block_on(broker.create_topic(TOPIC, PARTITIONS as i32));
        let network = Network::new();
        let publishers = [network.key("ingest-1")];
        network.key("edge-1");
        let source = format!(
            "[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {:?}\ntopics = [{TOPIC:?}]\nstart = \"end\"\n{ROUTE}",
            broker.bootstrap()
        );
        let role = |name, roles, more| Role {
            name,
            region: "eu-west",
            roles,
            ports: Ports::default(),
            node: "",
            ops: "",
            more,
        };
        let ingest = network.start(&role("ingest-1", "[\"ingest\"]", &source), &publishers, &[]);
        let bootstrap = [ingest.mesh.clone()];
        let edge = network.start(&role("edge-1", "[\"edge\"]", ""), &publishers, &bootstrap);
        [&ingest, &edge].into_iter().for_each(Node::wait_ready);
        let streams: Vec<_> = (0..SYMBOLS).map(|symbol| format!("trades.s{symbol}_usdt")).collect();
        let client = Command::new(env!("CARGO_BIN_EXE_tickmesh"))
            .args(["client", "--url", &edge.url(), "--subscribe"])
            .args(&streams)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("all is subscribed", || {
            (edge.metric("tickmesh_subscriptions", "") >= SYMBOLS as f64).then_some(())
        });
        Self { broker, ingest, edge, client, _network: network }
    }

    /// Writes records, the same number to each partition.
    fn produce(&self, from: usize, records: usize) {
        let mut client = self.broker.client();
        client.set("linger.ms", "5").set("compression.type", "lz4");
        let producer = kafka::KafkaProducer::new(&client);
        for number in from..from + records {
            let symbol = number % SYMBOLS;
            let value = format!(
                r#"{{"symbol":"S{symbol}_USDT","p":"36{:03}.50","q":"1.{:03}","side":"buy","id":{number},"t":1724548381123,"fee":"0.0001"}}"#,
                number % 1000,
                number % 997
            );
            producer.send(TOPIC, (symbol % PARTITIONS) as i32, Some(&value));
        }
        producer.flush();
    }

    fn wait_published(&self, records: usize) {
        wait_until("all is published", || {
            (self.ingest.metric("tickmesh_events_published_total", "") >= records as f64).then_some(())
        });
    }

    /// Nothing of it was in vain.
    fn wait_delivered(&self, records: usize) {
        wait_until("all is delivered", || {
            (self.edge.metric("tickmesh_events_delivered_total", "") >= records as f64).then_some(())
        });
    }

    /// Microseconds of CPU that a bare consumer takes for a record.
    fn count_bare(&self, from: usize) -> f64 {
        let task = format!("{} {from}", self.broker.bootstrap());
        let output = Command::new(env::current_exe().unwrap()).env(TASK, task).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        print!("{said}");
        said.trim().rsplit_once('=').unwrap().1.parse().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The bare consumer: a child process that reads what there is from an offset on, with librdkafka's own settings.
fn count(task: &str) {
    let (brokers, from) = task.split_once(' ').unwrap();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "bare").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS as i32 {
        list.add_partition_offset(TOPIC, partition, Offset::Offset(from.parse().unwrap())).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (begun, mut counted) = (Instant::now(), 0);
    while counted < RECORDS {
        let message = consumer.poll(Duration::from_secs(10)).expect("the log goes on");
        message.unwrap();
        counted += 1;
    }
    let took = begun.elapsed();
    let used: u64 = threads(std::process::id()).values().sum();
    println!(
        "reader=bare records={counted} took_ms={} cpu_us_per_record={:.3}",
        took.as_millis(),
        used as f64 / 1000.0 / RECORDS as f64
    );
}

/// Nanoseconds of CPU that each thread of a process has used, by its name; those of one name together.
fn threads(pid: u32) -> BTreeMap<String, u64> {
    let mut used = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // A thread may end meanwhile.
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let name =
            read("comm").trim_end().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        let nanoseconds: u64 =
            read("schedstat").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        *used.entry(name).or_default() += nanoseconds;
    }
    used
}

fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let used = |(name, used): (&String, &u64)| {
        (name.clone(), used.saturating_sub(before.get(name).copied().unwrap_or(0)))
    };
    after.iter().map(used).filter(|(_, used)| *used > 0).collect()
}
