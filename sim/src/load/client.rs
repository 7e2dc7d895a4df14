//! One client of the load: follows one stream and checks every sequence.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use serde::Deserialize;
use tickmesh::ops::metrics::now_us;
use tickmesh_protocol::{
    Sequence,
    client::{ClientMessage, ControlMessage, DataMessage, ServerMessage},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;

/// Longest wait for an answer while connecting.
const PATIENCE: Duration = Duration::from_secs(20);

/// Latencies are kept to three digits, in microseconds up to a minute.
const LONGEST_LATENCY_US: u64 = 60_000_000;

/// A small read buffer: tungstenite clears it at every read, so a large one is most of a load generator's CPU.
const READ_BUFFER_BYTES: usize = 4096;

/// Events received by all clients so far.
static RECEIVED: AtomicU64 = AtomicU64::new(0);

pub fn received() -> u64 {
    RECEIVED.load(Ordering::Relaxed)
}

/// A client that is connected and whose subscription is confirmed.
pub struct LoadClient {
    stream: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What a client saw.
pub struct Tally {
    pub stream: String,
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub disconnected: u64,
    pub longest_pause: Duration,
    pub latencies_us: Histogram<u64>,
}

impl Tally {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            stream: String::new(),
            received: 0,
            lost: 0,
            duplicated: 0,
            reordered: 0,
            disconnected: 0,
            longest_pause: Duration::ZERO,
            latencies_us: Histogram::new_with_max(LONGEST_LATENCY_US, 3)?,
        })
    }

    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.received += other.received;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.disconnected += other.disconnected;
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        self.latencies_us.add(&other.latencies_us)?;
        Ok(())
    }
}

impl LoadClient {
    /// Connects and subscribes.
    pub async fn connect(url: &str, stream: String) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let connect = connect_async_with_config(url, Some(config), true);
        let (mut socket, _) = timeout(PATIENCE, connect).await.context("no answer")??;
        let subscribe = ClientMessage::Subscribe { id: None, streams: vec![stream.clone()] };
        socket.send(Message::text(serde_json::to_string(&subscribe)?)).await?;
        loop {
            let message = timeout(PATIENCE, socket.next()).await.context("no answer to subscribe")?;
            let Message::Text(text) = message.context("closed")?? else { continue };
            if let ServerMessage::Control(ControlMessage::Subscribed { rejected, .. }) =
                ServerMessage::parse(text.as_str())?
            {
                if let Some(rejection) = rejected.first() {
                    bail!("{}: {}", rejection.stream, rejection.message);
                }
                return Ok(Self { stream, socket });
            }
        }
    }

    /// Follows its stream until `stop`.
    pub async fn follow(mut self, mut tally: Tally, stop: CancellationToken) -> Tally {
        tally.stream = self.stream;
        let mut last: Option<(Sequence, Instant)> = None;
        loop {
            let message = tokio::select! {
                message = self.socket.next() => message,
                () = stop.cancelled() => break,
            };
            let Some(Ok(message)) = message else {
                tally.disconnected += 1;
                break;
            };
            let Message::Text(text) = message else { continue };
            if let Ok(ServerMessage::Data(event)) = ServerMessage::parse(text.as_str()) {
                take(&mut tally, &mut last, &event);
            }
        }
        // The other side may be gone already.
        let _ = timeout(Duration::from_secs(1), self.socket.close(None)).await;
        tally
    }
}

fn take(tally: &mut Tally, last: &mut Option<(Sequence, Instant)>, event: &DataMessage<'_>) {
    #[derive(Deserialize)]
    struct Timestamped {
        timestamp: f64,
    }
    tally.received += 1;
    RECEIVED.fetch_add(1, Ordering::Relaxed);
    let now = Instant::now();
    if let Ok(Timestamped { timestamp }) = serde_json::from_str(event.data.get()) {
        tally.latencies_us.saturating_record(now_us().saturating_sub((timestamp * 1000.0) as u64));
    }
    if let Some((sequence, at)) = *last {
        tally.longest_pause = tally.longest_pause.max(now - at);
        if event.sequence == sequence {
            tally.duplicated += 1;
        } else if event.sequence < sequence {
            tally.reordered += 1;
        } else if event.previous != Some(sequence) {
            tally.lost += 1;
        }
    }
    *last = Some((event.sequence, now));
}
