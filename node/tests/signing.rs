//! Events signed at ingest, handed on by an edge, verified by clients: processes, from the key file to the exit code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod support {
    pub mod node;
}

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::{SinkExt, StreamExt};
use support::node::{DEADLINE, Network, Node, Ports, Role, get, wait_until};
use tickmesh_protocol::{
    Position,
    client::{ControlMessage, DataMessage, ServerMessage},
    signature::KeySet,
};
use tokio::time::timeout;
use tokio_tungstenite::{connect_async, tungstenite::Message};

const STREAMS: [&str; 2] = ["trades.btc_usdt", "depth.btc_usdt"];

fn tickmesh(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tickmesh")).args(arguments).current_dir(folder).output().unwrap()
}

/// Makes a signing key and returns its public half.
fn signing_key(folder: &Path, file: &str) -> String {
    let made = tickmesh(folder, &["keys", "--signing", file]);
    assert!(made.status.success(), "{made:?}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(folder.join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    String::from_utf8(made.stdout).unwrap()
}

fn keys(text: &str) -> KeySet {
    KeySet::parse(text.as_bytes()).unwrap()
}

fn served(edge: &Node) -> KeySet {
    let (status, body) = get(edge.edge.unwrap(), "/.well-known/jwks.json");
    assert_eq!(status, 200, "{body}");
    keys(&body)
}

fn verify(keys: &KeySet, data: &DataMessage<'_>) -> bool {
    let at = Position { epoch: data.epoch.unwrap(), sequence: data.sequence };
    let signature = data.signature.as_deref().unwrap();
    keys.verify(signature, &data.stream, at, data.data.get().as_bytes()).is_ok()
}

/// An ingest peer that signs trades of a market, and an edge.
fn start(network: &Network) -> (Node, Node) {
    fn role<'a>(name: &'a str, roles: &'a str, more: &'a str) -> Role<'a> {
        Role { name, region: "eu-west", roles, ports: Ports::default(), node: "", ops: "", more }
    }
    let publishers = [network.key("ingest-1")];
    network.key("edge-1");

    let origin_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let market = format!(
        "[signing]\nkey_file = \"signing.jwk\"\nchannels = [\"trades\"]\n\
                  [[source]]\nname = \"market\"\nkind = \"embedded\"\nsymbols = [\"btc_usdt\"]\nrate = 200\n\
         origin = {origin_ms}\n"
    );
    // The same port when it starts again.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mesh = listener.local_addr().unwrap().port();
    drop(listener);
    let ingest =
        Role { ports: Ports { mesh, ..Ports::default() }, ..role("ingest-1", "[\"ingest\"]", &market) };
    let ingest = network.start(&ingest, &publishers, &[]);
    let serves = "[signing]\njwks_file = \"keys.json\"\n";
    let edge =
        network.start(&role("edge-1", "[\"edge\"]", serves), &publishers, std::slice::from_ref(&ingest.mesh));
    (ingest, edge)
}

/// Receives events of both streams until each has had some: each trade is signed, and nothing else.
async fn receive(url: &str, keys: &KeySet) {
    let (mut socket, _) = timeout(DEADLINE, connect_async(url)).await.unwrap().unwrap();
    let subscribe = serde_json::json!({"action": "subscribe", "streams": STREAMS}).to_string();
    socket.send(Message::text(&subscribe)).await.unwrap();
    let (mut signed, mut unsigned) = (0, 0);
    while signed < 5 || unsigned < 5 {
        let message = timeout(DEADLINE, socket.next()).await.expect("events come").unwrap().unwrap();
        let Message::Text(text) = message else { continue };
        let data = match ServerMessage::parse(text.as_str()).unwrap() {
            ServerMessage::Data(data) => data,
            // Nobody knows the streams yet: while the peers connect.
            ServerMessage::Control(ControlMessage::Subscribed { rejected, .. }) if !rejected.is_empty() => {
                socket.send(Message::text(&subscribe)).await.unwrap();
                continue;
            }
            ServerMessage::Control(_) => continue,
        };
        match &data.signature {
            Some(_) => {
                assert_eq!(data.stream.channel(), "trades", "{text}");
                assert!(verify(keys, &data), "{text}");
                signed += 1;
            }
            None => {
                assert_eq!((data.stream.channel(), data.epoch), ("depth", None), "{text}");
                unsigned += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_events_are_verified_from_the_key_file_to_the_client() {
    let network = Network::new();
    let folder = network.folder();
    let public = signing_key(folder, "signing.jwk");
    fs::write(folder.join("keys.json"), &public).unwrap();
    let (ingest, edge) = start(&network);
    ingest.wait_ready();
    edge.wait_ready();
    assert_eq!(served(&edge), keys(&public));
    receive(&edge.url(), &keys(&public)).await;
    assert!(ingest.metric("tickmesh_events_signed_total", "") >= 5.0);

    // The command verifies, by the address and by a file, and says so.
    let address = format!("http://{}/.well-known/jwks.json", edge.edge.unwrap());
    let url = edge.url();
    let follow = |stream: &str, from: &str, more: &[&str]| {
        let usual = ["client", "--url", &url, "--count", "5", "--jwks", from, "--subscribe", stream];
        tickmesh(folder, &[&usual[..], more].concat())
    };
    let required = ["--require-signature", "trades.*"];
    for from in [address.as_str(), "keys.json"] {
        let good = follow("trades.btc_usdt", from, &required);
        assert!(good.status.success(), "{good:?}");
        assert!(String::from_utf8_lossy(&good.stderr).contains("5 verified, 0 not signed"), "{good:?}");
    }
    // Unsigned events are no fault unless they must be signed.
    assert!(follow("depth.btc_usdt", &address, &required).status.success());
    let unsigned = follow("depth.btc_usdt", &address, &["--require-signature", "depth.*"]);
    assert_eq!(unsigned.status.code(), Some(1), "{unsigned:?}");
    // Another key of the exchange is not this one.
    fs::write(folder.join("other.json"), signing_key(folder, "other.jwk")).unwrap();
    let forged = follow("trades.btc_usdt", "other.json", &[]);
    assert_eq!(forged.status.code(), Some(1), "{forged:?}");
    assert!(String::from_utf8_lossy(&forged.stderr).contains("is not known"), "{forged:?}");
    // Without any key it does not begin.
    assert!(!follow("trades.btc_usdt", "absent.json", &[]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_while_edges_and_clients_go_on() {
    let network = Network::new();
    let folder = network.folder();
    let old = signing_key(folder, "signing.jwk");
    fs::write(folder.join("keys.json"), &old).unwrap();
    let (mut ingest, edge) = start(&network);
    edge.wait_ready();
    receive(&edge.url(), &keys(&old)).await;

    let new = signing_key(folder, "new.jwk");
    let both = keys(&new).with(&keys(&old)).unwrap();
    fs::write(folder.join("keys.json"), both.to_json()).unwrap();
    wait_until("the edge serves both keys", || (served(&edge) == both).then_some(()));
    // What cannot be read changes nothing.
    fs::write(folder.join("keys.json"), fs::read(folder.join("new.jwk")).unwrap()).unwrap();
    assert_eq!(served(&edge), both);

    fs::rename(folder.join("new.jwk"), folder.join("signing.jwk")).unwrap();
    ingest.restart();
    edge.wait_ready();
    // Only what is made now is awaited: all of it verifies with the new key alone.
    receive(&edge.url(), &keys(&new)).await;
    assert_eq!(served(&edge), both);
}
