//! Ingest and its sources: opened before the mesh, which serves feeds from it, and started after, when siblings can be asked.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use anyhow::Context;
use tickmesh_protocol::{
    PublisherKey, SigningKey,
    checkpoint::State,
    codec::decode_state,
    feed::{FeedFrame, FeedRequest},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Stage, Stages,
    catalogue::{self, Keeper, Loaded, opener::Opener, run_source},
    connect::MeshOutlet,
    letters::Letters,
};
use crate::{
    config::{IngestRole, SourceRole},
    ingest::{self, Asked, DeadLetters, Opened, load_checkpoint},
    mesh::MeshHandle,
    ops::{health::Health, lifecycle::LifecycleEvents, metrics::Registry},
    ports::IngestInput,
    signing::Signer,
    source::{Source, Starts},
};

/// Groups of records on their way from a source to ingest. A source makes groups of some hundred, so this is enough to
/// keep ingest busy, and little enough to be lost with the process: the log has them.
pub(super) const SOURCE_EVENTS: usize = 64;

/// Questions of siblings about the catalogue that may wait; each peer asks one at a time.
const CATALOGUE_QUESTIONS: usize = 8;

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
    opener: Opener,
    loaded: Loaded,
    asked: mpsc::Receiver<Asked>,
    role: IngestRole,
    letters: Option<Stage>,
}

impl IngestStage {
    pub(super) fn open(role: IngestRole, key: SigningKey, shared: &Shared<'_>) -> anyhow::Result<Self> {
        let me = key.publisher();
        let loaded = Loaded::open(&role, shared.private.clone())?;
        let plan = &loaded.plan;
        let letters = role.dead_letters.clone().map(|config| Letters::open(config, shared.registry));
        let carriers = letters.as_ref().map(Letters::stage);
        let opener = Opener::new(shared.region, shared.registry, shared.health, letters);
        let opened = role
            .sources
            .iter()
            .chain(&plan.sources)
            .filter_map(|source| opener.open(source, plan.routes.get(&source.source.name)?));
        let (lanes, sources): (Vec<_>, Vec<_>) = opened.unzip();
        let sources = lanes.iter().map(|lane| lane.source.clone()).zip(sources).collect();
        let stop = CancellationToken::new();
        let parts = ingest::Parts {
            config: role.ingest,
            region: shared.region.to_owned(),
            private: shared.private.clone(),
            policies: plan.policies.clone(),
            key,
            signer: shared.signer.clone(),
            lanes,
            dead_letters: shared.dead_letters.clone(),
            stop: stop.clone(),
            registry: shared.registry.clone(),
            lifecycle: shared.lifecycle.clone(),
        };
        let (ask, asked) = mpsc::channel(CATALOGUE_QUESTIONS);
        let opened = ingest::open(parts, ask).context("cannot open ingest")?;
        Ok(Self { me, stop, opened, sources, opener, loaded, asked, role, letters: carriers })
    }

    /// Starts the sources where this peer, or a sibling, was, and then the ingest thread. The siblings are all the other ingest
    /// peers.
    pub(super) async fn start(
        mut self,
        mesh: &MeshHandle,
        inputs: mpsc::Receiver<IngestInput>,
        siblings: Vec<PublisherKey>,
        shared: &Shared<'_>,
        ended: &CancellationToken,
        stages: &mut Stages,
    ) -> anyhow::Result<Keeper> {
        let mut state = self.role.checkpoint_file.as_deref().and_then(load_checkpoint).unwrap_or_default();
        if !siblings.is_empty() {
            let until = Instant::now() + self.role.ingest.ask_siblings;
            if state.sources.is_empty() {
                self.take_catalogue(mesh, until).await?;
            }
            for (name, _) in &self.sources {
                if state.source(name).is_none() {
                    state.sources.extend(
                        state_of_sibling(mesh, self.me, name, until).await.unwrap_or_default().sources,
                    );
                }
            }
        }
        stages.letters.extend(self.letters.take());
        let (mut events, mut running) = (Vec::new(), HashMap::new());
        for (name, source) in self.sources {
            let starts: Starts =
                state.source(&name).map(|source| source.partitions.iter().collect()).unwrap_or_default();
            let (output, received) = mpsc::channel(SOURCE_EVENTS);
            let stage = run_source(source, starts, output, ended);
            if self.loaded.plan.has_source(&name) {
                running.insert(name, stage);
            } else {
                stages.sources.push(stage);
            }
            events.push(received);
        }
        let start = ingest::Start {
            state: Some(state).filter(|state| !state.sources.is_empty()),
            events,
            mesh: inputs,
            outlet: Arc::new(MeshOutlet(mesh.clone())),
            checkpoint_file: self.role.checkpoint_file,
            ended: ended.clone().drop_guard(),
        };
        let stop = self.stop;
        let control = self.opened.control();
        let thread = self.opened.spawn(start, stop.clone()).context("cannot start the ingest thread")?;
        let parts = catalogue::Parts {
            me: self.me,
            siblings,
            mesh: mesh.clone(),
            control,
            file: self.role.catalogue_file,
            private: shared.private.clone(),
            opener: self.opener,
            ended: ended.clone(),
            loaded: self.loaded,
        };
        let keeper = Keeper::new(parts, running, shared.registry);
        tokio::spawn(keeper.clone().run(self.asked, self.role.catalogue_folder, stop.clone()));
        stages.ingest = Some((stop, thread));
        stages.catalogue = Some(keeper.clone());
        Ok(keeper)
    }

    /// A peer that knows nothing yet has the routes that the others have.
    async fn take_catalogue(&mut self, mesh: &MeshHandle, until: Instant) -> anyhow::Result<()> {
        let Some(catalogue) = catalogue::of_sibling(mesh, self.me, until).await else { return Ok(()) };
        if catalogue.version <= self.loaded.kept.catalogue.version {
            return Ok(());
        }
        let plan = self.loaded.planner.plan(&catalogue, None);
        let plan =
            plan.map_err(|faults| anyhow::anyhow!("the catalogue of the others: {}", faults.join("\n")))?;
        tracing::info!(version = catalogue.version, "has the catalogue of a sibling");
        let is_new = |source: &&SourceRole| !self.loaded.plan.has_source(&source.source.name);
        let new = plan.sources.iter().filter(is_new);
        let new = new.filter_map(|source| self.opener.open(source, plan.routes.get(&source.source.name)?));
        let (lanes, sources): (Vec<_>, Vec<_>) = new.unzip();
        self.sources.extend(lanes.iter().map(|lane| lane.source.clone()).zip(sources));
        self.sources.retain(|(name, _)| plan.routes.contains_key(name));
        self.opened.change(&plan.routes, plan.policies.clone(), lanes);
        self.loaded.kept.catalogue = catalogue;
        self.loaded.plan = plan;
        if let Some(file) = &self.role.catalogue_file {
            self.loaded.kept.write(file).await;
        }
        Ok(())
    }
}

/// Asks the siblings, as they get connected, where they are in a source.
pub(super) async fn state_of_sibling(
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
