//! What clients ask, and the answers.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use tickmesh_protocol::{
    Position, StreamName,
    client::{
        ClientMessage, CloseCode, ControlMessage, Credential, ErrorCode, ProtocolError, Rejection, RequestId,
        ResumeFrom, Secret,
    },
};
use tokio::{sync::mpsc::error::TrySendError, time::Instant};

use super::{
    admission::Crowded,
    connection::{CLOSE_TIMEOUT, expires_ms},
    queue::{Confirmation, ConnectionId, Grant, Resume, Subscribe, Ticket, ToHub},
    shard::Shard,
    subscriptions::Members,
};
use crate::{
    auth::{Identity, Refusal},
    lifecycle,
    ops::{lifecycle::Lifecycle, metrics::now_us},
};

/// Protocol errors in a row that close a connection (DESIGN: client protocol).
const MAX_ERRORS_IN_ROW: u32 = 10;

/// Requests of one connection that may be unanswered at once: a client that subscribes to a page of streams one by one
/// is served; more is refused with `rate_limited`.
const MAX_OUTSTANDING_REQUESTS: usize = 64;

/// Bytes of those requests: what they hold in memory is about as much.
const MAX_OUTSTANDING_BYTES: usize = 256 * 1024;

impl Shard {
    /// Takes a text message of a client.
    pub fn read_request(&mut self, key: usize, text: &str) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match ClientMessage::parse(text) {
            Ok(message) if connection.requests.check().is_err() => {
                self.protocol_error(
                    key,
                    ProtocolError {
                        code: ErrorCode::RateLimited,
                        message: "too many requests; wait, then ask again".into(),
                        id: id_of(message),
                    },
                );
            }
            Ok(message) => {
                connection.errors_in_row = 0;
                self.request(key, message, text.len());
            }
            Err(error) => self.protocol_error(key, error),
        }
    }

    /// Client protocol v1 has no binary messages.
    pub fn refuse_binary(&mut self, key: usize) {
        let message = "messages are JSON text frames, not binary ones".into();
        self.protocol_error(key, ProtocolError { code: ErrorCode::BadRequest, message, id: None });
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
            let code = if code == ErrorCode::RateLimited { CloseCode::Rate } else { CloseCode::Policy };
            connection.close(code, code.reason(), true, deadline);
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
            ClientMessage::Ping { .. } | ClientMessage::Authenticate { .. } => false,
            ClientMessage::Subscribe { .. } | ClientMessage::Resume { .. } => {
                !outstanding.deferred.is_empty()
            }
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
            ClientMessage::Subscribe { id, streams } => self.subscribe(key, id, &streams, bytes, None),
            ClientMessage::Resume { id, from } => match from {
                ResumeFrom::Last { streams, sequence } => {
                    self.subscribe(key, id, &streams, bytes, Some(Resume::Last(sequence)));
                }
                ResumeFrom::Positions { positions } => {
                    let names: Vec<_> = positions.keys().cloned().collect();
                    // A name that is none is refused like in any other request.
                    let positions =
                        positions.into_iter().filter_map(|(name, at)| Some((name.parse().ok()?, at)));
                    let resume = Resume::Positions(positions.collect());
                    self.subscribe(key, id, &names, bytes, Some(resume));
                }
            },
            ClientMessage::Unsubscribe { id, streams } => self.unsubscribe(key, id, &streams),
            ClientMessage::Streams { id } => self.list(key, id),
            ClientMessage::Authenticate { id, token } => self.authenticate(key, id, token, bytes),
        }
    }

    fn subscribe(
        &mut self,
        key: usize,
        id: Option<RequestId>,
        names: &[String],
        bytes: usize,
        resume: Option<Resume>,
    ) {
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
                Err((code, message)) => rejected.push(Rejection::new(name, code, message)),
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
            return self.say(key, &nothing(resume.is_some(), id, rejected));
        }
        let count = wanted.len();
        let ticket = Ticket { id, rejected, streams: count, bytes, resume };
        let credential = self.connections.get(key).and_then(|connection| connection.credential.clone());
        let subscribe =
            Subscribe { shard: self.index, connection: connection_id, ticket, streams: wanted, credential };
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
        let who = self.connections.get(key).and_then(|connection| connection.identity.as_deref());
        self.config
            .permissions
            .decide(who, &stream)
            .map_err(|denied| (ErrorCode::Forbidden, denied.to_string()))?;
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
        let ToHub::Subscribe(Subscribe { ticket: Ticket { id, mut rejected, resume, .. }, streams, .. }) =
            request
        else {
            return;
        };
        let message = "this edge has too many requests; ask again after a second";
        let full = |stream: &StreamName| Rejection::new(stream.as_str(), ErrorCode::Overloaded, message);
        rejected.extend(streams.iter().map(full));
        self.say(key, &nothing(resume.is_some(), id, rejected));
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
        let (granted, forbidden) = self.permit_again(key, granted);
        let rejected: Vec<_> = forbidden.into_iter().chain(rejected).collect();
        let mut ticket = ticket;
        match ticket.resume.take() {
            Some(resume) => self.begin_resume(key, ticket, &resume, granted, rejected),
            None => self.confirm_subscribed(key, ticket, granted, rejected),
        }
        self.handle_deferred(key);
    }

    /// Of the streams that were granted, what the client may have still: meanwhile it may have shown credentials that allow
    /// less.
    fn permit_again(&mut self, key: usize, granted: Vec<Grant>) -> (Vec<Grant>, Vec<Rejection>) {
        let identity = self.connections.get(key).and_then(|connection| connection.identity.clone());
        let (mut permitted, mut rejected) = (Vec::with_capacity(granted.len()), Vec::new());
        for grant in granted {
            match self.config.permissions.decide(identity.as_deref(), &grant.name) {
                Ok(()) => permitted.push(grant),
                Err(denied) => {
                    self.release([grant.id]);
                    let message = denied.to_string();
                    rejected.push(Rejection::new(grant.name.as_str(), ErrorCode::Forbidden, message));
                }
            }
        }
        (permitted, rejected)
    }

    fn confirm_subscribed(
        &mut self,
        key: usize,
        ticket: Ticket,
        granted: Vec<Grant>,
        rejected: Vec<Rejection>,
    ) {
        let Ticket { id, rejected: mut all_rejected, .. } = ticket;
        let mut streams = Vec::with_capacity(granted.len());
        let mut positions = BTreeMap::new();
        let mut begin = Vec::new();
        for grant in granted {
            let live = !grant.begins_with_snapshot();
            if self.subscriptions.add(key, &grant, live) {
                self.metrics.subscriptions.inc();
                begin.extend((!live).then_some((grant.id, grant.position)));
            } else {
                // It has the stream already; one subscription is enough.
                self.release([grant.id]);
            }
            positions.extend(grant.position.map(|position| (grant.name.clone(), position)));
            streams.push(grant.name);
        }
        if let Some(connection) = self.connections.get(key) {
            lifecycle!(
                self.lifecycle,
                Lifecycle::SubscriptionConfirmed,
                connection = self.name_of(connection.id),
                streams = streams.len()
            );
        }
        all_rejected.extend(rejected);
        self.say(key, &ControlMessage::Subscribed { id, streams, positions, rejected: all_rejected });
        self.begin_with_snapshots(key, begin);
    }

    /// Handles the requests that have waited, as far as they need wait no longer.
    fn handle_deferred(&mut self, key: usize) {
        while let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_open()) {
            let outstanding = &mut connection.outstanding;
            let ready = match outstanding.deferred.front() {
                Some((
                    ClientMessage::Subscribe { .. }
                    | ClientMessage::Resume { .. }
                    | ClientMessage::Ping { .. }
                    | ClientMessage::Authenticate { .. },
                    _,
                )) => true,
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
            match (name.parse::<StreamName>(), self.end_subscription(key, name)) {
                (Ok(stream), Some(position)) => {
                    positions.extend(position.map(|position| (stream.clone(), position)));
                    streams.push(stream);
                }
                (Ok(_), None) => rejected.push(Rejection::new(name, ErrorCode::BadRequest, "not subscribed")),
                (Err(error), _) => {
                    rejected.push(Rejection::new(name, ErrorCode::UnknownStream, error.to_string()));
                }
            }
        }
        self.say(key, &ControlMessage::Unsubscribed { id, streams, positions, rejected });
    }

    /// Has new credentials checked, which may take a moment.
    fn authenticate(&mut self, key: usize, id: Option<RequestId>, token: Secret, bytes: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.outstanding.requests += 1;
        connection.outstanding.bytes += bytes;
        let (connection, myself, authenticator) =
            (connection.id, self.myself.clone(), Arc::clone(&self.authenticator));
        let credential = Arc::new(Credential::Token(token));
        tokio::task::spawn_local(async move {
            let checked = authenticator.authenticate(&credential).await;
            if let Some(shard) = myself.upgrade() {
                let checked = checked.map(|identity| (identity, credential));
                shard.borrow_mut().authenticated(connection, id, bytes, checked);
            }
        });
    }

    fn authenticated(
        &mut self,
        connection_id: ConnectionId,
        id: Option<RequestId>,
        bytes: usize,
        checked: Result<(Arc<Identity>, Arc<Credential>), Refusal>,
    ) {
        let key = connection_id.key;
        let name = self.name_of(connection_id);
        let Some(connection) = self
            .connections
            .get_mut(key)
            .filter(|connection| connection.id == connection_id && connection.is_open())
        else {
            return;
        };
        connection.outstanding.requests -= 1;
        connection.outstanding.bytes -= bytes;
        let now = Instant::now();
        let answer = match checked {
            Ok((identity, _))
                if connection.identity.as_ref().is_some_and(|known| known.user != identity.user) =>
            {
                self.metrics.auth_rejected("another_user");
                ControlMessage::Error {
                    id,
                    code: ErrorCode::Forbidden,
                    message: "the token is another user's; open another connection for that one".into(),
                }
            }
            Ok((identity, _)) if connection.place.sign_in(&identity.user).is_err() => ControlMessage::Error {
                id,
                code: ErrorCode::RateLimited,
                message: Crowded::User.words().into(),
            },
            Ok((identity, credential)) => {
                connection.set_identity(Arc::clone(&identity), credential, now);
                let expires_at = expires_ms(&identity);
                ControlMessage::Authenticated { id, user: identity.user.as_str().to_owned(), expires_at }
            }
            Err(refusal) => {
                self.metrics.auth_rejected(refusal.label());
                ControlMessage::Error { id, code: code_of(refusal), message: refusal.to_string() }
            }
        };
        let accepted = matches!(answer, ControlMessage::Authenticated { .. });
        lifecycle!(self.lifecycle, Lifecycle::AuthValidate, connection = name, accepted);
        self.say(key, &answer);
        if accepted {
            self.end_what_is_forbidden(key);
            self.renew_private(key);
        }
        self.handle_deferred(key);
        self.flush(key, now);
    }

    /// Has ingest told of what a client has shown now for the private streams that it has.
    fn renew_private(&self, key: usize) {
        let private = |members: &Members| self.config.permissions.private.contains(members.name.channel());
        let streams = self.subscriptions.of(key).filter(|(_, members)| private(members));
        let streams: Vec<_> = streams.map(|(_, members)| members.name.clone()).collect();
        let credential = self.connections.get(key).and_then(|connection| connection.credential.clone());
        if let Some(credential) = credential.filter(|_| !streams.is_empty())
            && self.hub.try_send(ToHub::Renew { streams, credential }).is_err()
        {
            tracing::warn!("the hub is busy: private streams end with the credentials they were asked with");
        }
    }

    /// Ends one subscription of a client. Where its stream stood, if the client had it.
    fn end_subscription(&mut self, key: usize, stream: &str) -> Option<Option<Position>> {
        let id = self.subscriptions.id(stream)?;
        let behind = self.end_replay(key, id);
        let position = behind.or(self.subscriptions.remove(key, id))?;
        self.metrics.subscriptions.dec();
        self.release([id]);
        Some(position)
    }

    /// Unsubscribes a client from what it may not have any more.
    fn end_what_is_forbidden(&mut self, key: usize) {
        let Some(who) = self.connections.get(key).and_then(|connection| connection.identity.clone()) else {
            return;
        };
        let forbidden: Vec<_> = self
            .subscriptions
            .of(key)
            .filter_map(|(_, members)| {
                let denied = self.config.permissions.decide(Some(&who), &members.name).err()?;
                Some((members.name.clone(), denied))
            })
            .collect();
        if forbidden.is_empty() {
            return;
        }
        let (mut streams, mut positions, mut rejected) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (stream, denied) in forbidden {
            let position = self.end_subscription(key, stream.as_str()).flatten();
            positions.extend(position.map(|position| (stream.clone(), position)));
            rejected.push(Rejection::new(stream.as_str(), ErrorCode::Forbidden, denied.to_string()));
            streams.push(stream);
        }
        self.say(key, &ControlMessage::Unsubscribed { id: None, streams, positions, rejected });
    }

    fn list(&mut self, key: usize, id: Option<RequestId>) {
        let (mut streams, mut positions) = (Vec::new(), BTreeMap::new());
        for (stream, members) in self.subscriptions.of(key) {
            let position = self.behind(key, stream).unwrap_or(members.last);
            positions.extend(position.map(|position| (members.name.clone(), position)));
            streams.push(members.name.clone());
        }
        streams.sort_unstable();
        self.say(key, &ControlMessage::Streams { id, streams, positions });
    }
}

/// The answer to a request of which no stream may be had.
fn nothing(resume: bool, id: Option<RequestId>, rejected: Vec<Rejection>) -> ControlMessage {
    let positions = BTreeMap::new();
    if resume {
        ControlMessage::Resumed { id, streams: Vec::new(), positions, rejected }
    } else {
        ControlMessage::Subscribed { id, streams: Vec::new(), positions, rejected }
    }
}

/// What a client is told of refused credentials.
pub fn code_of(refusal: Refusal) -> ErrorCode {
    match refusal {
        Refusal::Expired => ErrorCode::TokenExpired,
        Refusal::Unavailable => ErrorCode::Unavailable,
        _ => ErrorCode::Unauthorized,
    }
}

fn id_of(message: ClientMessage) -> Option<RequestId> {
    match message {
        ClientMessage::Subscribe { id, .. }
        | ClientMessage::Unsubscribe { id, .. }
        | ClientMessage::Resume { id, .. }
        | ClientMessage::Streams { id }
        | ClientMessage::Authenticate { id, .. }
        | ClientMessage::Ping { id } => id,
    }
}
