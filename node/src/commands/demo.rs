//! `tickmesh demo`: the whole product on one machine, a process for each peer, so that any can be killed as by a crash.

mod controls;
mod plan;
mod ports;
mod process;

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use futures_util::future::join_all;
use libp2p::{Multiaddr, PeerId, multiaddr};
use tickmesh::{
    app,
    mesh::{Identity, NetworkKey},
    ops::{self, metrics::now_us},
    page::{Network, NetworkEdge},
    signing::{self, PublicKeys},
};
use tickmesh_protocol::signature::MessageKey;
use tokio::time::Instant;

use self::{
    controls::Controls,
    plan::{Market, Plan, Role},
    ports::Port,
    process::Process,
};

/// Show it all at work: three regions, two ingest peers, a market, a page.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tickmesh demo\n  tickmesh demo --rate 2000 --port 9000\n\n\
                        Needs nothing else. Each peer is a process, which the page can kill: it is started again after\n\
                        five seconds. Ends by Ctrl-C.")]
pub struct Demo {
    /// Port of the page; the other regions take the next two, the page's controls the one after. 0 takes any free ports
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Orders per second that the market makes, over all symbols
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seed of the market
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Be one of the peers; the demo starts itself with this
    #[arg(long, hide = true)]
    peer: bool,
}

/// How long all may take to end, one after the other, before they are killed. An edge waits a second at most for clients
/// that do not answer its goodbye; whoever pressed Ctrl-C should not wait much longer.
const END_PATIENCE: Duration = Duration::from_millis(1600);

/// A peer of the demo: an ingest peer, or an edge.
struct Peer {
    name: &'static str,
    region: &'static str,
    edge: bool,
}

/// The home region, with two ingest peers, and two others.
const PEERS: [Peer; 5] = [
    Peer { name: "eu-ingest-1", region: "eu-west", edge: false },
    Peer { name: "eu-ingest-2", region: "eu-west", edge: false },
    Peer { name: "eu-edge-1", region: "eu-west", edge: true },
    Peer { name: "us-edge-1", region: "us-east", edge: true },
    Peer { name: "ap-edge-1", region: "ap-northeast", edge: true },
];

/// A peer, with what is its own for as long as the demo runs.
struct Member {
    peer: &'static Peer,
    identity: Identity,
    mesh: Port,
    ops: Port,
    /// Of an edge.
    clients: Option<Port>,
}

/// A peer at work.
struct Running {
    name: &'static str,
    edge: bool,
    ops: SocketAddr,
    process: Process,
}

impl Demo {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if self.peer {
            return process::run();
        }
        ops::log::start(ops::log::Format::Text, "error");
        super::runtime()?.block_on(self.demo())?;
        Ok(ExitCode::SUCCESS)
    }

    async fn demo(self) -> anyhow::Result<()> {
        let stop = app::asked_to_stop();
        let mut stop = std::pin::pin!(stop);
        let members = self.members()?;
        let controls = self.port_after(members.iter().filter(|member| member.peer.edge).count())?;
        let market = Market { seed: self.seed, rate: self.rate, origin_ms: now_us() / 1000 };
        let network = network(&members, market, controls.address());
        // Both ingest peers sign with the exchange's one key.
        let message_key = signing::new_key();

        let mut running = Vec::new();
        for (member, plan) in members.iter().zip(plans(&members, market, &network, &message_key)?) {
            let Peer { name, edge, .. } = *member.peer;
            let process = Process::start(plan).await?;
            running.push(Running { name, edge, ops: member.ops.address(), process });
        }
        let running = Arc::new(running);
        let keys = PublicKeys { own: Some(message_key.public()), file: None };
        let pages = members.iter().filter_map(|member| Some(member.clients.as_ref()?.address().port()));
        let serving = Controls::new(pages, Arc::clone(&running)).serve(controls.address(), keys).await?;
        self.explain(&network);

        stop.as_mut().await;
        println!("\nending: clients are told to go, what was read is delivered");
        serving.abort();
        let deadline = Instant::now() + END_PATIENCE;
        // Ingest peers first, all together, then the edges: the direction of the data.
        for edges in [false, true] {
            let peers = running.iter().filter(|peer| peer.edge == edges);
            join_all(peers.map(|peer| peer.process.drain(deadline))).await;
        }
        Ok(())
    }

    fn members(&self) -> anyhow::Result<Vec<Member>> {
        let mut edges = 0;
        let mut members = Vec::new();
        for peer in &PEERS {
            let clients = peer.edge.then(|| self.port_after(edges)).transpose()?;
            edges += usize::from(peer.edge);
            let identity = Identity::generate()?;
            members.push(Member { peer, identity, mesh: Port::take(0)?, ops: Port::take(0)?, clients });
        }
        Ok(members)
    }

    /// The port so many after the page's, or any.
    fn port_after(&self, count: usize) -> anyhow::Result<Port> {
        let after = if self.port == 0 { Some(0) } else { u16::try_from(count).ok() };
        let port = after.and_then(|after| self.port.checked_add(after));
        let port = port.with_context(|| format!("--port {}: there are too few ports after it", self.port))?;
        Port::take(port).with_context(|| {
            format!("cannot take port {port}; if another program has it, try: tickmesh demo --port 9080")
        })
    }

    fn explain(&self, network: &Network) {
        println!("tickmesh demo: one exchange, three regions, five peers\n");
        println!(
            "  market       {} symbols, {} orders/s, seed {}",
            network.symbols.len(),
            self.rate,
            self.seed
        );
        println!(
            "  ingest       eu-ingest-1, eu-ingest-2 in eu-west: both read the market, each leads half of the topics"
        );
        for edge in &network.edges {
            println!("  edge         {:<12} {:<14} {}", edge.name, edge.region, edge.url);
        }
        if let Some(edge) = network.edges.first() {
            let page = edge.url.replacen("ws://", "http://", 1).replacen("/ws", "/", 1);
            println!("\n  page         {page}");
            println!("\nTry next:");
            println!("  tickmesh client --url {} --subscribe trades.btc_usdt --latency", edge.url);
            println!("  curl {page}readyz");
            println!("  curl {page}.well-known/jwks.json   # what private channels are signed with");
        }
        println!("\nCtrl-C ends it.");
    }
}

/// What each peer is started with, in the order of the members.
fn plans(
    members: &[Member],
    market: Market,
    network: &Network,
    message_key: &MessageKey,
) -> anyhow::Result<Vec<Plan>> {
    let network_key = NetworkKey::generate()?.to_file();
    let ids = |edge: bool| {
        let peers = members.iter().filter(move |member| member.peer.edge == edge);
        peers.map(|member| member.identity.peer_id().to_string()).collect::<Vec<_>>()
    };
    let (publishers, edges) = (ids(false), ids(true));
    let plan = |member: &Member| Plan {
        name: member.peer.name.into(),
        region: member.peer.region.into(),
        identity: member.identity.to_file(),
        network_key: network_key.clone(),
        publishers: publishers.clone(),
        edges: edges.clone(),
        mesh: multiaddr(&member.mesh),
        others: others(members, member.identity.peer_id()),
        ops: member.ops.address(),
        role: match &member.clients {
            None => Role::Ingest { market, message_key: message_key.to_jwk() },
            Some(port) => Role::Edge {
                listen: port.address(),
                public_keys: message_key.public().to_json(),
                network: network.clone(),
            },
        },
    };
    Ok(members.iter().map(plan).collect())
}

/// Where all but one listen for peers.
fn others(members: &[Member], me: PeerId) -> Vec<Multiaddr> {
    let others = members.iter().map(|member| (member.identity.peer_id(), &member.mesh));
    others
        .filter(|(id, _)| *id != me)
        .map(|(id, port)| multiaddr(port).with(multiaddr::Protocol::P2p(id)))
        .collect()
}

fn multiaddr(port: &Port) -> Multiaddr {
    Multiaddr::from(port.address().ip()).with(multiaddr::Protocol::Tcp(port.address().port()))
}

/// What the page is told about the network.
fn network(members: &[Member], market: Market, controls: SocketAddr) -> Network {
    let mut edges = Vec::new();
    for Member { peer, clients, .. } in members {
        let Some(port) = clients else { continue };
        let title = tickmesh_regions::find(peer.region).map_or(peer.region, |region| &region.title);
        edges.push(NetworkEdge {
            name: peer.name.into(),
            region: peer.region.into(),
            title: title.into(),
            url: format!("ws://{}/ws", port.address()),
        });
    }
    Network {
        node: String::new(),
        region: String::new(),
        edges,
        symbols: market.setting().symbols,
        controls: Some(format!("http://{controls}")),
    }
}
