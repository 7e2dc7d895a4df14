//! What ingest peers ask one another about the catalogue, and answer; and what each takes over that was decided without it.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use tickmesh_protocol::{
    Epoch, PublisherKey,
    catalogue::{Answer, Ask, Catalogue, Change, MAX_STANDING, Standing},
    feed::{FeedFrame, FeedRequest, MAX_REASON_BYTES},
};
use tokio::time::{Instant, sleep, timeout};

use super::{Keeper, Promised, State};
use crate::mesh::MeshHandle;

/// How long a sibling may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// After this, who has promised and heard nothing asks the others. All answers that its asker may wait for take less.
const PROMISE: Duration = Duration::from_secs(5);

impl Keeper {
    /// Asks all at the same time.
    pub(super) async fn all(
        &self,
        peers: &[PublisherKey],
        ask: &Ask,
    ) -> Vec<(PublisherKey, Result<Answer, String>)> {
        join_all(peers.iter().map(|peer| async { (*peer, self.ask(*peer, ask.clone()).await) })).await
    }

    async fn ask(&self, peer: PublisherKey, ask: Ask) -> Result<Answer, String> {
        let mesh = &self.0.mesh;
        timeout(ANSWER, ask_of(mesh, peer, ask)).await.unwrap_or_else(|_| Err("it does not answer".into()))
    }

    pub(super) async fn answer(&self, ask: Ask) -> Answer {
        let mut state = self.0.state.lock().await;
        match ask {
            Ask::Standing if state.changing => refused("it makes a change itself", true),
            Ask::Standing => match self.0.control.standing().await {
                Ok(partitions) if partitions.len() > MAX_STANDING => {
                    refused(&format!("it reads more than {MAX_STANDING} partitions"), false)
                }
                Ok(partitions) => {
                    let (version, content) = state.identity();
                    Answer::Standing { version, content, partitions }
                }
                Err(ended) => refused(&ended.to_string(), true),
            },
            Ask::Promise { .. } if state.changing => refused("it makes a change itself", true),
            Ask::Promise { version, change, at } => {
                match self.promise(&mut state, version, &change, at).await {
                    Ok(()) => Answer::Done,
                    Err(refusal) => refusal,
                }
            }
            Ask::Commit { version } => match state.promised.take() {
                Some(Promised { next, plan }) if next.version == version => {
                    match self.take_over(&mut state, next, plan).await {
                        Ok(()) => Answer::Done,
                        Err(error) => refused(&error.to_string(), false),
                    }
                }
                other => {
                    state.promised = other;
                    if state.kept.catalogue.version >= version {
                        Answer::Done
                    } else {
                        refused("it has not promised that, or no longer", false)
                    }
                }
            },
            Ask::Abort { version } => {
                if state.promised.as_ref().is_some_and(|promised| promised.next.version == version) {
                    state.promised = None;
                    self.0.control.release().await;
                }
                Answer::Done
            }
            Ask::Whole => Answer::Whole(state.kept.catalogue.clone()),
        }
    }

    async fn promise(
        &self,
        state: &mut State,
        version: u64,
        change: &Change,
        at: Vec<(Epoch, u64)>,
    ) -> Result<(), Answer> {
        if state.promised.is_some() {
            return Err(refused("another change is being made", true));
        }
        let mine = state.kept.catalogue.version;
        if version != mine + 1 {
            return Err(refused(&format!("its catalogue is of version {mine}"), true));
        }
        let invalid = |faults: Vec<String>| refused(&faults.join("; "), false);
        let (next, plan) = state.next(change, at.clone()).map_err(invalid)?;
        let sources = plan.changed(&state.plan);
        match self.0.control.hold(at, sources).await {
            Ok(Ok(())) => {}
            Ok(Err(past)) => return Err(Answer::Beyond { reason: short(&past.to_string()) }),
            Err(ended) => return Err(refused(&ended.to_string(), true)),
        }
        state.promised = Some(Promised { next, plan });
        let keeper = self.clone();
        tokio::spawn(async move {
            sleep(PROMISE).await;
            keeper.expire(version).await;
        });
        Ok(())
    }

    /// What was promised was neither decided nor given up: whoever knows it is asked.
    async fn expire(&self, version: u64) {
        let promised = |state: &State| state.promised.as_ref().is_some_and(|of| of.next.version == version);
        if !promised(&*self.0.state.lock().await) {
            return;
        }
        self.0.metrics.undecided.inc();
        let decided = self.newest(version).await;
        let mut state = self.0.state.lock().await;
        if !promised(&state) {
            return;
        }
        state.promised = None;
        match decided {
            Some(catalogue) => self.adopt(&mut state, catalogue).await,
            None => {
                tracing::error!(
                    version,
                    "a change was promised, and nobody who is connected has made it; it is let go"
                );
                self.0.control.release().await;
            }
        }
    }

    /// The newest catalogue of a sibling, if that is at least of a version.
    async fn newest(&self, version: u64) -> Option<Catalogue> {
        let answers = self.all(&self.siblings(), &Ask::Whole).await;
        let catalogues = answers.into_iter().filter_map(|(_, answer)| match answer {
            Ok(Answer::Whole(catalogue)) if catalogue.version >= version => Some(catalogue),
            _ => None,
        });
        catalogues.max_by_key(|catalogue| catalogue.version)
    }

    /// Looks at the catalogue of every sibling that gets connected.
    pub(super) async fn follow_siblings(&self) {
        let mut live = self.0.mesh.live_publishers();
        let mut known = BTreeMap::new();
        loop {
            let now = live.borrow_and_update().clone();
            let new =
                now.iter().any(|(key, connection)| *key != self.0.me && known.get(key) != Some(connection));
            known = now;
            if new {
                let version = self.0.state.lock().await.kept.catalogue.version;
                if let Some(catalogue) = self.newest(version + 1).await {
                    let mut state = self.0.state.lock().await;
                    if state.promised.is_none() && !state.changing {
                        self.adopt(&mut state, catalogue).await;
                    }
                }
            }
            if live.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Takes over what others decided without this peer.
    async fn adopt(&self, state: &mut State, catalogue: Catalogue) {
        let version = catalogue.version;
        if version <= state.kept.catalogue.version {
            return self.0.control.release().await;
        }
        let plan = match state.planner.plan(&catalogue, None) {
            Ok(plan) => plan,
            Err(faults) => {
                tracing::error!(version, ?faults, "the others have a catalogue that cannot be used here");
                return self.0.control.release().await;
            }
        };
        let missed = catalogue.switches.iter().filter(|switch| switch.version > state.kept.catalogue.version);
        let standing = self.0.control.standing().await.unwrap_or_default();
        let is_late = |at: &[(Epoch, u64)]| {
            let reads_on = |standing: &Standing| {
                at.iter().any(|(epoch, at)| standing.epoch == *epoch && standing.next > *at)
            };
            standing.iter().any(reads_on)
        };
        if missed.map(|switch| &switch.at).any(|at| is_late(at)) {
            self.0.metrics.late.inc();
            tracing::error!(
                version,
                "the others changed sources or routes while this peer was away, and it has read on by the old ones: it made other events than they did"
            );
        }
        if let Err(error) = self.take_over(state, catalogue, plan).await {
            tracing::error!(version, %error, "the catalogue of the others is not taken over");
        }
    }
}

fn refused(reason: &str, busy: bool) -> Answer {
    Answer::Refused { reason: short(reason), busy }
}

/// A reason as a frame can hold it.
fn short(reason: &str) -> String {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

/// Asks another ingest peer about the catalogue.
async fn ask_of(mesh: &MeshHandle, peer: PublisherKey, ask: Ask) -> Result<Answer, String> {
    let request = FeedRequest::Catalogue(Box::new(ask));
    let mut reader = mesh.feed(peer, request).await.map_err(|error| error.to_string())?;
    match reader.next().await.map_err(|error| error.to_string())? {
        Some(FeedFrame::Catalogue(answer)) => Ok(*answer),
        _ => Err("it answers nothing".into()),
    }
}

/// The newest catalogue that a sibling has, of those that get connected in time; the first that answers is believed, as all agree.
pub(in crate::app) async fn of_sibling(
    mesh: &MeshHandle,
    me: PublisherKey,
    until: Instant,
) -> Option<Catalogue> {
    let mut live = mesh.live_publishers();
    let asking = async {
        loop {
            let peers: Vec<_> = live.borrow_and_update().keys().copied().filter(|key| *key != me).collect();
            for peer in peers {
                if let Ok(Answer::Whole(catalogue)) = ask_of(mesh, peer, Ask::Whole).await {
                    return Some(catalogue);
                }
            }
            live.changed().await.ok()?;
        }
    };
    tokio::time::timeout_at(until, asking).await.ok().flatten()
}
