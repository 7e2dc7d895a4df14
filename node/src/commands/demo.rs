//! `tickmesh demo`: the whole product in one process.

mod controls;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use futures_util::future::join_all;
use tickmesh::{
    app::{self, Bound, Running},
    auth::{self, JwtConfig},
    config::{Config, IngestRole, SourceRole},
    edge, ingest,
    mesh::{self, Identity, NetworkKey},
    ops::{self, metrics::now_us},
    page::{Network, NetworkEdge, page},
    signing::{self, PublicKeys, Signer},
    source::{self, embedded::Setting},
};
use tickmesh_protocol::{PublisherKey, signature::MessageKey};

use super::token::DEMO_SECRET;

/// Show it all at work: three regions, two ingest peers, a market, a page.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tickmesh demo\n  tickmesh demo --rate 2000 --port 9000\n\n\
                        Needs nothing else. Ends by Ctrl-C.")]
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
}

/// One peer of the demo.
struct Peer {
    name: &'static str,
    region: &'static str,
    ingest: bool,
    edge: bool,
}

/// The home region, with two ingest peers, and two others.
const PEERS: [Peer; 5] = [
    Peer { name: "eu-ingest-1", region: "eu-west", ingest: true, edge: false },
    Peer { name: "eu-ingest-2", region: "eu-west", ingest: true, edge: false },
    Peer { name: "eu-edge-1", region: "eu-west", ingest: false, edge: true },
    Peer { name: "us-edge-1", region: "us-east", ingest: false, edge: true },
    Peer { name: "ap-edge-1", region: "ap-northeast", ingest: false, edge: true },
];

impl Demo {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ops::log::start(ops::log::Format::Text, "error");
        super::runtime()?.block_on(self.demo())?;
        Ok(ExitCode::SUCCESS)
    }

    async fn demo(self) -> anyhow::Result<()> {
        let stop = app::asked_to_stop();
        let mut stop = std::pin::pin!(stop);
        let network_key = NetworkKey::generate()?;
        let identities = PEERS.iter().map(|_| Identity::generate()).collect::<Result<Vec<_>, _>>()?;
        let keys = |has_role: fn(&Peer) -> bool| -> Vec<PublisherKey> {
            let peers = PEERS.iter().zip(&identities).filter(|(peer, _)| has_role(peer));
            peers.map(|(_, identity)| identity.publisher()).collect()
        };
        let (publishers, edges) = (keys(|peer| peer.ingest), keys(|peer| peer.edge));
        // Both ingest peers read the same market: it opens as the demo starts.
        let market = Setting {
            seed: self.seed,
            rate: self.rate,
            origin_ms: now_us() / 1000,
            ..source::embedded::Config::default().setting
        };

        // Both sign with the exchange's one key.
        let message_key = signing::new_key();

        let mut bound = Vec::new();
        for (index, peer) in PEERS.iter().enumerate() {
            let mesh = mesh::Config {
                listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
                publishers: Some(publishers.clone()),
                edges: edges.clone(),
                ..mesh::Config::default()
            };
            bound.push(self.bind(index, peer, mesh, &message_key, &market)?);
        }
        let controls = self.controls()?;
        let pages: Vec<_> = bound.iter().filter_map(Bound::edge_addr).collect();
        let network = network(&bound, market.symbols, controls.local_addr()?);
        controls::serve(controls, &pages, PublicKeys { own: Some(message_key.public()), file: None })?;

        let mut running: Vec<Running> = Vec::new();
        let mut bootstrap = Vec::new();
        for ((peer, mut bound), identity) in PEERS.iter().zip(bound).zip(identities) {
            bound.bootstrap(&bootstrap);
            let pages =
                page(Network { node: peer.name.into(), region: peer.region.into(), ..network.clone() });
            let started = bound.start(identity, network_key.clone(), pages).await;
            let started = started.with_context(|| format!("{} does not start", peer.name))?;
            bootstrap.extend(started.mesh_addrs.iter().cloned());
            running.push(started);
        }
        self.explain(&network);

        stop.as_mut().await;
        println!("\nending: clients are told to go, what was read is delivered");
        // Ingest peers first, all together, then the edges: the direction of the data.
        let (edges, ingest): (Vec<_>, Vec<_>) = PEERS.iter().zip(running).partition(|(peer, _)| peer.edge);
        for group in [ingest, edges] {
            join_all(group.into_iter().map(|(_, peer)| peer.drain())).await;
        }
        Ok(())
    }

    fn bind(
        &self,
        index: usize,
        peer: &Peer,
        mesh: mesh::Config,
        message_key: &MessageKey,
        market: &Setting,
    ) -> anyhow::Result<Bound> {
        let edges_before = PEERS[..index].iter().filter(|peer| peer.edge).count();
        let port = self.port_after(edges_before)?;
        let auth = auth::Config {
            jwt: Some(JwtConfig::with_secret(DEMO_SECRET.as_bytes())),
            ..auth::Config::default()
        };
        let config = Config {
            name: peer.name.into(),
            region: peer.region.into(),
            private: Arc::new(auth::default_private()),
            mesh,
            auth,
            signing: signing::Config {
                signer: Arc::new(if peer.ingest {
                    Signer::new(message_key.clone(), auth::default_private())
                } else {
                    Signer::default()
                }),
                public: peer.edge.then(|| PublicKeys { own: Some(message_key.public()), file: None }),
            },
            edge: peer.edge.then(|| edge::Config {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                shards: 1,
                ..edge::Config::default()
            }),
            ingest: peer.ingest.then(|| IngestRole {
                // The market opens with the demo: nobody knows more than its log.
                ingest: ingest::Config { ask_siblings: Duration::ZERO, ..ingest::Config::default() },
                sources: vec![SourceRole {
                    source: source::Config {
                        name: "market".into(),
                        kind: source::Kind::Embedded(source::embedded::Config { setting: market.clone() }),
                    },
                    tiers: ingest::Tiers::default(),
                }],
                routes: Vec::new(),
                checkpoint_file: None,
            }),
            ops: ops::Config { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..ops::Config::default() },
        };
        app::bind(config).with_context(|| {
            format!(
                "{} cannot start; if another program has port {port}, try: tickmesh demo --port 9080",
                peer.name
            )
        })
    }

    /// The socket that the page's controls are served from.
    fn controls(&self) -> anyhow::Result<TcpListener> {
        let port = self.port_after(PEERS.iter().filter(|peer| peer.edge).count())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot listen on port {port} for the page's controls"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The port so many after the page's, or any.
    fn port_after(&self, count: usize) -> anyhow::Result<u16> {
        if self.port == 0 {
            return Ok(0);
        }
        let port = u16::try_from(count).ok().and_then(|count| self.port.checked_add(count));
        port.with_context(|| format!("--port {}: there are too few ports after it", self.port))
    }

    fn explain(&self, network: &Network) {
        println!("tickmesh demo: one exchange, three regions, one process\n");
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

/// What the page is told about the network.
fn network(bound: &[Bound], symbols: Vec<String>, controls: SocketAddr) -> Network {
    let mut edges = Vec::new();
    for (peer, bound) in PEERS.iter().zip(bound) {
        let Some(addr) = bound.edge_addr() else { continue };
        let title = tickmesh_regions::find(peer.region).map_or(peer.region, |region| &region.title);
        edges.push(NetworkEdge {
            name: peer.name.into(),
            region: peer.region.into(),
            title: title.into(),
            url: format!("ws://{addr}/ws"),
        });
    }
    let controls = Some(format!("http://{controls}"));
    Network { node: String::new(), region: String::new(), edges, symbols, controls }
}
