//! What a peer of the demo is: all that its process is told, the same each time it is started.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};
use tickmesh::{
    app::{self, Running},
    auth::{self, JwtConfig},
    config::{Config, IngestRole, SourceRole},
    edge, ingest,
    mesh::{self, Identity, PublisherId},
    ops,
    page::{Network, page},
    signing::{self, PublicKeys, Signer},
    source,
};
use tickmesh_protocol::{
    PublisherKey,
    signature::{KeySet, MessageKey},
};

use crate::commands::token::DEMO_SECRET;

/// Told in one line of JSON on standard input, since it holds secrets.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    pub name: String,
    pub region: String,
    /// Texts of key files.
    pub identity: String,
    pub network_key: String,
    /// Peer ids of all ingest peers, and of all edges.
    pub publishers: Vec<String>,
    pub edges: Vec<String>,
    /// Where it listens for peers, and where the others do.
    pub mesh: Multiaddr,
    pub others: Vec<Multiaddr>,
    pub ops: SocketAddr,
    pub role: Role,
}

/// The one role that a peer of the demo has.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Ingest {
        market: Market,
        /// The exchange's secret key, as a JWK.
        message_key: String,
    },
    Edge {
        listen: SocketAddr,
        /// The exchange's public keys, as a JWKS.
        public_keys: String,
        network: Network,
    },
}

/// Both ingest peers read the same one: it opens as the demo starts.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Market {
    pub seed: u64,
    pub rate: u64,
    pub origin_ms: u64,
}

impl Market {
    pub fn setting(self) -> source::embedded::Setting {
        let Self { seed, rate, origin_ms } = self;
        let default = source::embedded::Config::default().setting;
        source::embedded::Setting { seed, rate, origin_ms, ..default }
    }
}

impl Plan {
    /// Binds and starts the peer.
    pub async fn start(self) -> anyhow::Result<Running> {
        let identity: Identity = self.identity.parse().context("its key")?;
        let network_key = self.network_key.parse().context("the network's key")?;
        let config = self.config()?;
        let pages = match self.role {
            Role::Ingest { .. } => axum::Router::new(),
            Role::Edge { network, .. } => page(Network { node: self.name, region: self.region, ..network }),
        };
        app::bind(config)?.start(identity, network_key, pages).await
    }

    fn config(&self) -> anyhow::Result<Config> {
        let (mut signing, mut edge, mut ingest) = (signing::Config::default(), None, None);
        match &self.role {
            Role::Ingest { market, message_key } => {
                let key = MessageKey::from_jwk(message_key.as_bytes()).context("the exchange's key")?;
                signing.signer = Arc::new(Signer::new(key, auth::default_private()));
                ingest = Some(ingest_role(*market));
            }
            Role::Edge { listen, public_keys, .. } => {
                let own = KeySet::parse(public_keys.as_bytes()).context("the exchange's public keys")?;
                signing.public = Some(PublicKeys { own: Some(own), file: None });
                edge = Some(edge::Config { listen: *listen, shards: 1, ..edge::Config::default() });
            }
        }
        Ok(Config {
            name: self.name.clone(),
            region: self.region.clone(),
            private: Arc::new(auth::default_private()),
            mesh: mesh::Config {
                listen: vec![self.mesh.clone()],
                bootstrap: self.others.clone(),
                publishers: Some(keys(&self.publishers)?),
                edges: keys(&self.edges)?,
                ..mesh::Config::default()
            },
            auth: auth::Config {
                jwt: Some(JwtConfig::with_secret(DEMO_SECRET.as_bytes())),
                ..auth::Config::default()
            },
            signing,
            edge,
            ingest,
            ops: ops::Config { listen: self.ops, ..ops::Config::default() },
        })
    }
}

fn ingest_role(market: Market) -> IngestRole {
    let setting = market.setting();
    IngestRole {
        // The market opens with the demo: nobody knows more than its log.
        ingest: ingest::Config { ask_siblings: Duration::ZERO, ..ingest::Config::default() },
        sources: vec![SourceRole {
            source: source::Config {
                name: "market".into(),
                kind: source::Kind::Embedded(source::embedded::Config { setting }),
            },
            tiers: ingest::Tiers::default(),
        }],
        routes: Vec::new(),
        dead_letters: None,
        checkpoint_file: None,
        catalogue_file: None,
        catalogue_folder: None,
        folder: std::path::PathBuf::new(),
    }
}

fn keys(ids: &[String]) -> anyhow::Result<Vec<PublisherKey>> {
    ids.iter().map(|id| Ok(id.parse::<PublisherId>()?.0)).collect()
}
