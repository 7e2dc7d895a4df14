//! A broker, a cluster, a load and clients, and how one fault after the other is measured on them.

use std::{
    env, mem, thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

use crate::{
    checker::Findings,
    cluster::{Cluster, Counts, cpu_seconds},
    load::{Load, PARTITIONS, TOPIC, private, streams},
    report::{HEAD, Row},
    watcher::{Watcher, Watchers},
};
use crate::{kafka::KafkaBroker, node::wait_until};

/// How long clients may take to get what they have missed: all that was written in the longest outage.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is left of each partition where older records are deleted.
const KEPT_RECORDS: u64 = 50_000;

const CLIENTS_PER_EDGE: usize = 2;

/// How long each fault goes on and how often. Short, with what unoptimized peers carry on two cores; or long, with optimized
/// ones.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub long: bool,
    /// Records per second, over all streams.
    pub rate: u64,
    /// How often they are written.
    pub beat: Duration,
    pub kills: usize,
    pub outage: Duration,
    pub frozen: Duration,
    pub quiet: Duration,
}

impl Form {
    /// From the environment: `TICKMESH_CHAOS=long`; `TICKMESH_CHAOS_KILLS` and `TICKMESH_CHAOS_RATE` for other numbers.
    pub fn from_env() -> Self {
        let seconds = Duration::from_secs;
        let long = env::var("TICKMESH_CHAOS").is_ok_and(|form| form == "long");
        let (rate, beat, kills, outage, quiet) =
            if long { (5_000, 2, 100, 30, 60) } else { (1_000, 10, 5, 5, 4) };
        let number = |name: &str, default: u64| {
            env::var(name)
                .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
        };
        Self {
            long,
            rate: number("TICKMESH_CHAOS_RATE", rate),
            beat: Duration::from_millis(beat),
            kills: number("TICKMESH_CHAOS_KILLS", kills) as usize,
            outage: seconds(outage),
            frozen: seconds(10),
            quiet: seconds(quiet),
        }
    }
}

pub struct Rig {
    pub form: Form,
    pub cluster: Cluster,
    pub load: Load,
    pub broker: KafkaBroker,
    pub clients: Vec<Watcher>,
    watchers: Watchers,
    runtime: Runtime,
    rows: Vec<Row>,
    /// Said by the fault that is going on.
    notes: Vec<String>,
    /// Edges whose clients may lose their connections in the fault that is going on.
    restarted_edges: Vec<usize>,
    clients_made: usize,
    /// What clients found that were ended in the fault that is going on.
    gone: Findings,
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
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(broker.create_topic(TOPIC, PARTITIONS));
        let cluster = Cluster::start(&broker.bootstrap(), ingest_peers);
        for ingest in &cluster.ingest {
            ingest.node.wait_ready();
        }
        let load = Load::start(broker.client(), form.beat);
        let mut rig = Self {
            form,
            cluster,
            load,
            broker,
            clients: Vec::new(),
            watchers: Watchers::new(),
            runtime,
            rows: Vec::new(),
            notes: Vec::new(),
            restarted_edges: Vec::new(),
            clients_made: 0,
            gone: Findings::default(),
        };
        for edge in 0..rig.cluster.edges.len() {
            for _ in 0..CLIENTS_PER_EDGE {
                rig.new_client(edge);
            }
        }
        println!("{ingest_peers} ingest peers, {} edges; {form:?}\n{HEAD}", rig.cluster.edges.len());
        rig
    }

    /// Connects another client, which then subscribes by itself.
    pub fn new_client(&mut self, edge: usize) {
        self.new_client_of(edge, streams());
    }

    /// Connects another client, which then subscribes to these streams by itself.
    pub fn new_client_of(&mut self, edge: usize, streams: Vec<String>) {
        let member = &self.cluster.edges[edge];
        self.clients_made += 1;
        let name = format!("client {} of {}", self.clients_made, member.name);
        self.clients.push(self.watchers.follow(name, vec![member.node.url()], "watcher", streams));
    }

    /// Connects a client for each user with private streams, which go from edge to edge.
    pub fn new_roamers(&mut self) {
        let urls: Vec<_> = self.cluster.edges.iter().map(|edge| edge.node.url()).collect();
        for (stream, user) in private() {
            let names = streams().into_iter().chain([stream]).collect();
            let name = format!("roaming {user}");
            self.clients.push(self.watchers.follow(name, urls.clone(), &user, names));
        }
    }

    /// The edge at which the first of them is.
    pub fn edge_of_roamers(&self) -> Option<usize> {
        self.clients.iter().find(|client| client.roams()).map(Watcher::at)
    }

    /// Waits until the subscriptions of all clients are confirmed.
    pub fn wait_subscribed(&self) {
        for client in &self.clients {
            wait_until("a client is subscribed", || client.is_subscribed().then_some(()));
        }
    }

    /// Waits until the clients that roam have left an edge and are subscribed at another.
    pub fn wait_resumed(&self, left: usize) {
        for client in self.clients.iter().filter(|client| client.roams()) {
            let resumed = || client.at() != left && client.is_subscribed();
            wait_until("a client has resumed", || resumed().then_some(()));
        }
    }

    /// Ends the clients that were added in the fault that is going on; what they found is kept.
    pub fn drop_clients(&mut self) {
        let first = self.cluster.edges.len() * CLIENTS_PER_EDGE;
        for client in self.clients.split_off(first) {
            client.end();
            self.gone.add_since(&client.findings(), &Findings::default());
        }
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
        self.always(name, fault);
    }

    fn always(&mut self, name: &str, fault: impl FnOnce(&mut Self)) {
        let before = self.mark();
        self.load.set_rate(self.form.rate);
        fault(self);
        let behind = self.catch_up();
        let after = self.mark();
        let row = self.row(name, &before, &after, behind);
        println!("{row}");
        self.rows.push(row);
    }

    /// Deletes the older part of the log, as retention does.
    pub fn trim_log(&self) {
        self.catch_up();
        for (partition, written) in self.load.partitions().into_iter().enumerate() {
            let before = i64::try_from(written.saturating_sub(KEPT_RECORDS)).expect("an offset");
            self.runtime.block_on(self.broker.delete_records(TOPIC, partition as i32, before));
        }
    }

    /// Waits until all clients have what was written so far; how much is missing if they do not get it.
    pub fn catch_up(&self) -> u64 {
        self.catch_up_of(|_| true)
    }

    /// The same for those that roam alone.
    pub fn catch_up_of_roamers(&self) -> u64 {
        self.catch_up_of(Watcher::roams)
    }

    fn catch_up_of(&self, who: impl Fn(&Watcher) -> bool) -> u64 {
        let written = self.load.written();
        let of = || self.clients.iter().filter(|client| who(client));
        let behind = || of().map(|client| client.behind(&written)).sum();
        let end = Instant::now() + PATIENCE;
        loop {
            let left = behind();
            if left == 0 || Instant::now() > end {
                return left;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets the load go on after it was silent.
    pub fn end_silence(&self) {
        for client in &self.clients {
            client.silence_is_over();
        }
        self.load.set_rate(self.form.rate);
    }

    /// The longest pause of any client in a span.
    pub fn longest_pause(&self, from: Instant, until: Instant) -> Duration {
        self.clients.iter().map(|client| client.longest_pause(from, until)).max().unwrap_or_default()
    }

    /// Lets the log end, and fails unless everything was right all the time.
    pub fn finish(mut self) {
        self.always("the log falls silent", |rig| rig.load.set_rate(0));
        for client in &self.clients {
            let found = client.findings();
            for story in &found.stories {
                println!("{}: {story}", client.name);
            }
        }
        let wrong: Vec<&str> =
            self.rows.iter().filter(|row| !row.is_lossless()).map(|row| &*row.fault).collect();
        assert!(wrong.is_empty(), "not lossless: {wrong:?}");
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
        let mut found = mem::take(&mut self.gone);
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
            .filter(|(_, client)| {
                !client.roams() && !restarted.iter().any(|edge| client.name.ends_with(edge))
            })
            .map(|((now, before), _)| now.saturating_sub(before))
            .sum();
        let seconds = (after.at - before.at).as_secs_f64();
        let edges = after.edges.since(&before.edges);
        let all = after.all.since(&before.all);
        let cores = vec![
            ("ingest", (all.cpu_seconds - edges.cpu_seconds) / seconds),
            ("edges", edges.cpu_seconds / seconds),
            // Another process after it was killed.
            ("kafka", (after.broker_cpu - before.broker_cpu).max(0.0) / seconds),
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
