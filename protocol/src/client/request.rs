//! Client → server: `{"action": A, "id"?: JSON scalar, ...}`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, value::RawValue};

use super::ErrorCode;
use crate::{Position, Sequence};

/// Largest message a client may send, in bytes: a subscribe with [`MAX_STREAMS_PER_REQUEST`] usual names fits.
pub const MAX_CLIENT_FRAME_BYTES: usize = 64 * 1024;

/// Most streams in one request. More go into several requests.
pub const MAX_STREAMS_PER_REQUEST: usize = 1024;

/// Longest `id` that is echoed, in bytes of JSON.
const MAX_ID_BYTES: usize = 128;

/// The `id` of a request: null, a boolean, a number or a short string, echoed as it came. It is kept as JSON text: a
/// number goes back with all its digits, whatever their count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Box<str>);

impl RequestId {
    fn new(value: &RawValue) -> Option<Self> {
        let text = value.get();
        let scalar = !text.starts_with(['[', '{']);
        (scalar && text.len() <= MAX_ID_BYTES).then(|| Self(text.into()))
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        Self(number.to_string().into())
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// For clients, which read back the `id` they sent: by value, so a number as a 64-bit integer or a double.
impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self(value.to_string().into()))
    }
}

/// What a client asks. Stream names are still texts: one bad name is refused by itself, not the whole request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum ClientMessage {
    Subscribe {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        streams: Vec<String>,
    },
    Unsubscribe {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        streams: Vec<String>,
    },
    /// Subscribes, and asks for what came after what the client has already.
    Resume {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        #[serde(flatten)]
        from: ResumeFrom,
    },
    /// Asks for the connection's subscriptions and their positions.
    Streams {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
    },
    Ping {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
    },
    /// Shows new credentials of the same user.
    Authenticate {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        token: Secret,
    },
}

/// Where a client goes on, in one of two forms.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ResumeFrom {
    /// Streams that one partition numbers, so that one sequence says how far the client has got on all of them.
    Last {
        streams: Vec<String>,
        #[serde(rename = "lastSequence")]
        sequence: Sequence,
    },
    /// By stream.
    Positions { positions: BTreeMap<String, LastSeen> },
}

/// The last that a client has of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LastSeen {
    At(Position),
    /// In the epoch in which the stream is now. A client that names the epoch cannot be mistaken for one of another.
    Sequence(Sequence),
    /// Nothing: the stream had no event when the client subscribed.
    Nothing,
}

/// A credential: a text that does not print itself.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Secret(Box<str>);

impl Secret {
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself, for who checks it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a client shows to say who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A JWT, or a token that the exchange's OAuth2 server knows.
    Token(Secret),
    ApiKey(Secret),
}

impl Credential {
    pub fn token(text: &str) -> Self {
        Self::Token(Secret::new(text))
    }

    pub fn api_key(text: &str) -> Self {
        Self::ApiKey(Secret::new(text))
    }

    /// The text itself, for who checks it.
    pub fn reveal(&self) -> &str {
        let (Self::Token(secret) | Self::ApiKey(secret)) = self;
        secret.reveal()
    }
}

/// Longest credential that is looked at, in bytes. Tokens of identity providers with many groups have some kilobytes.
pub const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// Why a frame is no [`ClientMessage`]; answered with `error`, never a panic.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ProtocolError {
    pub code: ErrorCode,
    pub message: String,
    /// The request's `id`, where one could be read.
    pub id: Option<RequestId>,
}

/// Every field of every action; unknown ones are ignored.
#[derive(Deserialize)]
struct Fields<'a> {
    action: Option<Value>,
    #[serde(borrow, default, deserialize_with = "given")]
    id: Option<&'a RawValue>,
    streams: Option<Value>,
    #[serde(rename = "lastSequence")]
    last_sequence: Option<Value>,
    positions: Option<Value>,
    token: Option<Value>,
}

/// A field that is there with the value null is there: an `id` of null is echoed like any other.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl ClientMessage {
    /// Parses a text frame.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] or [`ErrorCode::UnknownAction`], with words that say what to mend.
    pub fn parse(text: &str) -> Result<Self, ProtocolError> {
        const FORM: &str = "not a JSON object of the form {\"action\": ...}";
        // serde would fill the fields from an array, in the order of their declaration.
        if !text.trim_start().starts_with('{') {
            return Err(bad(None, FORM.into()));
        }
        let fields: Fields<'_> =
            serde_json::from_str(text).map_err(|error| bad(None, format!("{FORM}: {error}")))?;
        let id = match fields.id {
            Some(value) => Some(RequestId::new(value).ok_or_else(|| {
                bad(None, format!("\"id\" must be a scalar of at most {MAX_ID_BYTES} bytes"))
            })?),
            None => None,
        };
        let Some(Value::String(action)) = fields.action else {
            return Err(bad(id, "\"action\" is missing or not a string".into()));
        };
        match action.as_str() {
            "subscribe" => Ok(Self::Subscribe { streams: streams(fields.streams, &id)?, id }),
            "unsubscribe" => Ok(Self::Unsubscribe { streams: streams(fields.streams, &id)?, id }),
            "resume" => Ok(Self::Resume {
                from: resume_from(fields.streams, fields.last_sequence, fields.positions)
                    .map_err(|message| bad(id.clone(), message))?,
                id,
            }),
            "streams" => Ok(Self::Streams { id }),
            "ping" => Ok(Self::Ping { id }),
            "authenticate" => match fields.token {
                Some(Value::String(token)) => Ok(Self::Authenticate { id, token: Secret::new(token) }),
                _ => Err(bad(id, "\"token\" is missing or not a string".into())),
            },
            _ => Err(ProtocolError {
                code: ErrorCode::UnknownAction,
                message: format!(
                    "no action {:?}; known: subscribe, unsubscribe, resume, streams, authenticate, ping",
                    shortened(&action)
                ),
                id,
            }),
        }
    }
}

fn streams(value: Option<Value>, id: &Option<RequestId>) -> Result<Vec<String>, ProtocolError> {
    names(value).map_err(|message| bad(id.clone(), message))
}

fn names(value: Option<Value>) -> Result<Vec<String>, String> {
    let Some(Value::Array(items)) = value else {
        return Err("\"streams\" must be a list of stream names".into());
    };
    if items.is_empty() || items.len() > MAX_STREAMS_PER_REQUEST {
        return Err(format!("\"streams\" must name 1 to {MAX_STREAMS_PER_REQUEST} streams"));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(name) => Ok(name),
            _ => Err("\"streams\" must hold only strings".into()),
        })
        .collect()
}

fn resume_from(
    streams: Option<Value>,
    last: Option<Value>,
    positions: Option<Value>,
) -> Result<ResumeFrom, String> {
    match (streams, last, positions) {
        (Some(streams), Some(last), None) => Ok(ResumeFrom::Last {
            streams: names(Some(streams))?,
            sequence: sequence(&last).ok_or_else(|| not_a_sequence("\"lastSequence\""))?,
        }),
        (None, None, Some(Value::Object(positions)))
            if (1..=MAX_STREAMS_PER_REQUEST).contains(&positions.len()) =>
        {
            let seen = positions.into_iter().map(|(stream, seen)| {
                let seen = last_seen(&stream, seen)?;
                Ok((stream, seen))
            });
            Ok(ResumeFrom::Positions { positions: seen.collect::<Result<_, String>>()? })
        }
        _ => Err(format!(
            "either \"streams\" and \"lastSequence\", or \"positions\" with 1 to {MAX_STREAMS_PER_REQUEST} streams"
        )),
    }
}

fn last_seen(stream: &str, value: Value) -> Result<LastSeen, String> {
    let what = || format!("the position of {:?}", shortened(stream));
    match value {
        Value::Null => Ok(LastSeen::Nothing),
        Value::Number(_) => sequence(&value).map(LastSeen::Sequence).ok_or_else(|| not_a_sequence(&what())),
        Value::Object(fields) => position(&fields).map(LastSeen::At).ok_or_else(|| {
            format!("{} must be {{\"epoch\": 16 hexadecimal digits, \"sequence\": an integer}}", what())
        }),
        _ => Err(format!("{} must be a sequence, {{\"epoch\", \"sequence\"}} or null", what())),
    }
}

fn position(fields: &Map<String, Value>) -> Option<Position> {
    let epoch = fields.get("epoch")?.as_str()?.parse().ok()?;
    Some(Position { epoch, sequence: sequence(fields.get("sequence")?)? })
}

fn sequence(value: &Value) -> Option<Sequence> {
    Sequence::new(value.as_u64()?).ok()
}

fn not_a_sequence(what: &str) -> String {
    format!("{what} must be an integer from 0 to 2^53 - 1")
}

fn bad(id: Option<RequestId>, message: String) -> ProtocolError {
    ProtocolError { code: ErrorCode::BadRequest, message, id }
}

/// An echo of outside text stays short.
fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}
