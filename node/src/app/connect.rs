//! The mesh, as the edge and ingest see it.

use futures_util::{future::BoxFuture, stream::BoxStream};
use tickmesh_protocol::{
    SignedBatch, Topic,
    feed::FeedFrame,
    fetching::Ask,
    head::{HeadReply, HeadRequest},
};
use tokio::sync::watch;

use crate::{
    edge::{Servers, Unavailable, Upstream},
    ingest::Outlet,
    mesh::{MeshHandle, Role},
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
        watch::Sender::new(Servers::new()).subscribe()
    }

    fn fetch(&self, _: &Topic, _: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        Box::pin(futures_util::stream::empty())
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
