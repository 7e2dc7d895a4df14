//! The client protocol: each documented frame as the text it is.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;
use tickmesh_protocol::{
    Epoch, Event, Position, Previous, Sequence, StreamName,
    client::{
        ClientMessage, CloseCode, ControlMessage, DataMessage, ErrorCode, LastSeen, Limits,
        MAX_CLIENT_FRAME_BYTES, MAX_STREAMS_PER_REQUEST, Mark, ProtocolError, Rejection, RequestId,
        ResumeFrom, Resumed, Secret, ServerMessage, write_data_message, write_marked_message,
    },
    position::MAX_SEQUENCE,
    signature::MessageKey,
};

fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|&name| name.to_owned()).collect()
}

fn id(number: u64) -> Option<RequestId> {
    Some(RequestId::from(number))
}

// Client → server

#[test]
fn requests_are_these_texts() {
    let cases = [
        (
            r#"{"action":"subscribe","id":1,"streams":["trades.btc_usdt","depth.eth_usdt@100ms"]}"#,
            ClientMessage::Subscribe {
                id: id(1),
                streams: names(&["trades.btc_usdt", "depth.eth_usdt@100ms"]),
            },
        ),
        (
            r#"{"action":"subscribe","streams":["trades.btc_usdt"]}"#,
            ClientMessage::Subscribe { id: None, streams: names(&["trades.btc_usdt"]) },
        ),
        (
            r#"{"action":"unsubscribe","id":2,"streams":["trades.btc_usdt"]}"#,
            ClientMessage::Unsubscribe { id: id(2), streams: names(&["trades.btc_usdt"]) },
        ),
        (
            r#"{"action":"resume","id":6,"streams":["orders.alice"],"lastSequence":9007199254740991}"#,
            ClientMessage::Resume {
                id: id(6),
                from: ResumeFrom::Last {
                    streams: names(&["orders.alice"]),
                    sequence: Sequence::new(MAX_SEQUENCE).unwrap(),
                },
            },
        ),
        (
            r#"{"action":"resume","positions":{"a.b":{"epoch":"00000000000000fe","sequence":7},"a.c":8,"a.d":null}}"#,
            ClientMessage::Resume {
                id: None,
                from: ResumeFrom::Positions {
                    positions: BTreeMap::from([
                        (
                            "a.b".into(),
                            LastSeen::At(Position {
                                epoch: Epoch::from_u64(0xfe),
                                sequence: Sequence::new(7).unwrap(),
                            }),
                        ),
                        ("a.c".into(), LastSeen::Sequence(Sequence::new(8).unwrap())),
                        ("a.d".into(), LastSeen::Nothing),
                    ]),
                },
            },
        ),
        (r#"{"action":"streams","id":3}"#, ClientMessage::Streams { id: id(3) }),
        (r#"{"action":"ping"}"#, ClientMessage::Ping { id: None }),
        (
            r#"{"action":"authenticate","id":5,"token":"a.b.c"}"#,
            ClientMessage::Authenticate { id: id(5), token: Secret::new("a.b.c") },
        ),
    ];
    for (text, message) in cases {
        assert_eq!(ClientMessage::parse(text).as_ref(), Ok(&message), "{text}");
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
    }
}

#[test]
fn unknown_fields_and_any_order_are_accepted() {
    let text = r#" { "streams" : ["x"], "more": {"deep": [1, 2]}, "id": 4, "action" : "subscribe" } "#;
    let message = ClientMessage::Subscribe { id: id(4), streams: names(&["x"]) };
    assert_eq!(ClientMessage::parse(text), Ok(message));
}

#[test]
fn every_scalar_id_is_echoed() {
    for scalar in [
        "null",
        "true",
        "0",
        "-5",
        "1.5",
        "1e2",
        "100000001239491143464583724",
        r#""""#,
        r#""a \"b\" é \u00e9""#,
    ] {
        let request = format!(r#"{{"action":"ping","id":{scalar}}}"#);
        let Ok(ClientMessage::Ping { id: Some(id) }) = ClientMessage::parse(&request) else {
            panic!("no id in {request}");
        };
        let reply = ControlMessage::Pong { id: Some(id), timestamp: 1 }.to_json();
        assert_eq!(reply, format!(r#"{{"event":"pong","id":{scalar},"timestamp":1}}"#));
    }
}

fn refused(text: &str) -> ProtocolError {
    ClientMessage::parse(text).unwrap_err()
}

const RESUME_FORM: &str = "either \"streams\" and \"lastSequence\", or \"positions\" with 1 to 1024 streams";

#[test]
fn bad_requests_are_answered_with_what_to_mend() {
    let cases = [
        ("", "not a JSON object of the form {\"action\": ...}"),
        ("[]", "not a JSON object of the form {\"action\": ...}"),
        (r#"["ping",1,null]"#, "not a JSON object of the form {\"action\": ...}"),
        (r#""ping""#, "not a JSON object of the form {\"action\": ...}"),
        ("null", "not a JSON object of the form {\"action\": ...}"),
        (
            "{",
            "not a JSON object of the form {\"action\": ...}: EOF while parsing an object at line 1 column 1",
        ),
        (
            r#"{"action":"ping"}x"#,
            "not a JSON object of the form {\"action\": ...}: trailing characters at line 1 column 18",
        ),
        (
            r#"{"action":"ping","action":"streams"}"#,
            "not a JSON object of the form {\"action\": ...}: duplicate field `action` at line 1 column 25",
        ),
        ("{}", "\"action\" is missing or not a string"),
        (r#"{"action":7}"#, "\"action\" is missing or not a string"),
        (r#"{"action":"ping","id":[1]}"#, "\"id\" must be a scalar of at most 128 bytes"),
        (r#"{"action":"ping","id":{}}"#, "\"id\" must be a scalar of at most 128 bytes"),
        (r#"{"action":"subscribe"}"#, "\"streams\" must be a list of stream names"),
        (
            r#"{"action":"subscribe","streams":"trades.btc_usdt"}"#,
            "\"streams\" must be a list of stream names",
        ),
        (r#"{"action":"subscribe","streams":[]}"#, "\"streams\" must name 1 to 1024 streams"),
        (r#"{"action":"unsubscribe","streams":["a.b",1]}"#, "\"streams\" must hold only strings"),
        (r#"{"action":"resume"}"#, RESUME_FORM),
        (r#"{"action":"resume","streams":["a.b"]}"#, RESUME_FORM),
        (r#"{"action":"resume","streams":["a.b"],"lastSequence":1,"positions":{"a.b":1}}"#, RESUME_FORM),
        (r#"{"action":"resume","positions":{}}"#, RESUME_FORM),
        (r#"{"action":"resume","positions":["a.b"]}"#, RESUME_FORM),
        (
            r#"{"action":"resume","streams":["a.b"],"lastSequence":-1}"#,
            "\"lastSequence\" must be an integer from 0 to 2^53 - 1",
        ),
        (
            r#"{"action":"resume","positions":{"a.b":1.5}}"#,
            "the position of \"a.b\" must be an integer from 0 to 2^53 - 1",
        ),
        (
            r#"{"action":"resume","positions":{"a.b":1152921504606846976}}"#,
            "the position of \"a.b\" must be an integer from 0 to 2^53 - 1",
        ),
        (
            r#"{"action":"resume","positions":{"a.b":{"epoch":"FE","sequence":1}}}"#,
            "the position of \"a.b\" must be {\"epoch\": 16 hexadecimal digits, \"sequence\": an integer}",
        ),
        (
            r#"{"action":"resume","positions":{"a.b":"7"}}"#,
            "the position of \"a.b\" must be a sequence, {\"epoch\", \"sequence\"} or null",
        ),
    ];
    for (text, message) in cases {
        let error = refused(text);
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::BadRequest, message), "{text}");
    }
}

#[test]
fn a_token_is_not_repeated_in_an_answer_or_a_log() {
    for text in [r#"{"action":"authenticate","token":["secret"]}"#, r#"{"action":"authenticate"}"#] {
        let error = refused(text);
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(!error.message.contains("secret"), "{}", error.message);
    }
    let message = ClientMessage::parse(r#"{"action":"authenticate","token":"secret"}"#).unwrap();
    assert!(!format!("{message:?}").contains("secret"), "{message:?}");
}

#[test]
fn an_unknown_action_is_named_shortly_and_keeps_its_id() {
    let error = refused(r#"{"action":"Subscribe","id":"x"}"#);
    assert_eq!(error.code, ErrorCode::UnknownAction);
    assert_eq!(
        error.message,
        r#"no action "Subscribe"; known: subscribe, unsubscribe, resume, streams, authenticate, ping"#
    );
    assert_eq!(serde_json::to_value(&error.id).unwrap(), json!("x"));
    let long = refused(&format!(r#"{{"action":"{}"}}"#, "é".repeat(10_000)));
    assert!(long.message.len() < 200, "{}", long.message);
    assert_eq!(refused(r#"{"action":"subscribe","id":5}"#).id, id(5));
}

#[test]
fn the_number_of_streams_and_the_length_of_an_id_are_bounded() {
    let subscribe =
        |count: usize| json!({"action": "subscribe", "streams": vec!["trades.btc_usdt"; count]}).to_string();
    let most = subscribe(MAX_STREAMS_PER_REQUEST);
    assert!(most.len() <= MAX_CLIENT_FRAME_BYTES, "{} bytes", most.len());
    assert!(ClientMessage::parse(&most).is_ok());
    assert_eq!(refused(&subscribe(MAX_STREAMS_PER_REQUEST + 1)).code, ErrorCode::BadRequest);
    let ping = |letters: usize| json!({"action": "ping", "id": "x".repeat(letters)}).to_string();
    assert!(ClientMessage::parse(&ping(126)).is_ok(), "128 bytes with the quotes");
    assert_eq!(refused(&ping(127)).id, None);
}

#[test]
fn deep_nesting_is_an_error_and_not_a_full_stack() {
    let deep = format!(r#"{{"action":"ping","x":{}"#, "[".repeat(MAX_CLIENT_FRAME_BYTES));
    assert_eq!(refused(&deep).code, ErrorCode::BadRequest);
    let deep = format!(r#"{{"id":{}"#, r#"{"a":"#.repeat(MAX_CLIENT_FRAME_BYTES / 5));
    assert_eq!(refused(&deep).code, ErrorCode::BadRequest);
}

// Server → client

fn positions() -> BTreeMap<StreamName, Position> {
    let position = Position { epoch: Epoch::from_u64(0xfe), sequence: Sequence::new(MAX_SEQUENCE).unwrap() };
    BTreeMap::from([(stream("trades.btc_usdt"), position)])
}

fn control_frames() -> Vec<(&'static str, ControlMessage)> {
    let rejected = vec![Rejection::new("Trades.", ErrorCode::UnknownStream, "no \"such\"")];
    let gap = Rejection {
        oldest: positions().into_values().next(),
        ..Rejection::new("trades.btc_usdt", ErrorCode::ResumeGap, "gone")
    };
    let limits = Limits { streams: 100, message_bytes: 65536, queue_frames: 1024, queue_bytes: 1048576 };
    let streams = vec![stream("trades.btc_usdt")];
    vec![
        (
            r#"{"event":"welcome","connection":"c1","node":"eu-1","region":"eu-west","limits":{"streams":100,"message_bytes":65536,"queue_frames":1024,"queue_bytes":1048576}}"#,
            ControlMessage::Welcome {
                connection: "c1".into(),
                node: "eu-1".into(),
                region: "eu-west".into(),
                user: None,
                limits,
            },
        ),
        (
            r#"{"event":"subscribed","id":1,"streams":["trades.btc_usdt"],"positions":{"trades.btc_usdt":{"epoch":"00000000000000fe","sequence":9007199254740991}},"rejected":[{"stream":"Trades.","code":"unknown_stream","message":"no \"such\""}]}"#,
            ControlMessage::Subscribed {
                id: id(1),
                streams: streams.clone(),
                positions: positions(),
                rejected,
            },
        ),
        (
            r#"{"event":"resumed","id":7,"streams":[{"stream":"trades.btc_usdt","from":null,"replayed":3}],"positions":{},"rejected":[{"stream":"trades.btc_usdt","code":"resume_gap","message":"gone","oldest":{"epoch":"00000000000000fe","sequence":9007199254740991}}]}"#,
            ControlMessage::Resumed {
                id: id(7),
                streams: vec![Resumed { stream: stream("trades.btc_usdt"), from: None, replayed: 3 }],
                positions: BTreeMap::new(),
                rejected: vec![gap],
            },
        ),
        (
            r#"{"event":"unsubscribed","streams":["trades.btc_usdt"],"positions":{},"rejected":[]}"#,
            ControlMessage::Unsubscribed {
                id: None,
                streams: streams.clone(),
                positions: BTreeMap::new(),
                rejected: vec![],
            },
        ),
        (
            r#"{"event":"streams","id":3,"streams":["trades.btc_usdt"],"positions":{"trades.btc_usdt":{"epoch":"00000000000000fe","sequence":9007199254740991}}}"#,
            ControlMessage::Streams { id: id(3), streams, positions: positions() },
        ),
        (
            r#"{"event":"pong","timestamp":1724548345123}"#,
            ControlMessage::Pong { id: None, timestamp: 1_724_548_345_123 },
        ),
        (
            r#"{"event":"heartbeat","timestamp":1724548345123}"#,
            ControlMessage::Heartbeat { timestamp: 1_724_548_345_123 },
        ),
        (
            r#"{"event":"reset","stream":"trades.btc_usdt","epoch":"00000000000000fe"}"#,
            ControlMessage::Reset { stream: stream("trades.btc_usdt"), epoch: Epoch::from_u64(0xfe) },
        ),
        (
            r#"{"event":"error","id":9,"code":"bad_request","message":"words"}"#,
            ControlMessage::Error { id: id(9), code: ErrorCode::BadRequest, message: "words".into() },
        ),
        (
            r#"{"event":"authenticated","id":5,"user":"alice","expiresAt":1800000000000}"#,
            ControlMessage::Authenticated {
                id: id(5),
                user: "alice".into(),
                expires_at: Some(1_800_000_000_000),
            },
        ),
        (
            r#"{"event":"warning","code":"token_expired","message":"soon","expiresAt":1800000000000}"#,
            ControlMessage::Warning {
                code: ErrorCode::TokenExpired,
                message: "soon".into(),
                expires_at: 1_800_000_000_000,
            },
        ),
        (r#"{"event":"draining","reconnectAfter":250}"#, ControlMessage::Draining { reconnect_after: 250 }),
    ]
}

#[test]
fn control_frames_are_these_texts() {
    for (text, message) in control_frames() {
        assert_eq!(message.to_json(), text);
        let ServerMessage::Control(parsed) = ServerMessage::parse(text).unwrap() else {
            panic!("no control message: {text}");
        };
        assert_eq!(parsed, message);
    }
}

fn data_text(sequence: u64, previous: Previous, data: &str) -> String {
    let sequence = Sequence::new(sequence).unwrap();
    frame_of(&event(stream("trades.btc_usdt"), sequence, previous, data))
}

fn event(stream: StreamName, sequence: Sequence, previous: Previous, data: &str) -> Event {
    let (epoch, data) = (Epoch::from_u64(255), data.to_owned().into());
    Event { stream, epoch, sequence, previous, engine_time_us: 0, data, signature: None }
}

fn frame_of(event: &Event) -> String {
    let mut out = Vec::new();
    write_data_message(&mut out, event);
    String::from_utf8(out).unwrap()
}

#[test]
fn data_frames_are_these_texts() {
    let three = Sequence::new(3).unwrap();
    assert_eq!(
        data_text(7, Previous::At(three), r#"{"price":"36200.50"}"#),
        r#"{"stream":"trades.btc_usdt","sequence":7,"previous":3,"data":{"price":"36200.50"}}"#
    );
    let first = data_text(MAX_SEQUENCE, Previous::Unknown { read_from: three }, " [1.0] ");
    assert_eq!(
        first,
        r#"{"stream":"trades.btc_usdt","sequence":9007199254740991,"previous":null,"data": [1.0] }"#
    );
    let ServerMessage::Data(message) = ServerMessage::parse(&first).unwrap() else {
        panic!("no data: {first}");
    };
    let DataMessage { stream: name, epoch, sequence, previous, data, signature, snapshot, conflated } =
        message;
    assert!(!snapshot && !conflated);
    assert_eq!((name, sequence.get(), previous), (stream("trades.btc_usdt"), MAX_SEQUENCE, None));
    assert_eq!((epoch, signature), (None, None));
    assert_eq!(data.get().trim(), "[1.0]", "digits stay as they are");
}

/// The same frame is verified by the web client's test, `node/tests/browser/signature.test.mjs`.
const SIGNED: &str = concat!(
    r#"{"stream":"orders.alice","epoch":"00000000000000ff","sequence":12,"previous":7,"#,
    r#""data":{"id":7,"price":"1.50"},"signature":"eyJhbGciOiJFZERTQSIsImtpZCI6Ii0tNklNNWwwT29zTGo5eVdza0lTWWhVQTNuXzNDVVJRa21yWU1TaGFfY2siLCJiNjQiOmZhbHNlLCJjcml0IjpbImI2NCJdfQ..6vafoYcbD7gIEnmuCAlLhg2wTvGVTPHwbIucjNKrtMHvlxs_CxXHIoCYLiY-QhrLp0WdiKCso3bRScYZg-84Dw"}"#,
);

#[test]
fn a_signed_data_frame_is_this_text_and_verifies() {
    let key = MessageKey::from_bytes(&[7; 32]);
    let (previous, data) = (Previous::At(Sequence::new(7).unwrap()), r#"{"id":7,"price":"1.50"}"#);
    let event = event(stream("orders.alice"), Sequence::new(12).unwrap(), previous, data);
    let signature = Some(key.sign(&event.stream, event.position(), &event.data));
    let text = frame_of(&Event { signature, ..event.clone() });
    assert_eq!(text, SIGNED);
    let ServerMessage::Data(message) = ServerMessage::parse(&text).unwrap() else {
        panic!("no data: {text}")
    };
    let at = Position { epoch: message.epoch.unwrap(), sequence: message.sequence };
    let verdict =
        key.public().verify(&message.signature.unwrap(), &message.stream, at, message.data.get().as_bytes());
    assert_eq!((verdict.as_deref(), at), (Ok(key.id()), event.position()));
}

#[test]
fn a_mark_stands_before_data_whatever_that_is() {
    let marked = |text: &str, mark| {
        let mut out = Vec::new();
        write_marked_message(&mut out, text.as_bytes(), mark);
        String::from_utf8(out).unwrap()
    };
    let plain = data_text(7, Previous::Unknown { read_from: Sequence::ZERO }, r#"{"a":1,"data":2}"#);
    let snapshot = marked(&plain, Mark::Snapshot);
    assert_eq!(
        snapshot,
        r#"{"stream":"trades.btc_usdt","sequence":7,"previous":null,"snapshot":true,"data":{"a":1,"data":2}}"#
    );
    let signed = marked(SIGNED, Mark::Conflated);
    assert_eq!(signed, SIGNED.replacen(r#","data""#, r#","conflated":true,"data""#, 1));
    for (text, flags) in [(plain, (false, false)), (snapshot, (true, false)), (signed, (false, true))] {
        let ServerMessage::Data(message) = ServerMessage::parse(&text).unwrap() else { panic!("{text}") };
        assert_eq!((message.snapshot, message.conflated), flags);
    }
}

#[test]
fn texts_that_no_edge_sends_are_refused() {
    for text in [
        "",
        "{}",
        "null",
        r#"{"event":"unheard_of"}"#,
        r#"{"event":7}"#,
        r#"{"stream":"trades.btc_usdt","sequence":9007199254740992,"previous":null,"data":1}"#,
        r#"{"stream":"Trades.btc","sequence":1,"previous":null,"data":1}"#,
        r#"{"stream":"trades.btc_usdt","sequence":-1,"previous":null,"data":1}"#,
        r#"{"stream":"trades.btc_usdt","sequence":1,"previous":null}"#,
        r#"{"event":"reset","stream":"trades.btc_usdt","epoch":"FE"}"#,
    ] {
        assert!(ServerMessage::parse(text).is_err(), "{text}");
    }
}

#[test]
fn codes_are_these_words_and_numbers() {
    use ErrorCode::*;
    let words = [
        (BadRequest, "bad_request"),
        (UnknownAction, "unknown_action"),
        (UnknownStream, "unknown_stream"),
        (Forbidden, "forbidden"),
        (Unauthorized, "unauthorized"),
        (TokenExpired, "token_expired"),
        (TooManyStreams, "too_many_streams"),
        (RateLimited, "rate_limited"),
        (MessageTooLarge, "message_too_large"),
        (ResumeGap, "resume_gap"),
        (EpochChanged, "epoch_changed"),
        (Unavailable, "unavailable"),
        (Overloaded, "overloaded"),
        (Internal, "internal"),
    ];
    for (code, word) in words {
        assert_eq!(serde_json::to_value(code).unwrap(), json!(word));
    }
    let closes = [
        (CloseCode::Normal, 1000, false),
        (CloseCode::Drain, 1001, true),
        (CloseCode::Idle, 1001, true),
        (CloseCode::Protocol, 1002, false),
        (CloseCode::NotUtf8, 1007, false),
        (CloseCode::Policy, 1008, false),
        (CloseCode::TooBig, 1009, false),
        (CloseCode::Internal, 1011, true),
        (CloseCode::Credentials, 4401, false),
        (CloseCode::SlowClient, 4408, true),
        (CloseCode::Rate, 4429, true),
    ];
    for (close, number, reconnect) in closes {
        assert_eq!((close.code(), close.reconnect()), (number, reconnect));
        // RFC 6455 §5.5.1: a control frame has at most 125 bytes, two of them the code.
        assert!(close.reason().len() <= 123, "{}", close.reason());
    }
}

// Any text

/// Texts close to requests and to answers of an edge.
fn near_json() -> impl Strategy<Value = String> {
    let fields = prop::collection::vec(
        prop_oneof![
            Just(r#""action":"subscribe""#.to_owned()),
            Just(r#""action":"ping""#.to_owned()),
            Just(r#""event":"pong","timestamp":5"#.to_owned()),
            Just(r#""stream":"trades.btc_usdt","sequence":7"#.to_owned()),
            Just(r#""streams":["trades.btc_usdt","é"]"#.to_owned()),
            r#""(id|data|previous|streams|event|x)":(null|1|-1|1e400|"\\u0000"|\[1\]|\{\}|"[a-z]{0,3}")"#,
        ],
        0..6,
    );
    let text = fields.prop_map(|fields| format!("{{{}}}", fields.join(",")));
    prop_oneof![text, ".{0,200}", r#"[\[\]{}",:a-z0-9\\ ]{0,60}"#]
}

proptest! {
    #[test]
    fn any_text_is_answered(text in near_json()) {
        match ClientMessage::parse(&text) {
            // What is understood says the same when it is sent on.
            Ok(message) => {
                let again = serde_json::to_string(&message).unwrap();
                prop_assert_eq!(ClientMessage::parse(&again), Ok(message));
            }
            Err(error) => prop_assert!(!error.message.is_empty()),
        }
        let _ = ServerMessage::parse(&text);
    }

    #[test]
    fn data_messages_come_back(
        key in "[a-z0-9_-]{1,20}", sequence in 0..=MAX_SEQUENCE, previous in prop::option::of(0..=MAX_SEQUENCE),
        words in ".{0,100}",
    ) {
        let name = StreamName::new("trades", &key, None).unwrap();
        let data = json!({"words": words, "price": "1.50"}).to_string();
        let previous = previous.map(|number| Sequence::new(number).unwrap());
        let sequence = Sequence::new(sequence).unwrap();
        let known = previous.map_or(Previous::Unknown { read_from: Sequence::ZERO }, Previous::At);
        let text = frame_of(&event(name.clone(), sequence, known, &data));
        let ServerMessage::Data(message) = ServerMessage::parse(&text).unwrap() else {
            panic!("no data: {text}");
        };
        prop_assert_eq!(message.stream, name);
        prop_assert_eq!((message.sequence, message.previous), (sequence, previous));
        prop_assert_eq!(message.data.get(), data);
    }
}
