//! The only wiring of a peer: bind, start, drain. Everything else knows its own stage and [`crate::ports`].

mod admin;
mod catalogue;
mod connect;
mod ingest_stage;
mod letters;
mod overview;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use axum::Router;
use libp2p::Multiaddr;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::catalogue::with_catalogue;
use self::{
    catalogue::Keeper,
    connect::MeshUpstream,
    ingest_stage::{IngestStage, Shared},
};
use crate::{
    auth::{Authenticator, Permissions},
    config::Config,
    edge,
    ingest::DeadLetters,
    mesh::{self, Identity, NetworkKey},
    ops::{self, health::Health, lifecycle::LifecycleEvents, metrics::Registry},
    signing,
};

/// Batches on their way from the mesh to the hub: some seconds of a busy mesh. The hub never waits, so more would only
/// hide that it has no CPU.
const EDGE_INPUT_BATCHES: usize = 8192;

/// Inputs on their way from the mesh to ingest; ingest may wait for the mesh while these gather.
const INGEST_INPUTS: usize = 8192;

/// How long one stage may take to end before the next is told to.
const STAGE_END: Duration = Duration::from_millis(1200);

/// A peer whose ports are taken, and that does nothing yet.
pub struct Bound {
    config: Config,
    edge: Option<edge::Bound>,
    ops: TcpListener,
}

/// A peer at work.
pub struct Running {
    /// Cancelled when a stage has ended.
    ended: CancellationToken,
    /// Where other peers reach it, with its peer id.
    pub mesh_addrs: Vec<Multiaddr>,
    stages: Stages,
}

/// The stages, each with the token that ends it, in the direction of the data.
#[derive(Default)]
struct Stages {
    sources: Vec<Stage>,
    /// Ends the sources that came while it ran.
    catalogue: Option<Keeper>,
    ingest: Option<(CancellationToken, thread::JoinHandle<()>)>,
    letters: Vec<Stage>,
    edge: Option<Stage>,
    mesh: Option<Stage>,
    ops: Option<Stage>,
    /// Ends what credentials are checked with, after all who check.
    auth: Option<DropGuard>,
}

struct Stage {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Takes the ports of a peer.
///
/// # Errors
/// If one is taken or not allowed; the message names the key.
pub fn bind(config: Config) -> anyhow::Result<Bound> {
    let edge = match config.edge.clone() {
        Some(edge) => Some(edge::bind(edge)?),
        None => None,
    };
    let listen = config.ops.listen;
    let ops = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen} (ops.listen)"))?;
    ops.set_nonblocking(true)?;
    Ok(Bound { config, edge, ops })
}

impl Bound {
    /// Where clients connect, with the edge role.
    pub fn edge_addr(&self) -> Option<SocketAddr> {
        self.edge.as_ref().map(edge::Bound::local_addr)
    }

    /// Where operators look.
    pub fn ops_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.ops.local_addr()?)
    }

    /// Adds peers to dial, for networks whose ports were not known when they were configured.
    pub fn bootstrap(&mut self, peers: &[Multiaddr]) {
        self.config.mesh.bootstrap.extend_from_slice(peers);
    }

    /// Starts everything. `pages` are served beside `/ws`.
    ///
    /// # Errors
    /// If the mesh cannot listen, or a thread cannot be started. Logs that do not answer are no error: they are waited
    /// for.
    pub async fn start(
        self,
        identity: Identity,
        network_key: NetworkKey,
        pages: Router,
    ) -> anyhow::Result<Running> {
        let Self { config, edge, ops } = self;
        let registry = Registry::new();
        registry.build_info(&config.name, &config.region);
        let health = Health::default();
        let lifecycle = LifecycleEvents::new(&registry);
        let dead_letters = DeadLetters::default();
        let mut stages = Stages::default();
        let ended = CancellationToken::new();

        let (edge_input, batches) = mpsc::channel(EDGE_INPUT_BATCHES);
        let (ingest_input, inputs) = mpsc::channel(INGEST_INPUTS);
        let shared = Shared {
            region: &config.region,
            private: &config.private,
            signer: &config.signing.signer,
            registry: &registry,
            health: &health,
            lifecycle: &lifecycle,
            dead_letters: &dead_letters,
        };
        let ingest = match config.ingest {
            Some(role) => Some(IngestStage::open(role, identity.signing_key(), &shared)?),
            None => None,
        };
        let auth_stop = CancellationToken::new();
        let authenticator =
            Authenticator::open(&config.auth, &registry, auth_stop.clone()).context("cannot start [auth]")?;
        stages.auth = Some(auth_stop.clone().drop_guard());
        let (me, publishes) = (identity.publisher(), ingest.is_some());
        let access = mesh::PrivateAccess {
            authenticator: Arc::clone(&authenticator),
            permissions: Permissions { private: Arc::clone(&config.private), ..Permissions::default() },
        };
        let ports = mesh::Ports {
            private: ingest.is_some().then_some(access),
            edge: edge.is_some().then_some(edge_input),
            ingest: ingest.is_some().then_some(ingest_input),
            feeds: ingest.as_ref().map(|stage| stage.opened.feeds()),
        };
        let sees = ingest.as_ref().map(|stage| stage.opened.overlook());
        let publishers = config.mesh.publishers.iter().flatten().copied();
        let siblings: Vec<_> = publishers.filter(|key| *key != me).collect();
        let mesh_stop = CancellationToken::new();
        let (mesh, task) = mesh::start(
            config.mesh.clone(),
            identity,
            network_key,
            ports,
            &registry,
            health.condition("mesh"),
            mesh_stop.clone(),
        )
        .await
        .context("cannot start the mesh (mesh.listen)")?;
        stages.mesh = Some(Stage { stop: mesh_stop, task: watched(task, &ended) });

        if let Some(edge) = edge {
            let stop = CancellationToken::new();
            let pages = match config.signing.public {
                Some(keys) => pages.merge(signing::router(keys).context("cannot start [signing]")?),
                None => pages,
            };
            let parts = edge::Parts {
                node: edge::NodeInfo { name: config.name.clone(), region: config.region.clone() },
                upstream: Arc::new(MeshUpstream(mesh.clone())),
                batches,
                authenticator: Arc::clone(&authenticator),
                pages: pages.merge(ops::http::health_router(health.clone())),
                registry: registry.clone(),
                lifecycle: lifecycle.clone(),
            };
            let run = edge.run(parts, stop.clone());
            let task = tokio::spawn(async move {
                if let Err(error) = run.await {
                    tracing::error!(%error, "edge ended");
                }
            });
            stages.edge = Some(Stage { stop, task: watched(task, &ended) });
        }

        let keeper = match ingest {
            Some(stage) => Some(stage.start(&mesh, inputs, siblings, &shared, &ended, &mut stages).await?),
            None => None,
        };

        let admin = admin::router(config.ops.admin_token, Arc::clone(&authenticator), keeper);
        if let Some(me) = publishes.then_some(me) {
            let stop = auth_stop.clone();
            tokio::spawn(admin::follow_siblings(mesh.clone(), me, authenticator, stop));
        }
        let overview = overview::page(&config.name, &config.region, &mesh, &registry, sees);
        let letters = move || serde_json::json!({ "dead_letters": dead_letters.list() });
        let pages = ops::http::router(registry, health, letters, overview).merge(admin);
        stages.ops = Some(serve_ops(ops, pages)?);
        Ok(Running { ended, mesh_addrs: mesh.listen_addrs().to_vec(), stages })
    }
}

fn serve_ops(listener: TcpListener, router: Router) -> anyhow::Result<Stage> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "operators' pages ended");
        }
    });
    Ok(Stage { stop, task })
}

/// Tells when a task has ended, even by a panic.
fn watched(task: JoinHandle<()>, ended: &CancellationToken) -> JoinHandle<()> {
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        let _guard = guard;
        if let Err(error) = task.await {
            tracing::error!(%error, "a stage failed");
        }
    })
}

impl Running {
    /// Resolves when a stage has ended though nobody asked it to: without it the peer is of no use, and a new start may mend it.
    pub async fn broken(&self) {
        self.ended.cancelled().await;
    }

    /// Ends the stages one after the other, in the direction of the data, so that what was read is still delivered.
    pub async fn drain(self) {
        let Stages { sources, catalogue, ingest, letters, edge, mesh, ops, auth: _auth } = self.stages;
        for source in &sources {
            source.stop.cancel();
        }
        for source in sources {
            source.end("source").await;
        }
        if let Some(catalogue) = catalogue {
            catalogue.end_sources().await;
        }
        if let Some((stop, thread)) = ingest {
            stop.cancel();
            let ended = tokio::task::spawn_blocking(|| thread.join());
            if timeout(STAGE_END, ended).await.is_err() {
                tracing::warn!(stage = "ingest", "did not end in time");
            }
        }
        for carrier in letters {
            carrier.end("dead letters").await;
        }
        for (name, stage) in [("edge", edge), ("mesh", mesh), ("ops", ops)] {
            if let Some(stage) = stage {
                stage.end(name).await;
            }
        }
    }
}

impl Stage {
    async fn end(self, name: &str) {
        self.stop.cancel();
        match timeout(STAGE_END, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(stage = name, %error, "failed"),
            Err(_) => tracing::warn!(stage = name, "did not end in time"),
        }
    }
}

/// Resolves when the process is asked to end: SIGTERM or Ctrl-C.
pub async fn asked_to_stop() {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::error!(%error, "SIGTERM is not heard; only Ctrl-C ends this process");
            let _ = tokio::signal::ctrl_c().await;
            return;
        }
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "asked to stop"),
        _ = tokio::signal::ctrl_c() => tracing::info!(signal = "SIGINT", "asked to stop"),
    }
}
