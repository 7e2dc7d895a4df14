//! Ingest and its sources: opened before the mesh, which serves feeds from it, and started after, when siblings can be asked.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tickmesh_protocol::{
    PublisherKey, SigningKey,
    checkpoint::State,
    codec::decode_state,
    feed::{FeedFrame, FeedRequest},
    policy::Retain,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Stage, Stages, connect::MeshOutlet, watched};
use crate::{
    config::IngestRole,
    ingest::{self, DeadLetters, Opened, load_checkpoint},
    mesh::MeshHandle,
    ops::{health::Health, lifecycle::LifecycleEvents, metrics::Registry},
    ports::IngestInput,
    signing::Signer,
    source::{Source, Starts, metrics::SourceMetrics},
    transform::Routes,
};

/// Groups of records on their way from a source to ingest. A source makes groups of some hundred, so this is enough to
/// keep ingest busy, and little enough to be lost with the process: the log has them.
const SOURCE_EVENTS: usize = 64;

/// What the stages of a peer share.
pub(super) struct Shared<'a> {
    pub(super) region: &'a str,
    pub(super) private: &'a Arc<HashSet<String>>,
    pub(super) signer: &'a Arc<Signer>,
    pub(super) registry: &'a Registry,
    pub(super) health: &'a Health,
    pub(super) lifecycle: &'a LifecycleEvents,
    pub(super) dead_letters: &'a DeadLetters,
}

/// Ingest, opened.
pub(super) struct IngestStage {
    me: PublisherKey,
    stop: CancellationToken,
    pub(super) opened: Opened,
    sources: Vec<(String, Box<dyn Source>)>,
    checkpoint_file: Option<PathBuf>,
    ask_siblings: Duration,
}

impl IngestStage {
    pub(super) fn open(role: IngestRole, key: SigningKey, shared: &Shared<'_>) -> anyhow::Result<Self> {
        let me = key.publisher();
        // A configuration whose policies do not go together was refused.
        let (policies, _) = role.policies(shared.private);
        let metrics = SourceMetrics::new(shared.registry);
        let (mut sources, mut lanes) = (Vec::new(), Vec::new());
        for role_source in role.sources {
            let (config, tiers) = (role_source.source, role_source.tiers);
            let name = config.name.clone();
            if tiers.of(shared.region).is_none() {
                tracing::info!(source = name, region = shared.region, "is not read in this region");
                continue;
            }
            let channels = config.channels();
            let routes: Routes = role.routes.iter().filter(|route| route.source == name).cloned().collect();
            let retains_last =
                !routes.is_empty() && routes.iter().all(|route| route.policy.retain == Retain::Last);
            let condition = shared.health.condition(format!("source {name}"));
            let source = config.open(retains_last, &metrics, condition);
            lanes.push(ingest::Lane {
                routes,
                channels,
                tiers,
                reader: source.reader(),
                condition: shared.health.condition(format!("ingest {name}")),
                lag: metrics.of(&name).lag,
                source: name.clone(),
            });
            sources.push((name, source));
        }
        let stop = CancellationToken::new();
        let parts = ingest::Parts {
            config: role.ingest,
            region: shared.region.to_owned(),
            private: shared.private.clone(),
            policies,
            key,
            signer: shared.signer.clone(),
            lanes,
            dead_letters: shared.dead_letters.clone(),
            stop: stop.clone(),
            registry: shared.registry.clone(),
            lifecycle: shared.lifecycle.clone(),
        };
        let opened = ingest::open(parts).context("cannot open ingest")?;
        let ask_siblings = role.ingest.ask_siblings;
        Ok(Self { me, stop, opened, sources, checkpoint_file: role.checkpoint_file, ask_siblings })
    }

    /// Starts the sources where this peer, or a sibling, was, and then the ingest thread.
    pub(super) async fn start(
        self,
        mesh: &MeshHandle,
        inputs: mpsc::Receiver<IngestInput>,
        siblings: bool,
        ended: &CancellationToken,
        stages: &mut Stages,
    ) -> anyhow::Result<()> {
        let mut state = self.checkpoint_file.as_deref().and_then(load_checkpoint).unwrap_or_default();
        if siblings {
            let until = Instant::now() + self.ask_siblings;
            for (name, _) in &self.sources {
                if state.source(name).is_none() {
                    state.sources.extend(
                        state_of_sibling(mesh, self.me, name, until).await.unwrap_or_default().sources,
                    );
                }
            }
        }
        let mut events = Vec::new();
        for (name, source) in self.sources {
            let starts: Starts =
                state.source(&name).map(|source| source.partitions.iter().collect()).unwrap_or_default();
            let (output, received) = mpsc::channel(SOURCE_EVENTS);
            let stop = CancellationToken::new();
            let task = tokio::spawn(source.run(starts, output, stop.clone()));
            stages.sources.push(Stage { task: watched(task, ended), stop });
            events.push(received);
        }
        let start = ingest::Start {
            state: Some(state).filter(|state| !state.sources.is_empty()),
            events,
            mesh: inputs,
            outlet: Arc::new(MeshOutlet(mesh.clone())),
            checkpoint_file: self.checkpoint_file,
            ended: ended.clone().drop_guard(),
        };
        let stop = self.stop;
        let thread = self.opened.spawn(start, stop.clone()).context("cannot start the ingest thread")?;
        stages.ingest = Some((stop, thread));
        Ok(())
    }
}

/// Asks the siblings, as they get connected, where they are in a source.
async fn state_of_sibling(
    mesh: &MeshHandle,
    me: PublisherKey,
    source: &str,
    until: Instant,
) -> Option<State> {
    let mut live = mesh.live_publishers();
    let mut asked = HashSet::new();
    loop {
        let publishers: Vec<_> = live.borrow_and_update().keys().copied().collect();
        for publisher in publishers.into_iter().filter(|publisher| *publisher != me) {
            if !asked.insert(publisher) {
                continue;
            }
            let request = FeedRequest::State { source: source.to_owned() };
            let answer = async {
                let mut reader = mesh.feed(publisher, request).await.ok()?;
                let mut bytes = Vec::new();
                while let Ok(Some(FeedFrame::State { chunk, last })) = reader.next().await {
                    bytes.extend_from_slice(&chunk);
                    if last {
                        return decode_state(&bytes).ok();
                    }
                }
                None
            };
            if let Ok(Some(state)) = timeout_at(until, answer).await {
                tracing::info!(source, sibling = ?publisher, "goes on from a sibling's state");
                return Some(state);
            }
        }
        if !matches!(timeout_at(until, live.changed()).await, Ok(Ok(()))) {
            return None;
        }
    }
}
