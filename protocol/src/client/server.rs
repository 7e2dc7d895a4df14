//! Server → client.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{ErrorCode, RequestId};
use crate::{Epoch, Event, Position, Sequence, StreamName};

/// What an edge allows one connection; part of `welcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Subscriptions at once.
    pub streams: usize,
    /// Bytes of one message from the client.
    pub message_bytes: usize,
    /// Frames the edge keeps for a client that reads slowly, before it closes with 4408.
    pub queue_frames: usize,
    /// Bytes the edge keeps for such a client.
    pub queue_bytes: usize,
}

/// One stream of a request that was refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// As the client wrote it, so no [`StreamName`].
    pub stream: String,
    pub code: ErrorCode,
    pub message: String,
    /// Of a stream that cannot be resumed: the oldest event that could still be had, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Position>,
}

impl Rejection {
    pub fn new(stream: impl Into<String>, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { stream: stream.into(), code, message: message.into(), oldest: None }
    }
}

/// One stream of a resume request that missed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    pub stream: StreamName,
    /// Where the client stood; `null`: before the first event.
    pub from: Option<Position>,
    /// Events that it had missed and has been sent.
    pub replayed: u64,
}

/// Everything an edge says that is not data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ControlMessage {
    /// The first message on a connection.
    Welcome {
        /// Unique on its edge while that runs; names the connection in the edge's log.
        connection: String,
        node: String,
        region: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        limits: Limits,
    },
    /// Everything after `positions` will be delivered, or a snapshot and everything after that; a stream without an event so
    /// far has none.
    Subscribed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        streams: Vec<StreamName>,
        positions: BTreeMap<StreamName, Position>,
        rejected: Vec<Rejection>,
    },
    /// Everything that was missed on `streams` has been sent, and what is new follows on them. A stream that is rejected
    /// with `resume_gap` or `epoch_changed` begins after its position in `positions`, or with a snapshot.
    Resumed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        streams: Vec<Resumed>,
        positions: BTreeMap<StreamName, Position>,
        rejected: Vec<Rejection>,
    },
    Unsubscribed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        streams: Vec<StreamName>,
        /// Where each stream stood.
        positions: BTreeMap<StreamName, Position>,
        rejected: Vec<Rejection>,
    },
    /// The connection's subscriptions.
    Streams {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        streams: Vec<StreamName>,
        positions: BTreeMap<StreamName, Position>,
    },
    Pong {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// Milliseconds since 1970 UTC, by the edge's clock.
        timestamp: u64,
    },
    /// Nothing else was written for five seconds.
    Heartbeat { timestamp: u64 },
    /// What follows on this stream is numbered in another epoch.
    Reset { stream: StreamName, epoch: Epoch },
    Error {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        code: ErrorCode,
        message: String,
    },
    /// New credentials were accepted.
    Authenticated {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        user: String,
        /// When they end, in milliseconds since 1970 UTC.
        #[serde(rename = "expiresAt", default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<u64>,
    },
    /// Something will end the connection unless the client does something about it.
    Warning {
        code: ErrorCode,
        message: String,
        /// Milliseconds since 1970 UTC.
        #[serde(rename = "expiresAt")]
        expires_at: u64,
    },
    /// The edge goes away: reconnect to any edge after so many milliseconds.
    Draining {
        #[serde(rename = "reconnectAfter")]
        reconnect_after: u64,
    },
}

impl ControlMessage {
    /// The JSON text of the frame.
    pub fn to_json(&self) -> String {
        // Strings, integers and lists of them: nothing in here can fail to be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One event, as a client receives it.
#[derive(Clone, Debug, Deserialize)]
pub struct DataMessage<'a> {
    pub stream: StreamName,
    /// With a signature, which covers it.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    pub sequence: Sequence,
    /// `null` where no event before this one is known.
    pub previous: Option<Sequence>,
    /// All events up to this one added up: it replaces what was before.
    #[serde(default)]
    pub snapshot: bool,
    /// The newest one for a client that read slowly: those before it were left out.
    #[serde(default)]
    pub conflated: bool,
    /// Exact JSON text.
    #[serde(borrow)]
    pub data: &'a RawValue,
    /// A detached JWS, if it is one: [`KeySet::verify`](crate::signature::KeySet::verify) says so.
    #[serde(default, borrow)]
    pub signature: Option<Cow<'a, str>>,
}

/// Appends the text of a data message: `{"stream","sequence","previous","data"}`, fields in this order. A signed one has
/// `epoch` after `stream`, since a client whose stream was empty has not been told it, and `signature` after `data`, so that
/// the exact text of `data` can be cut out of the frame.
pub fn write_data_message(out: &mut Vec<u8>, event: &Event) {
    use std::io::Write;
    let Event { stream, epoch, sequence, previous, data, signature, .. } = event;
    // None of these holds a character that JSON escapes, and writing to a Vec cannot fail.
    let _ = write!(out, r#"{{"stream":"{stream}""#);
    if signature.is_some() {
        let _ = write!(out, r#","epoch":"{epoch}""#);
    }
    let _ = match previous.sequence() {
        Some(previous) => write!(out, r#","sequence":{sequence},"previous":{previous},"data":"#),
        None => write!(out, r#","sequence":{sequence},"previous":null,"data":"#),
    };
    out.extend_from_slice(data);
    if let Some(signature) = signature {
        let _ = write!(out, r#","signature":"{}""#, signature.as_str());
    }
    out.push(b'}');
}

/// What a data message says of itself besides; see [`DataMessage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Snapshot,
    Conflated,
}

/// Appends a message of [`write_data_message`] with a mark, which stands before `data`: `"snapshot":true`.
pub fn write_marked_message(out: &mut Vec<u8>, message: &[u8], mark: Mark) {
    const DATA: &[u8] = br#","data":"#;
    // No name or number holds a quote, so the first place is the field.
    let at = message.windows(DATA.len()).position(|part| part == DATA).unwrap_or(0);
    let (head, data) = message.split_at(at);
    out.extend_from_slice(head);
    out.extend_from_slice(match mark {
        Mark::Snapshot => br#","snapshot":true"#,
        Mark::Conflated => br#","conflated":true"#,
    });
    out.extend_from_slice(data);
}

/// What a client receives.
#[derive(Clone, Debug)]
pub enum ServerMessage<'a> {
    Data(DataMessage<'a>),
    Control(ControlMessage),
}

/// A text that is no message of an edge.
#[derive(Debug, thiserror::Error)]
#[error("not a message of protocol v1: {0}")]
pub struct InvalidServerMessage(#[from] serde_json::Error);

impl<'a> ServerMessage<'a> {
    /// Parses a text frame of an edge.
    pub fn parse(text: &'a str) -> Result<Self, InvalidServerMessage> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow)]
            event: Option<Cow<'a, str>>,
        }
        let kind: Kind<'_> = serde_json::from_str(text)?;
        Ok(match kind.event {
            Some(_) => Self::Control(serde_json::from_str(text)?),
            None => Self::Data(serde_json::from_str(text)?),
        })
    }
}
