//! The edge: takes batches from the mesh and pushes their events to WebSocket clients.

use std::fmt;

use futures_util::future::BoxFuture;
use tickmesh_protocol::{
    Topic,
    head::{HeadReply, HeadRequest},
};

/// What an edge needs from the mesh. [`crate::app`] puts the two together; neither knows the other.
pub trait Upstream: Send + Sync + 'static {
    /// Starts to receive the batches of a topic. Idempotent.
    fn join(&self, topic: &Topic);

    /// Stops receiving them. Idempotent.
    fn leave(&self, topic: &Topic);

    /// Asks where streams stand. The topic must have been joined. The answer comes within the time an edge makes its
    /// clients wait, or it is [`Unavailable`].
    fn heads(&self, request: HeadRequest) -> BoxFuture<'static, Result<HeadReply, Unavailable>>;
}

/// Nobody who knows could be asked in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    pub reason: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
