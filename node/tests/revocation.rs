//! Credentials taken back by `tickmesh admin`, on real processes: everywhere, at once, and for good.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests are tests, too"
)]

#[path = "support/node.rs"]
mod node;
#[path = "support/ports.rs"]
mod ports;

use std::{
    fs,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt;
use jsonwebtoken::{EncodingKey, Header};
use node::{ADMIN, Network, Node, Ports, Role, wait_until};
use ports::free_port;
use serde_json::json;
use tickmesh::auth::hash_of;
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

const SECRET: &str = "a secret of thirty-two bytes or so";
const API_KEY: &str = "tk_live_0123456789";

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Rig {
    network: Network,
    ingest: Vec<Node>,
    edge: Node,
    runtime: Runtime,
}

impl Rig {
    /// Two ingest peers, and an edge that they know.
    fn start() -> Self {
        let network = Network::new();
        let folder = network.folder();
        let key = format!("[[key]]\nid = \"bot\"\nhash = {:?}\nuser = \"bob\"\n", hash_of(API_KEY));
        fs::write(folder.join("keys.toml"), key).unwrap();
        let publishers = ["ingest-1", "ingest-2"].map(|name| network.key(name));
        let edge = network.key("edge-1");
        let auth = format!("[auth.jwt]\nsecret = {SECRET:?}\n[auth.api_keys]\nfile = \"keys.toml\"\n");
        let more = format!(
            "edges = [{edge:?}]\n{auth}[[source]]\nname = \"market\"\nkind = \"embedded\"\nrate = 50\n"
        );
        let peers = ["ingest-1", "ingest-2"].map(|name| (name, free_port()));
        let (ingest, bootstrap) = network.start_ingest(peers, &publishers, &more);
        let role = Role {
            name: "edge-1",
            region: "us-east",
            roles: "[\"edge\"]",
            ports: Ports { edge: 0, mesh: 0 },
            node: "",
            ops: "",
            more: &auth,
        };
        let edge = network.start(&role, &publishers, &bootstrap);
        for node in ingest.iter().chain([&edge]) {
            node.wait_ready();
        }
        let runtime = Runtime::new().unwrap();
        Self { network, ingest, edge, runtime }
    }

    fn admin(&self, ingest: usize, arguments: &[&str]) -> Output {
        self.network.admin(&self.ingest[ingest], arguments)
    }

    fn revoke(&self, ingest: usize, what: &[&str]) {
        let output = self.admin(ingest, &[&["revoke"], what].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn connect(&self, header: (&'static str, String)) -> Result<Socket, u16> {
        let mut request = self.edge.url().into_client_request().unwrap();
        request.headers_mut().insert(header.0, header.1.parse().unwrap());
        match self.runtime.block_on(connect_async(request)) {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// How the edge closes a connection, and the reason.
    fn closed(&self, mut socket: Socket) -> (u16, String) {
        let closing = async {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(Some(frame)) = message {
                    return (frame.code.into(), frame.reason.to_string());
                }
            }
            panic!("it ended without Close");
        };
        self.runtime.block_on(async { timeout(node::DEADLINE, closing).await }).unwrap()
    }

    fn is_open(&self, socket: &mut Socket) -> bool {
        use futures_util::SinkExt;
        self.runtime.block_on(async {
            socket.send(Message::text(r#"{"action":"ping"}"#)).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if matches!(&message, Message::Text(text) if text.contains("pong")) {
                    return true;
                }
            }
            false
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn bearer(user: &str, id: &str, issued: u64) -> (&'static str, String) {
    let claims = json!({"sub": user, "jti": id, "iat": issued, "exp": issued + 3600});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    ("authorization", format!("Bearer {}", jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap()))
}

#[test]
fn what_is_revoked_at_one_ingest_peer_is_refused_everywhere_and_after_restarts() {
    let mut rig = Rig::start();
    let issued = now() - 5;
    let alice = rig.connect(bearer("alice", "a1", issued)).unwrap();
    let first = rig.connect(bearer("carol", "c1", issued)).unwrap();
    let mut second = rig.connect(bearer("carol", "c2", issued)).unwrap();
    let bot = rig.connect(("x-api-key", API_KEY.into())).unwrap();
    let mut other = rig.connect(bearer("dave", "d1", issued)).unwrap();

    rig.revoke(0, &["--user", "alice"]);
    rig.revoke(1, &["--token-id", "c1"]);
    rig.revoke(0, &["--api-key", "bot"]);
    for socket in [alice, first, bot] {
        assert_eq!(rig.closed(socket), (4401, "the credentials were revoked".to_owned()));
    }
    assert!(rig.is_open(&mut second) && rig.is_open(&mut other), "others are not touched");
    assert_eq!(rig.connect(bearer("alice", "a2", issued)).unwrap_err(), 401);
    assert_eq!(rig.connect(bearer("carol", "c1", issued)).unwrap_err(), 401);
    assert_eq!(rig.connect(("x-api-key", API_KEY.into())).unwrap_err(), 401);
    // A user may sign in anew.
    drop(rig.connect(bearer("alice", "a3", now() + 2)).unwrap());

    // Each ingest peer knows what the other was told, and tells an edge that starts when the other is gone.
    let listed = || {
        let output = rig.admin(1, &["revocations"]);
        let text = String::from_utf8(output.stdout).unwrap();
        (text.contains("alice") && text.contains("c1") && text.contains("bot")).then_some(())
    };
    wait_until("the other ingest peer knows all", listed);
    rig.ingest[0].kill();
    rig.ingest[1].restart();
    rig.ingest[1].wait_ready();
    rig.edge.restart();
    let refused = || rig.connect(bearer("alice", "a2", issued)).err();
    assert_eq!(wait_until("the edge has been told", refused), 401);
}

#[test]
fn only_who_has_the_token_may_revoke_and_only_at_an_ingest_peer() {
    let rig = Rig::start();
    fs::write(rig.network.folder().join("admin.token"), "a guess of seventeen").unwrap();
    let output = rig.admin(0, &["revoke", "--user", "alice"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("401"), "{error}");
    // This peer is given none by its configuration.
    let output = Command::new(env!("CARGO_BIN_EXE_tickmesh"))
        .args(["admin", "revoke", "--user", "alice", "--ops", &format!("http://{}", rig.edge.ops)])
        .env("TICKMESH_ADMIN_TOKEN", ADMIN)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("admin_token_file"), "{error}");
    let output = Command::new(env!("CARGO_BIN_EXE_tickmesh")).args(["admin", "revoke"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "nothing to revoke");
}
