//! Who is let in, what they may have, and when they have to go.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tickmesh::{
    auth::{self, Authenticator, JwtConfig, hash_of},
    edge::Config,
    ops::metrics::Registry,
};
use tokio::net::TcpStream;
use tokio_tungstenite::{client_async, tungstenite::client::IntoClientRequest};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::support::{Client, Edge, config, wait_until, within};

const SECRET: &[u8] = b"a secret of thirty-two bytes or so";
const API_KEY: &str = "tk_live_0123456789";

pub struct Guarded {
    pub edge: Edge,
    keys: PathBuf,
    _folder: TempDir,
    _stop: DropGuard,
}

/// An edge on which `ticker.*` is for everybody, and everything else for who signs in.
pub async fn edge(change: impl FnOnce(&mut Config)) -> Guarded {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let entry = format!("[[key]]\nid = \"bot\"\nhash = {:?}\nuser = \"bob\"\n", hash_of(API_KEY));
    fs::write(&keys, entry).unwrap();
    let auth = auth::Config {
        jwt: Some(JwtConfig::with_secret(SECRET)),
        api_keys: Some(keys.clone()),
        ..auth::Config::default()
    };
    let stop = CancellationToken::new();
    let authenticator = Authenticator::open(&auth, &Registry::new(), stop.clone()).unwrap();
    let mut config = config();
    config.permissions.anonymous = Some(vec!["ticker.*".parse().unwrap()]);
    change(&mut config);
    let edge = Edge::start_with(config, authenticator).await;
    Guarded { edge, keys, _folder: folder, _stop: stop.drop_guard() }
}

pub fn token(user: &str, lives: i64, more: Value) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let mut claims = json!({"sub": user, "exp": now + lives});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

pub async fn connect(edge: &Edge, path: &str, header: Option<(&'static str, &str)>) -> Client {
    let mut request = format!("ws://{}{path}", edge.address).into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let (socket, _) = within("the handshake", client_async(request, stream)).await.unwrap();
    Client::greeted(socket).await
}

#[tokio::test]
async fn every_carrier_signs_in() {
    let guarded = edge(|_| {}).await;
    let edge = &guarded.edge;
    let alice = token("Alice", 60, json!({}));
    let bearer = format!("Bearer {alice}");
    let protocols = format!("tickmesh.v1, bearer.{alice}");
    for (path, header, user) in [
        ("/ws".to_owned(), Some(("Authorization", bearer.as_str())), json!("Alice")),
        ("/ws".to_owned(), Some(("X-API-Key", API_KEY)), json!("bob")),
        ("/ws".to_owned(), Some(("Sec-WebSocket-Protocol", protocols.as_str())), json!("Alice")),
        (format!("/ws?token={alice}"), None, json!("Alice")),
        (format!("/ws?api_key={API_KEY}"), None, json!("bob")),
        ("/ws".to_owned(), None, Value::Null),
    ] {
        let client = connect(edge, &path, header).await;
        assert_eq!(client.welcome["user"], user, "{path} {header:?}");
    }
    assert_eq!(edge.metric(r#"lifecycle_events_total{event="onAuthValidate"}"#), 5.0);
    guarded.edge.stop().await;
}

#[tokio::test]
async fn what_is_not_accepted_is_no_upgrade_and_says_why() {
    let guarded = edge(|_| {}).await;
    let edge = &guarded.edge;
    let good = token("alice", 60, json!({}));
    let cut = &good[..good.len() - 4];
    for (header, status, code) in [
        (format!("authorization: Bearer {}", token("alice", -60, json!({}))), 401, "token_expired"),
        (
            format!("authorization: Bearer {}", token("alice", 60, json!({"nbf": 4_000_000_000u64}))),
            401,
            "unauthorized",
        ),
        (format!("authorization: Bearer {cut}"), 401, "unauthorized"),
        ("authorization: Bearer nonsense".to_owned(), 401, "unauthorized"),
        (format!("authorization: Bearer {}", "x".repeat(9000)), 401, "unauthorized"),
        ("authorization: Basic YTpi".to_owned(), 401, "unauthorized"),
        ("x-api-key: guessed".to_owned(), 401, "unauthorized"),
        ("sec-websocket-protocol: tickmesh.v1, bearer.guessed".to_owned(), 401, "unauthorized"),
    ] {
        let answer = edge.handshake("/ws", &format!("{header}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{header}: {answer}");
        assert!(answer.contains(&format!(r#""code":"{code}""#)), "{header}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("www-authenticate: bearer"), "{header}: {answer}");
        for secret in ["guessed", "nonsense", &good[..20], "YTpi"] {
            assert!(!answer.contains(secret), "{answer}");
        }
    }
    // A head that is larger than any honest one is not read to its end.
    let answer = edge.handshake(&format!("/ws?token={}", "x".repeat(15 * 1024)), "").await;
    assert!(!answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert_eq!(edge.metric(r#"auth_rejections_total{reason="unknown_api_key"}"#), 1.0);
    assert_eq!(edge.metric(r#"auth_rejections_total{reason="expired"}"#), 1.0);
    guarded.edge.stop().await;
}

#[tokio::test]
async fn streams_are_given_by_what_the_token_allows() {
    let guarded = edge(|_| {}).await;
    let edge = &guarded.edge;
    let streams = [
        "ticker.global",
        "trades.btc_usdt",
        "trades.eth_usdt",
        "orders.alice",
        "orders.--_41lice",
        "orders.bob",
    ];
    let alice = token("alice", 60, json!({"pairs": ["btc_*"]}));
    let mut anonymous = connect(edge, "/ws", None).await;
    let mut alice = connect(edge, &format!("/ws?token={alice}"), None).await;
    for (client, refused) in [
        (
            &mut anonymous,
            &["trades.btc_usdt", "trades.eth_usdt", "orders.alice", "orders.--_41lice", "orders.bob"][..],
        ),
        (&mut alice, &["trades.eth_usdt", "orders.--_41lice", "orders.bob"]),
    ] {
        client.send(json!({"action": "subscribe", "streams": streams})).await;
        let answer = client.next_event("subscribed").await;
        let rejected = answer["rejected"].as_array().unwrap();
        let forbidden: Vec<_> = rejected
            .iter()
            .filter(|rejection| rejection["code"] == "forbidden")
            .map(|rejection| rejection["stream"].as_str().unwrap())
            .collect();
        assert_eq!(forbidden, refused, "{answer}");
    }
    guarded.edge.stop().await;
}

#[tokio::test]
async fn a_token_that_expires_is_warned_of_and_ends_the_connection_unless_renewed() {
    let guarded = edge(|config| config.token_warning = Duration::from_secs(3600)).await;
    let edge = &guarded.edge;
    let short = token("alice", 3, json!({}));
    let mut renewing = connect(edge, &format!("/ws?token={short}"), None).await;
    let mut lazy = connect(edge, &format!("/ws?token={short}"), None).await;
    let warning = renewing.next_event("warning").await;
    assert_eq!(warning["code"], "token_expired", "{warning}");
    assert!(warning["expiresAt"].as_u64().unwrap() > 1_700_000_000_000, "{warning}");

    for (token, answer) in [
        (token("bob", 60, json!({})), ("error", "forbidden")),
        (token("alice", -60, json!({})), ("error", "token_expired")),
        ("nonsense".to_owned(), ("error", "unauthorized")),
    ] {
        renewing.send(json!({"action": "authenticate", "id": 1, "token": token})).await;
        let error = renewing.next_event(answer.0).await;
        assert_eq!((&error["code"], &error["id"]), (&json!(answer.1), &json!(1)), "{error}");
    }
    renewing.subscribe(&["trades.btc_usdt", "trades.eth_usdt"]).await;
    let less = token("alice", 7200, json!({"pairs": ["btc_*"]}));
    renewing.send(json!({"action": "authenticate", "id": 2, "token": less})).await;
    let renewed = renewing.next_event("authenticated").await;
    assert_eq!((&renewed["user"], &renewed["id"]), (&json!("alice"), &json!(2)), "{renewed}");
    let ended = renewing.next_event("unsubscribed").await;
    assert_eq!(ended["streams"], json!(["trades.eth_usdt"]), "{ended}");
    assert_eq!(ended["rejected"][0]["code"], "forbidden", "{ended}");

    lazy.next_event("warning").await;
    assert_eq!(lazy.close_code(true).await, 4401);
    // Who has renewed stays.
    renewing.ping().await;
    guarded.edge.stop().await;
}

#[tokio::test]
async fn a_subscription_under_way_is_decided_by_the_newest_credentials() {
    let guarded = edge(|_| {}).await;
    let edge = &guarded.edge;
    let mut alice = connect(edge, &format!("/ws?token={}", token("alice", 3600, json!({}))), None).await;
    let held = edge.mesh.hold_answers();
    let streams = ["trades.btc_usdt", "trades.eth_usdt"];
    alice.send(json!({"action": "subscribe", "streams": streams})).await;
    let less = token("alice", 3600, json!({"pairs": ["btc_*"]}));
    alice.send(json!({"action": "authenticate", "token": less})).await;
    assert_eq!(alice.next().await["event"], "authenticated");
    drop(held);
    let answer = alice.next().await;
    assert_eq!(answer["streams"], json!(["trades.btc_usdt"]), "{answer}");
    assert_eq!(answer["rejected"][0]["stream"], "trades.eth_usdt", "{answer}");
    guarded.edge.stop().await;
}

#[tokio::test]
async fn a_user_has_so_many_connections_by_handshake_or_later() {
    let guarded = edge(|config| config.max_connections_per_user = Some(1)).await;
    let edge = &guarded.edge;
    let alice = token("alice", 3600, json!({}));
    let first = connect(edge, &format!("/ws?token={alice}"), None).await;
    let refused = edge.handshake(&format!("/ws?token={alice}"), "").await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    let _bob = connect(edge, &format!("/ws?token={}", token("bob", 3600, json!({}))), None).await;
    let mut later = connect(edge, "/ws", None).await;
    later.send(json!({"action": "authenticate", "token": alice})).await;
    assert_eq!(later.next().await["code"], "rate_limited");
    drop(first);
    wait_until("the place is free", || edge.metric("connections") == 2.0).await;
    later.send(json!({"action": "authenticate", "token": alice})).await;
    assert_eq!(later.next().await["event"], "authenticated");
    guarded.edge.stop().await;
}

#[tokio::test]
async fn a_removed_api_key_ends_its_connections_and_no_others() {
    let guarded = edge(|_| {}).await;
    let edge = &guarded.edge;
    let mut bot = connect(edge, "/ws", Some(("X-API-Key", API_KEY))).await;
    let mut alice = connect(edge, &format!("/ws?token={}", token("alice", 3600, json!({}))), None).await;
    fs::write(&guarded.keys, "").unwrap();
    assert_eq!(bot.close_code(true).await, 4401);
    alice.ping().await;
    let answer = edge.handshake("/ws", &format!("x-api-key: {API_KEY}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    wait_until("the connection is gone", || {
        edge.metric(r#"connections_closed_total{reason="credentials"}"#) == 1.0
    })
    .await;
    guarded.edge.stop().await;
}
