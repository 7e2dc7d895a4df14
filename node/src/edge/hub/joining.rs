//! Subscribe requests: streams that nobody had are joined, and each request is confirmed when all of its streams are
//! decided.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use tickmesh_protocol::{
    Position, StreamName, Topic,
    client::{Credential, ErrorCode, Rejection},
    feed::Denial,
    head::{Head, HeadReply, HeadRequest},
    policy::ChannelPolicy,
    repair::Repair,
};
use tokio::time::{self, timeout};

use super::{Hub, MAX_STREAMS, MAX_TOPICS, Stream, TopicState};
use crate::edge::queue::{Confirmation, ConnectionId, Grant, StreamId, Subscribe, Ticket, ToShard};

/// Most questions about heads in flight; each is one topic of one request.
const MAX_QUESTIONS: usize = 4096;

/// A subscribe request that waits until all of its streams are decided.
pub struct Request {
    shard: usize,
    connection: ConnectionId,
    ticket: Ticket,
    /// Streams that are granted unless they turn out to be refused.
    streams: Vec<usize>,
    undecided: usize,
    rejected: Vec<Rejection>,
}

/// What the mesh said about where streams stand.
pub struct Answer {
    streams: Vec<usize>,
    reply: Result<HeadReply, Refusal>,
}

/// Why a stream cannot be had.
type Refusal = (ErrorCode, Cow<'static, str>);

impl Hub {
    pub(super) fn subscribe(&mut self, subscribe: Subscribe) {
        let Subscribe { shard, connection, ticket, streams: names, credential } = subscribe;
        let key = self.requests.vacant_key();
        let mut request =
            Request { shard, connection, ticket, streams: Vec::new(), undecided: 0, rejected: Vec::new() };
        let mut questions: BTreeMap<Topic, Vec<usize>> = BTreeMap::new();
        for name in names {
            let stream_key = match self.find_or_add(&name) {
                Ok(key) => key,
                Err(message) => {
                    request.rejected.push(rejection(&name, ErrorCode::Overloaded, message));
                    continue;
                }
            };
            let stream = &mut self.streams[stream_key];
            stream.pins += 1;
            request.streams.push(stream_key);
            let joins = stream.repair.join();
            if !stream.repair.is_live() {
                stream.waiters.push(key);
                request.undecided += 1;
            }
            let topic = stream.topic.clone();
            let credential = credential.as_ref().filter(|_| self.is_private(&name));
            match credential.cloned() {
                Some(credential) if joins => self.join_private(stream_key, &name, credential),
                Some(credential) => self.private.renew(&name, credential),
                None if joins => questions.entry(topic).or_default().push(stream_key),
                None => {}
            }
            self.settle(stream_key);
        }
        let decided = request.undecided == 0;
        self.requests.insert(request);
        for (topic, streams) in questions {
            self.ask(topic, streams);
        }
        if decided {
            self.confirm(key);
        }
    }

    fn find_or_add(&mut self, name: &StreamName) -> Result<usize, &'static str> {
        if let Some(key) = self.names.get(name) {
            return Ok(*key);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err("this edge serves as many streams as it can; ask another one");
        }
        let topic = Topic::spanning(name);
        let joined = self.topics.len();
        match self.topics.get_mut(&topic) {
            Some(topic) => topic.streams += 1,
            None if joined >= MAX_TOPICS => {
                return Err("this edge has joined as many topics as it can; ask another one");
            }
            None => {
                if !self.private_channels.contains(topic.channel()) {
                    self.upstream.join(&topic);
                }
                self.topics.insert(topic.clone(), TopicState { streams: 1, ..TopicState::default() });
            }
        }
        let key = self.streams.insert(Stream {
            name: name.clone(),
            topic,
            repair: Repair::default(),
            fetch_due: None,
            hole: None,
            refetched: None,
            waiters: Vec::new(),
            pins: 0,
            by_shard: vec![0; self.shards.len()].into(),
            subscriptions: 0,
            idle_since: None,
            channel: None,
            policy: ChannelPolicy::default(),
        });
        self.names.insert(name.clone(), key);
        Ok(key)
    }

    /// Has a private stream sent here; ingest checks what its user has shown.
    fn join_private(&mut self, key: usize, name: &StreamName, credential: Arc<Credential>) {
        let joined = timeout(self.join_timeout, self.private.want(name, credential));
        self.questions.push(Box::pin(async move {
            let reply = match joined.await {
                Ok(Ok(Ok(head))) => Ok(HeadReply {
                    heads: vec![head.map_or(Head::Empty, Head::At)],
                    read: Vec::new(),
                    left: Vec::new(),
                    policy: ChannelPolicy::default(),
                }),
                Ok(Ok(Err(denial))) => Err(denied(denial)),
                _ => Err(unavailable("no peer said in time where the stream stands")),
            };
            Answer { streams: vec![key], reply }
        }));
    }

    /// A client has shown something newer.
    pub(super) fn renew(&self, streams: &[StreamName], credential: &Arc<Credential>) {
        for stream in streams.iter().filter(|stream| self.names.contains_key(*stream)) {
            self.private.renew(stream, Arc::clone(credential));
        }
    }

    /// Asks where streams stand; a request has no more streams than a question may have.
    fn ask(&mut self, topic: Topic, streams: Vec<usize>) {
        if self.questions.len() >= MAX_QUESTIONS {
            let reply = Err(unavailable("too many streams are being joined"));
            return self.answer(Answer { streams, reply });
        }
        let names = streams.iter().map(|key| self.streams[*key].name.clone()).collect();
        let heads = self.upstream.heads(HeadRequest { topic, streams: names });
        let heads = time::timeout(self.join_timeout, heads);
        self.questions.push(Box::pin(async move {
            let reply = match heads.await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(error)) => Err(unavailable(error.reason)),
                Err(_) => Err(unavailable("no peer said in time where the stream stands")),
            };
            Answer { streams, reply }
        }));
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        let Answer { streams, reply } = answer;
        let HeadReply { heads, read, left, policy } = match reply {
            Ok(reply) if reply.heads.len() == streams.len() => reply,
            Ok(_) => return self.refused(&streams, &unavailable("a peer answered another question")),
            Err(refusal) => return self.refused(&streams, &refusal),
        };
        // One that could not be kept is none.
        let policy = if policy.check(false).is_ok() { policy } else { ChannelPolicy::default() };
        // First the requests are confirmed where the streams stand, then come the events that were held.
        let now = self.now();
        let read: Arc<[Position]> = read.into();
        let mut held = Vec::new();
        for ((key, head), at) in streams.iter().zip(&heads).zip(0_u32..) {
            let position = match head {
                Head::At(position) => Some(*position),
                Head::Empty => None,
                Head::UnknownChannel | Head::Private => continue,
            };
            let stream = &mut self.streams[*key];
            let mut outputs = Vec::new();
            match position {
                Some(_) => stream.repair.joined(position, now, &mut outputs),
                None => stream.repair.joined_empty(Arc::clone(&read), now, &mut outputs),
            }
            let left: Vec<_> =
                left.iter().filter(|(stream, _)| *stream == at).map(|(_, epoch)| *epoch).collect();
            stream.repair.note_left(&left);
            self.recent.begin(StreamId(*key), position);
            stream.policy = policy;
            stream.channel = Some(self.metrics.channel(&mut self.channels, stream.name.channel()));
            held.push((*key, outputs));
            self.joined_at.insert(*key, position);
        }
        for (key, head) in streams.iter().zip(&heads) {
            let refused = match head {
                Head::At(_) | Head::Empty => None,
                Head::UnknownChannel => {
                    Some((ErrorCode::UnknownStream, "no route makes events of this channel"))
                }
                Head::Private => Some((ErrorCode::Forbidden, "the channel is private")),
            };
            self.decide(*key, refused);
        }
        self.joined_at.clear();
        for (key, outputs) in held {
            self.outputs = outputs;
            self.put_out(key, now);
            self.note(key, now);
        }
        for (key, head) in streams.iter().zip(&heads) {
            if matches!(head, Head::UnknownChannel | Head::Private) {
                self.remove_if_unused(*key);
            }
        }
    }

    fn refused(&mut self, streams: &[usize], (code, reason): &Refusal) {
        for key in streams {
            // Private ones are named after users, who are nobody's business.
            let channel = self.streams[*key].name.channel();
            tracing::warn!(channel, code = ?code, reason = &**reason, "stream cannot be joined");
            self.decide(*key, Some((*code, reason)));
        }
    }

    /// Tells all who wait for a stream that it is live, or why it cannot be had.
    fn decide(&mut self, key: usize, refused: Option<(ErrorCode, &str)>) {
        let stream = &mut self.streams[key];
        let waiters = std::mem::take(&mut stream.waiters);
        if refused.is_some() {
            stream.repair.give_up();
            stream.pins -= waiters.len();
        }
        for waiter in waiters {
            let request = &mut self.requests[waiter];
            request.undecided -= 1;
            if let Some((code, message)) = refused {
                request.rejected.push(rejection(&self.streams[key].name, code, message));
                request.streams.retain(|stream| *stream != key);
            }
            if request.undecided == 0 {
                self.confirm(waiter);
            }
        }
        self.settle(key);
    }

    /// Starts all streams of a request at the positions where they stand now.
    fn confirm(&mut self, key: usize) {
        let Request { shard, connection, ticket, streams, rejected, .. } = self.requests.remove(key);
        let mut granted = Vec::with_capacity(streams.len());
        for key in streams {
            let stream = &mut self.streams[key];
            stream.pins -= 1;
            stream.subscriptions += 1;
            stream.by_shard[shard] += 1;
            granted.push(Grant {
                id: StreamId(key),
                name: stream.name.clone(),
                position: self.joined_at.get(&key).copied().unwrap_or_else(|| stream.repair.position()),
                policy: stream.policy,
            });
        }
        self.outgoing[shard].push(ToShard::Confirm(Confirmation { connection, ticket, granted, rejected }));
    }

    pub(super) fn release(&mut self, shard: usize, streams: &[StreamId]) {
        for StreamId(key) in streams {
            let stream = &mut self.streams[*key];
            stream.subscriptions -= 1;
            stream.by_shard[shard] -= 1;
            self.settle(*key);
        }
    }
}

fn unavailable(reason: impl Into<Cow<'static, str>>) -> Refusal {
    (ErrorCode::Unavailable, reason.into())
}

/// What a client is told when ingest does not grant its stream.
fn denied(denial: Denial) -> Refusal {
    match denial {
        Denial::Forbidden => {
            (ErrorCode::Forbidden, "the exchange does not grant it to these credentials".into())
        }
        Denial::Expired => (ErrorCode::TokenExpired, "the credentials have expired".into()),
        Denial::Unavailable => unavailable("credentials cannot be checked at the moment"),
    }
}

fn rejection(stream: &StreamName, code: ErrorCode, message: &str) -> Rejection {
    Rejection::new(stream.as_str(), code, message)
}
