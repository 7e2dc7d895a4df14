//! What one client, one user and one address may take.

use std::num::NonZeroU32;

use governor::Quota;
use serde_json::json;

use super::support::{Edge, config, wait_until};

#[tokio::test]
async fn an_address_has_so_many_connections_whoever_speaks_for_it() {
    let mut config = config();
    config.max_connections_per_address = Some(2);
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let edge = Edge::start(config).await;
    let first = edge.connect().await;
    let _second = edge.connect().await;
    let refused = edge.handshake("/ws", "").await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(refused.contains(r#""code":"rate_limited""#) && refused.contains("retry-after"), "{refused}");
    // Another one behind the same proxy.
    let welcome = edge.handshake("/ws", "x-forwarded-for: 6.6.6.6, 198.51.100.7\r\n").await;
    assert!(welcome.starts_with("HTTP/1.1 101"), "{welcome}");
    drop(first);
    wait_until("its place is free", || edge.metric("connections") == 1.0).await;
    edge.connect().await;
    edge.stop().await;
}

#[tokio::test]
async fn a_trusted_proxy_says_by_its_header_whose_connection_it_is() {
    let mut config = config();
    config.max_connections_per_address = Some(1);
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    config.proxy_protocol = true;
    let edge = Edge::start(config).await;
    let behind = |client: &str| format!("PROXY TCP4 {client} 10.0.0.1 12345 443\r\n");
    let mut connections = Vec::new();
    for client in ["198.51.100.7", "198.51.100.8"] {
        let (connection, answer) = edge.open(&behind(client), "/ws", "").await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        connections.push(connection);
    }
    let (_, refused) = edge.open(&behind("198.51.100.7"), "/ws", "").await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    // Without the header it is hung up on.
    assert_eq!(edge.handshake("/ws", "").await, "");
    edge.stop().await;
}

#[tokio::test]
async fn only_pages_of_listed_origins_connect() {
    let mut config = config();
    config.origins = Some(vec!["https://exchange.example".to_owned()]);
    let edge = Edge::start(config).await;
    for (header, status) in [
        ("", "101"),
        ("origin: https://exchange.example\r\n", "101"),
        ("origin: https://exchange.example.evil.example\r\n", "403"),
        ("origin: null\r\n", "403"),
    ] {
        let answer = edge.handshake("/ws", header).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{header}: {answer}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn who_asks_too_much_is_told_and_then_closed() {
    let number = |number| NonZeroU32::new(number).unwrap();
    let mut config = config();
    config.requests = Quota::per_hour(number(1)).allow_burst(number(5));
    let edge = Edge::start(config).await;
    let mut greedy = edge.connect().await;
    let mut modest = edge.connect().await;
    for id in 0..15 {
        greedy.send(json!({"action": "ping", "id": id})).await;
    }
    for id in 0..15 {
        let answer = greedy.next().await;
        assert_eq!(answer["id"], id, "{answer}");
        if id < 5 {
            assert_eq!(answer["event"], "pong", "{answer}");
        } else {
            assert_eq!(answer["code"], "rate_limited", "{answer}");
        }
    }
    assert_eq!(greedy.close_code(false).await, 4429);
    modest.ping().await;
    edge.stop().await;
}
