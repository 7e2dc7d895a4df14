//! Keeps a connection to one of several edges, resumes there where the last one was lost, and checks what arrives.

use std::{collections::BTreeMap, future::pending, process::ExitCode, time::Duration};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use tickmesh::app::asked_to_stop;
use tickmesh_protocol::{
    Position, StreamName,
    client::{
        ClientMessage, CloseCode, ControlMessage, DataMessage, ErrorCode, Rejection, Resumed, ServerMessage,
    },
};
use tokio::{
    net::TcpStream,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::StatusCode},
};

use tickmesh::ops::backoff::chance;

use super::{
    backoff::{Backoff, is_final},
    credentials::Credentials,
    output::Output,
    positions_file::PositionsFile,
    signatures::{Signatures, Verdict as Signed},
    streams::{Positions, Streams, Verdict},
};

/// An edge says something at least every five seconds (heartbeat); silence of this length is a lost connection.
const SILENCE: Duration = Duration::from_secs(15);

/// Pause before a stream is asked for again that could not be had at the moment.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How often positions are kept, and a new token is looked for when the old one expires. What is printed in between is printed again
/// by the next run if this one is killed.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// The longest that a draining edge is stayed with, whatever it says.
const LONGEST_DRAIN: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(super) struct Follower {
    urls: Vec<String>,
    streams: Streams,
    credentials: Credentials,
    /// Events still wanted; all of them, if nothing is said.
    left: Option<u64>,
    file: Option<PositionsFile>,
    /// Verifies what is signed, if this was asked for.
    signatures: Option<Signatures>,
    output: Output,
    keep: Interval,
    /// Of the last request.
    id: u64,
    session: Session,
}

/// What is to be done on one connection.
#[derive(Default)]
struct Session {
    since: Option<Instant>,
    /// To be sent.
    outgoing: Vec<ClientMessage>,
    /// When streams are asked for.
    ask_at: Option<Instant>,
    /// When a draining edge is left.
    leave_at: Option<Instant>,
    /// The token expires, and there is no new one yet.
    needs_token: bool,
    /// The epochs of streams that were empty have been asked for.
    asks_epochs: bool,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// Nothing is to be had, however often this client comes back.
    #[error("{0}")]
    Refused(String),
    #[error("not let in: {0}")]
    Unauthorized(String),
    #[error("closed with {code}: {reason}")]
    Closed { code: u16, reason: String },
    #[error("the edge drains")]
    Drained,
    #[error("{0:#}")]
    Lost(#[from] anyhow::Error),
}

impl End {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Closed { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl Follower {
    pub(super) fn new(
        urls: Vec<String>,
        streams: Vec<String>,
        credentials: Credentials,
        left: Option<u64>,
        file: Option<PositionsFile>,
        signatures: Option<Signatures>,
        output: Output,
    ) -> Self {
        let nothing = Positions::new();
        let kept = file.as_ref().map_or(&nothing, PositionsFile::positions);
        let streams = Streams::new(streams, kept);
        let mut keep = interval(KEEP_EVERY);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = Session::default();
        Self { urls, streams, credentials, left, file, signatures, output, keep, id: 0, session }
    }

    pub(super) async fn run(mut self) -> anyhow::Result<ExitCode> {
        let mut stop = std::pin::pin!(asked_to_stop());
        let outcome = tokio::select! {
            outcome = self.follow_for_ever() => outcome,
            () = &mut stop => Ok(()),
        };
        let kept = self.keep_positions();
        outcome?;
        kept?;
        Ok(if self.output.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Returns when as many events as wanted have come, or when no edge will ever serve this.
    async fn follow_for_ever(&mut self) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        for edge in 0_usize.. {
            let url = self.urls[edge % self.urls.len()].clone();
            let Err(end) = self.follow(&url).await else { break };
            self.keep_positions()?;
            self.streams.interrupt();
            let Session { since, .. } = std::mem::take(&mut self.session);
            let refused =
                end.code() == Some(CloseCode::Credentials.code()) || matches!(end, End::Unauthorized(_));
            let wait = match &end {
                End::Refused(_) => return Err(end.into()),
                _ if refused && self.credentials.renew()?.is_none() => return Err(end.into()),
                _ if end.code().is_some_and(is_final) => return Err(end.into()),
                End::Drained => Duration::ZERO,
                _ => backoff.failed(since.map(|since| since.elapsed()).unwrap_or_default(), end.code()),
            };
            self.output.note(&format!("{url}: {end}; next try in {} ms", wait.as_millis()));
            sleep(wait).await;
        }
        Ok(())
    }

    async fn follow(&mut self, url: &str) -> Result<(), End> {
        let mut socket = self.connect(url).await?;
        let mut heard = Instant::now();
        self.session = Session { since: Some(heard), ask_at: Some(heard), ..Session::default() };
        while self.left != Some(0) {
            tokio::select! {
                message = timeout_at(heard + SILENCE, socket.next()) => {
                    heard = Instant::now();
                    let message = message.context("silent for too long")?.context("connection lost")?;
                    self.take(message.context("connection lost")?).await?;
                }
                () = until(self.session.ask_at) => {
                    self.session.ask_at = None;
                    self.session.outgoing.extend(self.streams.requests(&mut self.id));
                }
                () = until(self.session.leave_at) => {
                    let _ = close(socket).await;
                    return Err(End::Drained);
                }
                _ = self.keep.tick() => {
                    self.keep_positions()?;
                    self.renew_token();
                }
            }
            for message in std::mem::take(&mut self.session.outgoing) {
                let text = serde_json::to_string(&message).context("a request")?;
                socket.send(Message::text(text)).await.context("connection lost")?;
            }
        }
        let _ = close(socket).await;
        Ok(())
    }

    async fn connect(&self, url: &str) -> Result<Socket, End> {
        let mut request = url.into_client_request().context("no address")?;
        let header = self.credentials.header().map_err(|error| End::Refused(error.to_string()))?;
        request.headers_mut().extend(header);
        match timeout(SILENCE, connect_async(request)).await.context("no answer")? {
            Err(tungstenite::Error::Http(response)) if response.status() == StatusCode::UNAUTHORIZED => {
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                Err(End::Unauthorized(body.into_owned()))
            }
            connected => Ok(connected.context("no connection")?.0),
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Text(text) => {
                match ServerMessage::parse(text.as_str()).context("not understood")? {
                    ServerMessage::Data(event) => self.take_event(text.as_str(), &event).await,
                    ServerMessage::Control(control) => return self.take_control(control),
                }
                Ok(())
            }
            Message::Close(Some(close)) => {
                Err(End::Closed { code: close.code.into(), reason: close.reason.to_string() })
            }
            Message::Close(None) => Err(End::Lost(anyhow::anyhow!("closed"))),
            _ => Ok(()),
        }
    }

    async fn take_event(&mut self, text: &str, event: &DataMessage<'_>) {
        if self.left == Some(0) {
            return;
        }
        // First, since this may be given up while it waits for a key: who stands at an event has printed it.
        let signed = match &mut self.signatures {
            Some(signatures) => signatures.judge(event).await,
            None => Signed::Unsigned,
        };
        let (stream, number) = (event.stream.as_str(), event.sequence);
        match self.streams.advance(event) {
            Verdict::Next => {}
            Verdict::Gap { after: Some(after) } => {
                self.output.missed(&format!("{stream}: something between {after} and {number}"));
            }
            Verdict::Gap { after: None } => {
                self.output.missed(&format!("{stream}: something before {number}"))
            }
            Verdict::Duplicate { last } => {
                return self.output.wrong(&format!("{stream}: {number} after {last}"));
            }
        }
        self.left = self.left.map(|left| left - 1);
        if self.streams.lacks_epoch(stream) && !self.session.asks_epochs {
            // An edge elsewhere must not take its number for one of another epoch.
            self.session.asks_epochs = true;
            self.session.outgoing.push(ClientMessage::Streams { id: None });
        }
        if let Signed::Wrong(reason) = &signed {
            self.output.forged(&format!("{stream}: {number}: {reason}"));
        }
        self.output.event(text, event, signed.is_good());
    }

    fn take_control(&mut self, control: ControlMessage) -> Result<(), End> {
        match control {
            ControlMessage::Welcome { node, region, .. } => {
                self.output.note(&format!("connected to {node} in {region}"));
            }
            ControlMessage::Subscribed { streams, positions, rejected, .. } => {
                self.output.note(&format!("following {} streams", streams.len()));
                for stream in streams {
                    self.streams.begin(stream.as_str(), positions.get(&stream).copied());
                }
                for rejection in rejected {
                    self.reject(&rejection)?;
                }
            }
            ControlMessage::Resumed { streams, positions, rejected, .. } => {
                return self.take_resumed(&streams, &positions, &rejected);
            }
            ControlMessage::Streams { positions, .. } => {
                self.session.asks_epochs = false;
                for (stream, position) in positions {
                    self.streams.learn(stream.as_str(), position.epoch);
                }
            }
            ControlMessage::Reset { stream, epoch } => {
                self.output.note(&format!("{stream}: numbered anew in epoch {epoch}"));
                self.streams.reset(stream.as_str(), epoch);
            }
            ControlMessage::Error { code, message, id } => {
                self.output.note(&format!("error {code:?}: {message}"));
                // A request that was refused as a whole.
                for stream in id.map(|id| self.streams.asked_by(&id)).unwrap_or_default() {
                    self.reject(&Rejection::new(stream, code, message.as_str()))?;
                }
            }
            ControlMessage::Warning { code, message, .. } => {
                self.output.note(&message);
                if code == ErrorCode::TokenExpired && self.credentials.are_renewable() {
                    self.session.needs_token = true;
                    self.renew_token();
                }
            }
            ControlMessage::Authenticated { .. } => self.output.note("the new token is accepted"),
            ControlMessage::Draining { reconnect_after } => {
                self.output.note("the edge is draining");
                // Until then it still delivers. Up to half as long again, so that its clients do not arrive together.
                let wait =
                    Duration::from_millis(reconnect_after).min(LONGEST_DRAIN).mul_f64(1.0 + chance() / 2.0);
                self.session.leave_at = Some(Instant::now() + wait);
            }
            _ => {}
        }
        Ok(())
    }

    /// What was missed has been printed already.
    fn take_resumed(
        &mut self,
        streams: &[Resumed],
        positions: &BTreeMap<StreamName, Position>,
        rejected: &[Rejection],
    ) -> Result<(), End> {
        for Resumed { stream, from, .. } in streams {
            self.streams.resumed(stream.as_str(), *from);
        }
        let replayed: u64 = streams.iter().map(|resumed| resumed.replayed).sum();
        self.output
            .note(&format!("resumed {} streams, {replayed} events were missed and replayed", streams.len()));
        for rejection in rejected {
            let Rejection { stream, code, message, oldest } = rejection;
            if !matches!(code, ErrorCode::ResumeGap | ErrorCode::EpochChanged) {
                self.reject(rejection)?;
                continue;
            }
            let at = stream.parse::<StreamName>().ok().and_then(|name| positions.get(&name).copied());
            let before = self.streams.begin(stream, at);
            let after = before.map(|before| format!(" after {before}")).unwrap_or_default();
            let oldest = oldest.map(|oldest| format!(", oldest {}", oldest.sequence)).unwrap_or_default();
            let on = at.map(|at| format!("; goes on after {}", at.sequence)).unwrap_or_default();
            self.output.missed(&format!("{stream}: what came{after}: {message}{oldest}{on}"));
        }
        Ok(())
    }

    /// A stream that is not to be had, for the moment or at all.
    fn reject(&mut self, Rejection { stream, code, message, .. }: &Rejection) -> Result<(), End> {
        use ErrorCode::{Internal, Overloaded, RateLimited, Unavailable};
        self.output.note(&format!("{stream}: {message}"));
        if matches!(code, Unavailable | RateLimited | Overloaded | Internal) {
            self.streams.want(stream);
            self.session.ask_at.get_or_insert_with(|| Instant::now() + ASK_AGAIN);
            return Ok(());
        }
        self.keep_positions()?;
        self.streams.remove(stream);
        if self.streams.is_empty() {
            return Err(End::Refused("no stream to follow is left".into()));
        }
        Ok(())
    }

    fn keep_positions(&mut self) -> anyhow::Result<()> {
        match &mut self.file {
            Some(file) => file.keep(self.streams.positions().collect()),
            None => Ok(()),
        }
    }

    /// Shows a new token, if one is needed and there.
    fn renew_token(&mut self) {
        if !self.session.needs_token {
            return;
        }
        match self.credentials.renew() {
            Ok(Some(token)) => {
                self.session.needs_token = false;
                self.session.outgoing.push(ClientMessage::Authenticate { id: None, token });
            }
            Ok(None) => {}
            Err(error) => self.output.note(&format!("{error:#}")),
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

async fn close(mut socket: Socket) -> anyhow::Result<()> {
    timeout(Duration::from_secs(1), socket.close(None)).await??;
    Ok(())
}
