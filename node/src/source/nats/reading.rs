//! Reads live: one session after the other, each with a connection and a consumer of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{Consumer, DeliverPolicy, pull},
    context::Context,
    stream::{Info, RetentionPolicy},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tickmesh_protocol::Epoch;
use tokio::{sync::mpsc, time::sleep};

use super::{
    Config, Place, Status, extent_of, is_compacted,
    link::{Ended, Link, Trouble, stream},
    log_of,
    numbering::{At, Extent, Stored, epoch_of, known, move_on},
    place_of, record_of,
};
use crate::{
    ops::backoff::{Backoff, chance},
    source::{Record, SourceEvent, Start, Starts, metrics::LONGEST_PAUSE},
};

/// Pause after a session that failed; it doubles up to the longest, so that a server that is back is found within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How often is looked for a stream that is not there, or cannot be read as it is.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often is looked what became of the stream that is read, and how far it is.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The server says at least this often that it has nothing to give; two of these in silence end the session.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Most records handed on at once. What is there is handed on at once, so this only bounds memory.
const MAX_BATCH_RECORDS: usize = 512;
/// Most bytes handed on at once, the last record not counted.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// The stream that is read, and how far.
struct Here {
    log: Arc<str>,
    epoch: Epoch,
    at: At,
    /// Where the stream ended when reading began, until that is reached.
    goal: Option<u64>,
}

/// The reading side of a source.
pub(super) struct Reading {
    config: Config,
    retains_last: bool,
    status: Arc<Status>,
    starts: Starts,
    output: mpsc::Sender<SourceEvent>,
    /// What the source calls the place of its log.
    stream: Arc<str>,
    here: Option<Here>,
    /// Whether the server has said once what there is. A stream that appears after that is read from its beginning.
    looked: bool,
    /// The session that failed last had read.
    had_read: bool,
}

/// What one session reads with.
struct Session {
    link: Link,
    consumer: Consumer<pull::Config>,
    compacted: bool,
    /// The number of the message that the consumer gives next.
    consumes: u64,
    /// Handing on took longer than heartbeats may be missing; so their lack says nothing.
    stalled: bool,
}

/// Messages that are there at once, as records.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    bytes: usize,
    /// Records before which sequences are missing, and from where on.
    holes: Vec<(usize, u64)>,
    /// Messages behind the last of these.
    pending: u64,
}

/// What was seen of the stream beside reading.
struct Looked {
    info: Option<Info>,
    pending: u64,
    consumed: u64,
}

impl Reading {
    pub(super) fn new(
        config: Config,
        retains_last: bool,
        status: Arc<Status>,
        starts: Starts,
        output: mpsc::Sender<SourceEvent>,
    ) -> Self {
        let stream = config.stream.as_str().into();
        Self {
            config,
            retains_last,
            status,
            starts,
            output,
            stream,
            here: None,
            looked: false,
            had_read: false,
        }
    }

    /// Reads until nobody listens.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while let Err(Ended::Trouble(trouble)) = self.session().await {
            self.status.trouble(&trouble);
            if std::mem::take(&mut self.had_read) {
                backoff.succeeded();
            }
            sleep(backoff.failed(chance())).await;
        }
    }

    /// Connects, finds where to go on, and reads until something is wrong. Never ends well.
    async fn session(&mut self) -> Result<(), Ended> {
        self.status.figures.circuit.tries();
        let link = Link::connect(&self.config.access, &self.status.source, "live").await?;
        let info = self.find(&link).await?;
        let compacted = is_compacted(&info.config);
        let log = log_of(&info);
        self.place(&link, &info, compacted).await?;
        let next = self.here.as_ref().map_or(0, |here| here.at.next);
        let from = DeliverPolicy::ByStartSequence { start_sequence: next.max(1) };
        let consumer = link.consumer(&self.stream, &self.config.subjects, from).await?;
        // A consumer goes with its stream: this one is of the stream that was there before and is there now.
        if link.stream(&self.stream).await?.map(|info| log_of(&info)) != Some(log) {
            return Err(Trouble::new("recreated", "the stream was deleted or created again").into());
        }
        let pending = consumer.cached_info().num_pending;
        let mut session = Session { link, consumer, compacted, consumes: 1, stalled: false };
        self.status.reading();
        self.show_lag(pending);
        if pending == 0 {
            self.reach(0).await?;
        }
        let ended = self.read(&mut session).await;
        // Should it not hear of it, it forgets by itself.
        let name = &session.consumer.cached_info().name;
        let _ = session.link.jetstream.delete_consumer_from_stream(name, &*self.stream).now_or_never();
        ended
    }

    /// Waits for the stream, and until it is one that can be read.
    async fn find(&mut self, link: &Link) -> Result<Info, Ended> {
        loop {
            let refused = match link.stream(&self.stream).await? {
                None => {
                    self.looked = true;
                    format!(
                        "there is no stream {} yet; it is read from its beginning once it is there",
                        self.stream
                    )
                }
                Some(info) => match refusal(&info, self.retains_last) {
                    None => return Ok(info),
                    Some(refused) => refused,
                },
            };
            self.status.waiting(&refused);
            tokio::select! {
                trouble = link.lost() => return Err(trouble.into()),
                () = self.output.closed() => return Err(Ended::Stopped),
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Decides where reading goes on, and says so if it is not where it was.
    async fn place(&mut self, link: &Link, info: &Info, compacted: bool) -> Result<(), Ended> {
        let (log, extent) = (&log_of(info), extent_of(info));
        let stored = Some(Stored::at(info.state.last_timestamp.unix_timestamp_nanos()));
        let before = self.here.as_ref().filter(|here| here.log == *log).map(|here| here.at);
        if before.is_none() && self.here.is_some() {
            tracing::warn!(
                source = self.status.source,
                stream = &*self.stream,
                "stream was deleted and created again; it is another log, read from its beginning"
            );
        }
        let known = known(&self.starts, log).map(|(generation, place)| At {
            generation,
            next: place.position,
            stored: place.term.map(Stored::within),
            first: place.position == 0,
        });
        let at = before.or(known);
        let Some(at) = at else {
            // Another stream of this name was read, or this one was not there: so nothing of it may be left out.
            let appeared = self.looked || self.starts.knows_topic(&self.stream);
            let next =
                if appeared || self.config.start == Start::Beginning { extent.low } else { extent.end };
            let stored = stored.filter(|_| next == extent.end && next > 0);
            let at = At { generation: 0, next, stored, first: next == 0 };
            return self.begin(log, at, extent.end).await;
        };
        let extent = Extent { cut: self.find_cut(link, at, extent).await?, ..extent };
        if let Some(moved) = move_on(at, extent, compacted) {
            self.tell_lost(at, extent, moved);
            return self.begin(log, moved, extent.end).await;
        }
        if before.is_none() {
            return self.begin(log, at, extent.end).await;
        }
        Ok(())
    }

    async fn begin(&mut self, log: &Arc<str>, at: At, end: u64) -> Result<(), Ended> {
        self.looked = true;
        let epoch = epoch_of(log, at.generation);
        self.status.set_generation(log, at.generation);
        let goal = Some(end);
        self.here = Some(Here { log: log.clone(), epoch, at, goal });
        let (position, generation) = (at.next, at.generation);
        tracing::info!(
            source = self.status.source,
            stream = &*self.stream,
            position,
            generation,
            "reading a stream"
        );
        self.send(SourceEvent::Begin {
            topic: self.stream.clone(),
            partition: 0,
            epoch,
            position,
            first: at.first,
            term: at.stored.map(Stored::term),
        })
        .await
    }

    /// The first message before the one to be read next that was stored after all that were read.
    async fn find_cut(&self, link: &Link, at: At, extent: Extent) -> Result<Option<u64>, Ended> {
        let Some(stored) = at.stored.filter(|_| extent.low < at.next) else { return Ok(None) };
        let after = async_nats::datetime::from_nanos(stored.after())
            .map_err(|error| Trouble::new("protocol", format!("a stream with impossible times: {error}")))?;
        let from = DeliverPolicy::ByStartTime { start_time: after };
        let consumer = link.consumer(&self.stream, &self.config.subjects, from).await?;
        let unread =
            |error: &dyn std::fmt::Display| Trouble::request("look whether the stream lost its end", error);
        let mut found = consumer.fetch().max_messages(1).messages().await.map_err(|error| unread(&error))?;
        let place = match found.next().await {
            None => None,
            Some(message) => Some(place_of(&message.map_err(|error| unread(&error))?)?),
        };
        // Should it not hear of it, it forgets by itself.
        let _ = link.jetstream.delete_consumer_from_stream(&consumer.cached_info().name, &*self.stream).await;
        // What another clock stored earlier is none.
        let later = place.filter(|place| place.stored > stored && place.position < at.next);
        Ok(later.map(|place| place.position))
    }

    /// The alarm when a stream no longer holds what was to be read next.
    fn tell_lost(&self, at: At, extent: Extent, moved: At) {
        let what = if moved.generation == at.generation {
            "the stream no longer holds the sequence to read next: messages were deleted before they were read"
        } else {
            "the stream lost its end and gives the same sequences to other messages: going on in another epoch"
        };
        tracing::error!(
            source = self.status.source,
            stream = &*self.stream,
            lost = at.next,
            oldest = extent.low,
            end = extent.end,
            next = moved.next,
            "{what}"
        );
        self.status.figures.moved.inc();
    }

    async fn read(&mut self, session: &mut Session) -> Result<(), Ended> {
        let messages =
            session.consumer.stream().max_messages_per_batch(session.link.ahead()).heartbeat(HEARTBEAT);
        let mut messages =
            messages.messages().await.map_err(|error| Trouble::request("ask for messages", error))?;
        let mut look = self.look_later(session);
        loop {
            tokio::select! {
                message = messages.next() => {
                    let (batch, ended) = self.gather(session, message, &mut messages);
                    if !batch.records.is_empty() {
                        self.had_read = true;
                        self.hand_on(session, batch).await?;
                    }
                    ended?;
                }
                looked = &mut look => {
                    self.compare(session, looked).await?;
                    look = self.look_later(session);
                }
                trouble = session.link.lost() => return Err(trouble.into()),
                () = self.output.closed() => return Err(Ended::Stopped),
            }
        }
    }

    /// Takes a message and all that are there behind it. What is wrong with one ends the session after those before it.
    fn gather(
        &mut self,
        session: &mut Session,
        mut message: Option<Result<jetstream::Message, pull::MessagesError>>,
        messages: &mut pull::Stream,
    ) -> (Batch, Result<(), Trouble>) {
        let mut batch = Batch::default();
        loop {
            match message {
                None => return (batch, Err(Trouble::new("lost", "the consumer ended"))),
                Some(Err(error)) => {
                    if error.kind() != pull::MessagesErrorKind::MissingHeartbeat
                        || !std::mem::take(&mut session.stalled)
                    {
                        return (batch, Err(session.link.explain(Trouble::request("read", error))));
                    }
                }
                Some(Ok(message)) => {
                    session.stalled = false;
                    if let Err(trouble) = self.take(session, message, &mut batch) {
                        return (batch, Err(trouble));
                    }
                }
            }
            if batch.records.len() >= MAX_BATCH_RECORDS || batch.bytes >= MAX_BATCH_BYTES {
                return (batch, Ok(()));
            }
            message = match messages.next().now_or_never() {
                Some(message) => message,
                None => return (batch, Ok(())),
            };
        }
    }

    fn take(
        &mut self,
        session: &mut Session,
        message: jetstream::Message,
        batch: &mut Batch,
    ) -> Result<(), Trouble> {
        let place = place_of(&message)?;
        if place.consumed != session.consumes {
            return Err(Trouble::new("skipped", "a message got lost on its way"));
        }
        let Some(here) = &mut self.here else { return Ok(()) };
        session.consumes += 1;
        if place.position > here.at.next.max(1) {
            batch.holes.push((batch.records.len(), here.at.next));
        }
        here.at.next = here.at.next.max(place.position.saturating_add(1));
        // It never falls, whatever clock the server has.
        let stored = here.at.stored.map_or(place.stored, |before| before.max(place.stored));
        here.at.stored = Some(stored);
        let (message, _) = message.split();
        let subject: Arc<str> = match batch.records.last() {
            Some(last) if *last.topic == *message.subject => last.topic.clone(),
            _ => message.subject.as_str().into(),
        };
        let place = Place { stored, ..place };
        let record = record_of(message, &place, (subject, here.epoch), self.config.time_header.as_deref());
        batch.bytes += record.bytes();
        batch.pending = place.pending;
        batch.records.push(record);
        Ok(())
    }

    /// Hands records on, with a word where some before them were lost.
    async fn hand_on(&mut self, session: &mut Session, batch: Batch) -> Result<(), Ended> {
        let Batch { mut records, holes, pending, .. } = batch;
        self.status.figures.records.inc_by(records.len() as u64);
        let low = self.low_behind(session, &holes).await;
        let mut given = 0;
        let began = Instant::now();
        for (index, from) in holes.into_iter().filter(|(_, from)| *from < low) {
            let rest = records.split_off(index - given);
            given = index;
            self.send_records(std::mem::replace(&mut records, rest)).await?;
            let Some(position) = records.first().map(|record| record.position.min(low)) else { break };
            self.begin_behind(from, position).await?;
        }
        self.send_records(records).await?;
        session.stalled = began.elapsed() > HEARTBEAT;
        self.show_lag(pending);
        let passed =
            self.here.as_ref().is_some_and(|here| here.goal.is_some_and(|goal| here.at.next >= goal));
        if pending == 0 || passed { self.reach(0).await } else { Ok(()) }
    }

    /// The first sequence of the stream now, after holes were met. Where that is not before a hole's beginning, nothing in
    /// the hole was trimmed. Zero where holes mean nothing.
    async fn low_behind(&self, session: &Session, holes: &[(usize, u64)]) -> u64 {
        if holes.is_empty() || session.compacted {
            return 0;
        }
        match session.link.stream(&self.stream).await {
            Ok(Some(info)) if self.here.as_ref().is_some_and(|here| here.log == log_of(&info)) => {
                extent_of(&info).low
            }
            // Who cannot know says that it may have lost something.
            _ => u64::MAX,
        }
    }

    /// Goes on behind messages that were trimmed before they were read.
    async fn begin_behind(&mut self, lost: u64, position: u64) -> Result<(), Ended> {
        let Some(here) = &mut self.here else { return Ok(()) };
        here.goal.get_or_insert(position);
        let (source, stream) = (&self.status.source, &*self.stream);
        tracing::error!(source, stream, lost, next = position, "messages were deleted before they were read");
        self.status.figures.moved.inc();
        let (epoch, term) = (here.epoch, here.at.stored.map(Stored::term));
        let topic = self.stream.clone();
        self.send(SourceEvent::Begin { topic, partition: 0, epoch, position, first: false, term }).await
    }

    /// All that was in the stream when it was looked at is given, and it ended at `end`; where that is not known, at least
    /// where it did when reading began.
    async fn reach(&mut self, end: u64) -> Result<(), Ended> {
        let Some(here) = &mut self.here else { return Ok(()) };
        let goal = here.goal.take();
        let position = here.at.next.max(end).max(goal.unwrap_or(0));
        if goal.is_none() && position == here.at.next {
            return Ok(());
        }
        here.at.next = position;
        let epoch = here.epoch;
        self.send(SourceEvent::Reached { epoch, position }).await
    }

    /// What will be seen of the stream in a while; never anything while the server does not answer.
    fn look_later(&self, session: &Session) -> BoxFuture<'static, Looked> {
        let (jetstream, consumer) = (session.link.jetstream.clone(), session.consumer.clone());
        let name = self.stream.clone();
        let status = self.status.clone();
        async move {
            loop {
                sleep(LOOK_INTERVAL).await;
                let began = Instant::now();
                match look(&jetstream, &name, &consumer).await {
                    Ok(looked) => {
                        let rtt = began.elapsed().as_micros() / 2;
                        status.figures.broker_rtt.set(i64::try_from(rtt).unwrap_or(i64::MAX));
                        return looked;
                    }
                    // Whether the session is over is for heartbeats to say.
                    Err(trouble) => status.figures.error(trouble.kind),
                }
            }
        }
        .boxed()
    }

    /// What to make of how the stream looks.
    async fn compare(&mut self, session: &Session, looked: Looked) -> Result<(), Ended> {
        let Some(info) = looked.info else {
            return Err(Trouble::new("recreated", "the stream is gone").into());
        };
        if self.here.as_ref().is_none_or(|here| here.log != log_of(&info)) {
            return Err(Trouble::new("recreated", "the stream was deleted and created again").into());
        }
        if let Some(refused) = refusal(&info, self.retains_last) {
            return Err(Trouble::new("refused", refused).into());
        }
        self.show_lag(looked.pending);
        // Sequences without a message for this source are passed as well, or they would be missed at the next start.
        if looked.pending == 0 && looked.consumed + 1 == session.consumes {
            self.reach(extent_of(&info).end).await?;
        }
        Ok(())
    }

    fn show_lag(&self, pending: u64) {
        self.status.figures.lag.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    async fn send_records(&self, records: Vec<Record>) -> Result<(), Ended> {
        if records.is_empty() { Ok(()) } else { self.send(SourceEvent::Records(records)).await }
    }

    async fn send(&self, event: SourceEvent) -> Result<(), Ended> {
        self.output.send(event).await.map_err(|_| Ended::Stopped)
    }
}

/// The stream first: what it held then, the consumer has given if it has nothing to give afterwards.
async fn look(jetstream: &Context, name: &str, consumer: &Consumer<pull::Config>) -> Result<Looked, Trouble> {
    let Some(info) = stream(jetstream, name).await? else {
        return Ok(Looked { info: None, pending: 0, consumed: 0 });
    };
    let seen = consumer.get_info().await.map_err(|error| Trouble::request("ask for the consumer", error))?;
    Ok(Looked { info: Some(info), pending: seen.num_pending, consumed: seen.delivered.consumer_sequence })
}

/// Why a stream is not read, and what would help.
fn refusal(info: &Info, retains_last: bool) -> Option<String> {
    let name = &info.config.name;
    if info.config.retention != RetentionPolicy::Limits {
        return Some(format!(
            "stream {name} deletes what was consumed, so only one could read it; give it retention \"limits\", or make a mirror that has"
        ));
    }
    if is_compacted(&info.config) && !retains_last {
        return Some(format!(
            "stream {name} keeps the last messages of each subject only (max_msgs_per_subject or rollup), so what a client missed \
             cannot be read again; set retain = \"last\" in all routes of this source, or take those settings from the stream"
        ));
    }
    None
}
