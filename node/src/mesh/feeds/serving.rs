//! One feed, served: its request, then frames until its end.

use std::{collections::HashSet, future::Future, io, pin::pin, time::Duration};

use bytes::Bytes;
use libp2p::{
    PeerId,
    futures::{AsyncReadExt, io::ReadHalf, io::WriteHalf},
};
use tickmesh_protocol::{
    StreamName, Topic,
    codec::{self, MAX_FEED_REQUEST_BYTES},
    feed::{FeedEnd, FeedFrame, FeedRequest, MAX_FEED_STREAMS, MAX_STATE_CHUNK_BYTES},
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{
    Settings,
    server::Server,
    wire::{FrameReader, FrameWriter, Io},
};
use crate::{
    mesh::metrics::FeedOutcome,
    ports::{CursorStream, FeedCursor, FeedStep},
};

/// A turn is for preparing a page, which takes well under a millisecond. Who has not got it after this waits for a log,
/// and must not keep others from what is in memory.
const TURN: Duration = Duration::from_millis(10);

/// Between two statuses: a peer that changes all the time says so forty times a second at most.
const STATUS_PAUSE: Duration = Duration::from_millis(25);

/// What a request is called in metrics.
pub(super) fn kind(request: &FeedRequest) -> &'static str {
    match request {
        FeedRequest::Streams { .. } => "streams",
        FeedRequest::Topic { .. } => "topic",
        FeedRequest::Status => "status",
        FeedRequest::State { .. } => "state",
        FeedRequest::Snapshots { .. } => "snapshots",
        FeedRequest::Private => "private",
        FeedRequest::Catalogue(_) => "catalogue",
    }
}

/// A feed being served to one peer.
pub(super) struct Serving<'a, T> {
    pub(super) server: &'a Server,
    pub(super) settings: &'a Settings,
    pub(super) read: ReadHalf<T>,
    pub(super) write: FrameWriter<WriteHalf<T>>,
}

/// A feed ended early.
pub(super) enum Ended {
    /// Nothing more will be sent, for this reason, which the reader is told.
    Refused(String),
    /// Nothing more can be sent.
    Cut(FeedOutcome),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Cut(if error.kind() == io::ErrorKind::TimedOut { FeedOutcome::Slow } else { FeedOutcome::Gone })
    }
}

impl<'a, T: Io> Serving<'a, T> {
    pub(super) fn new(server: &'a Server, io: T) -> Self {
        let settings = &server.settings;
        let (read, write) = io.split();
        Self { server, settings, read, write: FrameWriter::new(write, settings.write) }
    }

    /// Reads the request, and then gives what it asks for. Returns what was asked for, and how it ended.
    pub(super) async fn run(mut self, peer: PeerId, may_know_status: bool) -> (&'static str, FeedOutcome) {
        let request = match self.request().await {
            Ok(request) => request,
            Err(outcome) => return ("unknown", outcome),
        };
        let kind = kind(&request);
        let ended = match request {
            _ if !self.server.may_ask(peer, &request) => {
                Err(Ended::Refused("the streams are private".into()))
            }
            FeedRequest::Status | FeedRequest::State { .. } | FeedRequest::Catalogue(_)
                if !may_know_status =>
            {
                Err(Ended::Refused("only publishers are told".into()))
            }
            FeedRequest::Streams { topic, after, live } => {
                let named = after.len();
                let streams = after.into_iter().map(|(name, after)| CursorStream::new(name, after)).collect();
                self.events(FeedCursor { topic, streams, all: false }, named, live).await
            }
            FeedRequest::Topic { topic, after, live } => {
                let named = after.len();
                let streams =
                    after.into_iter().map(|(name, after)| CursorStream::new(name, Some(after))).collect();
                self.events(FeedCursor { topic, streams, all: true }, named, live).await
            }
            FeedRequest::Status => self.status().await,
            FeedRequest::State { source } => self.state(&source).await,
            FeedRequest::Private => self.private(peer).await,
            FeedRequest::Catalogue(ask) => {
                let answer = self.server.store.catalogue(*ask).await;
                self.send(&FeedFrame::Catalogue(Box::new(answer))).await
            }
            FeedRequest::Snapshots { topic, streams } => self.snapshots(&topic, streams).await,
        };
        (kind, self.end(ended).await)
    }

    /// Reads the request, but only to say that it is not served.
    pub(super) async fn refuse(mut self, reason: &str) -> (&'static str, FeedOutcome) {
        match self.request().await {
            Ok(request) => (kind(&request), self.end(Err(Ended::Refused(reason.into()))).await),
            Err(outcome) => ("unknown", outcome),
        }
    }

    async fn request(&mut self) -> Result<FeedRequest, FeedOutcome> {
        let patience = self.settings.request;
        let mut frames = FrameReader::new(MAX_FEED_REQUEST_BYTES);
        let bytes = match timeout(patience, frames.next(&mut self.read, patience)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(self.invalid(&error.to_string()).await);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => return Err(FeedOutcome::Slow),
            Ok(Err(_)) => return Err(FeedOutcome::Gone),
            Err(_) => return Err(FeedOutcome::Slow),
        };
        match codec::decode_feed_request(&bytes) {
            Ok(request) => Ok(request),
            Err(error) => Err(self.invalid(&error.to_string()).await),
        }
    }

    async fn invalid(&mut self, reason: &str) -> FeedOutcome {
        match self.end(Err(Ended::Refused(reason.into()))).await {
            FeedOutcome::Refused => FeedOutcome::Invalid,
            cut => cut,
        }
    }

    async fn end(&mut self, ended: Result<(), Ended>) -> FeedOutcome {
        let (last, outcome) = match ended {
            Ok(()) => (Ok(()), FeedOutcome::Served),
            Err(Ended::Refused(reason)) => {
                (self.send(&FeedFrame::refused(reason)).await, FeedOutcome::Refused)
            }
            Err(Ended::Cut(outcome)) => return outcome,
        };
        match last {
            Err(Ended::Cut(outcome)) => outcome,
            _ => match self.write.close().await.map_err(Ended::from) {
                Err(Ended::Cut(cut)) => cut,
                _ => outcome,
            },
        }
    }

    /// `named`: how many streams of the cursor the request named; the store may add others.
    async fn events(&mut self, mut cursor: FeedCursor, named: usize, live: bool) -> Result<(), Ended> {
        let server = self.server;
        let mut told = HashSet::new();
        loop {
            // Before looking, so that what comes after looking is not missed.
            let changed = server.store.changed(&cursor.topic);
            let before = cursor.streams.clone();
            let step = self.next_step(&mut cursor, live).await?;
            let (stuck, at_head) = (step.pages.is_empty() && cursor.streams == before, step.at_head);
            for page in step.pages {
                self.send(&FeedFrame::Page(page)).await?;
            }
            if live {
                self.tell_refused(&cursor, &mut told).await?;
                if told.len() == cursor.streams.len() && !cursor.all {
                    return Ok(());
                }
            } else if at_head {
                let end = |of: &CursorStream| {
                    (of.name.clone(), of.end.unwrap_or(FeedEnd::Complete { head: of.after }))
                };
                let streams = cursor.streams.iter().take(named).map(end).collect();
                return self.send(&FeedFrame::End { streams }).await;
            }
            if at_head {
                self.wait(changed).await?;
            } else if stuck {
                self.wait_for_log(&cursor.topic, live, changed).await?;
            }
        }
    }

    /// Prepares what comes next, in turn with the other feeds.
    async fn next_step(&mut self, cursor: &mut FeedCursor, live: bool) -> Result<FeedStep, Ended> {
        let server = self.server;
        let turn = self.wait(server.turns.acquire()).await?;
        let next = async {
            let mut next = pin!(server.store.next(cursor));
            let in_turn = timeout(TURN, &mut next).await;
            drop(turn);
            match in_turn {
                Ok(step) => Some(step),
                Err(_) if live => Some(next.await),
                Err(_) => timeout(server.settings.patience, next).await.ok(),
            }
        };
        match self.wait(next).await? {
            Some(step) => step.map_err(|refusal| Ended::Refused(refusal.to_string())),
            None => Err(self.impatient()),
        }
    }

    async fn wait_for_log(
        &mut self,
        topic: &Topic,
        live: bool,
        changed: impl Future<Output = ()>,
    ) -> Result<(), Ended> {
        tracing::trace!(%topic, "feed waits for a log");
        if live {
            return self.wait(changed).await;
        }
        match self.wait(timeout(self.settings.patience, changed)).await? {
            Ok(()) => Ok(()),
            Err(_) => Err(self.impatient()),
        }
    }

    fn impatient(&self) -> Ended {
        Ended::Refused(format!("nothing to serve within {} s", self.settings.patience.as_secs()))
    }

    /// A live feed says of streams that they were refused, each once.
    async fn tell_refused(
        &mut self,
        cursor: &FeedCursor,
        told: &mut HashSet<StreamName>,
    ) -> Result<(), Ended> {
        let mut refused: Vec<_> = cursor
            .streams
            .iter()
            .filter_map(|of| match of.end {
                Some(end @ FeedEnd::Refused { .. }) if !told.contains(&of.name) => {
                    Some((of.name.clone(), end))
                }
                _ => None,
            })
            .collect();
        told.extend(refused.iter().map(|(name, _)| name.clone()));
        while !refused.is_empty() {
            let rest = refused.split_off(refused.len().min(MAX_FEED_STREAMS));
            self.send(&FeedFrame::End { streams: refused }).await?;
            refused = rest;
        }
        Ok(())
    }

    async fn status(&mut self) -> Result<(), Ended> {
        let mut status = self.server.store.status();
        loop {
            let now = status.borrow_and_update().clone();
            self.send(&FeedFrame::Status(now)).await?;
            let every = self.settings.status_every;
            let next = async {
                sleep(STATUS_PAUSE).await;
                // No change within the time is a reason to say the same again.
                timeout(every, status.changed()).await.unwrap_or(Ok(()))
            };
            if self.wait(next).await?.is_err() {
                return Err(Ended::Refused("ingest has ended".into()));
            }
        }
    }

    async fn state(&mut self, source: &str) -> Result<(), Ended> {
        let server = self.server;
        let turn = self.wait(server.turns.acquire()).await?;
        let state = async {
            let mut state = pin!(server.store.state(source));
            let in_turn = timeout(TURN, &mut state).await;
            drop(turn);
            match in_turn {
                Ok(state) => state,
                Err(_) => timeout(server.settings.patience, state).await.unwrap_or(None),
            }
        };
        let Some(mut state) = self.wait(state).await? else {
            return Err(Ended::Refused("no such source, or it is not warm".into()));
        };
        loop {
            let chunk: Bytes = state.split_to(state.len().min(MAX_STATE_CHUNK_BYTES));
            let last = state.is_empty();
            self.send(&FeedFrame::State { chunk, last }).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn snapshots(&mut self, topic: &Topic, streams: Vec<StreamName>) -> Result<(), Ended> {
        let server = self.server;
        let mut ends = Vec::with_capacity(streams.len());
        while ends.len() < streams.len() {
            let turn = self.wait(server.turns.acquire()).await?;
            let given = server.store.snapshots(topic, &streams[ends.len()..]);
            drop(turn);
            let given = given.map_err(|refusal| Ended::Refused(refusal.to_string()))?;
            if given.ends.is_empty() {
                return Err(Ended::Refused("nothing is said of a stream".into()));
            }
            ends.extend(given.ends);
            if let Some(page) = given.page {
                self.send(&FeedFrame::Snapshots(page)).await?;
            }
        }
        self.send(&FeedFrame::End { streams: streams.into_iter().zip(ends).collect() }).await
    }

    async fn send(&mut self, frame: &FeedFrame) -> Result<(), Ended> {
        self.put(frame)?;
        Ok(self.write.flush().await?)
    }

    /// Puts a frame behind what is not written yet.
    pub(super) fn put(&mut self, frame: &FeedFrame) -> Result<(), Ended> {
        match codec::encode_feed_frame(frame) {
            Ok(bytes) => {
                self.server.metrics.served(frame, bytes.len());
                self.write.put(&bytes);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "a frame of a feed breaks a limit");
                Err(Ended::Cut(FeedOutcome::Failed))
            }
        }
    }

    /// Waits for something of this node; meanwhile the reader is told that the server is at it, and heard if it goes.
    /// A reader that does not take that keeps nothing waiting: what is waited for goes on, and the write, too, later.
    async fn wait<O>(&mut self, what: impl Future<Output = O>) -> Result<O, Ended> {
        let mut what = pin!(what);
        let every = self.settings.keep_alive;
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        loop {
            let mut byte = [0];
            tokio::select! {
                biased;
                out = &mut what => return Ok(out),
                // It ended the stream, or says more than one request.
                _ = self.read.read(&mut byte) => return Err(Ended::Cut(FeedOutcome::Gone)),
                written = self.write.flush(), if self.write.is_pending() => written?,
                _ = tick.tick() => if !self.write.is_pending() {
                    match codec::encode_feed_frame(&FeedFrame::Working) {
                        Ok(working) => self.write.put(&working),
                        Err(error) => tracing::error!(%error, "a frame of a feed breaks a limit"),
                    }
                }
            }
        }
    }
}
