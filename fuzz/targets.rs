//! One function for each decoder of outside bytes. The fuzzer (`fuzz_targets/`) and the replay of the committed corpora
//! (`protocol/tests/corpus.rs`) call the same ones. A panic is a finding.

#![allow(clippy::expect_used, clippy::panic, reason = "test code: a panic is how a finding is reported")]

use ed25519_dalek::Signer;
use tickmesh_protocol::{
    Epoch, Position, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    book::Book,
    client::{ClientMessage, ServerMessage},
    codec::{
        STATE_VERSION, decode_feed_frame, decode_feed_request, decode_head_reply, decode_head_request,
        decode_private_change, decode_state, encode_feed_frame, encode_feed_request, encode_head_reply,
        encode_head_request, encode_private_change, encode_state,
    },
    event::MAX_EVENT_DATA_BYTES,
    signature::{KeySet, MessageKey, Signature},
    stream::{escape_key, is_part},
};

/// A function that is given any bytes.
pub type Target = fn(&[u8]);

/// Each target, under the name of its corpus.
pub const ALL: &[(&str, Target)] = &[
    ("batch", batch),
    ("head_request", head_request),
    ("head_reply", head_reply),
    ("feed_request", feed_request),
    ("feed_frame", feed_frame),
    ("private_change", private_change),
    ("client_message", client_message),
    ("server_message", server_message),
    ("signature", signature),
    ("names", names),
    ("checkpoint", checkpoint),
    ("book", book),
];

/// A batch envelope: as it is, and as a body that a publisher has signed. Without the second nothing behind the check
/// of the signature would ever be reached.
pub fn batch(bytes: &[u8]) {
    if let Ok(opened) = SignedBatch::open(bytes.to_vec().into()) {
        assert_eq!(opened.envelope(), bytes);
    }
    const SECRET: [u8; 32] = [7; 32];
    let key = SigningKey::from_bytes(&SECRET);
    let mut body = bytes.to_vec();
    if let Some(publisher) = body.get_mut(1..33) {
        publisher.copy_from_slice(&key.publisher().0);
    }
    let signer = ed25519_dalek::SigningKey::from_bytes(&SECRET);
    let signature = signer.sign(&[b"tickmesh batch\0", &body[..]].concat()).to_bytes();
    if let Ok(opened) = SignedBatch::open([&body[..], &signature].concat().into()) {
        let again = SignedBatch::sign(opened.batch().clone(), &key).expect("what was read can be written");
        assert_eq!(again.batch(), opened.batch());
        let reopened = SignedBatch::open(again.envelope().clone());
        assert_eq!(reopened.as_ref().map(SignedBatch::batch), Ok(opened.batch()));
    }
}

pub fn head_request(bytes: &[u8]) {
    if let Ok(request) = decode_head_request(bytes) {
        let again = encode_head_request(&request).expect("what was read can be written");
        assert_eq!(decode_head_request(&again), Ok(request));
    }
}

pub fn head_reply(bytes: &[u8]) {
    if let Ok(reply) = decode_head_reply(bytes) {
        let again = encode_head_reply(&reply).expect("what was read can be written");
        assert_eq!(decode_head_reply(&again), Ok(reply));
    }
}

/// The state of an ingest peer: as it is, and as a body with the right length and hash around it.
pub fn checkpoint(bytes: &[u8]) {
    let _ = decode_state(bytes);
    let length = (bytes.len() as u64).to_le_bytes();
    let mut framed = [&b"tickmesh"[..], &[STATE_VERSION], &length, bytes].concat();
    let hash = blake3::hash(&framed);
    framed.extend_from_slice(hash.as_bytes());
    if let Ok(state) = decode_state(&framed) {
        let again = encode_state(&state).expect("what was read can be written");
        assert_eq!(decode_state(&again), Ok(state));
    }
}

pub fn feed_request(bytes: &[u8]) {
    if let Ok(request) = decode_feed_request(bytes) {
        let again = encode_feed_request(&request).expect("what was read can be written");
        assert_eq!(decode_feed_request(&again), Ok(request));
    }
}

/// Frames as they are. What is behind the check of a page's signature is met by [`batch`]: it is the same format.
pub fn feed_frame(bytes: &[u8]) {
    let bytes = bytes.to_vec().into();
    if let Ok(frame) = decode_feed_frame(&bytes) {
        let again = encode_feed_frame(&frame).expect("what was read can be written");
        assert_eq!(decode_feed_frame(&again.into()), Ok(frame));
    }
}

pub fn private_change(bytes: &[u8]) {
    if let Ok(change) = decode_private_change(bytes) {
        let again = encode_private_change(&change).expect("what was read can be written");
        assert_eq!(decode_private_change(&again), Ok(change));
    }
}

pub fn client_message(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match ClientMessage::parse(text) {
        Ok(message) => {
            let again = serde_json::to_string(&message).expect("what was read can be written");
            assert_eq!(ClientMessage::parse(&again), Ok(message));
        }
        Err(error) => assert!(error.message.len() < 512, "a long answer: {}", error.message),
    }
}

pub fn server_message(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(ServerMessage::Control(message)) = ServerMessage::parse(text) {
        // Not compared: an id that no double holds comes back as the nearest one.
        let again = message.to_json();
        assert!(matches!(ServerMessage::parse(&again), Ok(ServerMessage::Control(_))), "{again}");
    }
}

/// Sets of keys, secret keys, and what is said to be a signature.
pub fn signature(bytes: &[u8]) {
    if let Ok(keys) = KeySet::parse(bytes) {
        let again = KeySet::parse(keys.to_json().as_bytes()).expect("what was read can be written");
        assert!(keys.ids().eq(again.ids()));
    }
    if let Ok(key) = MessageKey::from_jwk(bytes) {
        let again = MessageKey::from_jwk(key.to_jwk().as_bytes()).expect("what was read can be written");
        assert_eq!((again.id(), again.public()), (key.id(), key.public()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(signature) = text.parse::<Signature>() {
        assert_eq!(signature.as_str(), text);
    }
    let stream = "orders.alice".parse().expect("a stream");
    let at = Position { epoch: Epoch::from_u64(255), sequence: Sequence::ZERO };
    let verdict = MessageKey::from_bytes(&[7; 32]).public().verify(text, &stream, at, b"1");
    assert!(verdict.is_err(), "nobody has signed this");
}

/// Stream names, topics and escaped keys.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(stream) = text.parse::<StreamName>() {
        assert_eq!(stream.as_str(), text);
        let rebuilt = StreamName::new(stream.channel(), stream.key(), stream.variant());
        assert_eq!(rebuilt.as_ref(), Ok(&stream));
        let topic = Topic::spanning(&stream);
        assert!(topic.carries(&stream));
        assert_eq!(topic.to_string().parse(), Ok(topic));
    }
    if let Ok(topic) = text.parse::<Topic>() {
        assert_eq!(topic.to_string(), text);
    }
    assert!(is_part(&escape_key(text)));
}

/// Events of a depth stream, one a line.
pub fn book(bytes: &[u8]) {
    let mut book = Book::default();
    for event in bytes.split(|byte| *byte == b'\n') {
        let applied = book.apply(event);
        assert!(applied.is_ok() || !book.is_whole());
        let Some(data) = book.to_data() else { continue };
        assert!(data.len() <= book.data_bytes() && book.data_bytes() <= MAX_EVENT_DATA_BYTES);
        let mut again = Book::default();
        again.apply(data.as_bytes()).expect("what was given out can be taken in");
        assert_eq!(again, book);
    }
}
