//! Topics of the mesh: buckets of streams, the unit that edges join and publishers sign.

use std::{fmt, str::FromStr};

use crate::{
    StreamName,
    stream::{MAX_STREAM_NAME_BYTES, is_part},
};

/// Buckets per channel. An edge whose clients want few streams of a large channel receives about 1/64 of it per
/// stream; a peer that joins everything of 10 channels has 640 topics, well under what gossipsub announces at once.
pub const BUCKETS: u16 = 64;

/// The region part of topics that span all regions. Relays between regional topics take its place later.
pub const ALL_REGIONS: &str = "all";

/// Longest name of a region, in bytes: longer than any cloud provider uses, and short in every topic.
pub const MAX_REGION_BYTES: usize = 32;

const PREFIX: &str = "/tickmesh/1/";

/// Longest topic, in bytes: the longest region and channel, two slashes and two digits. Peers announce topics, so a
/// text of any size may come in as one.
pub const MAX_TOPIC_BYTES: usize = PREFIX.len() + MAX_REGION_BYTES + MAX_STREAM_NAME_BYTES + 4;

/// `/tickmesh/1/<region>/<channel>/<bucket>`. All streams with the same channel and key share a topic, whatever their
/// variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    region: Box<str>,
    channel: Box<str>,
    bucket: u16,
}

/// A text that is no topic of tickmesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a topic is /tickmesh/1/<region>/<channel>/<bucket below {BUCKETS}>")]
pub struct InvalidTopic;

impl Topic {
    /// The topic that carries a stream through all regions.
    pub fn spanning(stream: &StreamName) -> Self {
        Self { region: ALL_REGIONS.into(), channel: stream.channel().into(), bucket: bucket_of(stream.key()) }
    }

    pub fn channel(&self) -> &str {
        &self.channel
    }

    pub fn bucket(&self) -> u16 {
        self.bucket
    }

    /// Whether a stream belongs to this topic.
    pub fn carries(&self, stream: &StreamName) -> bool {
        *self.channel == *stream.channel() && self.bucket == bucket_of(stream.key())
    }
}

/// Stable for ever: peers of different versions must agree on it.
fn bucket_of(key: &str) -> u16 {
    let hash = blake3::hash(key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    // The remainder is below BUCKETS, so it fits.
    (u64::from_le_bytes(first) % u64::from(BUCKETS)) as u16
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/{}/{}", self.region, self.channel, self.bucket)
    }
}

impl FromStr for Topic {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // First the length: nothing below may do work on a text of any size.
        if text.len() > MAX_TOPIC_BYTES {
            return Err(InvalidTopic);
        }
        let mut parts = text.strip_prefix(PREFIX).ok_or(InvalidTopic)?.split('/');
        let (Some(region), Some(channel), Some(bucket), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidTopic);
        };
        let number = bucket.parse().ok().filter(|b| *b < BUCKETS).ok_or(InvalidTopic)?;
        let topic = Self { region: region.into(), channel: channel.into(), bucket: number };
        // One spelling per topic: no leading zeros or signs.
        if is_part(region)
            && region.len() <= MAX_REGION_BYTES
            && is_part(channel)
            && topic.to_string() == text
        {
            Ok(topic)
        } else {
            Err(InvalidTopic)
        }
    }
}
