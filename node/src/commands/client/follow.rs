//! Keeps a connection to one of several edges and checks what arrives.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use tickmesh::app::asked_to_stop;
use tickmesh_protocol::{
    Sequence, StreamName,
    client::{ClientMessage, ControlMessage, DataMessage, ServerMessage},
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue, StatusCode},
    },
};

use super::{
    output::Output,
    signatures::{Signatures, Verdict},
};

/// An edge says something at least every five seconds (heartbeat); silence of this length is a lost connection.
const SILENCE: Duration = Duration::from_secs(15);

/// First and longest wait before connecting again; doubled from one to the other, with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(super) struct Follower {
    urls: Vec<String>,
    streams: Vec<String>,
    /// What is shown in the handshake.
    credential: Option<(HeaderName, HeaderValue)>,
    /// Events still wanted; all of them, if nothing is said.
    left: Option<u64>,
    last: HashMap<StreamName, Sequence>,
    /// Streams whose next event comes after a pause in which others may have passed.
    rejoined: bool,
    /// Verifies what is signed, if this was asked for.
    signatures: Option<Signatures>,
    output: Output,
}

impl Follower {
    pub(super) fn new(
        urls: Vec<String>,
        streams: Vec<String>,
        credential: Option<(&'static str, String)>,
        left: Option<u64>,
        signatures: Option<Signatures>,
        output: Output,
    ) -> anyhow::Result<Self> {
        let credential = match credential {
            Some((name, value)) => {
                // Not the value: it is secret.
                let mut value: HeaderValue =
                    value.parse().ok().context("no credential has such characters")?;
                value.set_sensitive(true);
                Some((HeaderName::from_static(name), value))
            }
            None => None,
        };
        Ok(Self {
            urls,
            streams,
            credential,
            left,
            last: HashMap::new(),
            rejoined: false,
            signatures,
            output,
        })
    }

    pub(super) async fn run(mut self) -> anyhow::Result<ExitCode> {
        let mut stop = std::pin::pin!(asked_to_stop());
        tokio::select! {
            outcome = self.follow_for_ever() => outcome?,
            () = &mut stop => {}
        }
        Ok(if self.output.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Returns when as many events as wanted have come, or when no edge will ever serve this.
    async fn follow_for_ever(&mut self) -> anyhow::Result<()> {
        let mut failures = 0_u32;
        loop {
            let url = self.urls[failures as usize % self.urls.len()].clone();
            match self.follow(&url, &mut failures).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is::<Refused>() => return Err(error),
                Err(error) => {
                    let wait = backoff(failures);
                    self.output.note(&format!("{url}: {error:#}; next try in {} ms", wait.as_millis()));
                    failures = failures.saturating_add(1);
                    self.rejoined = true;
                    sleep(wait).await;
                }
            }
        }
    }

    async fn follow(&mut self, url: &str, failures: &mut u32) -> anyhow::Result<()> {
        let mut request = url.into_client_request()?;
        request.headers_mut().extend(self.credential.clone());
        let connected = timeout(SILENCE, connect_async(request)).await.context("no answer")?;
        let (mut socket, _) = match connected {
            Err(tungstenite::Error::Http(response)) if response.status() == StatusCode::UNAUTHORIZED => {
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                return Err(Refused(format!("not let in: {body}")).into());
            }
            connected => connected?,
        };
        let subscribe = ClientMessage::Subscribe { id: Some(1.into()), streams: self.streams.clone() };
        socket.send(Message::text(serde_json::to_string(&subscribe)?)).await?;
        while self.left != Some(0) {
            let message = timeout(SILENCE, socket.next()).await.context("silent for too long")?;
            match message.context("connection lost")?? {
                Message::Text(text) => {
                    self.take(text.as_str()).await?;
                    *failures = 0;
                }
                Message::Close(Some(close)) => bail!("closed with {}: {}", close.code, close.reason),
                Message::Close(None) => bail!("closed"),
                _ => {}
            }
        }
        let _ = close(socket).await;
        Ok(())
    }

    async fn take(&mut self, text: &str) -> anyhow::Result<()> {
        match ServerMessage::parse(text)? {
            ServerMessage::Data(data) => self.take_event(text, &data).await,
            ServerMessage::Control(control) => return self.take_control(&control),
        }
        Ok(())
    }

    async fn take_event(&mut self, text: &str, event: &DataMessage<'_>) {
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return;
            }
            *left -= 1;
        }
        let last = self.last.insert(event.stream.clone(), event.sequence);
        if let Some(last) = last {
            if event.sequence <= last {
                self.output.wrong(&format!("{}: {} after {last}", event.stream, event.sequence));
            } else if event.previous.is_some_and(|previous| previous != last) {
                self.output.wrong(&format!(
                    "{}: missed something between {last} and {}",
                    event.stream, event.sequence
                ));
            }
        }
        let verdict = match &mut self.signatures {
            Some(signatures) => signatures.judge(event).await,
            None => Verdict::Unsigned,
        };
        if let Verdict::Wrong(reason) = &verdict {
            self.output.forged(&format!("{}: {}: {reason}", event.stream, event.sequence));
        }
        self.output.event(text, event, verdict.is_good());
    }

    fn take_control(&mut self, control: &ControlMessage) -> anyhow::Result<()> {
        match control {
            ControlMessage::Welcome { node, region, .. } => {
                self.output.note(&format!("connected to {node} in {region}"))
            }
            ControlMessage::Subscribed { streams, rejected, .. } => {
                for rejection in rejected {
                    self.output.note(&format!("{}: {}", rejection.stream, rejection.message));
                }
                if streams.is_empty() {
                    return Err(Refused("no stream to follow is left".into()).into());
                }
                self.output.note(&format!("following {} streams", streams.len()));
                if self.rejoined {
                    self.output.note("what passed between the connections is missing");
                    self.last.clear();
                    self.rejoined = false;
                }
            }
            ControlMessage::Reset { stream, epoch } => {
                self.output.note(&format!("{stream}: numbered anew in epoch {epoch}"));
                self.last.remove(stream);
            }
            ControlMessage::Error { code, message, .. } => {
                self.output.note(&format!("error {code:?}: {message}"))
            }
            ControlMessage::Warning { message, .. } => self.output.note(message),
            ControlMessage::Draining { .. } => self.output.note("the edge is draining"),
            _ => {}
        }
        Ok(())
    }
}

/// Nothing is to be had, however often this client comes back.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

async fn close(mut socket: Socket) -> anyhow::Result<()> {
    timeout(Duration::from_secs(1), socket.close(None)).await??;
    Ok(())
}

/// Exponential with full jitter, so that the clients of a lost edge do not come back all at once.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let ceiling = first.saturating_mul(1 << failures.min(10)).min(longest);
    let nanoseconds = u64::from(
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.subsec_nanos()),
    );
    ceiling.mul_f64(0.5 + 0.5 * (nanoseconds % 1000) as f64 / 1000.0)
}
