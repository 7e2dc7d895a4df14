//! An edge that sends every message back as it was: what the Autobahn suite talks to (`./test`). Everything but the
//! answers is the edge's own: accepting, the handshake, frames, closing.
//!
//! It listens on the address it is given, 127.0.0.1 and a free port without one, and says where.

#![allow(clippy::print_stdout, reason = "whoever starts it reads where it listens")]

use std::{env, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use futures_util::{
    future::{self, BoxFuture},
    stream::{self, BoxStream},
};
use tickmesh::{
    edge::{self, Config, NodeInfo, Parts, Servers, Unavailable, Upstream},
    ops::{lifecycle::LifecycleEvents, metrics::Registry},
};
use tickmesh_protocol::{
    PublisherKey, Topic,
    feed::{FeedFrame, PrivateChange},
    fetching::Ask,
    head::{HeadReply, HeadRequest},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Longer than any suite runs: pings and heartbeats would be messages that it does not expect.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let listen = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listen: SocketAddr = listen.parse().with_context(|| format!("cannot listen on {listen:?}"))?;
    let bound = edge::bind(Config {
        listen,
        shards: 1,
        heartbeat: NEVER,
        ping_interval: NEVER,
        idle_timeout: 2 * NEVER,
        echo: true,
        ..Config::default()
    })?;
    println!("echo   ws://{}/ws", bound.local_addr());
    let registry = Registry::new();
    let (_batches, no_batches) = mpsc::channel(1);
    let parts = Parts {
        node: NodeInfo { name: "echo".into(), region: "local".into() },
        upstream: Arc::new(NoMesh),
        batches: no_batches,
        authenticator: Arc::default(),
        pages: axum::Router::new(),
        lifecycle: LifecycleEvents::new(&registry),
        registry,
    };
    Ok(bound.run(parts, CancellationToken::new()).await?)
}

/// Nobody asks it anything: there are no subscriptions.
struct NoMesh;

impl Upstream for NoMesh {
    fn join(&self, _: &Topic) {}

    fn leave(&self, _: &Topic) {}

    fn heads(&self, _: HeadRequest) -> BoxFuture<'static, Result<HeadReply, Unavailable>> {
        Box::pin(future::ready(Err(Unavailable { reason: "there is no mesh".into() })))
    }

    fn servers(&self) -> watch::Receiver<Servers> {
        watch::Sender::new(Servers::new()).subscribe()
    }

    fn fetch(&self, _: &Topic, _: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(stream::empty())
    }

    fn private(
        &self,
        _: PublisherKey,
        _: mpsc::Receiver<PrivateChange>,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(stream::empty())
    }

    fn snapshots(&self, _: &Topic, _: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(stream::empty())
    }
}
