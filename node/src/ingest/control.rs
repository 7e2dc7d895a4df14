//! What the catalogue asks of the ingest thread: how far it is, to wait at a position, and to go on with other routes and sources.

use tickmesh_protocol::{Epoch, catalogue::Standing, checkpoint::SourceState};
use tokio::sync::{mpsc, oneshot};

use super::Lane;
use crate::{
    source::SourceEvent,
    transform::{Policies, RouteTable},
};

/// Requests that may wait; there is one who asks, and waits for each answer.
pub(super) const WAITING: usize = 8;

/// Asks the ingest thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control(pub(super) mpsc::Sender<Request>);

/// Other routes and sources.
pub struct Change {
    /// The routes of each source that is read after this, its past included.
    pub routes: Vec<(String, RouteTable)>,
    pub policies: Policies,
    pub added: Vec<NewLane>,
    /// Sources whose records end soon.
    pub removed: Vec<String>,
}

/// A source that is read from now on.
pub struct NewLane {
    pub lane: Lane,
    pub events: mpsc::Receiver<SourceEvent>,
    /// Where a sibling was, if one reads it.
    pub state: Option<SourceState>,
}

pub(super) enum Request {
    Standing(oneshot::Sender<Vec<Standing>>),
    Hold { at: Vec<(Epoch, u64)>, sources: Vec<String>, answer: oneshot::Sender<Result<(), Past>> },
    Release,
    Change { change: Box<Change>, done: oneshot::Sender<Result<(), String>> },
}

/// A partition has been read beyond the position where it should wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("epoch {epoch} has been read up to {next}, which is beyond {at}")]
pub struct Past {
    pub epoch: Epoch,
    pub next: u64,
    pub at: u64,
}

/// The ingest thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this peer is going down")]
pub struct Ended;

impl Control {
    /// How far every partition has been read.
    ///
    /// # Errors
    /// If the ingest thread has ended.
    pub async fn standing(&self) -> Result<Vec<Standing>, Ended> {
        self.ask(Request::Standing).await
    }

    /// Lets no record of these sources through that is at or after these positions, until it is released or changed. Partitions that are
    /// not named wait before their first.
    ///
    /// # Errors
    /// If the ingest thread has ended; inside, if a partition is beyond its position already, and then nothing waits.
    pub async fn hold(&self, at: Vec<(Epoch, u64)>, sources: Vec<String>) -> Result<Result<(), Past>, Ended> {
        self.ask(|answer| Request::Hold { at, sources, answer }).await
    }

    /// Ends a hold. Nothing, if there is none.
    pub async fn release(&self) {
        // Who has ended holds nothing.
        let _ = self.0.send(Request::Release).await;
    }

    /// Goes on with other routes and sources, and ends a hold.
    ///
    /// # Errors
    /// If the ingest thread has ended; inside, what does not compile.
    pub async fn change(&self, change: Change) -> Result<Result<(), String>, Ended> {
        self.ask(|done| Request::Change { change: Box::new(change), done }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Ended> {
        let (answer, answered) = oneshot::channel();
        self.0.send(request(answer)).await.map_err(|_| Ended)?;
        answered.await.map_err(|_| Ended)
    }
}
