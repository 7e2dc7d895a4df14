//! Tokens made by hand, good and forged. RS256 and ES256 meet a real identity provider in `tests/oidc.rs`.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"a secret of thirty-two bytes or so";

/// The seed of an Ed25519 key, in PKCS #8 (RFC 8410 §7).
fn ed25519(seed: u8) -> EncodingKey {
    let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
    der.extend([seed; 32]);
    EncodingKey::from_ed_der(&der)
}

fn ed25519_public(seed: u8) -> Vec<u8> {
    tickmesh_protocol::SigningKey::from_bytes(&[seed; 32]).publisher().0.to_vec()
}

fn config(algorithm: Algorithm, key: DecodingKey) -> JwtConfig {
    JwtConfig {
        algorithm,
        keys: JwtKeys::Key(Box::new(key)),
        issuer: Some("https://auth.example.com".into()),
        audience: Some("tickmesh".into()),
        leeway: Duration::from_secs(5),
    }
}

fn open(config: &JwtConfig) -> Jwt {
    Jwt::open(config, &ClaimNames::default(), &Registry::new(), CancellationToken::new()).unwrap()
}

fn hs256() -> Jwt {
    open(&config(Algorithm::HS256, DecodingKey::from_secret(SECRET)))
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn claims(changes: Value) -> Value {
    let mut claims =
        json!({"sub": "alice", "iss": "https://auth.example.com", "aud": "tickmesh", "exp": now() + 60});
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn signed(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

#[tokio::test]
async fn good_tokens_are_accepted() {
    let identity =
        hs256().verify(&signed(&claims(json!({"nbf": now() - 1, "aud": ["x", "tickmesh"]})))).await.unwrap();
    assert_eq!(identity.user.as_str(), "alice");
    let key = DecodingKey::from_ed_der(&ed25519_public(7));
    let jwt = open(&config(Algorithm::EdDSA, key));
    let token =
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims(json!({})), &ed25519(7)).unwrap();
    assert_eq!(jwt.verify(&token).await.unwrap().user.as_str(), "alice");
    let other =
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims(json!({})), &ed25519(8)).unwrap();
    assert_eq!(jwt.verify(&other).await, Err(Refusal::Signature));
}

#[tokio::test]
async fn claims_are_checked() {
    let jwt = hs256();
    for (changes, expected) in [
        (json!({"exp": now() - 60}), Refusal::Expired),
        (json!({"exp": null}), Refusal::Claims),
        (json!({"exp": "tomorrow"}), Refusal::Claims),
        (json!({"nbf": now() + 60}), Refusal::NotYet),
        (json!({"aud": "another"}), Refusal::Audience),
        (json!({"aud": null}), Refusal::Claims),
        (json!({"iss": "https://evil.example.com"}), Refusal::Issuer),
        (json!({"iss": null}), Refusal::Claims),
        (json!({"sub": null}), Refusal::Claims),
        (json!({"sub": "a".repeat(500)}), Refusal::Claims),
    ] {
        assert_eq!(jwt.verify(&signed(&claims(changes.clone()))).await, Err(expected), "{changes}");
    }
    // Clocks may differ by the leeway.
    assert!(jwt.verify(&signed(&claims(json!({"exp": now() - 2, "nbf": now() + 2})))).await.is_ok());
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    use std::fmt::Write;
    let base64 = |text: &str| {
        // Of ASCII texts only, so by hand: three bytes are four digits.
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        text.as_bytes().chunks(3).fold(String::new(), |mut out, chunk| {
            let bits =
                chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for digit in 0..=chunk.len() {
                write!(out, "{}", char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize])).unwrap();
            }
            out
        })
    };
    let body = base64(&claims(json!({})).to_string());
    let none = |signature: &str| format!("{}.{body}.{signature}", base64(r#"{"alg":"none","typ":"JWT"}"#));
    let jwt = hs256();
    let good = signed(&claims(json!({})));
    assert!(jwt.verify(&good).await.is_ok());

    let (unsigned, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = unsigned.split_once('.').unwrap();
    let root = base64(&claims(json!({"sub": "root"})).to_string());
    let forged = [
        none(""),
        none(signature),
        format!("{unsigned}."),
        format!("{unsigned}.{}", &signature[..20]),
        format!("{header}.{root}.{signature}"),
        unsigned.to_owned(),
        "a.b.c".to_owned(),
        "..".to_owned(),
        String::new(),
    ];
    for token in &forged {
        assert!(jwt.verify(token).await.is_err(), "{token}");
    }
    // Another algorithm than the configured one, with the right key.
    let hs384 = jsonwebtoken::encode(
        &Header::new(Algorithm::HS384),
        &claims(json!({})),
        &EncodingKey::from_secret(SECRET),
    );
    assert_eq!(jwt.verify(&hs384.unwrap()).await, Err(Refusal::Algorithm));
    // The public key, which everybody has, taken for the secret of an HMAC.
    let public = ed25519_public(7);
    let confused =
        jsonwebtoken::encode(&Header::default(), &claims(json!({})), &EncodingKey::from_secret(&public));
    let jwt = open(&config(Algorithm::EdDSA, DecodingKey::from_ed_der(&public)));
    assert_eq!(jwt.verify(&confused.unwrap()).await, Err(Refusal::Algorithm));
}
