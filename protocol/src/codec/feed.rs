//! The bytes of feeds: version byte, bincode. A page keeps the bytes that its publisher signed, inside the frame.

use std::collections::HashSet;

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;

use super::{
    CodecError, MAX_ENVELOPE_BYTES, WireEvent, check_size, check_text, decode, encode, position_of,
    private::{
        WireDenial, WireRevocation, check_change_count, events_of, names, revocations_of, texts, wire_events,
        wire_revocations,
    },
};
use crate::{
    Position, SignedBatch, StreamName, Topic,
    batch::InvalidBatch,
    catalogue::{Answer, Ask, InvalidChange, MAX_STANDING},
    feed::{
        FeedEnd, FeedFrame, FeedRequest, MAX_FEED_STREAMS, MAX_REASON_BYTES, MAX_SOURCE_NAME_BYTES,
        MAX_STATE_CHUNK_BYTES, MAX_STATUS_SOURCES, SourceStatus, Status,
    },
    topic::MAX_REGION_BYTES,
};

/// Largest request: [`MAX_FEED_STREAMS`] of the longest names, each with a position of 18 bytes.
pub const MAX_FEED_REQUEST_BYTES: usize = 160 * 1024;

/// Largest frame: the largest page, the version byte, and what says that it is a page and how long. All other frames are
/// smaller.
pub const MAX_FEED_FRAME_BYTES: usize = MAX_ENVELOPE_BYTES + 16;

#[derive(Encode, BorrowDecode)]
enum WireRequest<'a> {
    Streams {
        topic: &'a str,
        after: Vec<(&'a str, Option<WirePosition>)>,
        live: bool,
    },
    Topic {
        topic: &'a str,
        after: Vec<(&'a str, WirePosition)>,
        live: bool,
    },
    Status,
    State {
        source: &'a str,
    },
    Snapshots {
        topic: &'a str,
        streams: Vec<&'a str>,
    },
    Private,
    /// JSON: it is asked for now and then, and people look at it.
    Catalogue(&'a str),
}

#[derive(Clone, Copy, Encode, BorrowDecode)]
struct WirePosition {
    epoch: u64,
    sequence: u64,
}

#[derive(Encode, BorrowDecode)]
enum WireFrame<'a> {
    Page(&'a [u8]),
    End { streams: Vec<(&'a str, WireEnd)> },
    Status { boot: u64, region: &'a str, sources: Vec<WireSource<'a>>, lag_us: u64 },
    State { chunk: &'a [u8], last: bool },
    Refused { reason: &'a str },
    Working,
    Snapshots(&'a [u8]),
    Heads(Vec<(&'a str, Option<WirePosition>)>),
    Denied { streams: Vec<&'a str>, why: WireDenial },
    Events(Vec<WireEvent<'a>>),
    Revoked(Vec<WireRevocation<'a>>),
    Catalogue(&'a str),
}

#[derive(Encode, BorrowDecode)]
enum WireEnd {
    Complete { head: Option<WirePosition> },
    Refused { oldest: Option<WirePosition> },
}

#[derive(Encode, BorrowDecode)]
struct WireSource<'a> {
    name: &'a str,
    warm: bool,
    lag: u64,
}

impl From<Position> for WirePosition {
    fn from(position: Position) -> Self {
        Self { epoch: position.epoch.as_u64(), sequence: position.sequence.get() }
    }
}

impl TryFrom<WirePosition> for Position {
    type Error = CodecError;

    fn try_from(wire: WirePosition) -> Result<Self, CodecError> {
        position_of(wire.epoch, wire.sequence)
    }
}

/// Encodes a request.
///
/// # Errors
/// If it breaks one of its limits.
pub fn encode_feed_request(request: &FeedRequest) -> Result<Vec<u8>, CodecError> {
    check_request(request)?;
    let topic = request.topic().map(Topic::to_string).unwrap_or_default();
    let asked = match request {
        FeedRequest::Catalogue(ask) => to_json(&**ask, MAX_FEED_REQUEST_BYTES)?,
        _ => String::new(),
    };
    encode(&match request {
        FeedRequest::Streams { after, live, .. } => WireRequest::Streams {
            topic: &topic,
            after: after.iter().map(|(stream, at)| (stream.as_str(), at.map(WirePosition::from))).collect(),
            live: *live,
        },
        FeedRequest::Topic { after, live, .. } => WireRequest::Topic {
            topic: &topic,
            after: after.iter().map(|(stream, at)| (stream.as_str(), (*at).into())).collect(),
            live: *live,
        },
        FeedRequest::Status => WireRequest::Status,
        FeedRequest::State { source } => WireRequest::State { source },
        FeedRequest::Snapshots { streams, .. } => {
            WireRequest::Snapshots { topic: &topic, streams: texts(streams) }
        }
        FeedRequest::Private => WireRequest::Private,
        FeedRequest::Catalogue(_) => WireRequest::Catalogue(&asked),
    })
}

/// Decodes a request.
///
/// # Errors
/// If the bytes are none, or break one of its limits.
pub fn decode_feed_request(bytes: &[u8]) -> Result<FeedRequest, CodecError> {
    check_size(bytes.len(), MAX_FEED_REQUEST_BYTES)?;
    let request = match decode(bytes)? {
        WireRequest::Streams { topic, after, live } => FeedRequest::Streams {
            topic: topic.parse()?,
            after: each(after, |at| at.map(Position::try_from).transpose())?,
            live,
        },
        WireRequest::Topic { topic, after, live } => {
            FeedRequest::Topic { topic: topic.parse()?, after: each(after, Position::try_from)?, live }
        }
        WireRequest::Status => FeedRequest::Status,
        WireRequest::State { source } => FeedRequest::State { source: source.to_owned() },
        WireRequest::Snapshots { topic, streams } => {
            FeedRequest::Snapshots { topic: topic.parse()?, streams: names(streams)? }
        }
        WireRequest::Private => FeedRequest::Private,
        WireRequest::Catalogue(ask) => FeedRequest::Catalogue(Box::new(of_json(ask)?)),
    };
    check_request(&request)?;
    Ok(request)
}

fn check_request(request: &FeedRequest) -> Result<(), CodecError> {
    match request {
        FeedRequest::Streams { topic, after, .. } => {
            check_streams(topic, 1, after.iter().map(|(stream, _)| stream))
        }
        FeedRequest::Topic { topic, after, .. } => {
            check_streams(topic, 0, after.iter().map(|(stream, _)| stream))
        }
        FeedRequest::Status | FeedRequest::Private => Ok(()),
        FeedRequest::Catalogue(ask) => check_ask(ask),
        FeedRequest::State { source } => check_text("name of a source", source, MAX_SOURCE_NAME_BYTES),
        FeedRequest::Snapshots { topic, streams } => check_streams(topic, 1, streams.iter()),
    }
}

fn check_streams<'a>(
    topic: &Topic,
    least: usize,
    streams: impl ExactSizeIterator<Item = &'a StreamName>,
) -> Result<(), CodecError> {
    let count = streams.len();
    if !(least..=MAX_FEED_STREAMS).contains(&count) {
        return Err(CodecError::StreamCount(count));
    }
    let mut seen = HashSet::with_capacity(count);
    for stream in streams {
        if !topic.carries(stream) {
            return Err(CodecError::ForeignStream(stream.to_string()));
        }
        if !seen.insert(stream) {
            return Err(CodecError::RepeatedStream(stream.to_string()));
        }
    }
    Ok(())
}

/// Encodes a frame.
///
/// # Errors
/// If it breaks one of its limits.
pub fn encode_feed_frame(frame: &FeedFrame) -> Result<Vec<u8>, CodecError> {
    let answered = match frame {
        FeedFrame::Catalogue(answer) => {
            check_answer(answer)?;
            to_json(&**answer, MAX_FEED_FRAME_BYTES)?
        }
        _ => String::new(),
    };
    let bytes = encode(&match frame {
        FeedFrame::Page(page) => WireFrame::Page(page.envelope()),
        FeedFrame::End { streams } => {
            check_end(streams.len())?;
            WireFrame::End {
                streams: streams.iter().map(|(stream, end)| (stream.as_str(), end.into())).collect(),
            }
        }
        FeedFrame::Status(status) => {
            check_status(status)?;
            WireFrame::Status {
                boot: status.boot,
                region: &status.region,
                sources: status.sources.iter().map(WireSource::from).collect(),
                lag_us: status.lag_us,
            }
        }
        FeedFrame::State { chunk, last } => {
            check_size(chunk.len(), MAX_STATE_CHUNK_BYTES)?;
            WireFrame::State { chunk, last: *last }
        }
        FeedFrame::Refused { reason } => {
            check_text("reason", reason, MAX_REASON_BYTES)?;
            WireFrame::Refused { reason }
        }
        FeedFrame::Working => WireFrame::Working,
        FeedFrame::Snapshots(snapshots) => WireFrame::Snapshots(snapshots.envelope()),
        FeedFrame::Heads(streams) => {
            check_change_count(streams.len())?;
            let heads = streams.iter().map(|(stream, at)| (stream.as_str(), at.map(WirePosition::from)));
            WireFrame::Heads(heads.collect())
        }
        FeedFrame::Denied { streams, why } => {
            check_change_count(streams.len())?;
            WireFrame::Denied { streams: texts(streams), why: (*why).into() }
        }
        FeedFrame::Events(events) => WireFrame::Events(wire_events(events)?),
        FeedFrame::Revoked(revocations) => WireFrame::Revoked(wire_revocations(revocations)?),
        FeedFrame::Catalogue(_) => WireFrame::Catalogue(&answered),
    })?;
    check_size(bytes.len(), MAX_FEED_FRAME_BYTES)?;
    Ok(bytes)
}

/// Decodes a frame; of a page and of snapshots also the signature is verified. Whether their publisher is one to be
/// believed is not asked here. Pages, snapshots and chunks share the memory of `bytes`.
///
/// # Errors
/// If the bytes are no frame, break one of its limits, or hold a page or snapshots that their publisher did not sign.
pub fn decode_feed_frame(bytes: &Bytes) -> Result<FeedFrame, InvalidBatch> {
    check_size(bytes.len(), MAX_FEED_FRAME_BYTES)?;
    Ok(match decode(bytes)? {
        WireFrame::Page(envelope) => FeedFrame::Page(SignedBatch::open_page(bytes.slice_ref(envelope))?),
        WireFrame::End { streams } => {
            check_end(streams.len())?;
            FeedFrame::End { streams: each(streams, FeedEnd::try_from)? }
        }
        WireFrame::Status { boot, region, sources, lag_us } => {
            let status = Status {
                boot,
                region: region.to_owned(),
                sources: sources.into_iter().map(SourceStatus::from).collect(),
                lag_us,
            };
            check_status(&status)?;
            FeedFrame::Status(status)
        }
        WireFrame::State { chunk, last } => {
            check_size(chunk.len(), MAX_STATE_CHUNK_BYTES)?;
            FeedFrame::State { chunk: bytes.slice_ref(chunk), last }
        }
        WireFrame::Refused { reason } => {
            check_text("reason", reason, MAX_REASON_BYTES)?;
            FeedFrame::Refused { reason: reason.to_owned() }
        }
        WireFrame::Working => FeedFrame::Working,
        WireFrame::Snapshots(envelope) => {
            FeedFrame::Snapshots(SignedBatch::open_snapshots(bytes.slice_ref(envelope))?)
        }
        WireFrame::Heads(streams) => {
            check_change_count(streams.len())?;
            FeedFrame::Heads(each(streams, |at| at.map(Position::try_from).transpose())?)
        }
        WireFrame::Denied { streams, why } => {
            check_change_count(streams.len())?;
            FeedFrame::Denied { streams: names(streams)?, why: why.into() }
        }
        WireFrame::Events(events) => FeedFrame::Events(events_of(bytes, &events)?),
        WireFrame::Revoked(revocations) => FeedFrame::Revoked(revocations_of(revocations)?),
        WireFrame::Catalogue(answer) => {
            let answer = of_json(answer)?;
            check_answer(&answer)?;
            FeedFrame::Catalogue(Box::new(answer))
        }
    })
}

fn to_json(value: &impl serde::Serialize, limit: usize) -> Result<String, CodecError> {
    let json = serde_json::to_string(value).map_err(|error| CodecError::Format(error.to_string()))?;
    check_size(json.len(), limit)?;
    Ok(json)
}

fn of_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, CodecError> {
    serde_json::from_str(json).map_err(|error| CodecError::Format(error.to_string()))
}

fn check_ask(ask: &Ask) -> Result<(), CodecError> {
    match ask {
        Ask::Promise { change, at, .. } => {
            change.check()?;
            check_positions(at.len(), MAX_STANDING)
        }
        Ask::Standing | Ask::Commit { .. } | Ask::Abort { .. } | Ask::Whole => Ok(()),
    }
}

fn check_answer(answer: &Answer) -> Result<(), CodecError> {
    match answer {
        Answer::Standing { partitions, .. } => check_positions(partitions.len(), MAX_STANDING),
        Answer::Whole(catalogue) => Ok(catalogue.check()?),
        Answer::Refused { reason, .. } | Answer::Beyond { reason } => {
            check_text("reason", reason, MAX_REASON_BYTES)
        }
        Answer::Done => Ok(()),
    }
}

fn check_positions(count: usize, most: usize) -> Result<(), CodecError> {
    if count <= most {
        Ok(())
    } else {
        Err(InvalidChange::TooMuch { what: "partitions", count, most }.into())
    }
}

impl From<&FeedEnd> for WireEnd {
    fn from(end: &FeedEnd) -> Self {
        match end {
            FeedEnd::Complete { head } => Self::Complete { head: head.map(WirePosition::from) },
            FeedEnd::Refused { oldest } => Self::Refused { oldest: oldest.map(WirePosition::from) },
        }
    }
}

impl TryFrom<WireEnd> for FeedEnd {
    type Error = CodecError;

    fn try_from(wire: WireEnd) -> Result<Self, CodecError> {
        let position = |at: Option<WirePosition>| at.map(Position::try_from).transpose();
        Ok(match wire {
            WireEnd::Complete { head } => Self::Complete { head: position(head)? },
            WireEnd::Refused { oldest } => Self::Refused { oldest: position(oldest)? },
        })
    }
}

impl<'a> From<&'a SourceStatus> for WireSource<'a> {
    fn from(source: &'a SourceStatus) -> Self {
        Self { name: &source.name, warm: source.warm, lag: source.lag }
    }
}

impl From<WireSource<'_>> for SourceStatus {
    fn from(wire: WireSource<'_>) -> Self {
        Self { name: wire.name.to_owned(), warm: wire.warm, lag: wire.lag }
    }
}

/// Streams with something each.
fn each<W, T>(
    wire: Vec<(&str, W)>,
    read: impl Fn(W) -> Result<T, CodecError>,
) -> Result<Vec<(StreamName, T)>, CodecError> {
    wire.into_iter().map(|(stream, of)| Ok((stream.parse()?, read(of)?))).collect()
}

fn check_end(count: usize) -> Result<(), CodecError> {
    if count <= MAX_FEED_STREAMS { Ok(()) } else { Err(CodecError::StreamCount(count)) }
}

fn check_status(status: &Status) -> Result<(), CodecError> {
    check_text("region", &status.region, MAX_REGION_BYTES)?;
    if status.sources.len() > MAX_STATUS_SOURCES {
        return Err(CodecError::SourceCount(status.sources.len()));
    }
    status.sources.iter().try_for_each(|of| check_text("name of a source", &of.name, MAX_SOURCE_NAME_BYTES))
}
