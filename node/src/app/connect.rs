//! The mesh, as the edge and ingest see it.

use futures_util::future::BoxFuture;
use tickmesh_protocol::{
    SignedBatch, Topic,
    head::{HeadReply, HeadRequest},
};

use crate::{
    edge::{Unavailable, Upstream},
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
