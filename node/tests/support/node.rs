//! Peers as processes: writes a configuration, starts `tickmesh run`, learns the ports from its log, stops it.

#![allow(dead_code, reason = "each integration test takes in this file and uses a part of it")]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test fails: a loaded machine of two cores, not a design goal.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What operators show to the peers of [`Network::start_ingest`].
pub const ADMIN: &str = "an operator's token";

/// The keys and the folder of one network of peers.
pub struct Network {
    folder: TempDir,
}

/// What one peer does.
pub struct Role<'a> {
    pub name: &'a str,
    pub region: &'a str,
    /// `["ingest"]`, `["edge"]` or both, as TOML.
    pub roles: &'a str,
    pub ports: Ports,
    /// Further keys of `[node]`, as TOML.
    pub node: &'a str,
    /// Further keys of `[ops]`, as TOML.
    pub ops: &'a str,
    /// Further sections of the configuration, as TOML.
    pub more: &'a str,
}

/// Where a peer listens on 127.0.0.1; zero is any free port, another one at each start.
#[derive(Clone, Copy, Default)]
pub struct Ports {
    pub edge: u16,
    pub mesh: u16,
}

/// A running peer. Killed when dropped.
pub struct Node {
    child: Child,
    config: PathBuf,
    pub edge: Option<SocketAddr>,
    pub ops: SocketAddr,
    pub mesh: String,
}

impl Network {
    pub fn new() -> Self {
        let network = Self { folder: tempfile::tempdir().unwrap() };
        network.tickmesh(&["keys", "--network", "network.psk"]);
        network
    }

    /// Makes the key of a peer and returns its id.
    pub fn key(&self, name: &str) -> String {
        self.tickmesh(&["keys", "--node", &format!("{name}.key")])
    }

    /// What a command prints, run where the configurations are.
    pub fn tickmesh(&self, arguments: &[&str]) -> String {
        let output = Command::new(binary()).args(arguments).current_dir(self.folder.path()).output().unwrap();
        assert!(
            output.status.success(),
            "tickmesh {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a peer that believes `publishers` and dials `bootstrap`.
    pub fn start(&self, role: &Role<'_>, publishers: &[String], bootstrap: &[String]) -> Node {
        let Role { name, region, roles, ports, node, ops, more } = role;
        let edge = if roles.contains("edge") {
            format!("[edge]\nlisten = \"127.0.0.1:{}\"\nshards = 2\n", ports.edge)
        } else {
            String::new()
        };
        let text = format!(
            "[node]\nname = {name:?}\nregion = {region:?}\nroles = {roles}\n{node}\
             [ops]\nlisten = \"127.0.0.1:0\"\nlog_format = \"json\"\n{ops}{edge}\
             [mesh]\nlisten = [\"/ip4/127.0.0.1/tcp/{}\"]\nkey_file = \"{name}.key\"\n\
             publishers = {publishers:?}\nbootstrap = {bootstrap:?}\n{more}",
            ports.mesh
        );
        self.run(name, &text)
    }

    /// Starts ingest peers of one region that know one another, on ports where they are found again; and where they are reached.
    /// Their operators show `admin.token`.
    pub fn start_ingest<const COUNT: usize>(
        &self,
        peers: [(&str, u16); COUNT],
        publishers: &[String],
        more: &str,
    ) -> (Vec<Node>, Vec<String>) {
        fs::write(self.folder().join("admin.token"), ADMIN).unwrap();
        let (mut nodes, mut bootstrap) = (Vec::new(), Vec::new());
        for (name, mesh) in peers {
            let role = Role {
                name,
                region: "eu-west",
                roles: "[\"ingest\"]",
                ports: Ports { edge: 0, mesh },
                node: &format!("data_dir = {name:?}\n"),
                ops: "admin_token_file = \"admin.token\"\n",
                more,
            };
            let node = self.start(&role, publishers, &bootstrap);
            bootstrap.push(node.mesh.clone());
            nodes.push(node);
        }
        (nodes, bootstrap)
    }

    /// `tickmesh admin` at a peer of [`Self::start_ingest`].
    pub fn admin(&self, node: &Node, arguments: &[&str]) -> Output {
        let ops = format!("http://{}", node.ops);
        Command::new(binary())
            .arg("admin")
            .args(arguments)
            .args(["--ops", &ops, "--token-file", "admin.token"])
            .current_dir(self.folder())
            .output()
            .unwrap()
    }

    /// Starts a peer with a whole configuration; its operators' port must be 127.0.0.1:0, and its log JSON.
    pub fn run(&self, name: &str, text: &str) -> Node {
        let config = self.folder.path().join(format!("{name}.toml"));
        fs::write(&config, text).unwrap();
        Node::start(config)
    }

    /// Where the configurations, keys and logs of its peers are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The program under test: what cargo built, or what `TICKMESH_TEST_BIN` names, such as a release build.
fn binary() -> PathBuf {
    std::env::var_os("TICKMESH_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_tickmesh").into(), PathBuf::from)
}

impl Node {
    fn start(config: PathBuf) -> Self {
        let mut child = Command::new(binary())
            .args(["run", "--config"])
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = File::options().create(true).append(true).open(config.with_extension("log")).unwrap();
        let lines = lines_of(&mut child, log);
        let end = Instant::now() + DEADLINE;
        let mut said = Vec::new();
        let running = loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = lines.recv_timeout(left) else {
                let _ = child.kill();
                panic!("{} did not start; it said: {said:#?}", config.display());
            };
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value["message"] == "running" => break value,
                _ => said.push(line),
            }
        };
        thread::spawn(move || lines.iter().for_each(drop));
        let addr = |key: &str| {
            running[key]
                .as_str()
                .and_then(|text| text.trim_matches(['"', 'S', 'o', 'm', 'e', '(', ')']).parse().ok())
        };
        let mesh = running["mesh"].as_str().unwrap_or_default();
        Self {
            child,
            config,
            edge: addr("edge"),
            ops: addr("ops").expect("the operators' port is logged"),
            mesh: mesh.trim_matches(['[', ']', '"']).split("\", \"").next().unwrap_or_default().to_owned(),
        }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/ws", self.edge.expect("an edge"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether the process has ended, by itself or because it was told to.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Starts the killed process again; ports that are not fixed are new.
    pub fn restart(&mut self) {
        self.kill();
        *self = Self::start(self.config.clone());
    }

    /// Asks the process to end and returns how it did.
    pub fn terminate(mut self) -> std::process::ExitStatus {
        self.ask_to_end()
    }

    /// Asks the process to end and returns how it did; it can be started again.
    pub fn ask_to_end(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::TERM);
        wait_until("the peer ends", || self.child.try_wait().unwrap())
    }

    /// Stops the process where it is, as a machine does that swaps or a virtual one that is moved.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What a page of the operators' port says; status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.ops, path)
    }

    /// The value of a metric, summed over the label sets that contain `labels`; 0 if there is none.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        metric_in(&self.get("/metrics").1, name, labels)
    }

    pub fn wait_ready(&self) {
        wait_until("the peer is ready", || (self.get("/readyz").0 == 200).then_some(()));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The value of a metric in the text of `/metrics`, summed over the label sets that contain `labels`; 0 if there is none.
pub fn metric_in(text: &str, name: &str, labels: &str) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(labels))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// One HTTP/1.1 request; status and body.
pub fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// Asks again until there is an answer; fails with what was waited for.
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn lines_of(child: &mut Child, mut log: File) -> Receiver<String> {
    let (sender, lines) = sync_channel(1024);
    let stderr = BufReader::new(child.stderr.take().unwrap());
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            // Without room for a log the test goes on.
            let _ = writeln!(log, "{line}");
            if std::env::var_os("TICKMESH_TEST_LOG").is_some() {
                eprintln!("{line}");
            }
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}
