//! The bytes of a [`State`]: on disk, and from one ingest peer to another.
//!
//! `tickmesh` in ASCII, a version byte of its own, eight bytes (little-endian) that say how long the body is, the body,
//! and the BLAKE3 hash of all of that. The body is one bincode value after the other, so that a false count claims no
//! memory: the number of sources; for each its name, its numbers of partitions, streams and operators,
//! the partitions, the streams, the operators.

use std::{fmt::Display, sync::Arc};

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use serde::de::IgnoredAny;

use super::bincode_config;
use crate::{
    Epoch, Position, Sequence, StreamName,
    book::Book,
    checkpoint::{
        MAX_STATE_BYTES, MAX_STATE_LEFT_EPOCHS, MAX_STATE_NAME_BYTES, MAX_STATE_SOURCES, OperatorState,
        PartitionState, Retained, RetainedData, SourceState, State, StreamState,
    },
    event::MAX_EVENT_DATA_BYTES,
    position::MAX_SEQUENCE,
};

/// The version of states that this code writes, and the only one it reads.
pub const STATE_VERSION: u8 = 3;

const MAGIC: &[u8; 8] = b"tickmesh";
const HASH_BYTES: usize = blake3::OUT_LEN;
/// Magic, version, length of the body.
const HEAD_BYTES: usize = MAGIC.len() + 1 + 8;

/// Why bytes are not a state that can be gone on from, or a state cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("no checkpoint of tickmesh at all")]
    Magic,
    #[error("a checkpoint of version {0}; only version {STATE_VERSION} is known here")]
    UnknownVersion(u8),
    #[error("cut short: {bytes} bytes of {needed}")]
    Short { bytes: usize, needed: usize },
    #[error("{0} bytes are left over after the end")]
    Trailing(usize),
    #[error("its hash is wrong: it was changed or damaged")]
    Hash,
    #[error("more than {MAX_STATE_BYTES} bytes")]
    TooLarge,
    #[error("not the format of version {STATE_VERSION}: {0}")]
    Format(String),
}

#[derive(Encode, BorrowDecode)]
struct WireSource<'a> {
    name: &'a str,
    partitions: u64,
    streams: u64,
    operators: u64,
}

#[derive(Encode, BorrowDecode)]
struct WireOperator<'a> {
    epoch: u64,
    route: u64,
    state: &'a [u8],
}

#[derive(Encode, BorrowDecode)]
struct WirePartition<'a> {
    epoch: u64,
    topic: &'a str,
    partition: u32,
    next: u64,
    read_from: u64,
    term: Option<u32>,
}

#[derive(Encode, BorrowDecode)]
struct WireStream<'a> {
    name: &'a str,
    epoch: u64,
    sequence: u64,
    left: Vec<u64>,
    retained: Option<WireRetained<'a>>,
}

/// What is retained, as the data of an event that says all of it.
#[derive(Encode, BorrowDecode)]
struct WireRetained<'a> {
    engine_time_us: u64,
    book: bool,
    data: &'a str,
}

/// Writes a state.
///
/// # Errors
/// If it is larger than [`decode_state`] would take.
pub fn encode_state(state: &State) -> Result<Vec<u8>, StateError> {
    check(state.sources.len() <= MAX_STATE_SOURCES, "too many sources")?;
    let mut bytes = [&MAGIC[..], &[STATE_VERSION], &[0; 8]].concat();
    put(&mut bytes, &(state.sources.len() as u64))?;
    for source in &state.sources {
        let (partitions, streams) = (source.partitions.len() as u64, source.streams.len() as u64);
        let operators = source.operators.len() as u64;
        check_name(&source.name)?;
        put(&mut bytes, &WireSource { name: &source.name, partitions, streams, operators })?;
        for partition in &source.partitions {
            put_partition(&mut bytes, partition)?;
        }
        for stream in &source.streams {
            put_stream(&mut bytes, stream)?;
        }
        for OperatorState { epoch, route, state } in &source.operators {
            put(&mut bytes, &WireOperator { epoch: epoch.as_u64(), route: *route, state })?;
        }
    }
    let body = (bytes.len() - HEAD_BYTES) as u64;
    bytes[MAGIC.len() + 1..HEAD_BYTES].copy_from_slice(&body.to_le_bytes());
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    if bytes.len() > MAX_STATE_BYTES { Err(StateError::TooLarge) } else { Ok(bytes) }
}

fn put_partition(bytes: &mut Vec<u8>, state: &PartitionState) -> Result<(), StateError> {
    check_name(&state.topic)?;
    check(state.next <= MAX_SEQUENCE + 1, "a position beyond 2^53")?;
    let wire = WirePartition {
        epoch: state.epoch.as_u64(),
        topic: &state.topic,
        partition: state.partition,
        next: state.next,
        read_from: state.read_from.get(),
        term: state.term,
    };
    put(bytes, &wire)
}

fn put_stream(bytes: &mut Vec<u8>, state: &StreamState) -> Result<(), StateError> {
    check(state.left.len() <= MAX_STATE_LEFT_EPOCHS, "too many epochs of a stream")?;
    let left = state.left.iter().map(|epoch| epoch.as_u64()).collect();
    let (epoch, sequence) = (state.last.epoch.as_u64(), state.last.sequence.get());
    let data = state.retained.as_ref().and_then(Retained::data);
    let retained = match (&state.retained, &data) {
        (Some(retained), Some(data)) => {
            check(data.len() <= MAX_EVENT_DATA_BYTES, "too much is retained of a stream")?;
            Some(WireRetained {
                engine_time_us: retained.engine_time_us,
                book: matches!(retained.what, RetainedData::Book(_)),
                data: std::str::from_utf8(data).map_err(format)?,
            })
        }
        _ => None,
    };
    put(bytes, &WireStream { name: state.name.as_str(), epoch, sequence, left, retained })
}

fn put(bytes: &mut Vec<u8>, value: &impl Encode) -> Result<(), StateError> {
    if bytes.len() > MAX_STATE_BYTES {
        return Err(StateError::TooLarge);
    }
    bincode::encode_into_std_write(value, bytes, bincode_config()).map_err(format)?;
    Ok(())
}

/// Reads a state.
///
/// # Errors
/// [`StateError`] says which of the many things is wrong with the bytes.
pub fn decode_state(bytes: &[u8]) -> Result<State, StateError> {
    if bytes.len() > MAX_STATE_BYTES {
        return Err(StateError::TooLarge);
    }
    let mut body = Body { left: checked_body(bytes)? };
    let sources: u64 = body.take()?;
    check(sources <= MAX_STATE_SOURCES as u64, "too many sources")?;
    let sources = (0..sources).map(|_| source_of(&mut body)).collect::<Result<_, _>>()?;
    if !body.left.is_empty() {
        return Err(StateError::Format(format!("{} bytes after the last source", body.left.len())));
    }
    Ok(State { sources })
}

/// The body, if everything around it is right.
fn checked_body(bytes: &[u8]) -> Result<&[u8], StateError> {
    let short = |needed| StateError::Short { bytes: bytes.len(), needed };
    let least = HEAD_BYTES + HASH_BYTES;
    let (magic, rest) = bytes.split_at_checked(MAGIC.len()).ok_or(StateError::Magic)?;
    if magic != MAGIC {
        return Err(StateError::Magic);
    }
    let (&version, rest) = rest.split_first().ok_or(short(least))?;
    if version != STATE_VERSION {
        return Err(StateError::UnknownVersion(version));
    }
    let (length, _) = rest.split_first_chunk().ok_or(short(least))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let needed = length.saturating_add(least);
    if bytes.len() < needed {
        return Err(short(needed));
    }
    if bytes.len() > needed {
        return Err(StateError::Trailing(bytes.len() - needed));
    }
    let (hashed, hash) = bytes.split_at(HEAD_BYTES + length);
    if blake3::hash(hashed).as_bytes() != hash {
        return Err(StateError::Hash);
    }
    Ok(&hashed[HEAD_BYTES..])
}

/// What has not been read yet.
struct Body<'a> {
    left: &'a [u8],
}

impl<'a> Body<'a> {
    fn take<T: BorrowDecode<'a, ()>>(&mut self) -> Result<T, StateError> {
        let (value, read) = bincode::borrow_decode_from_slice(self.left, bincode_config()).map_err(format)?;
        self.left = &self.left[read..];
        Ok(value)
    }

    /// As many values as were told. The vector grows with what is really there.
    fn take_all<T>(
        &mut self,
        count: u64,
        mut one: impl FnMut(&mut Self) -> Result<T, StateError>,
    ) -> Result<Vec<T>, StateError> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(one(self)?);
        }
        Ok(all)
    }
}

fn source_of(body: &mut Body<'_>) -> Result<SourceState, StateError> {
    let wire: WireSource<'_> = body.take()?;
    check_name(wire.name)?;
    let partitions = body.take_all(wire.partitions, partition_of)?;
    let streams = body.take_all(wire.streams, stream_of)?;
    let operators = body.take_all(wire.operators, operator_of)?;
    Ok(SourceState { name: wire.name.to_owned(), partitions, streams, operators })
}

fn operator_of(body: &mut Body<'_>) -> Result<OperatorState, StateError> {
    let WireOperator { epoch, route, state } = body.take()?;
    Ok(OperatorState { epoch: Epoch::from_u64(epoch), route, state: Bytes::copy_from_slice(state) })
}

fn partition_of(body: &mut Body<'_>) -> Result<PartitionState, StateError> {
    let wire: WirePartition<'_> = body.take()?;
    check_name(wire.topic)?;
    check(wire.next <= MAX_SEQUENCE + 1, "a position beyond 2^53")?;
    Ok(PartitionState {
        epoch: Epoch::from_u64(wire.epoch),
        topic: wire.topic.into(),
        partition: wire.partition,
        next: wire.next,
        read_from: Sequence::new(wire.read_from).map_err(format)?,
        term: wire.term,
    })
}

fn stream_of(body: &mut Body<'_>) -> Result<StreamState, StateError> {
    let wire: WireStream<'_> = body.take()?;
    check(wire.left.len() <= MAX_STATE_LEFT_EPOCHS, "too many epochs of a stream")?;
    Ok(StreamState {
        name: wire.name.parse::<StreamName>().map_err(format)?,
        last: Position {
            epoch: Epoch::from_u64(wire.epoch),
            sequence: Sequence::new(wire.sequence).map_err(format)?,
        },
        left: wire.left.into_iter().map(Epoch::from_u64).collect(),
        retained: wire.retained.map(retained_of).transpose()?,
    })
}

/// The data goes to clients: it is looked at like that of a record.
fn retained_of(wire: WireRetained<'_>) -> Result<Retained, StateError> {
    let WireRetained { engine_time_us, book: is_book, data } = wire;
    check(data.len() <= MAX_EVENT_DATA_BYTES, "too much is retained of a stream")?;
    let what = if is_book {
        let mut book = Book::default();
        book.apply(data.as_bytes()).map_err(format)?;
        check(book.is_whole(), "a book that is not whole")?;
        RetainedData::Book(Arc::new(book))
    } else {
        serde_json::from_str::<IgnoredAny>(data).map_err(format)?;
        RetainedData::Last(Bytes::copy_from_slice(data.as_bytes()))
    };
    Ok(Retained { engine_time_us, what })
}

fn check_name(name: &str) -> Result<(), StateError> {
    check((1..=MAX_STATE_NAME_BYTES).contains(&name.len()), "an empty or overlong name")
}

fn check(good: bool, fault: &str) -> Result<(), StateError> {
    if good { Ok(()) } else { Err(StateError::Format(fault.to_owned())) }
}

fn format(error: impl Display) -> StateError {
    StateError::Format(error.to_string())
}
