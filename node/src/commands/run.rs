//! `tickmesh run`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use axum::Router;
use tickmesh::{
    app,
    config::Config,
    mesh::{Identity, NetworkKey},
    ops,
};

/// Run one peer.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tickmesh run --config node.toml\n  \
                        TICKMESH_EDGE__LISTEN=0.0.0.0:9000 tickmesh run --config node.toml\n\n\
                        Ends by SIGTERM or Ctrl-C: clients are told to reconnect elsewhere.")]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Run {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        // What NATS' client says of its connections the source says itself, once, as a condition.
        ops::log::start(config.ops.log_format, "info,async_nats=off");
        super::runtime()?.block_on(run(config))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let key_file = &config.mesh.key_file;
    let identity = if key_file.exists() {
        Identity::load(key_file)?
    } else {
        let identity = Identity::create(key_file)?;
        tracing::info!(file = %key_file.display(), peer = %identity.peer_id(), "made a key for this peer");
        identity
    };
    let network_key = NetworkKey::load(&config.mesh.network_key_file)
        .context("every peer needs the network's key (mesh.network_key_file); make one with: tickmesh keys --network network.psk")?;

    let (name, region, peer) = (config.name.clone(), config.region.clone(), identity.peer_id());
    let bound = app::bind(config)?;
    let (edge, ops) = (bound.edge_addr(), bound.ops_addr()?);
    let running = bound.start(identity, network_key, Router::new()).await?;
    let mesh: Vec<String> = running.mesh_addrs.iter().map(ToString::to_string).collect();
    tracing::info!(node = name, region, %peer, ?mesh, ?edge, %ops, "running");
    let broken = tokio::select! {
        () = app::asked_to_stop() => false,
        () = running.broken() => true,
    };
    running.drain().await;
    ensure!(!broken, "a part of this peer ended; what it said of that is in the log");
    Ok(())
}
