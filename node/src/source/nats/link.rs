//! One connection to a server: made with what the credentials' files hold now, never repaired. Who loses it makes another, and
//! looks anew at what the server has.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerError,
    jetstream::{
        self, Context, ErrorCode,
        consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
        context::{GetStreamError, GetStreamErrorKind},
        stream::Info,
    },
};
use tokio::sync::watch;

use super::config::{Access, Login};
use crate::key_file;

/// Longest wait for a connection, and for one answer. The source tries again at once, and an operator should soon learn why.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the client asks whether the server is still there; two questions without an answer end the connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Most bytes of a file with credentials; those that `nsc` makes have about one thousand.
const MAX_CREDENTIALS_BYTES: usize = 64 * 1024;
/// How long the server keeps a consumer that nobody asks anything: longer than ingest may be slow, and not for ever.
const CONSUMER_KEPT: Duration = Duration::from_secs(60);
/// Most bytes that are asked for ahead, if all messages are as large as the server allows.
const AHEAD_BYTES: usize = 64 * 1024 * 1024;
/// Most messages asked for ahead: some milliseconds of the fastest stream.
const AHEAD_MESSAGES: usize = 1024;
/// Messages that a connection may hold for its reader. The client would drop what is above, and say so too late; so this is never
/// reached: who reads bounds what comes.
const HELD_MESSAGES: usize = u32::MAX as usize;

/// Why something did not work. The source tries again.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    /// The label in metrics; a closed set.
    pub(super) kind: &'static str,
    pub(super) reason: String,
}

impl Trouble {
    pub(super) fn new(kind: &'static str, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// A request that got no good answer.
    pub(super) fn request(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new("request", format!("cannot {what}: {error}"))
    }
}

/// Why reading over a connection is over.
pub(super) enum Ended {
    Trouble(Trouble),
    /// Nobody listens any more.
    Stopped,
}

impl From<Trouble> for Ended {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// A connection.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) jetstream: Context,
    lost: watch::Receiver<bool>,
    /// What the server complained of last: requests that are not allowed are not answered, but told here.
    said: watch::Sender<Option<String>>,
}

impl Link {
    /// Connects. `purpose` tells the connections of a source apart in the server's lists.
    pub(super) async fn connect(access: &Access, source: &str, purpose: &str) -> Result<Self, Trouble> {
        let options = login(access).await?;
        let (tell, lost) = watch::channel(false);
        let said = watch::Sender::new(None);
        let heard = said.clone();
        let options = options
            .name(format!("tickmesh-{source}-{purpose}"))
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(HELD_MESSAGES)
            // Each address once; then whoever holds the connection begins anew.
            .max_reconnects(access.urls.len())
            .ignore_discovered_servers()
            .event_callback(move |event| {
                match event {
                    Event::ServerError(ServerError::Other(text)) => {
                        heard.send_replace(Some(text));
                    }
                    Event::Disconnected | Event::Closed => {
                        tell.send_replace(true);
                    }
                    _ => {}
                }
                async {}
            });
        let client = options.connect(&access.urls).await.map_err(|error| match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                Trouble::new("credentials", "the server refuses the credentials")
            }
            ConnectErrorKind::Tls => Trouble::new("tls", format!("cannot connect: {error}")),
            _ => Trouble::new("connect", format!("cannot connect: {error}")),
        })?;
        let jetstream =
            jetstream::context::ContextBuilder::new().timeout(REQUEST_TIMEOUT).build(client.clone());
        Ok(Self { client, jetstream, lost, said })
    }

    /// Waits until the connection is lost.
    pub(super) async fn lost(&self) -> Trouble {
        // The sender goes with the client's own task.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
        self.explain(Trouble::new("lost", "the connection is lost"))
    }

    /// Waits until the server complains of something.
    pub(super) async fn complained(&self) -> Trouble {
        // The sender is this very link's.
        let _ = self.said.subscribe().wait_for(Option::is_some).await;
        self.explain(Trouble::new("refused", "the subscription is not what it should be"))
    }

    /// Adds what the server complained of meanwhile.
    pub(super) fn explain(&self, mut trouble: Trouble) -> Trouble {
        if let Some(said) = self.said.send_replace(None) {
            trouble.reason = format!("{}; the server says: {said}", trouble.reason);
        }
        trouble
    }

    /// The stream as it is now; `None` if there is none of that name.
    pub(super) async fn stream(&self, name: &str) -> Result<Option<Info>, Trouble> {
        stream(&self.jetstream, name).await.map_err(|trouble| self.explain(trouble))
    }

    /// A consumer of one's own, which the server forgets. It gives each message once, and waits for no acknowledgement.
    pub(super) async fn consumer(
        &self,
        stream: &str,
        subjects: &[String],
        from: DeliverPolicy,
    ) -> Result<Consumer<pull::Config>, Trouble> {
        let mut config = pull::Config {
            deliver_policy: from,
            ack_policy: AckPolicy::None,
            inactive_threshold: CONSUMER_KEPT,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        match subjects {
            // Servers before 2.10 know only this.
            [one] => config.filter_subject.clone_from(one),
            several => config.filter_subjects = several.to_vec(),
        }
        let made = self.jetstream.create_consumer_on_stream(config, stream).await;
        made.map_err(|error| self.explain(Trouble::request("make a consumer", error)))
    }

    /// Messages to ask for at once: so many that those on their way fit memory whatever their size.
    pub(super) fn ahead(&self) -> usize {
        (AHEAD_BYTES / self.client.server_info().max_payload.max(1)).clamp(1, AHEAD_MESSAGES)
    }
}

/// Asks for a stream.
pub(super) async fn stream(jetstream: &Context, name: &str) -> Result<Option<Info>, Trouble> {
    match jetstream.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(match error.kind() {
            GetStreamErrorKind::JetStream(error) => Trouble::new("jetstream", error.to_string()),
            _ => Trouble::request("ask JetStream for the stream", error),
        }),
    }
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// What the connection is made with, from files as they are now.
async fn login(access: &Access) -> Result<ConnectOptions, Trouble> {
    let mut options = ConnectOptions::new();
    options = match &access.login {
        None => options,
        Some(Login::Password { user, file }) => options.user_and_password(user.clone(), secret(file).await?),
        Some(Login::Token(file)) => options.token(secret(file).await?),
        Some(Login::Nkey(file)) => options.nkey(secret(file).await?),
        Some(Login::Credentials(file)) => options.credentials(&secret(file).await?).map_err(|_| {
            Trouble::new("credentials", format!("{} holds no credentials as nsc makes them", file.display()))
        })?,
    };
    if let Some(file) = &access.ca_file {
        options = options.add_root_certificates(file.clone()).require_tls(true);
    }
    Ok(options)
}

async fn secret(file: &Path) -> Result<String, Trouble> {
    let path: PathBuf = file.into();
    let read = tokio::task::spawn_blocking(move || key_file::read(&path, MAX_CREDENTIALS_BYTES)).await;
    let unreadable = |error: &dyn std::fmt::Display| {
        Trouble::new("credentials", format!("cannot read {}: {error}", file.display()))
    };
    match read {
        Ok(Ok(text)) => Ok(text.trim().to_owned()),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(error) => Err(unreadable(&error)),
    }
}
