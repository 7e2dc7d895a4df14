//! A dead letter, whole: the record as it was, where it was, and why it is none. As a line of JSON, and as a message of a log.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tickmesh_protocol::Epoch;

use crate::{
    ops::metrics::now_us,
    source::{Record, writing::Message},
};

/// Longest reason, in bytes. Of a record that many routes refuse the first reasons say enough.
const MAX_REASON_BYTES: usize = 1024;
/// Largest value that a letter holds: what brokers are usually allowed at most. Of a larger one, which its log still has, the
/// letter tells the place.
pub(super) const MAX_LETTER_VALUE_BYTES: usize = 16 << 20;

/// How the headers of letters begin.
const PREFIX: &str = "tickmesh-";

/// A record that could not become an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The same for the same record, whoever wrote it and however often.
    pub id: String,
    pub source: String,
    pub topic: String,
    pub partition: u32,
    pub epoch: Epoch,
    pub position: u64,
    /// When it was refused: milliseconds since 1970 UTC.
    pub time: u64,
    /// As the record had it.
    pub engine_time_us: u64,
    pub reason: String,
    /// What other routes, or other parts of the record, became events nevertheless.
    #[serde(default)]
    pub events: u64,
    /// Bytes of a value that was left out as too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional")]
    pub key: Option<Bytes>,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub value: Bytes,
}

impl Letter {
    /// Of a record that was refused for these reasons, though so many events were made of it.
    pub fn new(source: &str, record: &Record, reasons: &[String], events: u64) -> Self {
        let Record { topic, partition, position, epoch, key, value, engine_time_us, .. } = record;
        let reason = told_at_once(reasons);
        let id = format!("{source}/{topic}/{partition}/{epoch}/{position}");
        let letter = Self {
            id,
            source: source.to_owned(),
            topic: topic.to_string(),
            partition: *partition,
            epoch: *epoch,
            position: *position,
            time: now_us() / 1000,
            engine_time_us: *engine_time_us,
            reason,
            events,
            left_out: None,
            key: key.clone(),
            value: value.clone(),
        };
        if value.len() > MAX_LETTER_VALUE_BYTES { letter.without_value() } else { letter }
    }

    /// Of a record whose position is no more than where it came; the next record may have that as well.
    pub fn unplaced(source: &str, record: &Record, reason: &str) -> Self {
        let mut letter = Self::new(source, record, &[reason.to_owned()], 0);
        let digest = blake3::hash(&[reason.as_bytes(), &record.value].concat()).to_hex();
        letter.id = format!("{}/{:.16}", letter.id, digest.as_str());
        letter
    }

    /// The letter alone, where its sink does not take it with the record.
    pub(super) fn without_value(&self) -> Self {
        let bytes = self.value.len() + self.key.as_ref().map_or(0, Bytes::len);
        Self { left_out: Some(bytes as u64), key: None, value: Bytes::new(), ..self.clone() }
    }

    /// What of it came from outside.
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len()
    }

    /// As a line of JSON.
    pub fn to_line(&self) -> String {
        // A struct of numbers and texts always has a form in JSON.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// Of a line of JSON; `None` if it is none.
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// As a message of a log: the record's own key and value, and all else in headers.
    pub fn to_message(&self, topic: &str) -> Message {
        let header = |name: &str, value: String| (format!("{PREFIX}{name}"), value);
        let mut headers = vec![
            header("id", self.id.clone()),
            header("source", self.source.clone()),
            header("topic", self.topic.clone()),
            header("partition", self.partition.to_string()),
            header("epoch", self.epoch.to_string()),
            header("position", self.position.to_string()),
            header("time", self.time.to_string()),
            header("engine-time-us", self.engine_time_us.to_string()),
            header("reason", self.reason.clone()),
            header("events", self.events.to_string()),
        ];
        headers.extend(self.left_out.map(|bytes| header("left-out", bytes.to_string())));
        Message {
            topic: topic.to_owned(),
            key: self.key.clone(),
            value: self.value.clone(),
            headers,
            id: Some(self.id.clone()),
            ..Message::default()
        }
    }

    /// Of a message of a log; `None` if it is no letter.
    pub fn from_message(message: &Message) -> Option<Self> {
        let header = |name: &str| {
            let mut all = message.headers.iter();
            all.find(|(key, _)| key.strip_prefix(PREFIX) == Some(name)).map(|(_, value)| value.as_str())
        };
        Some(Self {
            id: header("id")?.to_owned(),
            source: header("source")?.to_owned(),
            topic: header("topic")?.to_owned(),
            partition: header("partition")?.parse().ok()?,
            epoch: header("epoch")?.parse().ok()?,
            position: header("position")?.parse().ok()?,
            time: header("time")?.parse().ok()?,
            engine_time_us: header("engine-time-us")?.parse().ok()?,
            reason: header("reason")?.to_owned(),
            events: header("events")?.parse().ok()?,
            left_out: header("left-out").and_then(|bytes| bytes.parse().ok()),
            key: message.key.clone(),
            value: message.value.clone(),
        })
    }

    /// The record, as it is put back at the end of its log.
    pub fn put_back(&self) -> Message {
        Message {
            topic: self.topic.clone(),
            partition: Some(self.partition),
            key: self.key.clone(),
            value: self.value.clone(),
            headers: vec![(format!("{PREFIX}put-back"), self.id.clone())],
            time_us: self.engine_time_us,
            id: Some(format!("put-back/{}", self.id)),
        }
    }
}

/// Different reasons, each once.
fn told_at_once(reasons: &[String]) -> String {
    let mut told = String::new();
    for (index, reason) in reasons.iter().enumerate() {
        if reasons[..index].contains(reason) {
            continue;
        }
        if index > 0 {
            told.push_str("; ");
        }
        told.push_str(reason);
        if told.len() > MAX_REASON_BYTES {
            let end = (0..=MAX_REASON_BYTES).rfind(|end| told.is_char_boundary(*end));
            told.truncate(end.unwrap_or(0));
            break;
        }
    }
    told
}

fn to_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
}

/// Base64 of what may be missing.
mod optional {
    use super::{Bytes, Deserializer, Serializer, from_base64, to_base64};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to_base64(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        from_base64(deserializer).map(Some)
    }
}
