mod operators;

use std::collections::HashSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Made, Makes, Rejected, RouteConfig, Taken, Transform, Transformed,
    jq::{Filter, Input, JqError, parse},
};

fn route(channel: &str, key: &str, data: Option<&str>) -> RouteConfig {
    let makes = data.map_or(Makes::AsItIs, |data| Makes::Data(data.into()));
    RouteConfig { makes, ..RouteConfig::new("engine", "market.*", channel, key) }
}

fn transform(routes: &[RouteConfig]) -> Transform {
    Transform::new(routes, None, &HashSet::from(["orders".to_owned()])).unwrap()
}

/// What a record without a key becomes.
fn apply(transform: &Transform, topic: &str, value: &Bytes) -> Vec<Result<Made, Rejected>> {
    transform.apply(Taken { topic, key: None, value, engine_time_us: NOW_MS * 1000 })
}

const NOW_MS: u64 = 1_724_548_381_000;

fn event(made: Made) -> Transformed {
    match made {
        Made::Event(event) => event,
        Made::Inputs { .. } => panic!("something for an operator"),
    }
}

fn one(transform: &Transform, topic: &str, value: &str) -> Result<(String, String), Rejected> {
    let mut outcomes = apply(transform, topic, &Bytes::copy_from_slice(value.as_bytes()));
    assert_eq!(outcomes.len(), 1);
    let transformed = event(outcomes.remove(0)?);
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
        let (key, value) = (key.map(Bytes::from_static), Bytes::from_static(b"{}"));
        let mut made = orders.apply(Taken { topic, key: key.as_ref(), value: &value, engine_time_us: 0 });
        assert_eq!(made.len(), 1, "one route takes {topic}");
        made.remove(0).map(|made| event(made).stream.to_string())
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
    let value = Bytes::from_static(b"{}");
    let made = orders.apply(Taken { topic: "market.x", key: Some(&key), value: &value, engine_time_us: 0 });
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
    let outcome = apply(&routed, "market.x", &Bytes::from_static(b"\"\xff\""));
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
    assert!(matches!(run("1 / 0"), Err(JqError::Run(_))));
    assert!(matches!(run("{(1 | tojson | tobytes): 2}"), Err(JqError::NotJson(_) | JqError::Run(_))));
    for program in ["{", "no_such_filter", ".a | now", "env", "halt", "input", "debug", "$ENV", "nan", "sqrt"]
    {
        assert!(matches!(Filter::compile(program), Err(JqError::Compile(_))), "{program} compiled");
    }
}

/// What a program makes of a value.
fn run(program: &str, value: &str) -> Result<String, JqError> {
    let json = Filter::compile(program).unwrap().run_to_json(&input(value))?;
    Ok(String::from_utf8(json).unwrap())
}

#[test]
fn programs_calculate_exactly() {
    let trade = r#"{"p":36200.10,"q":0.3,"n":7,"big":9007199254740993.5}"#;
    for (program, expected) in [
        (".p + .q", "36200.40"),
        (".p * .q", "10860.030"),
        (".p - 36200.1", "0.00"),
        ("0.1 + 0.2 == 0.3", "true"),
        (".q / 3", "0.1"),
        ("1 / 3", "0.3333333333333333333333333333333333"),
        (".n / 2", "3.5"),
        (".n / 7", "1"),
        (".p % 7", "3.10"),
        ("-.p", "-36200.10"),
        ("[.p, .q] | add", "36200.40"),
        (".p += 0.05 | .p", "36200.15"),
        (".q *= 2 | .q", "0.6"),
        ("[.p | floor, round, ceil, trunc]", "[36200,36200,36201,36200]"),
        ("[-1.5 | floor, round, ceil, trunc]", "[-2,-2,-1,-1]"),
        (".big + 1", "9007199254740994.5"),
        (".big > 9007199254740993.4", "true"),
        ("[.p] | map(tostring)", "[\"36200.10\"]"),
        ("(.p | tojson | fromjson) + 0", "36200.10"),
        ("\"\\(.p * 2)\"", "\"72400.20\""),
        ("reduce (.p, .q, 0.7) as $x (0; . + $x)", "36201.10"),
        ("def double: . + .; .q | double", "0.6"),
        ("[.p, .q] | map(length)", "[36200.10,0.3]"),
        ("if .q < 0.30000000000000000001 then 1 else 2 end", "1"),
        ("{a: (.q - 0.3)} | .a == 0", "true"),
        // As jq itself: the second operand is the outer one.
        ("[(1, 2) + (10, 20)]", "[11,12,21,22]"),
        ("[limit(3; range(0; 1; 0.1))]", "[0,0.1,0.2]"),
    ] {
        assert_eq!(run(program, trade).unwrap(), expected, "{program}");
    }
    let digits = "1".repeat(400);
    assert_eq!(run(".", &format!("{digits}.5")).unwrap(), format!("{digits}.5"), "only moved");
    assert!(matches!(run(". + 1", &format!("{digits}.5")), Err(JqError::Run(_))));
    let growing = "reduce range(1000) as $i (1.5; . * .)";
    assert!(matches!(run(growing, "1"), Err(JqError::Run(_))), "no number grows without end");
}

#[test]
fn a_record_is_filtered_and_split() {
    let split = RouteConfig {
        filter: Some(".kind == \"batch\"".into()),
        split: Some(".orders[]".into()),
        ..route("orders", ".user", Some("{id, price}"))
    };
    let orders = transform(&[split.clone(), route("raw", "\"all\"", None)]);
    let record =
        r#"{"kind":"batch","orders":[{"user":"alice","id":1,"price":1.50},{"user":"bob","id":2,"price":2}]}"#;
    let made: Vec<_> =
        apply(&orders, "market.o", &record.into()).into_iter().map(Result::unwrap).map(event).collect();
    let made: Vec<_> = made.iter().map(|event| (event.stream.as_str(), &event.data[..])).collect();
    assert_eq!(
        made,
        [
            ("orders.alice", &br#"{"id":1,"price":1.50}"#[..]),
            ("orders.bob", br#"{"id":2,"price":2}"#),
            ("raw.all", record.as_bytes()),
        ]
    );
    assert_eq!(
        apply(&orders, "market.o", &r#"{"kind":"other"}"#.into()).len(),
        1,
        "only the second route takes it"
    );
    let no_bool = transform(&[RouteConfig { filter: Some(".kind".into()), ..route("raw", "\"a\"", None) }]);
    let outcome = apply(&no_bool, "market.o", &record.into());
    assert!(matches!(outcome[..], [Err(Rejected::NoBool { .. })]), "{outcome:?}");
    let endless = RouteConfig { split: Some(".[]".into()), ..route("raw", "\"a\"", None) };
    let many = format!("[0{}]", ",0".repeat(super::MAX_PARTS));
    let outcome = apply(&transform(&[endless]), "market.o", &many.into());
    assert!(
        matches!(outcome[..], [Err(Rejected::Jq { part: "split", error: JqError::TooManyOutputs(_) })]),
        "{outcome:?}"
    );
    // A part as it is.
    let parts = RouteConfig { makes: Makes::AsItIs, ..split };
    let made = apply(&transform(&[parts]), "market.o", &record.into());
    assert_eq!(&event(made[1].clone().unwrap()).data[..], br#"{"user":"bob","id":2,"price":2}"#);
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
            let value = Bytes::from(value.clone());
            let taken = Taken { topic: "market.x", key: key.as_ref(), value: &value, engine_time_us: 0 };
            for outcome in transform.apply(taken).into_iter().flatten() {
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&event(outcome).data).is_ok());
            }
        }
    }
}
