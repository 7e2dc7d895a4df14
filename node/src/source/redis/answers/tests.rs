use proptest::prelude::*;

use super::*;

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn stored(id: &str, fields: &[&str]) -> Value {
    Value::Array(vec![text(id), Value::Array(fields.iter().copied().map(text).collect())])
}

#[test]
fn answers_are_read_as_servers_give_them() {
    let read = Value::Array(vec![Value::Array(vec![
        text("trades"),
        Value::Array(vec![stored("5-1", &["value", "a", "key", "b", "value", "c"]), stored("5-2", &[])]),
    ])]);
    let read = entries_by_key(read).unwrap();
    let [(key, entries)] = &read[..] else { panic!("{read:?}") };
    assert_eq!((&**key, entries.len()), (&b"trades"[..], 2));
    assert_eq!(entries[0].id, Id { ms: 5, n: 1 });
    assert_eq!(entries[0].field("value").map(|value| &**value), Some(&b"a"[..]), "the first of several");
    assert_eq!(entries[0].field("other"), None);
    assert_ne!(entries[0].digest(), entries[1].digest());
    assert_eq!(entries_by_key(Value::Nil), Ok(Vec::new()), "nothing came in time");

    let first = entry(stored("3-0", &["a", "b"])).unwrap();
    let info = Value::Array(vec![
        text("length"),
        Value::Int(2),
        text("last-generated-id"),
        text("9-0"),
        text("max-deleted-entry-id"),
        text("7-0"),
        text("entries-added"),
        Value::Int(5),
        text("first-entry"),
        stored("3-0", &["a", "b"]),
        text("last-entry"),
        Value::Nil,
    ]);
    let expected = Info {
        length: 2,
        added: 5,
        last_given: Id { ms: 9, n: 0 },
        max_deleted: Id { ms: 7, n: 0 },
        first: Some(Id { ms: 3, n: 0 }),
        last: None,
        first_digest: first.digest(),
    };
    assert_eq!(info_of(info), Ok(expected));
    let old = Value::Array(vec![text("length"), Value::Int(2)]);
    assert!(matches!(info_of(old), Err(Trouble::Strange(words)) if words.contains("Redis 7.0")));

    let scan = Value::Array(vec![text("17"), Value::Array(vec![text("a"), text("b")])]);
    assert_eq!(scanned(scan), Ok((17, vec![Bytes::from("a"), Bytes::from("b")])));

    let node = |host: &str, port| Value::Array(vec![text(host), Value::Int(port), text("id")]);
    let range = |first, leader, replica| {
        Value::Array(vec![Value::Int(first), Value::Int(first + 9), leader, replica])
    };
    let slots = Value::Array(vec![
        range(0, node("a", 1), node("r", 9)),
        range(10, node("", 2), node("r", 9)),
        range(20, node("a", 1), node("r", 9)),
    ]);
    assert_eq!(leaders(slots), Ok(vec![("a".to_owned(), 1), (String::new(), 2)]));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<i64>().prop_map(Value::Int),
        any::<Vec<u8>>().prop_map(Value::BulkString),
        "[0-9]{0,22}-[0-9]{0,22}".prop_map(|text| Value::BulkString(text.into())),
        prop_oneof![Just("length"), Just("entries-added"), Just("first-entry")].prop_map(text),
        any::<f64>().prop_map(Value::Double),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Value::Array))
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(value in any_value()) {
        let _ = entries_by_key(value.clone());
        let _ = entries(value.clone());
        let _ = info_of(value.clone());
        let _ = scanned(value.clone());
        let _ = leaders(value);
    }
}
