//! Reads streams live, each task some of them over a connection of its own.
//!
//! Order and completeness: a stream is read on after the last entry that was read, whatever happened to the connection. Before
//! entries are handed on, the server is asked for the one before them: if that is still there, nothing between was trimmed,
//! and it is the same stream. If not, `numbering.rs` decides by what the server says of the stream.

mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

pub(super) use self::stream::record_of;
use self::stream::{Stream, Taken};
use super::{
    answers::{self, Entry},
    config::Config,
    id::Id,
    link::{Link, MAX_BLOCK, MAX_REDIRECTIONS, Node, Trouble, redirected},
    numbering::{Info, REMEMBERED, Verdict},
    status::Status,
};
use crate::{
    ops::backoff::{Backoff, chance},
    source::{SourceEvent, metrics::LONGEST_PAUSE},
};

/// How often the server is asked how its streams are: what was deleted or came back is noticed within this.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a read waits when there is nothing: how late a key that was found is begun with, at a cost of four questions a
/// second.
const BLOCK: Duration = Duration::from_millis(250);
const _: () = assert!(BLOCK.as_millis() <= MAX_BLOCK.as_millis());
/// The pause after a lost connection; it doubles up to the longest, so that a server that is back is found within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Most entries of each stream that are read at once, and how many at first.
const MAX_COUNT: usize = 512;
const FIRST_COUNT: usize = 16;
/// Most bytes that are read at once, as far as the entries before tell: Redis bounds answers by a number of entries alone.
const MAX_READ_BYTES: usize = 4 * 1024 * 1024;
/// How long a key that is gone is remembered by its reader; then its place is free for another.
const REMEMBER_GONE: Duration = Duration::from_secs(600);
/// Keys that may wait for a reader.
pub(super) const WAITING_KEYS: usize = 256;

/// Why a task does not go on.
pub(super) enum Halt {
    Trouble(Trouble),
    /// Nobody listens any more.
    Ended,
}

impl From<Trouble> for Halt {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// A key that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) key: Arc<str>,
    /// If it is there at the first look, only what is new.
    pub(super) from_end: bool,
    /// Written out in the configuration, and never forgotten.
    pub(super) named: bool,
}

/// A task that reads some streams.
pub(super) struct Reading {
    config: Arc<Config>,
    status: Arc<Status>,
    /// Its number among the source's tasks.
    task: usize,
    keys: mpsc::Receiver<Wanted>,
    /// How many keys it has.
    given: Arc<AtomicUsize>,
    output: mpsc::Sender<SourceEvent>,
    streams: Vec<Stream>,
    count: usize,
    look_at: Instant,
    /// Where the streams are, once a node of the cluster has said it, and whether it must be asked especially.
    node: Option<(Node, bool)>,
}

impl Reading {
    pub(super) fn new(
        config: Arc<Config>,
        status: Arc<Status>,
        task: usize,
        (keys, given): (mpsc::Receiver<Wanted>, Arc<AtomicUsize>),
        output: mpsc::Sender<SourceEvent>,
    ) -> Self {
        let (streams, count, look_at, node) = (Vec::new(), FIRST_COUNT, Instant::now(), None);
        Self { config, status, task, keys, given, output, streams, count, look_at, node }
    }

    /// Reads until nobody listens any more.
    pub(super) async fn run(mut self) {
        let (mut backoff, mut redirections) = (Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), 0);
        loop {
            let begun = Instant::now();
            self.status.figures.circuit.tries();
            let trouble = match self.session(backoff.failures()).await {
                Halt::Ended => return,
                Halt::Trouble(trouble) => trouble,
            };
            if begun.elapsed() > LONGEST_PAUSE {
                backoff.succeeded();
                redirections = 0;
            }
            // None: whoever knows the cluster tells where the streams are now.
            self.node = redirected(&self.config, &trouble);
            if self.node.is_some() && redirections < MAX_REDIRECTIONS {
                redirections += 1;
                continue;
            }
            tracing::debug!(source = self.status.source, %trouble, "lost a server");
            self.status.trouble(self.task, &trouble);
            tokio::time::sleep(backoff.failed(chance())).await;
        }
    }

    /// Connects and reads until something fails.
    async fn session(&mut self, failures: u32) -> Halt {
        let node = match &self.node {
            Some(node) => node.clone(),
            None => {
                let turn = failures as usize % self.config.urls.len().max(1);
                let Some(url) = self.config.urls.get(turn) else { return Halt::Ended };
                (url.clone(), false)
            }
        };
        let server = node.0.addr().to_string();
        match self.read_at(node, server).await {
            Ok(()) => Halt::Ended,
            Err(halt) => halt,
        }
    }

    async fn read_at(&mut self, (node, asking): (Node, bool), server: String) -> Result<(), Halt> {
        let mut link = Link::connect(&self.config, &node, asking).await?;
        self.look_at = Instant::now();
        loop {
            if self.output.is_closed() {
                return Ok(());
            }
            while let Ok(wanted) = self.keys.try_recv() {
                self.streams.push(Stream::new(&self.config, &self.status, wanted));
                self.look_at = Instant::now();
            }
            if self.look_at <= Instant::now() {
                let begun = Instant::now();
                let fault = self.look(&mut link).await?;
                self.look_at = Instant::now() + LOOK_INTERVAL;
                self.tell(&server, fault, begun.elapsed());
            }
            if self.streams.iter().any(Stream::is_read) {
                self.read(&mut link).await?;
                continue;
            }
            // Nothing to read yet: until the next look, or a key is found.
            let next_look = tokio::time::sleep_until(self.look_at.into());
            tokio::select! {
                () = next_look => {}
                () = self.output.closed() => return Ok(()),
                found = self.keys.recv() => match found {
                    Some(wanted) => {
                        self.streams.push(Stream::new(&self.config, &self.status, wanted));
                        self.look_at = Instant::now();
                    }
                    // No more keys will come.
                    None => tokio::time::sleep_until(self.look_at.into()).await,
                },
            }
        }
    }

    fn tell(&self, server: &str, fault: Option<String>, took: Duration) {
        self.status.figures.circuit.note(true);
        self.status.tell(self.task, |task| {
            task.trouble = fault;
            task.server = Some(server.to_owned());
            task.streams = self.streams.iter().filter(|stream| stream.is_read()).count();
            task.lag = self.streams.iter().map(|stream| stream.lag).fold(0, u64::saturating_add);
            task.answer_us = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
        });
    }

    /// Looks at all streams: those that are new begin, the others are still what they were, or not. Gives what is wrong with a
    /// key.
    async fn look(&mut self, link: &mut Link) -> Result<Option<String>, Halt> {
        let mut questions = Vec::with_capacity(2 * self.streams.len());
        for stream in &self.streams {
            questions.extend(stream.questions());
        }
        let mut answers = link.ask_all(questions).await?.into_iter();
        let mut fault = None;
        for index in 0..self.streams.len() {
            let (Some(at_cursor), Some(info)) = (answers.next(), answers.next()) else { break };
            let info = match info.and_then(answers::info_of) {
                Ok(info) => info,
                Err(trouble @ (Trouble::NoKey | Trouble::WrongType | Trouble::Denied(_))) => {
                    let stream = &mut self.streams[index];
                    stream.gone(&self.status, &trouble);
                    if trouble != Trouble::NoKey {
                        self.status.figures.error(trouble.kind());
                        fault = fault.or(Some(format!("key {}: {trouble}", stream.key)));
                    }
                    continue;
                }
                Err(trouble) => return Err(trouble.into()),
            };
            let at_cursor = answers::entries(at_cursor?)?.first().map(Entry::digest);
            self.found(link, index, at_cursor, info).await?;
        }
        let (status, config) = (&self.status, &self.config);
        let before = self.streams.len();
        self.streams.retain(|stream| !stream.forgets(config, status, REMEMBER_GONE));
        self.given.fetch_sub(before - self.streams.len(), Ordering::Relaxed);
        Ok(fault)
    }

    /// A stream is there.
    async fn found(
        &mut self,
        link: &mut Link,
        index: usize,
        at_cursor: Option<u32>,
        info: Info,
    ) -> Result<(), Halt> {
        let stream = &mut self.streams[index];
        let begins = match stream.begin(&self.status, &info) {
            Some(begin) => {
                send(&self.output, begin).await?;
                false
            }
            None => stream.begins_again(),
        };
        let verdict = self.settle(link, index, at_cursor, &info, &[]).await?;
        let stream = &mut self.streams[index];
        stream.there(&info);
        if begins && verdict == Verdict::Same {
            let begin = stream.goes_on(&self.status);
            send(&self.output, begin).await?;
        }
        if let Some(reached) = stream.reached_by(&info) {
            send(&self.output, reached).await?;
        }
        Ok(())
    }

    /// Judges what a stream is, and says so where it begins anew. `read`: what was read before that, and not taken yet.
    async fn settle(
        &mut self,
        link: &mut Link,
        index: usize,
        at_cursor: Option<u32>,
        info: &Info,
        read: &[Id],
    ) -> Result<Verdict, Halt> {
        let stream = &mut self.streams[index];
        let verdict = stream.followed.judge(at_cursor, info, read);
        let begin = match verdict {
            Verdict::Same => {
                if read.is_empty() {
                    stream.followed.looked(at_cursor, info);
                }
                return Ok(verdict);
            }
            Verdict::Trimmed => stream.trimmed(&self.status, info, read),
            Verdict::Lost => {
                let there = match stream.followed.remembered() {
                    Some((oldest, newest)) => {
                        let range = answers::range(&stream.key, oldest, newest, REMEMBERED);
                        answers::entries(link.ask(range).await?)?
                    }
                    None => Vec::new(),
                };
                let there: Vec<_> = there.iter().map(|entry| (entry.id, entry.digest())).collect();
                stream.lost(&self.status, &there, info)
            }
        };
        send(&self.output, begin).await?;
        Ok(verdict)
    }

    /// Reads once, and hands on what is there.
    async fn read(&mut self, link: &mut Link) -> Result<(), Halt> {
        let wait = BLOCK.min(self.look_at.saturating_duration_since(Instant::now()));
        let reading: Vec<usize> = (0..self.streams.len()).filter(|at| self.streams[*at].is_read()).collect();
        let after: Vec<_> = reading.iter().map(|at| self.streams[*at].place()).collect();
        let answer = link.ask(answers::read_after(&after, self.count, wait)).await?;
        let mut found: Vec<(usize, Vec<Entry>)> = Vec::new();
        for (key, entries) in answers::entries_by_key(answer)? {
            let at = reading.iter().copied().find(|at| self.streams[*at].key.as_bytes() == key);
            let at = at.ok_or(Trouble::Strange("entries of another key"))?;
            if !entries.is_empty() {
                found.push((at, entries));
            }
        }
        let ends: Vec<usize> = reading
            .into_iter()
            .filter(|at| {
                let entries =
                    found.iter().find(|(found, _)| found == at).map_or(0, |(_, entries)| entries.len());
                entries < self.count
            })
            .collect();
        let before: Vec<_> = found.iter().map(|(at, _)| self.streams[*at].question()).collect();
        if !before.is_empty() {
            let answers = link.ask_all(before).await?;
            self.adapt(&found);
            for ((at, entries), answer) in found.into_iter().zip(answers) {
                let at_cursor = answers::entries(answer?)?.first().map(Entry::digest);
                self.hand_on(link, at, at_cursor, entries).await?;
            }
        }
        for at in ends {
            if let Some(reached) = self.streams[at].reached() {
                send(&self.output, reached).await?;
            }
        }
        Ok(())
    }

    /// How many entries are asked for next, by what came.
    fn adapt(&mut self, found: &[(usize, Vec<Entry>)]) {
        let entries = found.iter().map(|(_, entries)| entries.len()).sum::<usize>().max(1);
        let bytes: usize = found.iter().flat_map(|(_, entries)| entries).map(Entry::bytes).sum();
        let streams = self.streams.len().max(1);
        let fits = MAX_READ_BYTES / (bytes / entries).max(1) / streams;
        self.count = fits.clamp(1, MAX_COUNT).min(self.count * 2);
    }

    /// Hands on entries that were read, once it is known that they follow what was read before.
    async fn hand_on(
        &mut self,
        link: &mut Link,
        at: usize,
        mut at_cursor: Option<u32>,
        entries: Vec<Entry>,
    ) -> Result<(), Halt> {
        let stream = &self.streams[at];
        if at_cursor.is_none() || at_cursor != stream.followed.digest {
            let mut answers = link.ask_all(stream.questions().into()).await?.into_iter();
            let (Some(again), Some(info)) = (answers.next(), answers.next()) else {
                return Err(Trouble::Strange("none").into());
            };
            at_cursor = answers::entries(again?)?.first().map(Entry::digest);
            let ids: Vec<Id> = entries.iter().map(|entry| entry.id).collect();
            match info.and_then(answers::info_of) {
                Ok(info) => {
                    if self.settle(link, at, at_cursor, &info, &ids).await? == Verdict::Lost {
                        // It goes on elsewhere.
                        return Ok(());
                    }
                }
                // Deleted a moment ago. What was read before that counts; whether it was all, nobody can say any more.
                Err(Trouble::NoKey) => {
                    let begin = self.streams[at].trimmed(&self.status, &Info::default(), &ids);
                    send(&self.output, begin).await?;
                }
                Err(trouble) => return Err(trouble.into()),
            }
        }
        let stream = &mut self.streams[at];
        let Taken { events, records } = stream.take(&self.config, &self.status, entries);
        for event in events {
            send(&self.output, event).await?;
        }
        self.status.figures.records.inc_by(records);
        Ok(())
    }
}

/// Hands an event on, waiting for room.
async fn send(output: &mpsc::Sender<SourceEvent>, event: SourceEvent) -> Result<(), Halt> {
    output.send(event).await.map_err(|_| Halt::Ended)
}
