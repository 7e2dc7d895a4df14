//! The mesh: a libp2p swarm, owned by one task, that carries signed batches between peers.
//!
//! | module | holds |
//! |---|---|
//! | [`config`], [`identity`] | what a node is told: addresses, keys, publishers |
//! | `transport`, `behaviour` | libp2p's settings, with their reasons |
//! | `connections` | one connection per pair of peers |
//! | [`validation`] | which bytes are believed |
//! | [`heads`] | questions about heads: whom to ask, when to answer |
//! | [`feeds`] | events in order and without loss, from one peer to another |
//! | `penalties` | peers that are not listened to for a while |
//! | `slowness` | peers whose connection is closed as it loses what is sent |
//! | `dialing` | whom to dial, and when again |
//! | `swarm` | the task that owns all of it |
//! | [`handle`] | how the rest of the node talks to that task |
//!
//! Order: none is promised. A batch of one publisher on one topic may overtake the one before it over another node, and does
//! not come at all where a queue is full. `counter` and each event's `previous` show it, `mesh_batches_late_total` counts it.
//! Each batch reaches a port once.

mod behaviour;
pub mod config;
mod connections;
mod dialing;
pub mod feeds;
pub mod handle;
pub mod heads;
pub mod identity;
mod metrics;
mod penalties;
mod slowness;
mod swarm;
mod transport;
pub mod validation;

use std::sync::Arc;

use tickmesh_protocol::SignedBatch;
use tokio::sync::mpsc;

use crate::ports::{FeedStore, IngestInput};

pub use config::Config;
pub use feeds::{FeedError, FeedReader, LivePublishers, PrivateAccess, PrivateFeed};
pub use handle::{MeshHandle, Role};
pub use heads::HeadError;
pub use identity::{Identity, NetworkKey, PublisherId};
pub use libp2p::{Multiaddr, PeerId};
pub use swarm::{StartError, start};

/// Where the mesh puts what it receives: the inputs of the node's own stages. It never waits for them; what does not
/// fit is dropped and counted.
#[derive(Default)]
pub struct Ports {
    /// Batches of the topics that [`Role::Edge`] has joined, the node's own included.
    pub edge: Option<mpsc::Sender<Arc<SignedBatch>>>,
    /// Present if this node publishes: it is then asked about heads.
    pub ingest: Option<mpsc::Sender<IngestInput>>,
    /// Where the feeds come from that this node serves.
    pub feeds: Option<Arc<dyn FeedStore>>,
    /// Who may have private streams; without it nobody.
    pub private: Option<PrivateAccess>,
}
