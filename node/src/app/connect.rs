//! The mesh, as the edge and ingest see it.

use futures_util::{
    TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tickmesh_protocol::{
    PublisherKey, SignedBatch, Topic,
    feed::{FeedFrame, FeedRequest, PrivateChange},
    fetching::Ask,
    head::{HeadReply, HeadRequest},
};
use tokio::sync::{mpsc, watch};

use crate::{
    edge::{Servers, Unavailable, Upstream},
    ingest::Outlet,
    mesh::{FeedError, FeedReader, MeshHandle, PrivateFeed, Role},
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
        Box::pin(async move { mesh.heads(request).await.map_err(unavailable) })
    }

    fn servers(&self) -> watch::Receiver<Servers> {
        self.0.live_publishers()
    }

    fn fetch(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let request = FeedRequest::Streams { topic: topic.clone(), after: ask.streams, live: false };
        self.read(ask.server, request)
    }

    fn snapshots(&self, topic: &Topic, ask: Ask) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let streams = ask.streams.into_iter().map(|(stream, _)| stream).collect();
        self.read(ask.server, FeedRequest::Snapshots { topic: topic.clone(), streams })
    }

    fn private(
        &self,
        server: PublisherKey,
        changes: mpsc::Receiver<PrivateChange>,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let mesh = self.0.clone();
        let frames = stream::try_unfold((None::<PrivateFeed>, changes), move |(feed, mut changes)| {
            let mesh = mesh.clone();
            async move {
                let mut feed = match feed {
                    Some(feed) => feed,
                    None => mesh.private(server).await?,
                };
                let frame = feed.next(&mut changes).await?;
                Ok::<_, FeedError>(Some((frame, (Some(feed), changes))))
            }
        });
        Box::pin(frames.map_err(unavailable))
    }
}

impl MeshUpstream {
    /// Asks for a feed and reads it, as it is polled.
    fn read(
        &self,
        server: PublisherKey,
        request: FeedRequest,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let mut question = Some((self.0.clone(), server, request));
        let frames = stream::try_unfold(None::<FeedReader>, move |reader| {
            let question = question.take();
            async move {
                let mut reader = match (reader, question) {
                    (Some(reader), _) => reader,
                    (None, Some((mesh, server, request))) => mesh.feed(server, request).await?,
                    (None, None) => return Ok::<_, FeedError>(None),
                };
                Ok(reader.next_or_working().await?.map(|frame| (frame, Some(reader))))
            }
        });
        Box::pin(frames.map_err(unavailable))
    }
}

fn unavailable(error: impl ToString) -> Unavailable {
    Unavailable { reason: error.to_string() }
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
