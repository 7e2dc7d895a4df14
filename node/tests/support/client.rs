//! A WebSocket client of the tests: subscribes, and keeps everything it receives.

#![allow(dead_code, reason = "each integration test takes in this file and uses a part of it")]

use std::collections::BTreeMap;

use futures_util::{SinkExt, StreamExt};
use tickmesh_protocol::client::{ClientMessage, ControlMessage, Rejection, ServerMessage};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use super::node::DEADLINE;

/// One event as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub sequence: u64,
    pub previous: Option<u64>,
    pub data: String,
}

pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub events: BTreeMap<String, Vec<Received>>,
}

impl Client {
    pub async fn connect(request: impl IntoClientRequest + Unpin) -> Self {
        let (socket, _) = timeout(DEADLINE, connect_async(request)).await.unwrap().unwrap();
        Self { socket, events: BTreeMap::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Subscribes; the streams that were refused.
    pub async fn subscribe(&mut self, streams: &[&str]) -> Vec<Rejection> {
        let streams = streams.iter().map(|stream| (*stream).to_owned()).collect();
        let request = ClientMessage::Subscribe { id: Some(1.into()), streams };
        self.send(&serde_json::to_string(&request).unwrap()).await;
        loop {
            if let ControlMessage::Subscribed { rejected, .. } = self.control().await {
                return rejected;
            }
        }
    }

    /// Subscribes, again and again until nothing is refused: while the mesh of the test still forms.
    pub async fn subscribe_until_confirmed(&mut self, streams: &[&str]) {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let rejected = self.subscribe(streams).await;
            if rejected.is_empty() {
                return;
            }
            assert!(tokio::time::Instant::now() < end, "still refused: {rejected:?}");
        }
    }

    /// The next message that is no data; data is kept.
    pub async fn control(&mut self) -> ControlMessage {
        loop {
            if let Some(control) = self.next().await {
                return control;
            }
        }
    }

    /// Receives until the events kept satisfy a condition.
    pub async fn receive_until(
        &mut self,
        what: &str,
        done: impl Fn(&BTreeMap<String, Vec<Received>>) -> bool,
    ) {
        if !self.try_receive_until(done).await {
            let counts: BTreeMap<_, _> =
                self.events.iter().map(|(stream, events)| (stream, events.len())).collect();
            panic!("waited in vain until {what}; received so far: {counts:?}");
        }
    }

    /// Receives until the events kept satisfy a condition; whether they did in time.
    pub async fn try_receive_until(
        &mut self,
        done: impl Fn(&BTreeMap<String, Vec<Received>>) -> bool,
    ) -> bool {
        let receive = async {
            while !done(&self.events) {
                self.next().await;
            }
        };
        timeout(DEADLINE, receive).await.is_ok()
    }

    async fn next(&mut self) -> Option<ControlMessage> {
        loop {
            let message = timeout(DEADLINE, self.socket.next()).await.expect("the edge says something");
            let Message::Text(text) = message.expect("the connection stays open").unwrap() else { continue };
            match ServerMessage::parse(text.as_str()).unwrap() {
                ServerMessage::Control(control) => return Some(control),
                ServerMessage::Data(data) => {
                    self.events.entry(data.stream.to_string()).or_default().push(Received {
                        sequence: data.sequence.get(),
                        previous: data.previous.map(|previous| previous.get()),
                        data: data.data.get().to_owned(),
                    });
                    return None;
                }
            }
        }
    }
}

/// Fails unless the events of a stream are linked: each `previous` is the sequence before.
pub fn assert_linked(stream: &str, events: &[Received]) {
    for pair in events.windows(2) {
        assert!(pair[0].sequence < pair[1].sequence, "{stream}: {pair:?} out of order or doubled");
        assert_eq!(pair[1].previous, Some(pair[0].sequence), "{stream}: gap in {pair:?}");
    }
}
