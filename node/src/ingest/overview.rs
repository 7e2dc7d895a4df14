//! How an ingest peer sees the mesh, for people: made by the ingest thread when somebody asks.

use std::collections::BTreeMap;

use tickmesh_protocol::{PublisherKey, feed::Status, takeover::Standing};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait; more come only from a script that does not wait for its answers.
pub(super) const WAITING: usize = 8;

/// Who leads what, and how far everybody is.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// What this peer says of itself.
    pub me: Status,
    /// What the other publishers that are connected said last.
    pub siblings: BTreeMap<PublisherKey, Status>,
    pub topics: Vec<Standing>,
}

/// Asks for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Overlook(pub(super) mpsc::Sender<oneshot::Sender<Overview>>);

impl Overlook {
    /// Waits until the ingest thread has a moment. `None`: it has ended.
    pub async fn ask(&self) -> Option<Overview> {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.ok()?;
        answered.await.ok()
    }
}
