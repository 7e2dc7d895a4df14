//! Records that become dead letters, their sink in the same log, and their way back after the route is mended, as processes.

use crate::{
    client::{Client, assert_linked},
    log::Log,
    node::{Network, Node, Ports, Role, wait_until},
};

/// Where dead letters go.
const LETTERS: &str = "tickmesh.dead-letters";
const TOPIC: &str = "letters-raw";
const GOOD: u32 = 20;
const BAD: u32 = 5;

/// Prices that a route which wants numbers takes, and others.
fn records() -> Vec<String> {
    let record = |price: String| format!(r#"{{"s":"BTC","p":"{price}"}}"#);
    let good = (0..GOOD).map(|number| record(format!("1.{number}")));
    good.chain((0..BAD).map(|number| record(format!("x{number}")))).collect()
}

fn start<L: Log>(log: &L, network: &Network, names: &[&str], publishers: &[String], data: &str) -> Vec<Node> {
    let more = format!(
        "[[source]]\nname = \"engine\"\nkind = {:?}\nstart = \"beginning\"\n{}\
         [[route]]\nsource = \"engine\"\ntopic = \"letters-raw*\"\nchannel = \"trades\"\nkey = \".s | ascii_downcase\"\n\
         data = {data:?}\n[dead_letters]\ntopic = {LETTERS:?}\n",
        L::KIND,
        log.writing_keys(TOPIC)
    );
    let mut bootstrap = Vec::new();
    let start = |name: &&str| {
        let (roles, more) =
            if name.starts_with("edge") { ("[\"edge\"]", "") } else { ("[\"ingest\"]", more.as_str()) };
        let role = Role { name, region: "eu-west", roles, ports: Ports::default(), node: "", ops: "", more };
        let node = network.start(&role, publishers, &bootstrap);
        bootstrap.push(node.mesh.clone());
        node
    };
    names.iter().map(start).collect()
}

fn waits_for(peer: &Node, metric: &str, value: u32) {
    let shown = || peer.metric(&format!("tickmesh_dead_letters_{metric}"), "source=\"engine\"");
    wait_until(&format!("{metric} of dead letters is {value}"), || {
        ((shown() - f64::from(value)).abs() < 0.5).then_some(())
    });
}

/// The sink is not there at first, and a peer is killed meanwhile.
pub async fn dead_letters_are_kept_and_come_back<L: Log>(log: &L) {
    let network = Network::new();
    let names = ["ingest-1", "ingest-2", "edge-1"];
    let publishers: Vec<_> = names.iter().map(|name| network.key(name)).collect();
    let (publishers, config) = (&publishers[..2], ["--config", "ingest-1.toml"]);
    log.create(TOPIC).await;
    log.refuse_letters(LETTERS).await;
    log.append(TOPIC, 0, &records()).await;
    let mut peers = start(log, &network, &names, publishers, "{price: (.p | tonumber | tostring)}");
    for peer in &peers[..2] {
        waits_for(peer, "waiting", BAD);
        wait_until("the sink is seen to fail", || {
            (peer.metric("tickmesh_dead_letters_failures_total", "") > 0.0).then_some(())
        });
    }
    // What it had not handed on yet it reads again.
    peers[1].restart();
    waits_for(&peers[1], "waiting", BAD);
    log.take_letters(LETTERS).await;
    for peer in &peers[..2] {
        waits_for(peer, "waiting", 0);
        waits_for(peer, "written_total", BAD);
    }
    let command = |what: &[&str]| network.tickmesh(&[&["dead-letters"][..], what, &config].concat());
    let listed = command(&["list"]);
    assert!(listed.ends_with(&format!("{BAD} letters")), "each once, whoever wrote it:\n{listed}");
    assert!(listed.contains("engine/letters-raw") && listed.contains("data: "), "{listed}");
    for peer in peers {
        assert!(peer.terminate().success());
    }

    // The route is mended.
    let peers = start(log, &network, &names, publishers, "{price: .p}");
    let mut client = Client::connect(&peers[2].url()).await;
    client.subscribe_until_confirmed(&["trades.btc"]).await;
    let dry = command(&["replay", "--dry-run"]);
    for number in 0..BAD {
        let event = format!(r#"trades.btc {{"price":"x{number}"}}"#);
        assert!(dry.contains(&event), "no {event} in:\n{dry}");
    }
    assert!(dry.contains(&format!("{BAD} would be put back")), "{dry}");
    assert_eq!(command(&["replay"]), format!("{BAD} put back"));
    let again = command(&["replay"]);
    assert_eq!(again, format!("0 put back\n{BAD} were put back before"), "a second call doubles nothing");
    let bad = BAD as usize;
    client
        .receive_until("what was put back has come", |events| {
            events.get("trades.btc").map_or(0, Vec::len) >= bad
        })
        .await;
    let events = &client.events["trades.btc"];
    let prices: Vec<&str> = events.iter().map(|event| event.data.as_str()).collect();
    let expected: Vec<_> = (0..BAD).map(|number| format!(r#"{{"price":"x{number}"}}"#)).collect();
    assert_eq!(prices, expected);
    assert_linked("trades.btc", events);
    let held = log.contents(TOPIC, 0).await;
    assert_eq!(held.len(), (GOOD + 2 * BAD) as usize, "once more each");
    assert!(command(&["list"]).matches("\tput back\t").count() == bad);
    for peer in &peers[..2] {
        assert_eq!(peer.metric("tickmesh_dead_letters_total", ""), 0.0, "nothing is read again");
    }
    for peer in peers {
        assert!(peer.terminate().success());
    }
}
