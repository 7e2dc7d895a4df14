//! Connections to servers, and what can go wrong with them, as typed values.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError,
    RedisResult, ServerErrorKind, TlsCertificates, Value, aio::MultiplexedConnection,
};

use super::config::Config;

/// Longest wait for a connection, with its login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer, beside what the question itself waits. A server that is there answers within milliseconds; one
/// whose machine vanished never does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait that a question itself may ask for.
pub(super) const MAX_BLOCK: Duration = Duration::from_secs(1);
/// Most characters of a server's own words that are shown.
const MAX_WORDS: usize = 200;

/// Why a server does not give what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("cannot get an answer in time")]
    Timeout,
    #[error("the server refuses the user or the password")]
    Login,
    #[error("the server wants a user and a password")]
    NoLogin,
    #[error("the server is loading its data")]
    Loading,
    #[error("not allowed: {0}")]
    Denied(String),
    #[error("the key is with the node {0}:{1}")]
    Moved(String, u16),
    #[error("the key is moving to the node {0}:{1}")]
    Ask(String, u16),
    #[error("the cluster is not up")]
    ClusterDown,
    #[error("the key holds something that is no stream")]
    WrongType,
    #[error("there is no such key")]
    NoKey,
    #[error("unexpected answer: {0}")]
    Strange(&'static str),
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    /// The label of metrics: a closed set.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Login | Self::NoLogin => "login",
            Self::Loading => "loading",
            Self::Denied(_) => "denied",
            Self::Moved(..) | Self::Ask(..) => "moved",
            Self::ClusterDown => "cluster_down",
            Self::WrongType => "wrong_type",
            Self::NoKey => "no_key",
            Self::Strange(_) => "strange",
            Self::Other(_) => "other",
        }
    }

    fn of(error: &RedisError, asked: &str) -> Self {
        let words = || {
            let words =
                format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
            words.chars().take(MAX_WORDS).collect()
        };
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::Login,
            ErrorKind::Server(ServerErrorKind::BusyLoading) => Self::Loading,
            ErrorKind::Server(ServerErrorKind::NoPerm) => Self::Denied(words()),
            ErrorKind::Server(ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown) => {
                Self::ClusterDown
            }
            ErrorKind::Server(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                let node = error.redirect_node().and_then(|(address, _)| node_of(address, asked));
                match node {
                    Some((host, port)) if kind == ServerErrorKind::Moved => Self::Moved(host, port),
                    Some((host, port)) => Self::Ask(host, port),
                    None => Self::Strange("a redirection to nowhere"),
                }
            }
            ErrorKind::Server(ServerErrorKind::ResponseError)
                if error.detail().is_some_and(|detail| detail.contains("no such key")) =>
            {
                Self::NoKey
            }
            _ if error.is_timeout() => Self::Timeout,
            _ if error.is_unrecoverable_error() || error.is_connection_dropped() => {
                Self::Unreachable(error.to_string())
            }
            _ => match error.code() {
                Some("WRONGTYPE") => Self::WrongType,
                Some("NOAUTH") => Self::NoLogin,
                Some("WRONGPASS") => Self::Login,
                Some(_) => Self::Other(words()),
                None => Self::Unreachable(error.to_string()),
            },
        }
    }
}

/// Host and port of a redirection; an empty host is that of the server which said it.
fn node_of(address: &str, asked: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = if host.is_empty() { asked } else { host };
    Some((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port.parse().ok()?))
}

/// A server: how to connect to it.
pub(super) type Node = ConnectionInfo;

/// The node of the same cluster at another address.
pub(super) fn elsewhere(node: &Node, host: String, port: u16) -> Node {
    let address = match node.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    node.clone().set_addr(address)
}

/// Redirections that are followed one after the other: one is usual, two while slots move.
pub(super) const MAX_REDIRECTIONS: u32 = 4;

/// The node of a cluster that is to be asked instead, and whether it must be asked especially.
pub(super) fn redirected(config: &Config, trouble: &Trouble) -> Option<(Node, bool)> {
    let any = config.urls.first().filter(|_| config.cluster)?;
    match trouble {
        Trouble::Moved(host, port) => Some((elsewhere(any, host.clone(), *port), false)),
        Trouble::Ask(host, port) => Some((elsewhere(any, host.clone(), *port), true)),
        _ => None,
    }
}

pub(super) fn host_of(node: &Node) -> &str {
    match node.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}

/// A connection of one owner, so that what it waits for holds up nobody else.
pub(super) struct Link {
    connection: MultiplexedConnection,
    host: String,
    /// Each question goes to a node which a key is moving to.
    asking: bool,
}

impl Link {
    pub(super) async fn connect(config: &Config, node: &Node, asking: bool) -> Result<Self, Trouble> {
        let host = host_of(node).to_owned();
        let info = config.info(node).map_err(Trouble::Other)?;
        let certificates = TlsCertificates { client_tls: None, root_cert: config.authorities.clone() };
        let client = match node.addr() {
            ConnectionAddr::TcpTls { .. } => Client::build_with_tls(info, certificates),
            _ => Client::open(info),
        };
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT + MAX_BLOCK));
        let connected = async { client?.get_multiplexed_async_connection_with_config(&limits).await };
        let connection = connected.await.map_err(|error| Trouble::of(&error, &host))?;
        Ok(Self { connection, host, asking })
    }

    /// Asks once.
    pub(super) async fn ask(&mut self, question: Cmd) -> Result<Value, Trouble> {
        self.ask_all(vec![question]).await?.pop().unwrap_or(Err(Trouble::Strange("none")))
    }

    /// Asks several things at once; the server answers in that order. The outer error is of the connection.
    pub(super) async fn ask_all(
        &mut self,
        questions: Vec<Cmd>,
    ) -> Result<Vec<Result<Value, Trouble>>, Trouble> {
        let (mut all, count) = (Pipeline::with_capacity(questions.len()), questions.len());
        for question in questions {
            if self.asking {
                all.cmd("ASKING").ignore();
            }
            all.add_command(question);
        }
        all.ignore_errors();
        let answers: Vec<RedisResult<Value>> =
            all.query_async(&mut self.connection).await.map_err(|error| Trouble::of(&error, &self.host))?;
        if answers.len() != count {
            return Err(Trouble::Strange("another number of answers than of questions"));
        }
        Ok(answers
            .into_iter()
            .map(|answer| answer.map_err(|error| Trouble::of(&error, &self.host)))
            .collect())
    }
}
