//! Finds the keys to read, and gives them to tasks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    answers,
    config::{Config, MAX_KEY_BYTES},
    link::{Link, Node, Trouble, elsewhere, host_of},
    reading::{Reading, WAITING_KEYS, Wanted},
    status::Status,
};
use crate::source::{SourceEvent, Start};

/// How often keys are looked for at most: a new stream is read two seconds after it was made, if the server has not too many
/// keys.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// How much longer than a walk through all keys the pause after it is at least: it takes a tenth of the time of one task, on
/// a server that does one thing at a time.
const REST: u32 = 9;
/// Keys that one step of a walk looks at. It takes the server less than a millisecond.
const SCAN_STEP: usize = 1000;
/// Streams that one connection reads. Each read names all of them, some ten kilobytes.
const STREAMS_PER_TASK: usize = 128;
/// Streams of one source: sixteen connections, and at most 48 MiB of what is remembered of entries.
const MAX_STREAMS: usize = 2048;
/// Streams of a source in a cluster: each has a connection, since a cluster reads no keys of two slots at once.
const MAX_CLUSTER_STREAMS: usize = 256;
/// Nodes of a cluster that are walked through.
const MAX_NODES: usize = 1000;

/// The task that finds keys; the others have higher numbers.
const TASK: usize = 0;

/// Finds keys.
pub(super) struct Keys {
    pub(super) config: Arc<Config>,
    pub(super) status: Arc<Status>,
    pub(super) output: mpsc::Sender<SourceEvent>,
    tasks: JoinSet<()>,
    /// The way to each task, and how many keys it has.
    given: Vec<(mpsc::Sender<Wanted>, Arc<AtomicUsize>)>,
}

impl Keys {
    pub(super) fn new(config: Arc<Config>, status: Arc<Status>, output: mpsc::Sender<SourceEvent>) -> Self {
        Self { config, status, output, tasks: JoinSet::new(), given: Vec::new() }
    }

    /// Gives out the keys that are named, and then looks for those that match the patterns.
    pub(super) async fn run(&mut self) {
        let config = self.config.clone();
        for key in &config.keys {
            let from_end = self.begins_at_end(key, true);
            self.give(Wanted { key: key.as_str().into(), from_end, named: true }).await;
        }
        if config.patterns.is_empty() {
            while self.tasks.join_next().await.is_some() {}
            return;
        }
        // What is there when all keys have been seen once was there before.
        let mut first = true;
        let mut turn = 0;
        while !self.output.is_closed() {
            let begun = Instant::now();
            let pause = match self.scan(first, turn).await {
                Ok(fault) => {
                    first = false;
                    self.status.tell(TASK, |task| {
                        task.trouble = fault;
                        task.server = self.node(turn).map(|node| node.addr().to_string());
                    });
                    SCAN_INTERVAL.max(begun.elapsed() * REST)
                }
                Err(trouble) => {
                    self.status.trouble(TASK, &trouble);
                    turn += 1;
                    SCAN_INTERVAL / 2
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends all tasks.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }

    /// Whether only what is new of a key is read that is there at the first look.
    fn begins_at_end(&self, key: &str, named: bool) -> bool {
        // What was not known when there is something to go on from appeared since: from its beginning.
        let starts = self.status.starts();
        let since = !starts.is_empty() && (starts.knows_topic(key) || !named);
        self.config.start == Start::End && !since
    }

    /// The server that is asked, another each time that one failed.
    fn node(&self, turn: usize) -> Option<&Node> {
        self.config.urls.get(turn % self.config.urls.len().max(1))
    }

    /// Walks through all keys once. Gives what keeps some from being read.
    async fn scan(&mut self, first: bool, turn: usize) -> Result<Option<String>, Trouble> {
        let config = self.config.clone();
        let Some(any) = self.node(turn) else { return Ok(None) };
        let mut fault = None;
        for node in self.nodes(any).await? {
            let mut link = Link::connect(&config, &node, false).await?;
            for glob in &config.patterns {
                let mut cursor = 0;
                loop {
                    let answer = link.ask(answers::scan(cursor, glob, SCAN_STEP)).await?;
                    let (next, keys) = answers::scanned(answer)?;
                    for key in keys {
                        fault = self.found(&key, first).await.or(fault);
                    }
                    cursor = next;
                    if cursor == 0 || self.output.is_closed() {
                        break;
                    }
                }
            }
        }
        Ok(fault)
    }

    /// The nodes that have keys.
    async fn nodes(&self, any: &Node) -> Result<Vec<Node>, Trouble> {
        if !self.config.cluster {
            return Ok(vec![any.clone()]);
        }
        let leaders =
            answers::leaders(Link::connect(&self.config, any, false).await?.ask(answers::slots()).await?)?;
        let node = |(host, port): (String, u16)| {
            let host = if host.is_empty() { host_of(any).to_owned() } else { host };
            elsewhere(any, host, port)
        };
        Ok(leaders.into_iter().take(MAX_NODES).map(node).collect())
    }

    /// Takes a key that matches. Gives what keeps it from being read.
    async fn found(&mut self, key: &Bytes, first: bool) -> Option<String> {
        let Ok(key) = std::str::from_utf8(key) else {
            return Some("a key that matches is no UTF-8, and is not read".to_owned());
        };
        if self.status.taken().contains(key) {
            return None;
        }
        if key.len() > MAX_KEY_BYTES {
            return Some(format!("a key that matches has more than {MAX_KEY_BYTES} bytes, and is not read"));
        }
        let most = if self.config.cluster { MAX_CLUSTER_STREAMS } else { MAX_STREAMS };
        if self.status.taken().len() >= most {
            return Some(format!("more than {most} keys match; the others are not read"));
        }
        let from_end = first && self.begins_at_end(key, false);
        self.give(Wanted { key: key.into(), from_end, named: false }).await;
        None
    }

    /// Gives a key to a task that has room, or to a new one.
    async fn give(&mut self, wanted: Wanted) {
        if !self.status.taken().insert(wanted.key.clone()) {
            return;
        }
        let room = if self.config.cluster { 1 } else { STREAMS_PER_TASK };
        let with_room = self.given.iter().find(|(_, given)| given.load(Ordering::Relaxed) < room);
        let (keys, given) = match with_room {
            Some(task) => task.clone(),
            None => self.start(),
        };
        given.fetch_add(1, Ordering::Relaxed);
        // A task ends only when nobody listens any more.
        let _ = keys.send(wanted).await;
    }

    /// Starts another task.
    fn start(&mut self) -> (mpsc::Sender<Wanted>, Arc<AtomicUsize>) {
        let (keys, waiting) = mpsc::channel(WAITING_KEYS);
        let (number, given) = (TASK + 1 + self.given.len(), Arc::new(AtomicUsize::new(0)));
        let (config, status, output) = (self.config.clone(), self.status.clone(), self.output.clone());
        self.tasks.spawn(Reading::new(config, status, number, (waiting, given.clone()), output).run());
        self.given.push((keys.clone(), given.clone()));
        (keys, given)
    }
}
