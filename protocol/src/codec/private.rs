//! The bytes of private feeds: what an edge says, and events without a batch around them.

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;

use super::{CodecError, WireEvent, check_size, check_text, decode, encode, event_of, wire_event};
use crate::{
    Event, StreamName,
    batch::MAX_BATCH_EVENTS,
    client::{Credential, MAX_CREDENTIAL_BYTES, Secret},
    feed::{Denial, MAX_CHANGE_STREAMS, PrivateChange},
    revocation::{MAX_REVOKED_ID_BYTES, Revocation, RevokedKind},
};

/// Largest change: [`MAX_CHANGE_STREAMS`] of the longest names and the longest credential.
pub const MAX_PRIVATE_CHANGE_BYTES: usize = 48 * 1024;

#[derive(Encode, BorrowDecode)]
enum WireChange<'a> {
    Add { credential: WireCredential<'a>, streams: Vec<&'a str>, push: bool },
    Push { streams: Vec<&'a str>, push: bool },
    Remove { streams: Vec<&'a str> },
}

#[derive(Encode, BorrowDecode)]
enum WireCredential<'a> {
    Token(&'a str),
    ApiKey(&'a str),
}

#[derive(Clone, Copy, Encode, BorrowDecode)]
pub(super) enum WireDenial {
    Forbidden,
    Expired,
    Unavailable,
}

#[derive(Clone, Copy, Encode, BorrowDecode)]
enum WireKind {
    User,
    Token,
    ApiKey,
}

#[derive(Encode, BorrowDecode)]
pub(super) struct WireRevocation<'a> {
    kind: WireKind,
    id: &'a str,
    at: u64,
}

/// Encodes a change.
///
/// # Errors
/// If it breaks one of its limits.
pub fn encode_private_change(change: &PrivateChange) -> Result<Vec<u8>, CodecError> {
    check_change(change)?;
    encode(&match change {
        PrivateChange::Add { credential, streams, push } => WireChange::Add {
            credential: match credential {
                Credential::Token(secret) => WireCredential::Token(secret.reveal()),
                Credential::ApiKey(secret) => WireCredential::ApiKey(secret.reveal()),
            },
            streams: texts(streams),
            push: *push,
        },
        PrivateChange::Push { streams, push } => WireChange::Push { streams: texts(streams), push: *push },
        PrivateChange::Remove { streams } => WireChange::Remove { streams: texts(streams) },
    })
}

/// Decodes a change.
///
/// # Errors
/// If the bytes are none, or break one of its limits.
pub fn decode_private_change(bytes: &[u8]) -> Result<PrivateChange, CodecError> {
    check_size(bytes.len(), MAX_PRIVATE_CHANGE_BYTES)?;
    let change = match decode(bytes)? {
        WireChange::Add { credential, streams, push } => PrivateChange::Add {
            credential: match credential {
                WireCredential::Token(text) => Credential::Token(Secret::new(text)),
                WireCredential::ApiKey(text) => Credential::ApiKey(Secret::new(text)),
            },
            streams: names(streams)?,
            push,
        },
        WireChange::Push { streams, push } => PrivateChange::Push { streams: names(streams)?, push },
        WireChange::Remove { streams } => PrivateChange::Remove { streams: names(streams)? },
    };
    check_change(&change)?;
    Ok(change)
}

fn check_change(change: &PrivateChange) -> Result<(), CodecError> {
    let streams = match change {
        PrivateChange::Add { credential, streams, .. } => {
            check_text("credential", credential.reveal(), MAX_CREDENTIAL_BYTES)?;
            streams
        }
        PrivateChange::Push { streams, .. } | PrivateChange::Remove { streams } => streams,
    };
    if streams.is_empty() { Err(CodecError::StreamCount(0)) } else { check_change_count(streams.len()) }
}

pub(super) fn check_change_count(count: usize) -> Result<(), CodecError> {
    if count <= MAX_CHANGE_STREAMS { Ok(()) } else { Err(CodecError::StreamCount(count)) }
}

pub(super) fn texts(streams: &[StreamName]) -> Vec<&str> {
    streams.iter().map(StreamName::as_str).collect()
}

pub(super) fn names(streams: Vec<&str>) -> Result<Vec<StreamName>, CodecError> {
    streams.into_iter().map(|name| Ok(name.parse()?)).collect()
}

pub(super) fn wire_events(events: &[Event]) -> Result<Vec<WireEvent<'_>>, CodecError> {
    check_event_count(events.len())?;
    events.iter().map(wire_event).collect()
}

/// Events whose data share the memory of `frame`.
pub(super) fn events_of(frame: &Bytes, wire: &[WireEvent<'_>]) -> Result<Vec<Event>, CodecError> {
    check_event_count(wire.len())?;
    wire.iter().map(|event| event_of(frame, event)).collect()
}

fn check_event_count(count: usize) -> Result<(), CodecError> {
    if (1..=MAX_BATCH_EVENTS).contains(&count) { Ok(()) } else { Err(CodecError::EventCount(count)) }
}

pub(super) fn wire_revocations(revocations: &[Revocation]) -> Result<Vec<WireRevocation<'_>>, CodecError> {
    check_change_count(revocations.len())?;
    let wire = revocations.iter().map(|revocation| {
        check_text("revoked id", &revocation.id, MAX_REVOKED_ID_BYTES)?;
        let kind = match revocation.kind {
            RevokedKind::User => WireKind::User,
            RevokedKind::Token => WireKind::Token,
            RevokedKind::ApiKey => WireKind::ApiKey,
        };
        Ok(WireRevocation { kind, id: &revocation.id, at: revocation.at })
    });
    wire.collect()
}

pub(super) fn revocations_of(wire: Vec<WireRevocation<'_>>) -> Result<Vec<Revocation>, CodecError> {
    check_change_count(wire.len())?;
    let revocations = wire.into_iter().map(|WireRevocation { kind, id, at }| {
        check_text("revoked id", id, MAX_REVOKED_ID_BYTES)?;
        let kind = match kind {
            WireKind::User => RevokedKind::User,
            WireKind::Token => RevokedKind::Token,
            WireKind::ApiKey => RevokedKind::ApiKey,
        };
        Ok(Revocation { kind, id: id.to_owned(), at })
    });
    revocations.collect()
}

impl From<Denial> for WireDenial {
    fn from(why: Denial) -> Self {
        match why {
            Denial::Forbidden => Self::Forbidden,
            Denial::Expired => Self::Expired,
            Denial::Unavailable => Self::Unavailable,
        }
    }
}

impl From<WireDenial> for Denial {
    fn from(wire: WireDenial) -> Self {
        match wire {
            WireDenial::Forbidden => Self::Forbidden,
            WireDenial::Expired => Self::Expired,
            WireDenial::Unavailable => Self::Unavailable,
        }
    }
}
