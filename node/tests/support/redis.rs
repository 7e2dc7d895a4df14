//! A real Redis server for one test, or three as a cluster. Self-contained: any integration test may take it in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]
#![allow(dead_code, reason = "each integration test takes in this file and uses a part of it")]

#[allow(clippy::duplicate_mod, reason = "the file of each server stands alone")]
#[path = "ports.rs"]
mod ports;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::{Client, Commands, Connection, FromRedisValue, RedisResult};

use self::ports::free_port;

/// A server needs some milliseconds on a quiet machine; tests share a busy one.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Confirms nothing that is not on disk.
pub const DURABLE: &str = "appendonly yes\nappendfsync always\nsave \"\"\n";
/// Keeps what `SAVE` wrote, and loses everything since.
pub const LOSSY: &str = "appendonly no\nsave \"\"\n";

/// A server that ends with its value.
pub struct RedisServer {
    directory: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts a server on a free port, with these lines of configuration, and waits until it answers.
    pub fn start(more: &str) -> Self {
        let mut server = Self::prepare(more);
        server.restart();
        server
    }

    /// Chooses a port without starting the server: [`Self::restart`] does.
    pub fn prepare(more: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let settings = format!("bind 127.0.0.1\nport {port}\ndir {}\n{more}", directory.path().display());
        fs::write(directory.path().join("redis.conf"), settings).expect("redis.conf");
        Self { directory, port, child: None }
    }

    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts the server on its port and data, and waits until it answers.
    pub fn restart(&mut self) {
        self.spawn();
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let pong = Client::open(self.url()).and_then(|client| {
                redis::cmd("PING")
                    .query::<String>(&mut client.get_connection_with_timeout(Duration::from_secs(1))?)
            });
            match pong {
                Ok(_) => return,
                // It is there, and wants a password.
                Err(error) if error.code() == Some("NOAUTH") => return,
                Err(error) => self.still_starting(deadline, &error.to_string()),
            }
        }
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the server is running already");
        let log = fs::File::create(self.folder().join("redis.log")).expect("a log file");
        let mut command = Command::new("redis-server");
        command.arg(self.folder().join("redis.conf")).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.stdin(Stdio::null()).spawn();
        self.child = Some(child.expect("redis-server must be installed; ./test sees to it"));
    }

    fn still_starting(&mut self, deadline: Instant, error: &str) {
        let log = fs::read_to_string(self.folder().join("redis.log")).unwrap_or_default();
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        assert!(ended.is_none(), "the server ended with {ended:?}:\n{log}");
        assert!(Instant::now() < deadline, "the server does not answer: {error}\n{log}");
        std::thread::sleep(Duration::from_millis(10));
    }

    /// Ends the server at once (SIGKILL), as a machine that fails does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    /// A connection of a test's own.
    pub fn connection(&self) -> Connection {
        let client = Client::open(self.url()).unwrap();
        client.get_connection_with_timeout(Duration::from_secs(10)).expect("a connection")
    }

    /// Runs one command.
    pub fn run<T: FromRedisValue>(&self, command: &[&str]) -> T {
        run(&mut self.connection(), command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Adds an entry under an id; `*` leaves it to the server. Gives the id.
    pub fn add(&self, key: &str, id: &str, value: &str) -> String {
        self.run(&["XADD", key, id, "value", value])
    }

    /// Adds entries with these numbers as values, at once.
    pub fn add_all(&self, key: &str, values: std::ops::Range<usize>) {
        let mut pipe = redis::pipe();
        for value in values {
            pipe.cmd("XADD").arg(key).arg("*").arg("value").arg(value).ignore();
        }
        pipe.query::<()>(&mut self.connection()).expect("entries are added");
    }

    /// Everything that is in a stream: id and value.
    pub fn log(&self, key: &str) -> Vec<(String, String)> {
        let entries: Vec<(String, Vec<String>)> = self.run(&["XRANGE", key, "-", "+"]);
        entries.into_iter().map(|(id, fields)| (id, fields[1].clone())).collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn run<T: FromRedisValue>(connection: &mut Connection, command: &[&str]) -> RedisResult<T> {
    let mut all = redis::cmd(command[0]);
    for argument in &command[1..] {
        all.arg(*argument);
    }
    all.query(connection)
}

/// The position that the id of an entry gives.
pub fn position_of(id: &str) -> u64 {
    let (ms, n) = id.split_once('-').expect("an id");
    (ms.parse::<u64>().unwrap() - 1_577_836_800_000) << 12 | n.parse::<u64>().unwrap()
}

/// Three servers that share all slots.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub fn start() -> Self {
        let node = |_| {
            let bus = free_port();
            let settings =
                format!("cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 5000\n{LOSSY}");
            (RedisServer::start(&settings), bus)
        };
        let nodes: Vec<(RedisServer, u16)> = (0..3).map(node).collect();
        for (index, (node, _)) in nodes.iter().enumerate() {
            let (first, last) = (index * 5462, (index * 5462 + 5461).min(16383));
            node.run::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            node.run::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for (other, bus) in &nodes[1..] {
            nodes[0].0.run::<()>(&[
                "CLUSTER",
                "MEET",
                "127.0.0.1",
                &other.port.to_string(),
                &bus.to_string(),
            ]);
        }
        let cluster = Self { nodes: nodes.into_iter().map(|(node, _)| node).collect() };
        let deadline = Instant::now() + START_DEADLINE;
        for node in &cluster.nodes {
            loop {
                let info: String = node.run(&["CLUSTER", "INFO"]);
                let known: Vec<redis::Value> = node.run(&["CLUSTER", "SLOTS"]);
                if info.contains("cluster_state:ok") && known.len() == 3 {
                    break;
                }
                assert!(Instant::now() < deadline, "the cluster does not come up:\n{info}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        cluster
    }

    /// The node that has a key, and the slot of that.
    pub fn owner(&self, key: &str) -> (usize, u16) {
        let slot: u16 = self.nodes[0].run(&["CLUSTER", "KEYSLOT", key]);
        let owner = (0..3).find(|index| {
            let id: String = self.nodes[*index].run(&["CLUSTER", "MYID"]);
            let nodes: String = self.nodes[*index].run(&["CLUSTER", "NODES"]);
            let mine = nodes.lines().find(|line| line.starts_with(&id)).unwrap();
            mine.split_whitespace().skip(8).filter(|part| !part.starts_with('[')).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&slot)
            })
        });
        (owner.expect("a node has it"), slot)
    }

    /// Moves the slot of a key, with all its keys, to another node; `between` is done when the key has moved, and not yet the
    /// slot.
    pub fn move_key(&self, key: &str, to: usize, between: impl FnOnce()) {
        let (from, slot) = self.owner(key);
        let slot = slot.to_string();
        let id = |node: usize| self.nodes[node].run::<String>(&["CLUSTER", "MYID"]);
        self.nodes[to].run::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        self.nodes[from].run::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        let port = self.nodes[to].port.to_string();
        self.nodes[from].run::<()>(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        between();
        for node in [to, from] {
            self.nodes[node].run::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
        }
    }
}

/// A file of the tests of Redis.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// Whether a stream is there.
pub fn exists(connection: &mut Connection, key: &str) -> bool {
    connection.exists(key).unwrap()
}
