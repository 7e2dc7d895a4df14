//! Stream names, escaped keys and topics.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use proptest::prelude::*;
use tickmesh_protocol::{
    Epoch, StreamName, Topic,
    stream::{InvalidStreamName, MAX_STREAM_NAME_BYTES, escape_key, is_part},
    topic::{BUCKETS, InvalidTopic, MAX_REGION_BYTES, MAX_TOPIC_BYTES},
};

const PART: &str = "[a-z0-9_-]{1,40}";

/// What [`escape_key`] did, undone. Only here: the product never needs it.
fn unescape(key: &str) -> String {
    let Some(escaped) = key.strip_prefix("--") else {
        return key.to_owned();
    };
    let mut bytes = Vec::new();
    let mut rest = escaped.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'_' {
            let (digits, after) = after.split_at(2);
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap()
}

proptest! {
    #[test]
    fn names_come_back(channel in PART, key in PART, variant in prop::option::of(PART)) {
        let stream = StreamName::new(&channel, &key, variant.as_deref()).unwrap();
        prop_assert_eq!(stream.channel(), &channel);
        prop_assert_eq!(stream.key(), &key);
        prop_assert_eq!(stream.variant(), variant.as_deref());
        prop_assert_eq!(&stream.to_string().parse::<StreamName>().unwrap(), &stream);
        let json = serde_json::to_string(&stream).unwrap();
        prop_assert_eq!(serde_json::from_str::<StreamName>(&json).unwrap(), stream);
    }

    #[test]
    fn what_is_accepted_is_built_of_valid_parts(text in r"([a-z0-9_-]{0,3}[.@ A-Zé/]?){0,5}") {
        let parts = text.split_once('.').map(|(channel, rest)| match rest.split_once('@') {
            Some((key, variant)) => (channel, key, Some(variant)),
            None => (channel, rest, None),
        });
        let valid = parts.is_some_and(|(channel, key, variant)| {
            is_part(channel) && is_part(key) && variant.is_none_or(is_part)
        });
        prop_assert_eq!(text.parse::<StreamName>().is_ok(), valid);
    }

    #[test]
    fn escaped_keys_are_valid_and_lossless(identifier in prop_oneof![".{0,40}", "-{0,3}[_a-f0-9-]{0,8}"]) {
        let key = escape_key(&identifier);
        prop_assert!(is_part(&key), "{:?}", key);
        // Lossless, and so two identifiers never have the same key.
        prop_assert_eq!(unescape(&key), identifier);
    }

    #[test]
    fn valid_keys_stay_as_they_are(key in "[a-z0-9_][a-z0-9_-]{0,20}") {
        prop_assert_eq!(escape_key(&key), key);
    }

    #[test]
    fn a_topic_carries_its_streams_and_comes_back(channel in PART, key in PART, other in PART, variant in PART) {
        let stream = StreamName::new(&channel, &key, None).unwrap();
        let topic = Topic::spanning(&stream);
        prop_assert!(topic.carries(&stream));
        prop_assert!(topic.bucket() < BUCKETS);
        prop_assert_eq!(topic.channel(), &channel);
        prop_assert_eq!(&topic.to_string().parse::<Topic>().unwrap(), &topic);
        // A variant does not move a stream; another channel does not share the topic.
        prop_assert!(topic.carries(&StreamName::new(&channel, &key, Some(&variant)).unwrap()));
        let elsewhere = StreamName::new(&other, &key, None).unwrap();
        prop_assert_eq!(topic.carries(&elsewhere), other == channel);
    }

    #[test]
    fn any_text_is_answered(text in ".{0,300}") {
        if let Ok(topic) = text.parse::<Topic>() {
            prop_assert_eq!(topic.to_string(), text.clone());
        }
        if let Ok(stream) = text.parse::<StreamName>() {
            prop_assert_eq!(stream.to_string(), text.clone());
        }
        if let Ok(epoch) = text.parse::<Epoch>() {
            prop_assert_eq!(epoch.to_string(), text);
        }
    }

    #[test]
    fn epochs_come_back(id in any::<u64>()) {
        let epoch = Epoch::from_u64(id);
        prop_assert_eq!(epoch.to_string().parse(), Ok(epoch));
    }

    #[test]
    fn epochs_tell_logs_partitions_and_rules_apart(
        a in ("[ab/]{0,4}", 0..3u32, "[ab/]{0,4}"), b in ("[ab/]{0,4}", 0..3u32, "[ab/]{0,4}"),
    ) {
        prop_assert_eq!(Epoch::of(&a.0, a.1, &a.2) == Epoch::of(&b.0, b.1, &b.2), a == b);
    }
}

#[test]
fn name_length_is_bounded() {
    let longest = format!("c.{}", "k".repeat(MAX_STREAM_NAME_BYTES - 2));
    assert_eq!(longest.parse::<StreamName>().unwrap().as_str(), longest);
    let too_long = InvalidStreamName::TooLong(MAX_STREAM_NAME_BYTES + 1);
    assert_eq!(format!("{longest}k").parse::<StreamName>(), Err(too_long.clone()));
    assert_eq!(StreamName::new("c", &"k".repeat(MAX_STREAM_NAME_BYTES - 1), None), Err(too_long));
}

#[test]
fn refused_names_say_why() {
    let refused = |name: &str| name.parse::<StreamName>().unwrap_err().to_string();
    let shape = "a stream name is <channel>.<key> or <channel>.<key>@<variant>, as in trades.btc_usdt";
    assert_eq!(refused(""), shape);
    assert_eq!(refused("trades"), shape);
    assert_eq!(refused(".btc"), "channel may hold only a-z, 0-9, _ and -, and not be empty");
    assert_eq!(refused("trades."), "key may hold only a-z, 0-9, _ and -, and not be empty");
    assert_eq!(refused("trades.a.b"), "key may hold only a-z, 0-9, _ and -, and not be empty");
    assert_eq!(refused("trades.BTC"), "key may hold only a-z, 0-9, _ and -, and not be empty");
    assert_eq!(refused("trades.btc@"), "variant may hold only a-z, 0-9, _ and -, and not be empty");
    assert_eq!(refused("trades.btc@1m@2m"), "variant may hold only a-z, 0-9, _ and -, and not be empty");
}

#[test]
fn escaped_keys_look_like_this() {
    for (identifier, key) in [
        ("alice", "alice"),
        ("Alice", "--_41lice"),
        ("a.b", "--a_2eb"),
        ("", "--"),
        ("--x", "--_2d_2dx"),
        ("-x", "-x"),
        ("é", "--_c3_a9"),
    ] {
        assert_eq!(escape_key(identifier), key, "{identifier:?}");
    }
}

#[test]
fn a_topic_has_one_spelling_and_a_bounded_length() {
    let region = "r".repeat(MAX_REGION_BYTES);
    for good in
        ["/tickmesh/1/all/trades/0", "/tickmesh/1/eu-west/t/63", &format!("/tickmesh/1/{region}/t/63")]
    {
        assert_eq!(good.parse::<Topic>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "/tickmesh/1/all/trades",
        "/tickmesh/1/all/trades/",
        "/tickmesh/1/all/trades/64",
        "/tickmesh/1/all/trades/65536",
        "/tickmesh/1/all/trades/01",
        "/tickmesh/1/all/trades/+1",
        "/tickmesh/1/all/trades/1/",
        "/tickmesh/2/all/trades/1",
        "/tickmesh/1//trades/1",
        "/tickmesh/1/all//1",
        "/tickmesh/1/All/trades/1",
        "tickmesh/1/all/trades/1",
        &format!("/tickmesh/1/{region}r/t/63"),
        &format!("/tickmesh/1/all/{}/1", "t".repeat(MAX_TOPIC_BYTES)),
    ] {
        assert_eq!(bad.parse::<Topic>(), Err(InvalidTopic), "{bad}");
    }
    let channel = "c".repeat(MAX_STREAM_NAME_BYTES - 2);
    let longest = Topic::spanning(&StreamName::new(&channel, "k", None).unwrap()).to_string();
    assert!(longest.parse::<Topic>().is_ok());
}

#[test]
fn streams_spread_over_the_buckets() {
    let mut streams = [0u32; BUCKETS as usize];
    for number in 0..6400 {
        let stream = StreamName::new("trades", &format!("coin{number}_usdt"), None).unwrap();
        streams[usize::from(Topic::spanning(&stream).bucket())] += 1;
    }
    // 100 each on average, standard deviation 10: a bucket outside of six deviations is no even hash.
    assert!(streams.iter().all(|count| (40..=160).contains(count)), "{streams:?}");
}
