//! Log → two ingest peers → edge → WebSocket client, as processes. The log's server is down at first, and killed under load.

use crate::{
    client::{Client, assert_linked},
    log::Log,
    node::{Network, Node, Ports, Role, wait_until},
};

const STREAMS: u32 = 4;
const BATCH: u32 = 1500;

/// Each stream is in one partition.
fn records(numbers: std::ops::Range<u32>, partition: u32, partitions: u32) -> Vec<String> {
    let of = |number: &u32| number % STREAMS % partitions == partition;
    let record = |number| {
        format!(
            r#"{{"stream":"trades.s{}","data":{{"id":{number},"price":"1.{number}"}}}}"#,
            number % STREAMS
        )
    };
    numbers.filter(of).map(record).collect()
}

async fn append<L: Log>(log: &L, numbers: std::ops::Range<u32>) {
    for partition in 0..L::PARTITIONS {
        log.append("events", partition, &records(numbers.clone(), partition, L::PARTITIONS)).await;
    }
}

fn start<L: Log>(log: &L, network: &Network) -> (Vec<Node>, Node) {
    let names = ["ingest-1", "ingest-2"];
    let publishers = names.map(|name| network.key(name));
    network.key("edge-1");
    let source = format!(
        "[[source]]\nname = \"engine\"\nkind = {:?}\nstart = \"beginning\"\n{}",
        L::KIND,
        log.keys("events")
    );
    let mut bootstrap = Vec::new();
    let mut start = |name, roles, more: &str| {
        let role = Role { name, region: "eu-west", roles, ports: Ports::default(), node: "", ops: "", more };
        let node = network.start(&role, &publishers, &bootstrap);
        bootstrap.push(node.mesh.clone());
        node
    };
    let ingest = names.map(|name| start(name, "[\"ingest\"]", &source)).into();
    (ingest, start("edge-1", "[\"edge\"]", ""))
}

/// What a client has got is the log, digit for digit, each event once, linked, and no gap was told.
pub async fn clients_have_exactly_the_log<L: Log>(log: &mut L) {
    let network = Network::new();
    let (ingest, edge) = start(log, &network);
    for peer in &ingest {
        let (status, body) = peer.get("/readyz");
        assert!(status == 503 && body.contains("source engine"), "{status}: {body}");
        assert_eq!(peer.get("/healthz").0, 200, "it waits for the server, and lives");
    }
    log.start().await;
    log.create("events").await;
    let names: Vec<String> = (0..STREAMS).map(|n| format!("trades.s{n}")).collect();
    let streams: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = Client::connect(&edge.url()).await;
    client.subscribe_until_confirmed(&streams).await;

    let mut written = 0;
    for _ in 0..L::KILLS {
        append(log, written..written + BATCH).await;
        // A part of it has arrived.
        let some = (written + 200) as usize;
        client.receive_until("some have come", |all| all.values().map(Vec::len).sum::<usize>() >= some).await;
        log.kill();
        for peer in &ingest {
            wait_until("the lost server is seen", || (peer.get("/readyz").0 == 503).then_some(()));
        }
        log.start().await;
        written += BATCH;
        append(log, written..written + BATCH).await;
        written += BATCH;
    }

    let mut held = Vec::new();
    for partition in 0..L::PARTITIONS {
        held.extend(log.contents("events", partition).await);
    }
    assert_eq!(held.len(), written as usize);
    let all = held.len();
    client.receive_until("all have come", |events| events.values().map(Vec::len).sum::<usize>() >= all).await;
    for (n, stream) in names.iter().enumerate() {
        let expected: Vec<(u64, String)> = held
            .iter()
            .filter_map(|(position, record)| {
                let data =
                    record.strip_prefix(&format!(r#"{{"stream":"{stream}","data":"#))?.strip_suffix('}')?;
                Some((*position, data.to_owned()))
            })
            .collect();
        let events = &client.events[stream];
        let received: Vec<_> = events.iter().map(|event| (event.sequence, event.data.clone())).collect();
        assert!(
            received == expected,
            "{stream} ({n}): {} received, {} in the log",
            received.len(),
            expected.len()
        );
        assert_linked(stream, events);
    }
    assert_eq!(edge.metric("tickmesh_gaps_total", "repaired=\"no\""), 0.0);
    for peer in ingest.into_iter().chain([edge]) {
        assert!(peer.terminate().success());
    }
}
