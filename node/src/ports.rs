//! What the stages hand one another where both sides must know the type. Stages import this and `protocol`, never one
//! another; [`crate::app`] connects them.

use std::sync::Arc;

use tickmesh_protocol::{
    PublisherKey, SignedBatch,
    head::{HeadReply, HeadRequest},
};
use tokio::sync::oneshot;

/// What the mesh tells an ingest peer.
#[derive(Debug)]
pub enum IngestInput {
    /// Another publisher's batch, validated, on a topic that ingest has joined.
    Batch(Arc<SignedBatch>),
    /// An edge, by now subscribed to the topic, asks where streams stand. Dropping `answer` refuses.
    Head { request: HeadRequest, answer: oneshot::Sender<HeadReply> },
    /// A configured publisher got connected.
    PublisherUp(PublisherKey),
    /// The last connection to it closed.
    PublisherDown(PublisherKey),
}
