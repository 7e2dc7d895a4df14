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
    /// An edge asks where streams stand. It is subscribed to the topic by now: everything handed to the mesh after the
    /// answer was given will reach it. Dropping `answer` refuses.
    Head { request: HeadRequest, answer: oneshot::Sender<HeadReply> },
    /// A configured publisher got connected.
    PublisherUp(PublisherKey),
    /// The last connection to it closed.
    PublisherDown(PublisherKey),
}
