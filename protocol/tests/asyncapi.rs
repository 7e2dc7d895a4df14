//! docs/asyncapi.yaml says of messages and codes what the types here do. Whether it is valid, and says what an edge sends, is seen
//! by `node/tests/asyncapi`.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tickmesh_protocol::client::{ClientMessage, CloseCode, ControlMessage, ErrorCode, ServerMessage};

const DOCUMENT: &str = include_str!("../../docs/asyncapi.yaml");

/// What follows on the lines that begin with `key`. JSON is YAML as well, so these are read without a parser of YAML.
fn values_of(key: &str) -> impl Iterator<Item = &'static str> {
    DOCUMENT.lines().filter_map(move |line| line.trim_start().strip_prefix(key))
}

/// The names of an enum's variants, as serde lists them to who names none of them.
fn variants<T: DeserializeOwned>(unknown: Value) -> BTreeSet<String> {
    let error = serde_json::from_value::<T>(unknown).err().unwrap().to_string();
    error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

fn string_at<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

#[test]
fn examples_are_messages() {
    let (mut events, mut actions) = (BTreeSet::new(), BTreeSet::new());
    for text in values_of("- payload: ") {
        let value: Value = serde_json::from_str(text).unwrap();
        if let Some(action) = string_at(&value, "action") {
            let message = ClientMessage::parse(text).unwrap();
            assert_eq!(serde_json::to_string(&message).unwrap(), text);
            actions.insert(action.to_owned());
            continue;
        }
        match ServerMessage::parse(text).unwrap() {
            ServerMessage::Control(message) => {
                assert_eq!(message.to_json(), text);
                events.extend(string_at(&value, "event").map(str::to_owned));
            }
            ServerMessage::Data(message) => {
                assert_eq!(message.epoch.is_some(), message.signature.is_some(), "{text}");
            }
        }
    }
    assert_eq!(events, variants::<ControlMessage>(json!({"event": "?"})));
    // Requests are parsed by hand; the list is in the words of the refusal.
    let refused = ClientMessage::parse(r#"{"action":"?"}"#).unwrap_err().message;
    let known = refused.split_once("known: ").unwrap().1;
    assert_eq!(actions, known.split(", ").map(str::to_owned).collect());
}

#[test]
fn error_codes_are_these() {
    let listed: Vec<String> = values_of("enum: ").find_map(|text| serde_json::from_str(text).ok()).unwrap();
    let listed: BTreeSet<_> = listed.into_iter().collect();
    assert_eq!(listed, variants::<ErrorCode>(json!("?")));
    for code in &listed {
        assert!(values_of(&format!("| `{code}` | ")).next().is_some(), "{code} is not explained");
    }
}

#[test]
fn close_codes_are_these() {
    let listed: Vec<Value> = values_of(r#"- {"code""#)
        .map(|rest| serde_json::from_str(&format!(r#"{{"code"{rest}"#)).unwrap())
        .collect();
    use CloseCode::*;
    let codes =
        [Normal, Drain, Idle, Protocol, NotUtf8, Policy, TooBig, Internal, Credentials, SlowClient, Rate];
    let expected = codes
        .map(|close| json!({"code": close.code(), "reason": close.reason(), "reconnect": close.reconnect()}));
    assert_eq!(listed, expected);
}
