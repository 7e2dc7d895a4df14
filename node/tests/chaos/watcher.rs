//! WebSocket clients that follow all streams, connect again when they have to, and check everything. Most stay with their
//! edge and begin anew; those that roam go to the next edge, where they resume: nothing may be missing or doubled between the
//! last event of the one and the first of the other.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use tickmesh_protocol::{
    Epoch, Position, Sequence,
    client::{ClientMessage, ControlMessage, ErrorCode, LastSeen, ResumeFrom, ServerMessage},
};
use tokio::{
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

use crate::{
    checker::{Checker, Event, Findings},
    cluster::SECRET,
    pauses::Pauses,
};

/// tungstenite clears this at every read, so a large one would be most of the clients' CPU.
const READ_BUFFER_BYTES: usize = 4096;

/// Between attempts to connect, and to subscribe what was refused for now.
const AGAIN: Duration = Duration::from_millis(100);

/// Longest wait for a handshake: an edge that is frozen takes the connection and says nothing.
const HANDSHAKE: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// All clients of a test, on one thread: they are many, and must leave the cores to the peers.
pub struct Watchers {
    runtime: Runtime,
}

/// One client.
pub struct Watcher {
    pub name: String,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    /// Edges, of which it is at one.
    urls: Vec<String>,
    at: AtomicUsize,
    /// Who it is.
    token: String,
    /// The streams that it follows.
    names: Vec<String>,
    seen: Mutex<Seen>,
    connections: AtomicU64,
}

struct Seen {
    checker: Checker,
    epochs: HashMap<String, Epoch>,
    pauses: Pauses,
    /// Streams confirmed on this connection.
    confirmed: usize,
}

impl Watchers {
    pub fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        Self { runtime }
    }

    /// A client of a user, for as long as the watchers live. Of several edges it goes on at the next when it loses one.
    pub fn follow(&self, name: String, urls: Vec<String>, user: &str, names: Vec<String>) -> Watcher {
        let token = token(user);
        let (checker, pauses) = (Checker::new(&names), Pauses::new(names.len()));
        let seen = Mutex::new(Seen { checker, epochs: HashMap::new(), pauses, confirmed: 0 });
        let (at, connections) = (AtomicUsize::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { urls, at, token, names, seen, connections });
        let theirs = shared.clone();
        let task = self.runtime.spawn(async move {
            loop {
                theirs.follow().await;
                sleep(AGAIN).await;
                theirs.seen().confirmed = 0;
                let next = (theirs.at.load(Ordering::Relaxed) + 1) % theirs.urls.len();
                theirs.at.store(next, Ordering::Relaxed);
            }
        });
        Watcher { name, shared, task: task.abort_handle() }
    }
}

impl Watcher {
    pub fn findings(&self) -> Findings {
        self.shared.seen().checker.findings()
    }

    /// Whether it goes to other edges.
    pub fn roams(&self) -> bool {
        self.shared.roams()
    }

    /// Which of its edges it is at.
    pub fn at(&self) -> usize {
        self.shared.at.load(Ordering::Relaxed)
    }

    /// Whether every stream is subscribed.
    pub fn is_subscribed(&self) -> bool {
        self.shared.seen().confirmed == self.shared.names.len()
    }

    /// How many events of those written of each stream have not come yet, counting from the last that came.
    pub fn behind(&self, written: &HashMap<String, u64>) -> u64 {
        let seen = self.shared.seen();
        let behind =
            self.shared.names.iter().map(|name| {
                written.get(name).map_or(0, |count| count.saturating_sub(seen.checker.next(name)))
            });
        behind.sum()
    }

    /// The load was silent until now: that was no pause.
    pub fn silence_is_over(&self) {
        self.shared.seen().pauses.begin();
    }

    pub fn longest_pause(&self, from: Instant, until: Instant) -> Duration {
        self.shared.seen().pauses.longest(from, until)
    }

    /// Leaves the edge.
    pub fn end(&self) {
        self.task.abort();
    }

    /// Connections made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roams(&self) -> bool {
        self.urls.len() > 1
    }

    /// One connection, until it ends.
    async fn follow(&self) {
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let url = &self.urls[self.at.load(Ordering::Relaxed)];
        let mut request = url.into_client_request().expect("an address");
        let bearer = format!("Bearer {}", self.token).parse().expect("a header");
        request.headers_mut().insert("authorization", bearer);
        let connect = connect_async_with_config(request, Some(config), true);
        let Ok(Ok((mut socket, _))) = timeout(HANDSHAKE, connect).await else { return };
        {
            let mut seen = self.seen();
            if !self.roams() {
                seen.checker.connected();
            }
            seen.pauses.begin();
            seen.confirmed = 0;
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        let names = &self.names;
        let indices: HashMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
        if self.begin(&mut socket, names.clone()).await.is_none() {
            return;
        }
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else { continue };
            let text = text.as_str();
            if let Some(event) = parse_event(text) {
                let now = Instant::now();
                let mut seen = self.seen();
                if let Some(index) = indices.get(event.stream) {
                    seen.pauses.event(*index, now);
                }
                seen.checker.take(event);
                continue;
            }
            let again = self.control(text);
            if !again.is_empty() {
                sleep(AGAIN).await;
                if self.begin(&mut socket, again).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Resumes the streams that it has had, and subscribes to the others.
    async fn begin(&self, socket: &mut Socket, names: Vec<String>) -> Option<()> {
        let known = |name: &String| self.seen().checker.last(name).is_some();
        let (again, new): (Vec<_>, Vec<_>) = names.into_iter().partition(known);
        if !again.is_empty() {
            let seen = again.iter().map(|name| self.last_seen(name));
            let positions = again.iter().cloned().zip(seen).collect();
            ask(socket, &ClientMessage::Resume { id: None, from: ResumeFrom::Positions { positions } })
                .await?;
        }
        if !new.is_empty() {
            ask(socket, &ClientMessage::Subscribe { id: None, streams: new }).await?;
        }
        Some(())
    }

    fn last_seen(&self, name: &str) -> LastSeen {
        let seen = self.seen();
        let sequence = seen.checker.last(name).flatten().and_then(|last| Sequence::new(last).ok());
        match (sequence, seen.epochs.get(name)) {
            (Some(sequence), Some(epoch)) => LastSeen::At(Position { epoch: *epoch, sequence }),
            (Some(sequence), None) => LastSeen::Sequence(sequence),
            (None, _) => LastSeen::Nothing,
        }
    }

    /// Takes what is no data; returns the streams that were refused for now.
    fn control(&self, text: &str) -> Vec<String> {
        let mut seen = self.seen();
        match ServerMessage::parse(text) {
            Ok(ServerMessage::Control(ControlMessage::Subscribed {
                streams, positions, rejected, ..
            })) => {
                seen.confirmed += streams.len();
                for stream in streams {
                    let position = positions.get(&stream).map(|position| position.sequence.get());
                    let epoch = positions.get(&stream).map(|position| position.epoch);
                    seen.epochs.extend(epoch.map(|epoch| (stream.to_string(), epoch)));
                    seen.checker.subscribed(stream.as_str(), position);
                }
                return rejected.into_iter().map(|rejection| rejection.stream).collect();
            }
            Ok(ServerMessage::Control(ControlMessage::Resumed { streams, rejected, .. })) => {
                seen.confirmed += streams.len();
                let (for_now, lost): (Vec<_>, Vec<_>) =
                    rejected.into_iter().partition(|rejection| rejection.code == ErrorCode::Unavailable);
                for rejection in lost {
                    seen.checker.odd(format!("not resumed: {rejection:?}"));
                }
                return for_now.into_iter().map(|rejection| rejection.stream).collect();
            }
            Ok(ServerMessage::Control(
                ControlMessage::Welcome { .. }
                | ControlMessage::Heartbeat { .. }
                | ControlMessage::Draining { .. },
            )) => {}
            _ => seen.checker.odd(format!("unexpected: {text}")),
        }
        Vec::new()
    }
}

/// A token that outlives the test.
fn token(user: &str) -> String {
    let claims = serde_json::json!({"sub": user, "exp": 4_000_000_000_u64});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

async fn ask(socket: &mut Socket, request: &ClientMessage) -> Option<()> {
    socket.send(Message::text(serde_json::to_string(request).ok()?)).await.ok()
}

/// Reads a data message with the fields in the order in which edges write them. By hand, because an unoptimized test
/// has to read 30,000 a second and leave the cores to the peers.
fn parse_event(text: &str) -> Option<Event<'_>> {
    let (stream, rest) = text.strip_prefix(r#"{"stream":""#)?.split_once('"')?;
    let (sequence, rest) = number(rest.strip_prefix(r#","sequence":"#)?)?;
    let rest = rest.strip_prefix(r#","previous":"#)?;
    let (previous, rest) = match rest.strip_prefix("null") {
        Some(rest) => (None, rest),
        None => number(rest).map(|(previous, rest)| (Some(previous), rest))?,
    };
    let (number, rest) = number(rest.strip_prefix(r#","data":{"n":"#)?)?;
    rest.ends_with("}}").then_some(Event { stream, sequence, previous, number })
}

fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().position(|byte| !byte.is_ascii_digit())?;
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_read_as_edges_write_it_and_nothing_else_is() {
        use tickmesh_protocol::{Epoch, Previous, Sequence, client::write_data_message};
        let sequence = Sequence::new(9_000_000).expect("a sequence");
        for previous in [None, Some(8_999_990)] {
            let mut text = Vec::new();
            let linked = match previous.and_then(|number| Sequence::new(number).ok()) {
                Some(previous) => Previous::At(previous),
                None => Previous::Unknown { read_from: sequence },
            };
            let event = tickmesh_protocol::Event {
                stream: "trades.a@v1".parse().expect("a name"),
                epoch: Epoch::from_u64(1),
                sequence,
                previous: linked,
                engine_time_us: 0,
                data: r#"{"n":17,"side":"buy"}"#.into(),
                signature: None,
            };
            write_data_message(&mut text, &event);
            let text = String::from_utf8(text).expect("text");
            let event = parse_event(&text).expect("an event");
            assert_eq!((event.stream, event.sequence), ("trades.a@v1", 9_000_000));
            assert_eq!((event.previous, event.number), (previous, 17));
            assert!(parse_event(&text[..text.len() - 1]).is_none());
        }
        assert!(parse_event(r#"{"event":"heartbeat","timestamp":1}"#).is_none());
    }
}
