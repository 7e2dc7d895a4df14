//! The mesh, as the edge and ingest see it.

use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tickmesh_protocol::{
    SignedBatch, Topic,
    feed::{FeedFrame, FeedRequest},
    fetching::Ask,
    head::{HeadReply, HeadRequest},
};
use tokio::sync::watch;

use crate::{
    edge::{Servers, Unavailable, Upstream},
    ingest::Outlet,
    mesh::{FeedError, MeshHandle, Role},
};

pub(super) struct MeshUpstream(pub(super) MeshHandle);

impl Upstream for MeshUpstream {
    fn join(&self, topic: &Topic) {
        self.0.join(topic, Role::Edge);
    }

    fn leave(&self, topic: &Topic) {
        self.0.leave(topic, Role::Edge);
    }

    fn heads(&self, request: HeadRequest) -> BoxFuture<'static, Result<HeadReply, Unavailable>> {
        let mesh = self.0.clone();
        Box::pin(async move {
            mesh.heads(request).await.map_err(|error| Unavailable { reason: error.to_string() })
        })
    }

    fn servers(&self) -> watch::Receiver<Servers> {
        self.0.live_publishers()
    }

    fn fetch(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let (mesh, topic) = (self.0.clone(), topic.clone());
        let opened = async move {
            let request = FeedRequest::Streams { topic, after: ask.streams, live: false };
            match mesh.feed(ask.server, request).await {
                Ok(reader) => stream::unfold(reader, |mut reader| async move {
                    let frame = reader.next().await.transpose()?;
                    Some((frame, reader))
                })
                .boxed(),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        let unavailable = |error: FeedError| Unavailable { reason: error.to_string() };
        stream::once(opened).flatten().map(move |frame| frame.map_err(unavailable)).boxed()
    }
}

pub(super) struct MeshOutlet(pub(super) MeshHandle);

impl Outlet for MeshOutlet {
    fn join(&self, topic: &Topic) {
        self.0.join(topic, Role::Ingest);
    }

    fn publish(&self, batch: SignedBatch) -> BoxFuture<'_, ()> {
        Box::pin(self.0.publish(batch))
    }
}
