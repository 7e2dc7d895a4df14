//! Private streams: asked for with what the user has shown, pushed by one ingest peer, taken over by the next.

use serde_json::json;
use tickmesh_protocol::{
    client::Credential,
    feed::{Denial, PrivateChange},
};

use super::{
    auth::{Guarded, connect, edge, token},
    support::{Client, events, wait_until},
};

const STREAM: &str = "orders.--_41lice";

async fn alice(guarded: &Guarded) -> (Client, String) {
    let token = token("Alice", 600, json!({}));
    let client = connect(&guarded.edge, "/ws", Some(("Authorization", &format!("Bearer {token}")))).await;
    (client, token)
}

async fn push(guarded: &Guarded, sequences: std::ops::Range<u64>) -> usize {
    guarded.edge.mesh.servers.push(&events(1, STREAM, sequences, |n| json!({"n": n}).to_string())).await
}

#[tokio::test]
async fn all_connections_of_a_user_get_its_events_and_gossip_is_not_joined() {
    let guarded = edge(|_| {}).await;
    guarded.edge.lose(STREAM, 1..4);
    let (mut first, token) = alice(&guarded).await;
    let (mut second, _) = alice(&guarded).await;
    for client in [&mut first, &mut second] {
        let confirmed = client.subscribe(&[STREAM]).await;
        assert_eq!(confirmed["positions"][STREAM]["sequence"], 3);
    }
    assert_eq!(push(&guarded, 4..6).await, 1);
    for client in [&mut first, &mut second] {
        assert_eq!(client.sequences(2).await, [4, 5]);
    }
    assert_eq!(guarded.edge.metric(r#"lifecycle_events_total{event="onUserStreamPush"}"#), 4.0);
    // Nothing that others publish by gossip under this name is believed: it is not even joined.
    assert_eq!(guarded.edge.mesh.joined(), 0);
    let told = guarded.edge.mesh.servers.told();
    let shown = |change: &PrivateChange| match change {
        PrivateChange::Add { credential, .. } => credential == &Credential::token(&token),
        _ => false,
    };
    assert!(told.iter().any(|(_, change)| shown(change)), "ingest is shown what the user has shown");
    // When nobody has the stream any more, ingest is told.
    drop((first, second));
    let removed = || {
        let told = guarded.edge.mesh.servers.told();
        told.iter().any(|(_, change)| matches!(change, PrivateChange::Remove { .. }))
    };
    wait_until("the stream is left", removed).await;
    assert_eq!(push(&guarded, 6..7).await, 0);
    guarded.edge.stop().await;
}

#[tokio::test]
async fn the_next_ingest_peer_goes_on_without_a_gap() {
    let guarded = edge(|_| {}).await;
    let servers = &guarded.edge.mesh.servers;
    servers.connect([(0, 0), (1, 1)]);
    let (mut client, _) = alice(&guarded).await;
    client.subscribe(&[STREAM]).await;
    assert_eq!(push(&guarded, 1..3).await, 1, "one ingest peer pushes, not both");
    assert_eq!(client.sequences(2).await, [1, 2]);
    for round in 0..4_u64 {
        let pusher = servers.pushers(STREAM)[0];
        servers.cut_private(pusher.0[0]);
        // Before anybody pushes again.
        guarded.edge.lose(STREAM, 3 + 4 * round..5 + 4 * round);
        wait_until("another one pushes", || servers.pushers(STREAM).iter().any(|other| *other != pusher))
            .await;
        assert_eq!(push(&guarded, 5 + 4 * round..7 + 4 * round).await, 1);
        assert_eq!(client.sequences(4).await, Vec::from_iter(3 + 4 * round..7 + 4 * round));
        let both = || servers.told().iter().filter(|(server, _)| *server == pusher).count() > 1;
        wait_until("the lost one is told again", both).await;
    }
    guarded.edge.stop().await;
}

#[tokio::test]
async fn what_was_missed_is_resumed_for_its_user() {
    let guarded = edge(|_| {}).await;
    guarded.edge.lose(STREAM, 1..200);
    let (mut client, _) = alice(&guarded).await;
    client.send(json!({"action": "resume", "positions": {STREAM: 50}})).await;
    assert_eq!(client.sequences(149).await, Vec::from_iter(51..200));
    assert_eq!(client.next().await["event"], "resumed");
    assert_eq!(push(&guarded, 200..201).await, 1);
    assert_eq!(client.sequences(1).await, [200]);
    guarded.edge.stop().await;
}

#[tokio::test]
async fn what_ingest_denies_is_refused() {
    let guarded = edge(|_| {}).await;
    for (denial, code) in [
        (Denial::Forbidden, "forbidden"),
        (Denial::Expired, "token_expired"),
        (Denial::Unavailable, "unavailable"),
    ] {
        guarded.edge.mesh.servers.deny_private(Some(denial));
        let (mut client, _) = alice(&guarded).await;
        client.send(json!({"action": "subscribe", "streams": [STREAM]})).await;
        let reply = client.next().await;
        assert_eq!((&reply["streams"], &reply["rejected"][0]["code"]), (&json!([]), &json!(code)), "{reply}");
    }
    guarded.edge.mesh.servers.deny_private(None);
    let (mut client, _) = alice(&guarded).await;
    client.subscribe(&[STREAM]).await;
    // A newer token is shown to ingest as well.
    let newer = token("Alice", 900, json!({}));
    client.send(json!({"action": "authenticate", "token": newer})).await;
    assert_eq!(client.next().await["event"], "authenticated");
    let shown = || {
        let told = guarded.edge.mesh.servers.told();
        told.iter().any(|(_, change)| {
            matches!(change, PrivateChange::Add { credential, .. } if *credential == Credential::token(&newer))
        })
    };
    wait_until("ingest has the newer token", shown).await;
    guarded.edge.stop().await;
}
