//! What clients ask, and the answers.

use std::collections::{BTreeMap, HashSet};

use tickmesh_protocol::{
    StreamName,
    client::{ClientMessage, CloseCode, ControlMessage, ErrorCode, ProtocolError, Rejection, RequestId},
};
use tokio::{sync::mpsc::error::TrySendError, time::Instant};

use super::{
    connection::CLOSE_TIMEOUT,
    inbox::Incoming,
    queue::{Confirmation, Subscribe, Ticket, ToHub},
    shard::Shard,
};
use crate::{lifecycle, ops::lifecycle::Lifecycle, ops::metrics::now_us};

/// Protocol errors in a row that close a connection (DESIGN: client protocol).
const MAX_ERRORS_IN_ROW: u32 = 10;

/// Requests of one connection that may be unanswered at once: a client that subscribes to a page of streams one by one
/// is served; more is refused with `rate_limited`.
const MAX_OUTSTANDING_REQUESTS: usize = 64;

/// Bytes of those requests: what they hold in memory is about as much.
const MAX_OUTSTANDING_BYTES: usize = 256 * 1024;

impl Shard {
    /// Takes bytes from a client.
    pub fn read_frames(&mut self, key: usize, mut bytes: &mut [u8], now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(key).filter(|connection| !connection.deaf) else {
                return;
            };
            connection.last_heard = now;
            connection.pinged = false;
            match connection.inbox.next(&mut bytes) {
                Ok(None) => return,
                Ok(Some(incoming)) => self.incoming(key, incoming, now),
                Err(error) => {
                    connection.deaf = true;
                    self.close(key, error.close_code(), &error.to_string());
                    return;
                }
            }
        }
    }

    fn incoming(&mut self, key: usize, incoming: Incoming, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match incoming {
            Incoming::Close(code) => {
                connection.closed_by_client(code, now);
                self.unsubscribe_all(key);
            }
            _ if !connection.is_open() => {}
            Incoming::Ping(payload) => connection.outbox.pong(super::frame::pong(&payload)),
            Incoming::Pong => {}
            Incoming::Binary => self.protocol_error(
                key,
                ProtocolError {
                    code: ErrorCode::BadRequest,
                    message: "messages are JSON text frames, not binary ones".into(),
                    id: None,
                },
            ),
            Incoming::Text(text) => match ClientMessage::parse(&text) {
                Ok(message) => {
                    connection.errors_in_row = 0;
                    self.request(key, message, text.len());
                }
                Err(error) => self.protocol_error(key, error),
            },
        }
    }

    fn protocol_error(&mut self, key: usize, error: ProtocolError) {
        let ProtocolError { code, message, id } = error;
        self.say(key, &ControlMessage::Error { id, code, message });
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.errors_in_row += 1;
        if connection.errors_in_row >= MAX_ERRORS_IN_ROW {
            // The errors themselves go out first: they say what to mend.
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            connection.close(CloseCode::Policy, CloseCode::Policy.reason(), true, deadline);
            self.unsubscribe_all(key);
        }
    }

    /// Answers a request, or lets it wait for the ones before it.
    fn request(&mut self, key: usize, message: ClientMessage, bytes: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let outstanding = &mut connection.outstanding;
        let must_wait = match &message {
            ClientMessage::Ping { .. } => false,
            ClientMessage::Subscribe { .. } => !outstanding.deferred.is_empty(),
            ClientMessage::Unsubscribe { .. } | ClientMessage::Streams { .. } => {
                outstanding.requests > 0 || !outstanding.deferred.is_empty()
            }
        };
        let requests = outstanding.requests + outstanding.deferred.len();
        let full = requests >= MAX_OUTSTANDING_REQUESTS || outstanding.bytes + bytes > MAX_OUTSTANDING_BYTES;
        if full && !matches!(message, ClientMessage::Ping { .. }) {
            let message = ControlMessage::Error {
                id: id_of(message),
                code: ErrorCode::RateLimited,
                message: "too many requests are unanswered; wait for the answers".into(),
            };
            return self.say(key, &message);
        }
        if must_wait {
            outstanding.bytes += bytes;
            outstanding.deferred.push_back((message, bytes));
        } else {
            self.handle(key, message, bytes);
        }
    }

    fn handle(&mut self, key: usize, message: ClientMessage, bytes: usize) {
        match message {
            ClientMessage::Ping { id } => {
                self.say(key, &ControlMessage::Pong { id, timestamp: now_us() / 1000 });
            }
            ClientMessage::Subscribe { id, streams } => self.subscribe(key, id, &streams, bytes),
            ClientMessage::Unsubscribe { id, streams } => self.unsubscribe(key, id, &streams),
            ClientMessage::Streams { id } => self.list(key, id),
        }
    }

    fn subscribe(&mut self, key: usize, id: Option<RequestId>, names: &[String], bytes: usize) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let (connection_id, connection_name) = (connection.id, self.name_of(connection.id));
        lifecycle!(
            self.lifecycle,
            Lifecycle::SubscribeRequest,
            connection = connection_name,
            streams = names.len()
        );
        let mut room = self
            .config
            .max_streams
            .saturating_sub(self.subscriptions.count(key) + connection.outstanding.streams);
        let (mut wanted, mut rejected, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for name in names.iter().filter(|name| seen.insert(name.as_str())) {
            match self.permit(key, name, &mut room) {
                Ok(stream) => wanted.push(stream),
                Err((code, message)) => rejected.push(Rejection { stream: name.clone(), code, message }),
            }
        }
        lifecycle!(
            self.lifecycle,
            Lifecycle::TopicPermissionCheck,
            connection = connection_name,
            permitted = wanted.len(),
            refused = rejected.len()
        );
        if wanted.is_empty() {
            return self.say(key, &subscribed(id, rejected));
        }
        let count = wanted.len();
        let ticket = Ticket { id, rejected, streams: count, bytes };
        let subscribe = Subscribe { shard: self.index, connection: connection_id, ticket, streams: wanted };
        match self.hub.try_send(ToHub::Subscribe(subscribe)) {
            Ok(()) => {
                if let Some(connection) = self.connections.get_mut(key) {
                    let outstanding = &mut connection.outstanding;
                    outstanding.requests += 1;
                    outstanding.streams += count;
                    outstanding.bytes += bytes;
                }
            }
            Err(TrySendError::Full(request) | TrySendError::Closed(request)) => self.refuse(key, request),
        }
    }

    /// Whether a client may have a stream.
    fn permit(&self, key: usize, name: &str, room: &mut usize) -> Result<StreamName, (ErrorCode, String)> {
        let stream: StreamName =
            name.parse().map_err(|error| (ErrorCode::UnknownStream, format!("{error}")))?;
        if !self.config.anonymous_may(&stream) {
            return Err((ErrorCode::Forbidden, "not for clients without credentials".into()));
        }
        if self.subscriptions.id(name).is_some_and(|id| self.subscriptions.has(key, id)) {
            return Ok(stream);
        }
        match room.checked_sub(1) {
            Some(less) => *room = less,
            None => {
                let message = format!("at most {} streams at once", self.config.max_streams);
                return Err((ErrorCode::TooManyStreams, message));
            }
        }
        Ok(stream)
    }

    /// The hub has no room for a request.
    fn refuse(&mut self, key: usize, request: ToHub) {
        let ToHub::Subscribe(Subscribe { ticket: Ticket { id, mut rejected, .. }, streams, .. }) = request
        else {
            return;
        };
        rejected.extend(streams.iter().map(|stream| Rejection {
            stream: stream.as_str().to_owned(),
            code: ErrorCode::Overloaded,
            message: "this edge has too many requests; ask again after a second".into(),
        }));
        self.say(key, &subscribed(id, rejected));
    }

    /// Answers a subscribe request: the hub has decided all of its streams.
    pub fn confirm(&mut self, confirmation: Confirmation) {
        let Confirmation { connection: id, ticket, granted, rejected } = confirmation;
        let key = id.key;
        let Some(connection) =
            self.connections.get_mut(key).filter(|connection| connection.id == id && connection.is_open())
        else {
            // Nobody is there any more: give everything back.
            return self.release(granted.into_iter().map(|grant| grant.id));
        };
        connection.outstanding.requests -= 1;
        connection.outstanding.streams -= ticket.streams;
        connection.outstanding.bytes -= ticket.bytes;
        let mut streams = Vec::with_capacity(granted.len());
        let mut positions = BTreeMap::new();
        for grant in granted {
            if self.subscriptions.add(key, &grant) {
                self.metrics.subscriptions.inc();
            } else {
                // It has the stream already; one subscription is enough.
                self.release([grant.id]);
            }
            positions.extend(grant.position.map(|position| (grant.name.clone(), position)));
            streams.push(grant.name);
        }
        lifecycle!(
            self.lifecycle,
            Lifecycle::SubscriptionConfirmed,
            connection = self.name_of(id),
            streams = streams.len()
        );
        let mut all_rejected = ticket.rejected;
        all_rejected.extend(rejected);
        self.say(
            key,
            &ControlMessage::Subscribed { id: ticket.id, streams, positions, rejected: all_rejected },
        );
        self.handle_deferred(key);
    }

    /// Handles the requests that have waited, as far as they need wait no longer.
    fn handle_deferred(&mut self, key: usize) {
        while let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_open()) {
            let outstanding = &mut connection.outstanding;
            let ready = match outstanding.deferred.front() {
                Some((ClientMessage::Subscribe { .. } | ClientMessage::Ping { .. }, _)) => true,
                Some(_) => outstanding.requests == 0,
                None => false,
            };
            if !ready {
                if outstanding.deferred.is_empty() {
                    outstanding.deferred = Default::default();
                }
                return;
            }
            if let Some((message, bytes)) = outstanding.deferred.pop_front() {
                outstanding.bytes -= bytes;
                self.handle(key, message, bytes);
            }
        }
    }

    fn unsubscribe(&mut self, key: usize, id: Option<RequestId>, names: &[String]) {
        if let Some(connection) = self.connections.get(key) {
            lifecycle!(
                self.lifecycle,
                Lifecycle::UnsubscribeRequest,
                connection = self.name_of(connection.id),
                streams = names.len()
            );
        }
        let (mut streams, mut positions, mut rejected) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut seen = HashSet::new();
        for name in names.iter().filter(|name| seen.insert(name.as_str())) {
            let removed = self
                .subscriptions
                .id(name)
                .and_then(|stream| Some((stream, self.subscriptions.remove(key, stream)?)));
            match (name.parse::<StreamName>(), removed) {
                (Ok(stream), Some((stream_id, position))) => {
                    self.metrics.subscriptions.dec();
                    self.release([stream_id]);
                    positions.extend(position.map(|position| (stream.clone(), position)));
                    streams.push(stream);
                }
                (Ok(_), None) => rejected.push(Rejection {
                    stream: name.clone(),
                    code: ErrorCode::BadRequest,
                    message: "not subscribed".into(),
                }),
                (Err(error), _) => rejected.push(Rejection {
                    stream: name.clone(),
                    code: ErrorCode::UnknownStream,
                    message: error.to_string(),
                }),
            }
        }
        self.say(key, &ControlMessage::Unsubscribed { id, streams, positions, rejected });
    }

    fn list(&mut self, key: usize, id: Option<RequestId>) {
        let (mut streams, mut positions) = (Vec::new(), BTreeMap::new());
        for members in self.subscriptions.of(key) {
            positions.extend(members.last.map(|position| (members.name.clone(), position)));
            streams.push(members.name.clone());
        }
        streams.sort_unstable();
        self.say(key, &ControlMessage::Streams { id, streams, positions });
    }
}

fn subscribed(id: Option<RequestId>, rejected: Vec<Rejection>) -> ControlMessage {
    ControlMessage::Subscribed { id, streams: Vec::new(), positions: BTreeMap::new(), rejected }
}

fn id_of(message: ClientMessage) -> Option<RequestId> {
    match message {
        ClientMessage::Subscribe { id, .. }
        | ClientMessage::Unsubscribe { id, .. }
        | ClientMessage::Streams { id }
        | ClientMessage::Ping { id } => id,
    }
}
