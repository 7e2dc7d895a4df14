use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Epoch, Sequence};

/// RFC 8037 appendix A.1, A.2.
const RFC_SECRET: &str = r#"{"kty":"OKP","crv":"Ed25519",
    "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const RFC_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const RFC_ID: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn at(epoch: u64, sequence: u64) -> Position {
    Position { epoch: Epoch::from_u64(epoch), sequence: Sequence::new(sequence).unwrap() }
}

fn key() -> MessageKey {
    MessageKey::from_jwk(RFC_SECRET.as_bytes()).unwrap()
}

/// An event, and its signature with the RFC's key under another header.
fn signed_with(header: &Value) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
    let input = signing_input(&header, &stream("orders.alice"), at(255, 12), b"1");
    let signature = key().secret.sign(&input).to_bytes();
    format!("{header}..{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn verify_with(keys: &KeySet, signature: &str) -> Result<String, InvalidSignature> {
    keys.verify(signature, &stream("orders.alice"), at(255, 12), b"1")
}

fn verify(signature: &str) -> Result<String, InvalidSignature> {
    verify_with(&key().public(), signature)
}

#[test]
fn keys_are_those_of_the_rfc() {
    let key = key();
    assert_eq!(key.id(), RFC_ID);
    let public: Value = serde_json::from_str(&key.public().to_json()).unwrap();
    let expected =
        json!({"kty": "OKP", "crv": "Ed25519", "x": RFC_X, "kid": RFC_ID, "use": "sig", "alg": "EdDSA"});
    assert_eq!(public, json!({ "keys": [expected] }));
    // Appendix A.4: header, dot, payload.
    let signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let expected = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(key.secret.sign(signed.as_bytes()).to_bytes()), expected);
    assert!(!format!("{key:?}").contains("nWGxne"));
}

#[test]
fn keys_are_written_and_read_again() {
    let made = MessageKey::from_bytes(&[7; 32]);
    let read = MessageKey::from_jwk(made.to_jwk().as_bytes()).unwrap();
    assert_eq!((read.id(), read.public()), (made.id(), made.public()));
    assert_eq!(KeySet::parse(made.public().to_json().as_bytes()), Ok(made.public()));
    let named = MessageKey::from_jwk(RFC_SECRET.replace("\"kty\"", "\"kid\":\"2026-11\",\"kty\"").as_bytes());
    assert_eq!(named.unwrap().id(), "2026-11");
}

#[test]
fn what_is_no_secret_key_is_refused_and_shown_nowhere() {
    let with =
        |from: &str, to: &str| MessageKey::from_jwk(RFC_SECRET.replace(from, to).as_bytes()).unwrap_err();
    for (from, to, expected) in [
        ("OKP", "EC", InvalidKey::NotSecret),
        ("Ed25519", "X25519", InvalidKey::NotSecret),
        ("\"d\"", "\"e\"", InvalidKey::NotSecret),
        ("kuwsx", "ku", InvalidKey::NotSecret),
        ("kuwsx", "ku sx", InvalidKey::NotSecret),
        ("}", "", InvalidKey::NotSecret),
        ("\"nW", "nW", InvalidKey::NotSecret),
        ("11qYAY", "11qYAZ", InvalidKey::OtherPublic),
        ("\"kty\"", "\"kid\":\"a b\",\"kty\"", InvalidKey::Id),
        ("\"kty\"", "\"kid\":\"\",\"kty\"", InvalidKey::Id),
    ] {
        let error = with(from, to);
        assert_eq!(error, expected, "{from} -> {to}");
        assert!(!error.to_string().contains("WmC6hEr0"), "{error}");
    }
}

#[test]
fn sets_are_checked() {
    let parse = |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
    let ed = |id: &str, x: &str| json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": x});
    let other_x = "10qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let rsa = json!({"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"});
    let mut secret: Value = serde_json::from_str(RFC_SECRET).unwrap();
    secret["kid"] = "a".into();
    for (keys, expected) in [
        (json!([secret]), InvalidKey::Secret("a".into())),
        (json!([ed("a", "11qY")]), InvalidKey::Public("a".into())),
        (json!([ed("a", RFC_X), ed("a", &key().public().to_json())]), InvalidKey::Public("a".into())),
        (json!([rsa]), InvalidKey::Empty),
        (json!([{"kty": "OKP", "crv": "Ed25519", "x": RFC_X}]), InvalidKey::Empty),
        (json!([]), InvalidKey::Empty),
        (json!(vec![ed("a", RFC_X); MAX_KEYS + 1]), InvalidKey::TooMany),
    ] {
        assert_eq!(parse(keys.clone()).unwrap_err(), expected, "{keys}");
    }
    assert!(matches!(parse(json!(7)), Err(InvalidKey::Json(_))));
    assert!(matches!(parse(json!([{}])), Err(InvalidKey::Json(_))));
    assert_eq!(KeySet::parse(&vec![b' '; MAX_KEY_SET_BYTES + 1]), Err(InvalidKey::TooLarge));
    // Once more is once; an id that two kinds share is that of the key that verifies.
    let set = parse(json!([ed("a", RFC_X), ed("a", RFC_X), rsa, ed("b", RFC_X)])).unwrap();
    assert_eq!(set.ids().collect::<Vec<_>>(), ["a", "b"]);
    let renamed = MessageKey::new(MessageKey::from_bytes(&[7; 32]).secret, "a".into()).public();
    assert_eq!(set.with(&renamed), Err(InvalidKey::Repeated("a".into())));
    // Whether the curve has this point or not: it is another key, or none.
    assert!(parse(json!([ed("a", RFC_X), ed("a", other_x)])).is_err());
}

#[test]
fn forged_headers_are_refused() {
    let good = json!({"alg": "EdDSA", "kid": RFC_ID, "b64": false, "crit": ["b64"]});
    assert_eq!(verify(&signed_with(&good)), Ok(RFC_ID.to_owned()));
    let with = |field: &str, value: Value| {
        let mut header = good.clone();
        header[field] = value;
        verify(&signed_with(&header)).unwrap_err()
    };
    let without = |field: &str| {
        let mut header = good.clone();
        header.as_object_mut().unwrap().remove(field);
        verify(&signed_with(&header)).unwrap_err()
    };
    for algorithm in ["none", "HS256", "ES256", "eddsa", ""] {
        assert_eq!(with("alg", algorithm.into()), InvalidSignature::Algorithm(algorithm.into()));
    }
    assert!(matches!(without("alg"), InvalidSignature::Header(_)));
    assert_eq!(with("b64", true.into()), InvalidSignature::Encoding);
    assert_eq!(without("b64"), InvalidSignature::Encoding);
    assert_eq!(without("crit"), InvalidSignature::Encoding);
    assert_eq!(with("crit", json!([])), InvalidSignature::Encoding);
    assert_eq!(with("crit", json!(["exp"])), InvalidSignature::Encoding);
    let both = vec!["b64".to_owned(), "exp".to_owned()];
    assert_eq!(with("crit", json!(both)), InvalidSignature::Extensions(both));
    assert!(matches!(with("crit", "b64".into()), InvalidSignature::Header(_)));
    assert_eq!(without("kid"), InvalidSignature::NoKey);
    assert_eq!(with("kid", "other".into()), InvalidSignature::UnknownKey("other".into()));
    // What a header may say besides changes nothing: a key in it is not looked at.
    let mut besides = good.clone();
    besides["typ"] = "JOSE".into();
    assert!(verify(&signed_with(&besides)).is_ok());
}

#[test]
fn a_header_that_says_something_twice_is_refused() {
    let header = format!(r#"{{"alg":"none","alg":"EdDSA","kid":"{RFC_ID}","b64":false,"crit":["b64"]}}"#);
    let signature = key().sign(&stream("orders.alice"), at(255, 12), b"1");
    let (_, signature) = parts(signature.as_str()).unwrap();
    let forged = format!("{}..{signature}", BASE64_URL_SAFE_NO_PAD.encode(header));
    assert!(matches!(verify(&forged), Err(InvalidSignature::Header(_))));
}

#[test]
fn keys_that_are_not_for_this_verify_nothing() {
    let signature = key().sign(&stream("orders.alice"), at(255, 12), b"1");
    let set = |key: Value| {
        let other = json!({"kty": "OKP", "crv": "Ed25519", "kid": "other", "x": RFC_X});
        KeySet::parse(json!({ "keys": [key, other] }).to_string().as_bytes()).unwrap()
    };
    for key in [
        json!({"kty": "RSA", "kid": RFC_ID, "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "OKP", "crv": "X25519", "kid": RFC_ID, "x": RFC_X}),
        json!({"kty": "OKP", "crv": "Ed25519", "kid": RFC_ID, "x": RFC_X, "use": "enc"}),
        json!({"kty": "OKP", "crv": "Ed25519", "kid": RFC_ID, "x": RFC_X, "alg": "ES256"}),
    ] {
        let verdict = verify_with(&set(key), signature.as_str());
        assert_eq!(verdict, Err(InvalidSignature::KeyType(RFC_ID.into())));
    }
    let another = MessageKey::new(MessageKey::from_bytes(&[7; 32]).secret, RFC_ID.into());
    assert_eq!(verify_with(&another.public(), signature.as_str()), Err(InvalidSignature::Mismatch));
    // The point of order one: with it, anything would be signed by anybody if it were not refused.
    let weak = BASE64_URL_SAFE_NO_PAD.encode([&[1][..], &[0; 31]].concat());
    let weak = set(json!({"kty": "OKP", "crv": "Ed25519", "kid": RFC_ID, "x": weak}));
    let (header, _) = parts(signature.as_str()).unwrap();
    let forged = BASE64_URL_SAFE_NO_PAD.encode([&[1][..], &[0; 63]].concat());
    assert_eq!(verify_with(&weak, &format!("{header}..{forged}")), Err(InvalidSignature::Mismatch));
}

#[test]
fn what_is_cut_or_of_another_form_is_refused() {
    let whole = key().sign(&stream("orders.alice"), at(255, 12), b"1").as_str().to_owned();
    assert_eq!(verify(&whole), Ok(RFC_ID.into()));
    for end in 0..whole.len() {
        assert!(verify(&whole[..end]).is_err(), "cut at {end}");
    }
    let long = "A".repeat(MAX_SIGNATURE_BYTES);
    for text in [
        format!("{whole}="),
        format!("{whole}A"),
        format!(" {whole}"),
        whole.replace("..", "."),
        whole.replace("..", "..."),
        whole.replace("..", ".MQ."),
        format!("{long}..A"),
        "\"..\"".to_owned(),
    ] {
        assert_eq!(verify(&text), Err(InvalidSignature::Form), "{text}");
    }
    assert!("e30..A".parse::<Signature>().is_ok(), "the form alone");
}

fn any_data() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,40}".prop_map(|words| json!({"words": words, "price": "1.50"}).to_string()),
        "[0-9]{1,9}"
    ]
}

fn any_event() -> impl Strategy<Value = (StreamName, Position, String)> {
    let stream = prop_oneof!["orders\\.[a-c]{1,2}", "trades\\.[a-c]@[a-c]"].prop_map(|name| stream(&name));
    (stream, any::<u64>(), 0..=crate::position::MAX_SEQUENCE, any_data())
        .prop_map(|(stream, epoch, sequence, data)| (stream, at(epoch, sequence), data))
}

proptest! {
    /// One signature, one event: it verifies this one and no other.
    #[test]
    fn any_change_breaks_it(signed in any_event(), other in any_event(), flipped: prop::sample::Index) {
        let (stream, at, data) = &signed;
        let signature = key().sign(stream, *at, data.as_bytes());
        let verify = |stream: &StreamName, at: Position, data: &[u8]| {
            key().public().verify(signature.as_str(), stream, at, data)
        };
        prop_assert_eq!(verify(stream, *at, data.as_bytes()), Ok(RFC_ID.to_owned()));
        prop_assert_eq!(&signature, &key().sign(stream, *at, data.as_bytes()), "no chance in it");
        let epoch = Position { epoch: other.1.epoch, ..*at };
        let sequence = Position { sequence: other.1.sequence, ..*at };
        let changed = [
            (&other.0, *at, data), (stream, epoch, data), (stream, sequence, data), (stream, *at, &other.2),
        ];
        for (changed_stream, changed_at, changed_data) in changed {
            let same = (changed_stream, changed_at, changed_data) == (stream, *at, data);
            let verdict = verify(changed_stream, changed_at, changed_data.as_bytes());
            prop_assert_eq!(verdict.is_ok(), same);
        }
        let mut bytes = data.clone().into_bytes();
        let flipped = flipped.index(bytes.len());
        bytes[flipped] ^= 1;
        prop_assert_eq!(verify(stream, *at, &bytes), Err(InvalidSignature::Mismatch));
    }

    /// Whatever comes as signature: an answer, and none that it is good.
    #[test]
    fn rubbish_is_refused(text in "[A-Za-z0-9_.=\"-]{0,60}|.{0,40}", header in ".{0,60}") {
        prop_assert!(verify(&text).is_err());
        let header = BASE64_URL_SAFE_NO_PAD.encode(header);
        let signature = BASE64_URL_SAFE_NO_PAD.encode([0; 64]);
        let forged = format!("{header}..{signature}");
        prop_assert!(verify(&forged).is_err());
    }
}
