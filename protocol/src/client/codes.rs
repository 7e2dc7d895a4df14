//! Error codes in `error` and `rejected`, and WebSocket close codes.

use serde::{Deserialize, Serialize};

/// Why a request, or one stream of it, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not JSON, not of the form the action wants, or binary. Mend the request.
    BadRequest,
    /// No such action. Mend the request.
    UnknownAction,
    /// No such channel, or no stream name at all. Mend the request.
    UnknownStream,
    /// Not for this client.
    Forbidden,
    /// No credentials, or none that are valid. Come back with new ones.
    Unauthorized,
    /// The credentials were valid once. Come back with new ones.
    TokenExpired,
    /// More subscriptions than `welcome.limits.streams`. Unsubscribe first.
    TooManyStreams,
    /// Too many requests. Wait, then ask again.
    RateLimited,
    /// Larger than `welcome.limits.message_bytes`. Split the request.
    MessageTooLarge,
    /// What was asked for is no longer kept. Start from a snapshot.
    ResumeGap,
    /// The stream is numbered anew. Start from a snapshot.
    EpochChanged,
    /// Not reachable at the moment. Ask again after a second.
    Unavailable,
    /// The edge is full. Ask another one.
    Overloaded,
    /// A fault of the edge. Ask again after a second, or ask another one.
    Internal,
}

/// How an edge closes a connection (RFC 6455 §7.4): the code, the words, and whether to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 1000: the client closed; nothing to do.
    Normal,
    /// 1001: the edge drains. Come back at once, to any edge.
    Drain,
    /// 1001 as well: nothing was heard from the client for too long, not even a pong. A laptop that slept comes back.
    Idle,
    /// 1002: frames that break RFC 6455. Mend the client.
    Protocol,
    /// 1007: a text message that is not UTF-8. Mend the client.
    NotUtf8,
    /// 1008: ten protocol errors in a row. Mend the client.
    Policy,
    /// 1009: a message larger than allowed. Mend the client.
    TooBig,
    /// 1011: a fault of the edge. Come back after a second.
    Internal,
    /// 4401: credentials expired or revoked. Come back with new ones.
    Credentials,
    /// 4408: the client reads too slowly for its subscriptions. Come back with fewer, and resume.
    SlowClient,
    /// 4429: too many connections or requests. Come back later.
    Rate,
}

impl CloseCode {
    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Drain | Self::Idle => 1001,
            Self::Protocol => 1002,
            Self::NotUtf8 => 1007,
            Self::Policy => 1008,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::Credentials => 4401,
            Self::SlowClient => 4408,
            Self::Rate => 4429,
        }
    }

    /// The words that go with the code when the cause has none of its own; at most 123 bytes (RFC 6455 §5.5.1).
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal => "closed by the client",
            Self::Drain => "the edge is draining; reconnect to any edge",
            Self::Idle => "nothing heard from the client for too long; reconnect",
            Self::Protocol => "frames that break RFC 6455",
            Self::NotUtf8 => "a text message that is not UTF-8",
            Self::Policy => "too many protocol errors in a row",
            Self::TooBig => "message larger than allowed",
            Self::Internal => "a fault of the edge; reconnect after a second",
            Self::Credentials => "credentials expired or revoked; reconnect with new ones",
            Self::SlowClient => "client reads too slowly; reconnect with fewer streams and resume",
            Self::Rate => "too many connections or requests; reconnect later",
        }
    }

    /// Whether a client should connect again by itself.
    pub fn reconnect(self) -> bool {
        matches!(self, Self::Drain | Self::Idle | Self::Internal | Self::SlowClient | Self::Rate)
    }

    /// The label of this code in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Drain => "drain",
            Self::Idle => "idle",
            Self::Protocol => "protocol",
            Self::NotUtf8 => "not_utf8",
            Self::Policy => "policy",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::Credentials => "credentials",
            Self::SlowClient => "slow_client",
            Self::Rate => "rate",
        }
    }
}
