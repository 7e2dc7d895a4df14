//! Names of streams: `<channel>.<key>[@variant]`, as in `trades.btc_usdt` or `depth.eth_usdt@100ms`.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest stream name, in bytes. Long enough for an escaped UUID user id in a channel of any sane name; short
/// enough that the head of a data frame stays small.
pub const MAX_STREAM_NAME_BYTES: usize = 128;

/// What starts a key that [`escape_key`] had to change.
const ESCAPED: &str = "--";

/// The name of a stream. Valid by construction; cheap to clone (one shared string).
///
/// ```
/// use tickmesh_protocol::StreamName;
///
/// let stream: StreamName = "depth.eth_usdt@100ms".parse().unwrap();
/// assert_eq!(stream.channel(), "depth");
/// assert_eq!(stream.key(), "eth_usdt");
/// assert_eq!(stream.variant(), Some("100ms"));
/// assert!("Depth.eth_usdt".parse::<StreamName>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(Arc<str>);

/// Why a text is no stream name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStreamName {
    #[error("a stream name has at most {MAX_STREAM_NAME_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    #[error("a stream name is <channel>.<key> or <channel>.<key>@<variant>, as in trades.btc_usdt")]
    Shape,
    #[error("{part} may hold only a-z, 0-9, _ and -, and not be empty")]
    Alphabet { part: &'static str },
}

impl StreamName {
    /// Puts a name together from its parts.
    pub fn new(channel: &str, key: &str, variant: Option<&str>) -> Result<Self, InvalidStreamName> {
        check_part("channel", channel)?;
        check_part("key", key)?;
        let name = match variant {
            Some(variant) => {
                check_part("variant", variant)?;
                format!("{channel}.{key}@{variant}")
            }
            None => format!("{channel}.{key}"),
        };
        if name.len() > MAX_STREAM_NAME_BYTES {
            return Err(InvalidStreamName::TooLong(name.len()));
        }
        Ok(Self(name.into()))
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What comes before the dot: `trades` of `trades.btc_usdt`.
    pub fn channel(&self) -> &str {
        self.split().0
    }

    /// What comes after the dot and before the `@`: `btc_usdt` of `candles.btc_usdt@1m`.
    pub fn key(&self) -> &str {
        self.split().1
    }

    /// What comes after the `@`, if there is one.
    pub fn variant(&self) -> Option<&str> {
        self.split().2
    }

    fn split(&self) -> (&str, &str, Option<&str>) {
        split(&self.0).unwrap_or((&self.0, "", None))
    }
}

fn split(name: &str) -> Option<(&str, &str, Option<&str>)> {
    let (channel, rest) = name.split_once('.')?;
    Some(match rest.split_once('@') {
        Some((key, variant)) => (channel, key, Some(variant)),
        None => (channel, rest, None),
    })
}

fn check_part(part: &'static str, text: &str) -> Result<(), InvalidStreamName> {
    if is_part(text) { Ok(()) } else { Err(InvalidStreamName::Alphabet { part }) }
}

/// Whether a text may stand as a channel, key or variant.
pub fn is_part(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Makes any identifier, such as a user id, a valid key, without loss and without folding case: `alice` stays
/// `alice`, `Alice` becomes `--_41lice`. Two different identifiers never get the same key.
pub fn escape_key(identifier: &str) -> String {
    if is_part(identifier) && !identifier.starts_with(ESCAPED) {
        return identifier.to_owned();
    }
    let mut key = String::from(ESCAPED);
    for byte in identifier.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => key.push(char::from(byte)),
            _ => {
                use fmt::Write;
                // Writing to a String cannot fail.
                let _ = write!(key, "_{byte:02x}");
            }
        }
    }
    key
}

impl FromStr for StreamName {
    type Err = InvalidStreamName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        // First the length: nothing below may do work on a text of any size.
        if name.len() > MAX_STREAM_NAME_BYTES {
            return Err(InvalidStreamName::TooLong(name.len()));
        }
        let (channel, key, variant) = split(name).ok_or(InvalidStreamName::Shape)?;
        check_part("channel", channel)?;
        check_part("key", key)?;
        variant.map_or(Ok(()), |variant| check_part("variant", variant))?;
        Ok(Self(name.into()))
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for StreamName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for StreamName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StreamName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
