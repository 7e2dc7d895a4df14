use std::collections::HashSet;

use bytes::Bytes;
use proptest::prelude::*;
use tickmesh_protocol::policy::ChannelPolicy;

use super::{
    Rejected, RouteConfig, Transform,
    jq::{Filter, Input, JqError, parse},
};

fn route(channel: &str, key: &str, data: Option<&str>) -> RouteConfig {
    RouteConfig {
        source: "engine".into(),
        topic: "market.*".into(),
        channel: channel.into(),
        key: key.into(),
        data: data.map(str::to_owned),
        policy: ChannelPolicy::default(),
    }
}

fn transform(routes: &[RouteConfig]) -> Transform {
    Transform::new(routes, None, &HashSet::from(["orders".to_owned()])).unwrap()
}

fn one(transform: &Transform, topic: &str, value: &str) -> Result<(String, String), Rejected> {
    let mut outcomes = transform.apply(topic, None, &Bytes::copy_from_slice(value.as_bytes()));
    assert_eq!(outcomes.len(), 1);
    let transformed = outcomes.remove(0)?;
    Ok((transformed.stream.to_string(), String::from_utf8(transformed.data.to_vec()).unwrap()))
}

fn input(value: &str) -> Input {
    parse("market.x", None, value.as_bytes()).unwrap()
}

#[test]
fn a_route_makes_stream_and_data() {
    let trades = transform(&[route(
        "trades",
        ".symbol | ascii_downcase",
        Some("{price: .p, quantity: .q, timestamp: .t}"),
    )]);
    let (stream, data) =
        one(&trades, "market.trades", r#"{"symbol":"BTC_USDT","p":"36200.50","q":1.10,"t":1724548381123}"#)
            .unwrap();
    assert_eq!(stream, "trades.btc_usdt");
    assert_eq!(data, r#"{"price":"36200.50","quantity":1.10,"timestamp":1724548381123}"#);
}

#[test]
fn without_data_the_value_passes_as_it_is() {
    let routed = transform(&[route("trades", ".s", None)]);
    let (_, data) = one(&routed, "market.x", " {\"s\": \"a\",  \"n\": 1.000000000000000000001} ").unwrap();
    assert_eq!(data, "{\"s\": \"a\",  \"n\": 1.000000000000000000001}");
}

#[test]
fn numbers_that_are_only_moved_keep_their_digits() {
    let filter = Filter::compile("{a: .x}").unwrap();
    for digits in ["0.1", "1.10", "123456789012345678901234567890.123456789", "1e400"] {
        let json = filter.run_to_json(&input(&format!(r#"{{"x":{digits}}}"#))).unwrap();
        assert_eq!(String::from_utf8(json).unwrap(), format!(r#"{{"a":{digits}}}"#));
    }
}

#[test]
fn a_computed_channel_and_an_escaped_user() {
    let orders = transform(&[route("\"orders\"", ".user", Some(".o"))]);
    assert_eq!(one(&orders, "market.o", r#"{"user":"Alice","o":1}"#).unwrap().0, "orders.--_41lice");
    let trades = transform(&[route("trades", ".user", None)]);
    assert!(matches!(one(&trades, "market.o", r#"{"user":"Alice"}"#), Err(Rejected::Stream(_))));
}

/// Both ways that exchanges lay out their users' orders: a topic per user, and one topic keyed by user.
#[test]
fn a_user_is_named_by_the_topic_or_by_the_key_of_a_record() {
    let by_topic =
        RouteConfig { topic: "orders.*".into(), ..route("orders", "$topic | ltrimstr(\"orders.\")", None) };
    let by_key = RouteConfig { topic: "orders".into(), ..route("orders", "$key", None) };
    let orders = transform(&[by_topic, by_key]);
    let made = |topic: &str, key: Option<&'static [u8]>| {
        let mut made = orders.apply(topic, key.map(Bytes::from_static).as_ref(), &Bytes::from_static(b"{}"));
        assert_eq!(made.len(), 1, "one route takes {topic}");
        made.remove(0).map(|made| made.stream.to_string())
    };
    assert_eq!(made("orders.user123", None).unwrap(), "orders.user123");
    assert_eq!(made("orders.User.1", Some(b"ignored")).unwrap(), "orders.--_55ser_2e1");
    assert_eq!(made("orders", Some(b"alice")).unwrap(), "orders.alice");
    assert_eq!(made("orders", Some(b"Alice")).unwrap(), "orders.--_41lice");
    assert!(matches!(made("orders", None), Err(Rejected::NotText { part: "key", .. })));
    // Nobody could ever ask for these.
    assert!(matches!(made("orders", Some(b"")), Err(Rejected::User(_))));
    assert!(matches!(made("orders", Some(&[b'a'; 101])), Err(Rejected::User(_))));
    assert!(matches!(
        made("orders", Some(b"\xff")),
        Err(Rejected::Jq { part: "key", error: JqError::NotJson(_) })
    ));
}

#[test]
fn key_and_value_are_one_record_of_bounded_size() {
    let orders = transform(&[route("orders", "$key", None)]);
    let key = Bytes::from(vec![b'a'; super::MAX_RECORD_BYTES - 1]);
    let made = orders.apply("market.x", Some(&key), &Bytes::from_static(b"{}"));
    assert_eq!(made, [Err(Rejected::RecordTooLarge(super::MAX_RECORD_BYTES + 1))]);
}

#[test]
fn records_pass_without_a_route() {
    let none = transform(&[]);
    assert_eq!(
        one(&none, "any", r#"{"data": {"p" : 1} ,"stream":"trades.btc_usdt"}"#).unwrap(),
        ("trades.btc_usdt".into(), r#"{"p" : 1}"#.into())
    );
    assert!(matches!(one(&none, "any", r#"{"p":1}"#), Err(Rejected::PassThrough(_))));
    assert!(matches!(one(&none, "any", r#"{"stream":"trades","data":1}"#), Err(Rejected::Stream(_))));
    assert!(matches!(one(&none, "any", "{"), Err(Rejected::Json(_))));
    assert!(matches!(one(&none, "any", ""), Err(Rejected::Json(_))));
}

#[test]
fn what_is_not_strict_json_is_refused() {
    let routed = transform(&[route("trades", "\"a\"", None)]);
    for value in ["", "NaN", "{1: 2}", "# x\n1", "[1", "\"\\xff\"", "1 2", "{\"a\":01}"] {
        assert!(matches!(one(&routed, "market.x", value), Err(Rejected::Json(_))), "{value:?} was taken");
    }
    let nested = "[".repeat(10_000) + &"]".repeat(10_000);
    assert!(matches!(one(&routed, "market.x", &nested), Err(Rejected::Json(_))));
    let outcome = routed.apply("market.x", None, &Bytes::from_static(b"\"\xff\""));
    assert!(matches!(outcome[0], Err(Rejected::Json(_))));
}

#[test]
fn channels_that_nothing_makes_are_known() {
    assert!(transform(&[]).makes("anything"));
    let market = Transform::new(&[], Some(&["trades"]), &HashSet::new()).unwrap();
    assert!(market.makes("trades") && !market.makes("nothing"));
    let routed = transform(&[route("trades", "\"a\"", None)]);
    assert!(routed.makes("trades") && !routed.makes("nothing"));
    assert!(transform(&[route(".channel", "\"a\"", None)]).makes("anything"));
}

#[test]
fn a_topic_no_route_takes_is_said() {
    let routed = transform(&[route("trades", "\"a\"", None)]);
    assert_eq!(one(&routed, "other", "1"), Err(Rejected::Unrouted("other".into())));
}

#[test]
fn failing_programs_say_why() {
    let run = |program: &str| Filter::compile(program).unwrap().run_to_json(&input("{\"a\":\"x\"}"));
    assert!(matches!(run(".a + 1"), Err(JqError::Run(_))));
    assert!(matches!(run("empty"), Err(JqError::NoOutput)));
    assert!(matches!(run("1, 2"), Err(JqError::SeveralOutputs)));
    assert!(matches!(run("nan"), Err(JqError::NotJson(_))));
    assert!(matches!(run("{(1 | tojson | tobytes): 2}"), Err(JqError::NotJson(_) | JqError::Run(_))));
    for program in ["{", "no_such_filter", ".a | now", "env", "halt", "input", "debug", "$ENV"] {
        assert!(matches!(Filter::compile(program), Err(JqError::Compile(_))), "{program} compiled");
    }
}

#[test]
fn programs_that_do_not_end_are_ended() {
    let outcome = std::thread::Builder::new()
        .stack_size(super::jq::STACK_BYTES)
        .spawn(|| {
            let run = |program: &str| Filter::compile(program).unwrap().run_to_json(&input("{}"));
            [
                "def f: f; f",
                "def f: 1 + f; f",
                "def f: [f]; f",
                "last(repeat(1))",
                "[range(1e12)] | length",
                "[range(0; 1; 0)]",
                "reduce range(1e9) as $i (0; . + $i)",
                "[limit(1e9; repeat(1))]",
                "until(false; . )",
            ]
            .map(|program| (program, run(program)))
        })
        .unwrap()
        .join()
        .unwrap();
    for (program, outcome) in outcome {
        assert_eq!(outcome, Err(JqError::Budget), "{program}");
    }
}

proptest! {
    /// Whatever a record holds, the outcome is an event with valid JSON or a reason, never a panic.
    #[test]
    fn any_bytes_have_an_outcome(
        value in proptest::collection::vec(any::<u8>(), 0..256),
        key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8)),
    ) {
        let key = key.map(Bytes::from);
        let routes = [route("trades", ".s", Some("{a: .a}")), route("orders", "$key", Some("[$topic, $key]"))];
        for transform in [transform(&routes), transform(&[])] {
            for outcome in transform.apply("market.x", key.as_ref(), &Bytes::from(value.clone())).into_iter().flatten() {
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&outcome.data).is_ok());
            }
        }
    }
}
