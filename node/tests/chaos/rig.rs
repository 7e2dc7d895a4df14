//! A broker, a cluster, a load and clients, and how one fault after the other is measured on them.

use std::{
    env, mem, thread,
    time::{Duration, Instant},
};

use crate::{
    checker::Findings,
    cluster::{Cluster, Counts, cpu_seconds},
    load::{Load, PARTITIONS, TOPIC},
    report::{HEAD, Row},
    watcher::{Watcher, Watchers},
};
use crate::{
    kafka::KafkaBroker,
    node::{DEADLINE, wait_until},
};

/// Records per second, over all streams.
pub const RATE: u64 = 5_000;

const CLIENTS_PER_EDGE: usize = 2;

/// How long each fault goes on and how often: short with `./test`, as written in the requirements with `./test long`.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub kills: usize,
    pub outage: Duration,
    pub frozen: Duration,
    pub quiet: Duration,
}

impl Form {
    /// From the environment: `TICKMESH_CHAOS=long`, and `TICKMESH_CHAOS_KILLS` for another number of kills.
    pub fn from_env() -> Self {
        let seconds = Duration::from_secs;
        let mut form = match env::var("TICKMESH_CHAOS").as_deref() {
            Ok("long") => Self { kills: 100, outage: seconds(30), frozen: seconds(10), quiet: seconds(60) },
            _ => Self { kills: 5, outage: seconds(5), frozen: seconds(10), quiet: seconds(10) },
        };
        if let Ok(kills) = env::var("TICKMESH_CHAOS_KILLS") {
            form.kills = kills.parse().expect("TICKMESH_CHAOS_KILLS is a number");
        }
        form
    }
}

pub struct Rig {
    pub form: Form,
    pub cluster: Cluster,
    pub load: Load,
    pub broker: KafkaBroker,
    pub clients: Vec<Watcher>,
    watchers: Watchers,
    rows: Vec<Row>,
    /// Said by the fault that is going on.
    notes: Vec<String>,
    /// Edges whose clients may lose their connections in the fault that is going on.
    restarted_edges: Vec<usize>,
    next_client: usize,
}

/// What was counted at one time.
struct Mark {
    at: Instant,
    all: Counts,
    edges: Counts,
    found: Vec<Findings>,
    connections: Vec<u64>,
    broker_cpu: f64,
    own_cpu: f64,
}

impl Rig {
    pub fn start(ingest_peers: usize) -> Self {
        let form = Form::from_env();
        let broker = KafkaBroker::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(broker.create_topic(TOPIC, PARTITIONS));
        let cluster = Cluster::start(&broker.bootstrap(), ingest_peers);
        for ingest in &cluster.ingest {
            ingest.node.wait_ready();
        }
        let load = Load::start(broker.client());
        let mut rig = Self {
            form,
            cluster,
            load,
            broker,
            clients: Vec::new(),
            watchers: Watchers::new(),
            rows: Vec::new(),
            notes: Vec::new(),
            restarted_edges: Vec::new(),
            next_client: 0,
        };
        for edge in 0..rig.cluster.edges.len() {
            for _ in 0..CLIENTS_PER_EDGE {
                rig.new_client(edge);
            }
        }
        println!(
            "{ingest_peers} ingest peers, {} edges, {RATE} events/s; {form:?}\n{HEAD}",
            rig.cluster.edges.len()
        );
        rig
    }

    /// Connects another client and waits until its subscriptions are confirmed.
    pub fn new_client(&mut self, edge: usize) {
        let client = self.begin_client(edge);
        wait_until("a client is subscribed", || client.is_subscribed().then_some(()));
    }

    /// Connects another client.
    pub fn begin_client(&mut self, edge: usize) -> Watcher {
        let member = &self.cluster.edges[edge];
        self.next_client += 1;
        let name = format!("client {} of {}", self.next_client, member.name);
        let client = self.watchers.follow(name, member.node.url());
        self.clients.push(client.clone());
        client
    }

    /// Clients of this edge may lose their connections in the fault that is going on.
    pub fn expect_disconnects(&mut self, edge: usize) {
        self.restarted_edges.push(edge);
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Lets the load go on for a while, as part of a fault.
    pub fn go_on(&self, time: Duration) {
        thread::sleep(time);
    }

    /// Does something to the cluster under load, waits until the clients have everything, and adds a row to the table.
    /// Only the faults that `TICKMESH_CHAOS_ONLY` is a part of, if it is set.
    pub fn fault(&mut self, name: &str, fault: impl FnOnce(&mut Self)) {
        if env::var("TICKMESH_CHAOS_ONLY").is_ok_and(|only| !name.contains(&only)) {
            return;
        }
        let before = self.mark();
        self.load.set_rate(RATE);
        fault(self);
        let behind = self.catch_up();
        let after = self.mark();
        let row = self.row(name, &before, &after, behind);
        println!("{row}");
        self.rows.push(row);
    }

    /// Waits until all clients have what was written so far; how much is missing if they do not get it.
    pub fn catch_up(&self) -> u64 {
        let written = self.load.written();
        let behind = || self.clients.iter().map(|client| client.behind(&written)).sum();
        let end = Instant::now() + DEADLINE;
        loop {
            let left = behind();
            if left == 0 || Instant::now() > end {
                return left;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The longest pause of any client in a span.
    pub fn longest_pause(&self, from: Instant, until: Instant) -> Duration {
        self.clients.iter().map(|client| client.longest_pause(from, until)).max().unwrap_or_default()
    }

    /// Lets the log end, and fails unless everything was right all the time.
    pub fn finish(mut self) {
        self.fault("the log falls silent", |rig| rig.load.set_rate(0));
        for client in &self.clients {
            let found = client.findings();
            for story in &found.stories {
                println!("{}: {story}", client.name);
            }
        }
        let wrong: Vec<&str> =
            self.rows.iter().filter(|row| !row.is_lossless()).map(|row| &*row.fault).collect();
        if !wrong.is_empty() {
            let logs = self.cluster.keep_logs();
            panic!("not lossless: {wrong:?}; the peers' logs are in {}", logs.display());
        }
    }

    fn mark(&mut self) -> Mark {
        Mark {
            at: Instant::now(),
            all: self.cluster.counts(),
            edges: self.cluster.edge_counts(),
            found: self.clients.iter().map(Watcher::findings).collect(),
            connections: self.clients.iter().map(Watcher::connections).collect(),
            broker_cpu: self.broker.pid().map(cpu_seconds).unwrap_or_default(),
            own_cpu: cpu_seconds(std::process::id()),
        }
    }

    fn row(&mut self, name: &str, before: &Mark, after: &Mark, behind: u64) -> Row {
        let mut found = Findings::default();
        for (index, now) in after.found.iter().enumerate() {
            let nothing = Findings::default();
            found.add_since(now, before.found.get(index).unwrap_or(&nothing));
        }
        let restarted: Vec<String> = mem::take(&mut self.restarted_edges)
            .iter()
            .map(|edge| self.cluster.edges[*edge].name.clone())
            .collect();
        // A client that is new in this fault connects once.
        let earlier = before.connections.iter().copied().chain(std::iter::repeat(1));
        let disconnected = after.connections.iter().zip(earlier).zip(&self.clients);
        let disconnected = disconnected
            .filter(|(_, client)| !restarted.iter().any(|edge| client.name.ends_with(edge)))
            .map(|((now, before), _)| now.saturating_sub(before))
            .sum();
        let seconds = (after.at - before.at).as_secs_f64();
        let edges = after.edges.since(&before.edges);
        let all = after.all.since(&before.all);
        let cores = vec![
            ("ingest", (all.cpu_seconds - edges.cpu_seconds) / seconds),
            ("edges", edges.cpu_seconds / seconds),
            ("kafka", (after.broker_cpu - before.broker_cpu) / seconds),
            ("test", (after.own_cpu - before.own_cpu) / seconds),
        ];
        Row {
            fault: name.into(),
            seconds,
            found,
            behind,
            longest_pause: self.longest_pause(before.at, after.at),
            disconnected,
            dead: self.cluster.dead(),
            all,
            edges,
            cores,
            notes: mem::take(&mut self.notes).join("; "),
        }
    }
}
