//! Client → server: `{"action": A, "id"?: JSON scalar, ...}`.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::ErrorCode;

/// Largest message a client may send, in bytes: a subscribe with [`MAX_STREAMS_PER_REQUEST`] usual names fits.
pub const MAX_CLIENT_FRAME_BYTES: usize = 64 * 1024;

/// Most streams in one request. More go into several requests.
pub const MAX_STREAMS_PER_REQUEST: usize = 1024;

/// Longest `id` that is echoed, in bytes of JSON.
const MAX_ID_BYTES: usize = 128;

/// The `id` of a request: null, a boolean, a number or a short string, echoed with the value it came with. A number is
/// kept as a 64-bit integer, or else as a double.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Value);

impl RequestId {
    fn new(value: Value) -> Option<Self> {
        let scalar = !matches!(value, Value::Array(_) | Value::Object(_));
        (scalar && value.to_string().len() <= MAX_ID_BYTES).then_some(Self(value))
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        Self(number.into())
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
    /// Asks for the connection's subscriptions and their positions.
    Streams {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
    },
    Ping {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
    },
}

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
struct Fields {
    action: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    id: Option<Value>,
    streams: Option<Value>,
}

/// A field that is there with the value null is there: an `id` of null is echoed like any other.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
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
        let fields: Fields =
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
            "streams" => Ok(Self::Streams { id }),
            "ping" => Ok(Self::Ping { id }),
            _ => Err(ProtocolError {
                code: ErrorCode::UnknownAction,
                message: format!(
                    "no action {:?}; known: subscribe, unsubscribe, streams, ping",
                    shortened(&action)
                ),
                id,
            }),
        }
    }
}

fn streams(value: Option<Value>, id: &Option<RequestId>) -> Result<Vec<String>, ProtocolError> {
    let Some(Value::Array(items)) = value else {
        return Err(bad(id.clone(), "\"streams\" must be a list of stream names".into()));
    };
    if items.is_empty() || items.len() > MAX_STREAMS_PER_REQUEST {
        return Err(bad(id.clone(), format!("\"streams\" must name 1 to {MAX_STREAMS_PER_REQUEST} streams")));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(name) => Ok(name),
            _ => Err(bad(id.clone(), "\"streams\" must hold only strings".into())),
        })
        .collect()
}

fn bad(id: Option<RequestId>, message: String) -> ProtocolError {
    ProtocolError { code: ErrorCode::BadRequest, message, id }
}

/// An echo of outside text stays short.
fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}
