//! The bytes on the mesh. The only module that knows bincode.
//!
//! bincode is no longer developed (RUSTSEC-2025-0141); version 2.0.1, its standard configuration, is pinned by golden
//! bytes in `tests/golden.rs`, so that another implementation of the same format can take its place. Everything starts with a version byte, and
//! an unknown version is refused by name.
//!
//! A batch on the wire: version byte, bincode of the batch, 64 bytes of Ed25519 signature. A question and an answer
//! about heads, a request and a frame of a feed: version byte, bincode.

mod checkpoint;
mod feed;
mod private;

use bincode::{BorrowDecode, Encode, config};
use bytes::Bytes;

use crate::{
    Batch, Epoch, Event, Position, Previous, PublisherKey, Sequence, StreamName, Topic,
    batch::{MAX_BATCH_EVENTS, MAX_BATCH_HEADS, SIGNATURE_BYTES},
    catalogue::InvalidChange,
    event::MAX_EVENT_DATA_BYTES,
    feed::MAX_STATUS_SOURCES,
    head::{Head, HeadReply, HeadRequest, MAX_HEAD_LEFT, MAX_HEAD_READ, MAX_HEAD_STREAMS},
    policy::{ChannelPolicy, OnSlow, Retain},
    position::SequenceTooLarge,
    signature::{InvalidSignature, Signature},
    stream::InvalidStreamName,
    topic::InvalidTopic,
};

pub use self::checkpoint::{STATE_VERSION, StateError, decode_state, encode_state};
pub use self::feed::{
    MAX_FEED_FRAME_BYTES, MAX_FEED_REQUEST_BYTES, decode_feed_frame, decode_feed_request, encode_feed_frame,
    encode_feed_request,
};
pub use self::private::{MAX_PRIVATE_CHANGE_BYTES, decode_private_change, encode_private_change};

/// The version this code writes, and the only one it reads.
pub const VERSION: u8 = 3;

/// Largest envelope, in bytes: one of the largest events and nearly as much beside it, or two thousand of the usual
/// 200 to 500 bytes. The mesh's
/// frame limit is 4 MiB and is compared with several frames at once, so this stays well below it.
pub const MAX_ENVELOPE_BYTES: usize = 1024 * 1024;

/// Largest question or answer about heads: [`MAX_HEAD_STREAMS`] of the longest names.
pub const MAX_HEAD_BYTES: usize = 160 * 1024;

/// What decoding may claim in memory before it is refused; events are larger in memory than on the wire.
const DECODE_LIMIT: usize = 4 * 1024 * 1024;

fn bincode_config() -> config::Configuration<config::LittleEndian, config::Varint, config::Limit<DECODE_LIMIT>>
{
    config::standard().with_limit::<DECODE_LIMIT>()
}

/// Why bytes cannot be read, or a message cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("{bytes} bytes are more than the {limit} allowed")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the message is cut short")]
    Short,
    #[error("version {0} of the mesh protocol is not known here, only version {VERSION}")]
    UnknownVersion(u8),
    #[error("not the format of version {VERSION}: {0}")]
    Format(String),
    #[error("{0} bytes are left over after the message")]
    Trailing(usize),
    #[error("a batch holds 1 to {MAX_BATCH_EVENTS} events, not {0}")]
    EventCount(usize),
    #[error("a batch holds at most {MAX_BATCH_HEADS} heads, not {0}")]
    HeadCount(usize),
    #[error("data of {0} bytes; one event has at most {MAX_EVENT_DATA_BYTES}")]
    DataTooLarge(usize),
    #[error("stream {0} is not of the batch's topic")]
    ForeignStream(String),
    #[error("{0} streams asked about; at most {MAX_HEAD_STREAMS} at once")]
    StreamCount(usize),
    #[error("an answer about heads names at most {MAX_HEAD_READ} epochs, not {0}")]
    ReadCount(usize),
    #[error("an answer about heads names at most {MAX_HEAD_LEFT} epochs that were left, not {0}")]
    LeftCount(usize),
    #[error("stream {0} is named twice")]
    RepeatedStream(String),
    #[error("{0} sources in one status; at most {MAX_STATUS_SOURCES}")]
    SourceCount(usize),
    #[error("a {what} of {bytes} bytes; at most {limit}")]
    TextTooLong { what: &'static str, bytes: usize, limit: usize },
    #[error(transparent)]
    Topic(#[from] InvalidTopic),
    #[error(transparent)]
    Stream(#[from] InvalidStreamName),
    #[error(transparent)]
    Sequence(#[from] SequenceTooLarge),
    #[error("an event's signature: {0}")]
    Signature(#[from] InvalidSignature),
    #[error("the catalogue: {0}")]
    Catalogue(#[from] InvalidChange),
}

#[derive(Encode, BorrowDecode)]
struct WireBatch<'a> {
    publisher: [u8; 32],
    boot: u64,
    counter: u64,
    topic: &'a str,
    events: Vec<WireEvent<'a>>,
    heads: Vec<WireStreamHead<'a>>,
}

#[derive(Encode, BorrowDecode)]
struct WireStreamHead<'a> {
    stream: &'a str,
    epoch: u64,
    sequence: u64,
}

#[derive(Encode, BorrowDecode)]
struct WireEvent<'a> {
    stream: &'a str,
    epoch: u64,
    sequence: u64,
    previous: WirePrevious,
    engine_time_us: u64,
    data: &'a str,
    signature: Option<&'a str>,
}

#[derive(Encode, BorrowDecode)]
enum WirePrevious {
    At(u64),
    Unknown { read_from: u64 },
    Reset { epoch: u64, sequence: u64 },
}

#[derive(Encode, BorrowDecode)]
struct WireHeadRequest<'a> {
    topic: &'a str,
    streams: Vec<&'a str>,
}

#[derive(Encode, BorrowDecode)]
struct WireHeadReply {
    heads: Vec<WireHead>,
    read: Vec<(u64, u64)>,
    left: Vec<(u32, u64)>,
    retain: WireRetain,
    on_slow: WireOnSlow,
}

#[derive(Encode, BorrowDecode)]
enum WireRetain {
    None,
    Last,
    Book,
}

#[derive(Encode, BorrowDecode)]
enum WireOnSlow {
    Disconnect,
    Conflate,
    Resync,
}

#[derive(Encode, BorrowDecode)]
enum WireHead {
    At { epoch: u64, sequence: u64 },
    Empty,
    UnknownChannel,
    Private,
}

/// Encodes a batch; `sign` makes the signature of what precedes it.
pub(crate) fn encode_batch(
    batch: &Batch,
    sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
) -> Result<Vec<u8>, CodecError> {
    check_counts(batch.events.len(), batch.heads.len())?;
    let topic = batch.topic.to_string();
    let events = batch
        .events
        .iter()
        .map(|event| carried_by(&batch.topic, event).and_then(wire_event))
        .collect::<Result<_, _>>()?;
    if let Some((foreign, _)) = batch.heads.iter().find(|(stream, _)| !batch.topic.carries(stream)) {
        return Err(CodecError::ForeignStream(foreign.to_string()));
    }
    let heads = batch.heads.iter().map(|(stream, at)| WireStreamHead {
        stream: stream.as_str(),
        epoch: at.epoch.as_u64(),
        sequence: at.sequence.get(),
    });
    let wire = WireBatch {
        publisher: batch.publisher.0,
        boot: batch.boot,
        counter: batch.counter,
        topic: &topic,
        events,
        heads: heads.collect(),
    };
    let mut envelope = encode(&wire)?;
    let signature = sign(&envelope);
    envelope.extend_from_slice(&signature);
    check_size(envelope.len(), MAX_ENVELOPE_BYTES)?;
    Ok(envelope)
}

fn carried_by<'a>(topic: &Topic, event: &'a Event) -> Result<&'a Event, CodecError> {
    if topic.carries(&event.stream) {
        Ok(event)
    } else {
        Err(CodecError::ForeignStream(event.stream.to_string()))
    }
}

fn wire_event(event: &Event) -> Result<WireEvent<'_>, CodecError> {
    if event.data.len() > MAX_EVENT_DATA_BYTES {
        return Err(CodecError::DataTooLarge(event.data.len()));
    }
    Ok(WireEvent {
        stream: event.stream.as_str(),
        epoch: event.epoch.as_u64(),
        sequence: event.sequence.get(),
        previous: match event.previous {
            Previous::At(previous) => WirePrevious::At(previous.get()),
            Previous::Unknown { read_from } => WirePrevious::Unknown { read_from: read_from.get() },
            Previous::Reset { after } => {
                WirePrevious::Reset { epoch: after.epoch.as_u64(), sequence: after.sequence.get() }
            }
        },
        engine_time_us: event.engine_time_us,
        data: std::str::from_utf8(&event.data).map_err(|error| CodecError::Format(error.to_string()))?,
        signature: event.signature.as_ref().map(Signature::as_str),
    })
}

/// Decodes an envelope without judging its signature. Returns how many bytes the signature covers. The events' data
/// share the envelope's memory.
pub(crate) fn decode_batch(envelope: &Bytes) -> Result<(Batch, usize), CodecError> {
    check_size(envelope.len(), MAX_ENVELOPE_BYTES)?;
    let body_bytes = envelope.len().checked_sub(SIGNATURE_BYTES).ok_or(CodecError::Short)?;
    let wire: WireBatch<'_> = decode(&envelope[..body_bytes])?;
    check_counts(wire.events.len(), wire.heads.len())?;
    let topic: Topic = wire.topic.parse()?;
    let events = wire.events.iter().map(|event| event_of(envelope, event)).collect::<Result<Vec<_>, _>>()?;
    events.iter().try_for_each(|event| carried_by(&topic, event).map(|_| ()))?;
    let heads = wire.heads.iter().map(|head| stream_head_of(&topic, head)).collect::<Result<_, _>>()?;
    let batch = Batch {
        publisher: PublisherKey(wire.publisher),
        boot: wire.boot,
        counter: wire.counter,
        topic,
        events,
        heads,
    };
    Ok((batch, body_bytes))
}

fn stream_head_of(topic: &Topic, wire: &WireStreamHead<'_>) -> Result<(StreamName, Position), CodecError> {
    let stream: StreamName = wire.stream.parse()?;
    if !topic.carries(&stream) {
        return Err(CodecError::ForeignStream(stream.to_string()));
    }
    Ok((stream, position_of(wire.epoch, wire.sequence)?))
}

fn position_of(epoch: u64, sequence: u64) -> Result<Position, CodecError> {
    Ok(Position { epoch: Epoch::from_u64(epoch), sequence: Sequence::new(sequence)? })
}

/// The event's data share the memory of `envelope`.
fn event_of(envelope: &Bytes, wire: &WireEvent<'_>) -> Result<Event, CodecError> {
    let event = Event {
        stream: wire.stream.parse()?,
        epoch: Epoch::from_u64(wire.epoch),
        sequence: Sequence::new(wire.sequence)?,
        previous: match wire.previous {
            WirePrevious::At(previous) => Previous::At(Sequence::new(previous)?),
            WirePrevious::Unknown { read_from } => Previous::Unknown { read_from: Sequence::new(read_from)? },
            WirePrevious::Reset { epoch, sequence } => {
                Previous::Reset { after: position_of(epoch, sequence)? }
            }
        },
        engine_time_us: wire.engine_time_us,
        data: envelope.slice_ref(wire.data.as_bytes()),
        signature: wire.signature.map(str::parse).transpose()?,
    };
    if event.data.len() > MAX_EVENT_DATA_BYTES {
        return Err(CodecError::DataTooLarge(event.data.len()));
    }
    Ok(event)
}

/// Encodes a question about heads.
pub fn encode_head_request(request: &HeadRequest) -> Result<Vec<u8>, CodecError> {
    check_stream_count(request.streams.len())?;
    if let Some(foreign) = request.streams.iter().find(|stream| !request.topic.carries(stream)) {
        return Err(CodecError::ForeignStream(foreign.to_string()));
    }
    let topic = request.topic.to_string();
    encode(&WireHeadRequest {
        topic: &topic,
        streams: request.streams.iter().map(|stream| stream.as_str()).collect(),
    })
}

/// Decodes a question about heads.
pub fn decode_head_request(bytes: &[u8]) -> Result<HeadRequest, CodecError> {
    check_size(bytes.len(), MAX_HEAD_BYTES)?;
    let wire: WireHeadRequest<'_> = decode(bytes)?;
    check_stream_count(wire.streams.len())?;
    let topic: Topic = wire.topic.parse()?;
    let mut streams = Vec::with_capacity(wire.streams.len());
    for name in wire.streams {
        let stream = name.parse()?;
        if !topic.carries(&stream) {
            return Err(CodecError::ForeignStream(name.to_owned()));
        }
        streams.push(stream);
    }
    Ok(HeadRequest { topic, streams })
}

/// Encodes an answer about heads.
pub fn encode_head_reply(reply: &HeadReply) -> Result<Vec<u8>, CodecError> {
    check_stream_count(reply.heads.len())?;
    check_epoch_counts(reply.read.len(), reply.left.len())?;
    let left = reply.left.iter().map(|(stream, epoch)| (*stream, epoch.as_u64())).collect();
    let read = reply.read.iter().map(|at| (at.epoch.as_u64(), at.sequence.get())).collect();
    let heads: Vec<WireHead> = reply
        .heads
        .iter()
        .map(|head| match head {
            Head::At(position) => {
                WireHead::At { epoch: position.epoch.as_u64(), sequence: position.sequence.get() }
            }
            Head::Empty => WireHead::Empty,
            Head::UnknownChannel => WireHead::UnknownChannel,
            Head::Private => WireHead::Private,
        })
        .collect();
    let retain = match reply.policy.retain {
        Retain::None => WireRetain::None,
        Retain::Last => WireRetain::Last,
        Retain::Book => WireRetain::Book,
    };
    let on_slow = match reply.policy.on_slow {
        OnSlow::Disconnect => WireOnSlow::Disconnect,
        OnSlow::Conflate => WireOnSlow::Conflate,
        OnSlow::Resync => WireOnSlow::Resync,
    };
    encode(&WireHeadReply { heads, read, left, retain, on_slow })
}

/// Decodes an answer about heads.
pub fn decode_head_reply(bytes: &[u8]) -> Result<HeadReply, CodecError> {
    check_size(bytes.len(), MAX_HEAD_BYTES)?;
    let wire: WireHeadReply = decode(bytes)?;
    check_stream_count(wire.heads.len())?;
    check_epoch_counts(wire.read.len(), wire.left.len())?;
    let left = wire.left.into_iter().map(|(stream, epoch)| (stream, Epoch::from_u64(epoch))).collect();
    let read = wire.read.into_iter().map(|(epoch, sequence)| position_of(epoch, sequence));
    let read = read.collect::<Result<_, _>>()?;
    let heads = wire
        .heads
        .into_iter()
        .map(|head| {
            Ok(match head {
                WireHead::At { epoch, sequence } => Head::At(position_of(epoch, sequence)?),
                WireHead::Empty => Head::Empty,
                WireHead::UnknownChannel => Head::UnknownChannel,
                WireHead::Private => Head::Private,
            })
        })
        .collect::<Result<_, CodecError>>()?;
    let retain = match wire.retain {
        WireRetain::None => Retain::None,
        WireRetain::Last => Retain::Last,
        WireRetain::Book => Retain::Book,
    };
    let on_slow = match wire.on_slow {
        WireOnSlow::Disconnect => OnSlow::Disconnect,
        WireOnSlow::Conflate => OnSlow::Conflate,
        WireOnSlow::Resync => OnSlow::Resync,
    };
    Ok(HeadReply { heads, read, left, policy: ChannelPolicy { retain, on_slow } })
}

fn encode(message: &impl Encode) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(message, &mut bytes, bincode_config())
        .map_err(|error| CodecError::Format(error.to_string()))?;
    Ok(bytes)
}

fn decode<'de, T: BorrowDecode<'de, ()>>(bytes: &'de [u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or(CodecError::Short)?;
    if version != VERSION {
        return Err(CodecError::UnknownVersion(version));
    }
    let (message, read) = bincode::borrow_decode_from_slice(body, bincode_config())
        .map_err(|error| CodecError::Format(error.to_string()))?;
    if read != body.len() {
        return Err(CodecError::Trailing(body.len() - read));
    }
    Ok(message)
}

fn check_size(bytes: usize, limit: usize) -> Result<(), CodecError> {
    if bytes <= limit { Ok(()) } else { Err(CodecError::TooLarge { bytes, limit }) }
}

fn check_counts(events: usize, heads: usize) -> Result<(), CodecError> {
    if heads > MAX_BATCH_HEADS {
        return Err(CodecError::HeadCount(heads));
    }
    // Heads alone are a batch, too.
    let least = usize::from(heads == 0);
    if (least..=MAX_BATCH_EVENTS).contains(&events) { Ok(()) } else { Err(CodecError::EventCount(events)) }
}

fn check_epoch_counts(read: usize, left: usize) -> Result<(), CodecError> {
    if read > MAX_HEAD_READ {
        return Err(CodecError::ReadCount(read));
    }
    if left > MAX_HEAD_LEFT { Err(CodecError::LeftCount(left)) } else { Ok(()) }
}

fn check_stream_count(count: usize) -> Result<(), CodecError> {
    if (1..=MAX_HEAD_STREAMS).contains(&count) { Ok(()) } else { Err(CodecError::StreamCount(count)) }
}

fn check_text(what: &'static str, text: &str, limit: usize) -> Result<(), CodecError> {
    if text.len() <= limit { Ok(()) } else { Err(CodecError::TextTooLong { what, bytes: text.len(), limit }) }
}
