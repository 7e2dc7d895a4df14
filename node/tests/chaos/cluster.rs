//! Ingest peers and edges as processes on fixed ports, and what they count, through all their restarts.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    load::TOPIC,
    node::{Network, Node, Ports, Role, metric_in, wait_until},
    ports::free_port,
};

const EDGES: [(&str, &str); 3] =
    [("edge-eu", "eu-west"), ("edge-us", "us-east"), ("edge-ap", "ap-northeast")];

/// Longer batches than by default: unoptimized peers on two cores sign and check what five of them make.
const INGEST: &str = "[ingest]\nbatch = \"3ms\"\n";

/// What waits for a client that is slow: these share two busy cores with everything else, and a backlog comes at once.
const EDGE: &str = "[edge.queue]\nframes = 500000\nbytes = \"256MiB\"\n";

/// What all peers check tokens with. Clients without one have the public streams.
pub const SECRET: &str = "a secret of thirty-two bytes or so";

/// What is read of `/metrics`: name here, metric, part of its labels.
const COUNTED: [(&str, &str, &str); 11] = [
    ("published", "tickmesh_events_published_total", ""),
    ("batches", "tickmesh_batches_published_total", ""),
    ("received", "tickmesh_mesh_events_received_total", ""),
    ("duplicates", "tickmesh_duplicates_total", ""),
    ("refetched", "tickmesh_events_refetched_total", ""),
    ("feed bytes", "tickmesh_feed_bytes_total", "direction=\"received\""),
    ("queue drops", "tickmesh_gossip_queue_drops_total", ""),
    ("gaps told", "tickmesh_gaps_total", "repaired=\"no\""),
    ("gaps repaired", "tickmesh_gaps_total", "repaired=\"yes\""),
    ("takeovers", "tickmesh_takeovers_total", ""),
    ("yields", "tickmesh_yields_total", ""),
];

/// Sums by the names in [`COUNTED`], and CPU time of the processes.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    sums: HashMap<&'static str, f64>,
    pub cpu_seconds: f64,
}

pub struct Cluster {
    pub ingest: Vec<Member>,
    pub edges: Vec<Member>,
    network: Network,
}

/// A peer and what its earlier processes counted.
pub struct Member {
    pub name: String,
    pub node: Node,
    data: PathBuf,
    /// Of processes that are gone.
    before: Counts,
    /// Of the process that runs, when it was last asked.
    now: Counts,
}

impl Cluster {
    pub fn start(brokers: &str, ingest_peers: usize) -> Self {
        let network = Network::new();
        let names: Vec<String> = (1..=ingest_peers).map(|n| format!("ingest-{n}")).collect();
        let publishers: Vec<String> = names.iter().map(|name| network.key(name)).collect();
        let mesh_ports: Vec<u16> = names.iter().map(|_| free_port()).collect();
        let bootstrap: Vec<String> = publishers
            .iter()
            .zip(&mesh_ports)
            .map(|(id, port)| format!("/ip4/127.0.0.1/tcp/{port}/p2p/{id}"))
            .collect();
        let edges: Vec<String> = EDGES.iter().map(|(name, _)| network.key(name)).collect();
        let auth = format!("[auth.jwt]\nsecret = {SECRET:?}\n");
        // The first line still belongs to the section of the mesh.
        let source = format!(
            "edges = {edges:?}\n{auth}{INGEST}[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {brokers:?}\n\
             topics = [{TOPIC:?}]\nstart = \"beginning\"\n"
        );
        let start = |name: &str, region, roles, ports, more: &str| {
            let data = network.folder().join(format!("{name}.data"));
            let more_of_node = format!("data_dir = {data:?}\n");
            let role = Role { name, region, roles, ports, node: &more_of_node, ops: "", more };
            let node = network.start(&role, &publishers, &bootstrap);
            Member { name: name.into(), node, data, before: Counts::default(), now: Counts::default() }
        };
        let mut ingest = Vec::new();
        for (name, mesh) in names.iter().zip(mesh_ports) {
            ingest.push(start(name, "eu-west", "[\"ingest\"]", Ports { edge: 0, mesh }, &source));
        }
        let mut edges = Vec::new();
        let edge = format!("{auth}{EDGE}");
        for (name, region) in EDGES {
            edges.push(start(
                name,
                region,
                "[\"edge\"]",
                Ports { edge: free_port(), mesh: free_port() },
                &edge,
            ));
        }
        Self { ingest, edges, network }
    }

    /// The index of the ingest peer that published most since it was last asked, waiting until there is one.
    pub fn leader(&mut self) -> usize {
        let before: Vec<f64> =
            self.ingest.iter_mut().map(|member| member.counts().get("published")).collect();
        wait_until("an ingest peer publishes", || {
            let published = self.ingest.iter_mut().map(|member| member.counts().get("published"));
            let grown: Vec<f64> = published.zip(&before).map(|(now, before)| now - before).collect();
            let most = (0..grown.len()).max_by(|a, b| grown[*a].total_cmp(&grown[*b]))?;
            // Enough to tell the leader of most topics from that of some.
            (grown.iter().sum::<f64>() >= LEADER_EVENTS).then_some(most)
        })
    }

    pub fn counts(&mut self) -> Counts {
        let mut sum = Counts::default();
        for member in self.members() {
            sum.add(&member.counts());
        }
        sum
    }

    /// Counts of the edges alone.
    pub fn edge_counts(&mut self) -> Counts {
        let mut sum = Counts::default();
        for member in &mut self.edges {
            sum.add(&member.counts());
        }
        sum
    }

    /// Peers whose process has ended although nobody ended it.
    pub fn dead(&mut self) -> Vec<String> {
        self.members().filter_map(|member| member.node.ended().then(|| member.name.clone())).collect()
    }

    fn members(&mut self) -> impl Iterator<Item = &mut Member> {
        self.ingest.iter_mut().chain(&mut self.edges)
    }

    /// Keeps the logs of all peers where they outlive the test.
    fn keep_logs(&self) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for logs");
        for entry in fs::read_dir(self.network.folder()).expect("the network's folder").flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                fs::copy(entry.path(), folder.join(entry.file_name())).expect("a log is copied");
            }
        }
        println!("the peers' logs are in {}", folder.display());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
    }
}

/// Events after which the leader of most topics is told from the others.
const LEADER_EVENTS: f64 = 500.0;

impl Member {
    /// What all its processes counted. The one that runs must not be frozen.
    pub fn counts(&mut self) -> Counts {
        if !self.node.ended() {
            let (_, text) = self.node.get("/metrics");
            let sums =
                COUNTED.iter().map(|(key, name, labels)| (*key, metric_in(&text, name, labels))).collect();
            self.now = Counts { sums, cpu_seconds: cpu_seconds(self.node.pid()) };
        }
        let mut sum = self.before.clone();
        sum.add(&self.now);
        sum
    }

    /// Ends the process at once. It must not be frozen: what it counted is asked for first.
    pub fn kill(&mut self) {
        self.counts();
        self.node.kill();
    }

    /// Asks the process to end, and waits for it.
    pub fn ask_to_end(&mut self) {
        self.counts();
        let status = self.node.ask_to_end();
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    pub fn restart(&mut self) {
        self.before.add(&std::mem::take(&mut self.now));
        self.node.restart();
    }

    /// Forgets what the peer kept on disk; not while it runs.
    pub fn forget(&self) {
        if self.data.exists() {
            fs::remove_dir_all(&self.data).expect("its data is removed");
        }
    }
}

impl Counts {
    pub fn get(&self, key: &str) -> f64 {
        self.sums.get(key).copied().unwrap_or_default()
    }

    /// What was counted since.
    pub fn since(&self, before: &Self) -> Self {
        let sums = self.sums.iter().map(|(key, value)| (*key, value - before.get(key))).collect();
        Self { sums, cpu_seconds: self.cpu_seconds - before.cpu_seconds }
    }

    fn add(&mut self, other: &Self) {
        for (key, value) in &other.sums {
            *self.sums.entry(key).or_default() += value;
        }
        self.cpu_seconds += other.cpu_seconds;
    }
}

/// CPU time that a process has used; 0 where that cannot be learnt.
pub fn cpu_seconds(pid: u32) -> f64 {
    /// Linux counts in hundredths of a second on all its platforms.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold spaces, user time is the 12th field and system time the 13th.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).into_iter().flatten();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}
