//! Sources and routes that change while peers run: what [`tickmesh_protocol::catalogue`] says, done.
//!
//! | file | holds |
//! |---|---|
//! | here | what a peer has, and how it goes on with another |
//! | `agreeing` | how one peer brings a change about at all |
//! | `siblings` | what peers ask one another, and answer |
//! | `plan` | from definitions to routes and sources, checked |
//! | `opener` | opens sources |
//! | `folder` | a folder of files whose changes are changes of the catalogue |
//! | `kept` | the catalogue on disk |
//! | `pages` | what an operator asks |

mod agreeing;
mod folder;
mod kept;
pub(super) mod opener;
pub(super) mod pages;
pub(super) mod plan;
mod siblings;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use prometheus::{IntCounter, IntGauge};
use tickmesh_protocol::{
    Epoch, PublisherKey,
    catalogue::{Catalogue, Change, Definition, Name, Origin},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub(super) use self::siblings::of_sibling;
use self::{
    kept::Kept,
    opener::Opener,
    plan::{Plan, Planner},
};
use super::{
    Stage,
    ingest_stage::{SOURCE_EVENTS, state_of_sibling},
};
use crate::{
    config::IngestRole,
    ingest::{self, Asked, Control, NewLane},
    mesh::{MeshHandle, identity::peer_of},
    ops::metrics::Registry,
    source::{Source, Starts},
};

/// How long a source that was removed is read on: this peer may be behind the position from which on it is not in the catalogue.
const READ_ON: Duration = Duration::from_secs(2);

/// How long a source that is added looks for a sibling that reads it.
const ASK_STATE: Duration = Duration::from_secs(1);

/// The catalogue of this peer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Keeper(Arc<Shared>);

struct Shared {
    me: PublisherKey,
    /// All other ingest peers that are configured.
    siblings: Vec<PublisherKey>,
    mesh: MeshHandle,
    control: Control,
    file: Option<PathBuf>,
    /// Channels whose streams belong to one user each.
    private: Arc<HashSet<String>>,
    opener: Opener,
    ended: CancellationToken,
    metrics: Metrics,
    state: Mutex<State>,
}

struct State {
    kept: Kept,
    planner: Planner,
    plan: Plan,
    /// Another peer's change, which this one waits for.
    promised: Option<Promised>,
    /// This peer goes about a change.
    changing: bool,
    /// Sources of the catalogue.
    running: HashMap<String, Stage>,
}

struct Promised {
    next: Catalogue,
    plan: Plan,
}

/// What a keeper is made of.
pub(super) struct Parts {
    pub(super) me: PublisherKey,
    pub(super) siblings: Vec<PublisherKey>,
    pub(super) private: Arc<HashSet<String>>,
    pub(super) mesh: MeshHandle,
    pub(super) control: Control,
    pub(super) file: Option<PathBuf>,
    pub(super) opener: Opener,
    pub(super) ended: CancellationToken,
    pub(super) loaded: Loaded,
}

/// A catalogue that was planned.
pub(super) struct Loaded {
    pub(super) kept: Kept,
    pub(super) planner: Planner,
    pub(super) plan: Plan,
}

impl Loaded {
    /// Reads the catalogue on disk, and plans for it and a configuration.
    ///
    /// # Errors
    /// If it cannot be read, or does not go together with the configuration.
    pub(super) fn open(role: &IngestRole, private: Arc<HashSet<String>>) -> anyhow::Result<Self> {
        let kept = Kept::open(role.catalogue_file.as_deref(), role.catalogue_folder.as_deref())?;
        let mut planner = Planner::new(role, private);
        let plan =
            planner.plan(&kept.catalogue, None).map_err(|faults| anyhow::anyhow!(faults.join("\n")))?;
        Ok(Self { kept, planner, plan })
    }
}

/// Why a change is not made. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    #[error("not now: {0}")]
    Busy(String),
    #[error(
        "every ingest peer has to agree, and these are not connected: {}; start them, or leave them out, and they take it over when they \
         come back",
        names(.0)
    )]
    Absent(Vec<PublisherKey>),
    #[error("{} does not agree: {reason}", names(&[*peer]))]
    Sibling { peer: PublisherKey, reason: String, busy: bool },
    #[error("records come faster than ingest peers can agree; try again ({0})")]
    Beyond(String),
    #[error(transparent)]
    Ended(#[from] ingest::Ended),
}

impl Refused {
    /// Whether the same may be possible in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Absent(_) | Self::Beyond(_) => true,
            Self::Sibling { busy, .. } => *busy,
            Self::Invalid(_) | Self::Ended(_) => false,
        }
    }
}

fn names(peers: &[PublisherKey]) -> String {
    let name = |key| peer_of(key).map_or_else(|| format!("{key:?}"), |peer| peer.to_string());
    peers.iter().map(name).collect::<Vec<_>>().join(", ")
}

struct Metrics {
    version: IntGauge,
    changes: IntCounter,
    late: IntCounter,
    undecided: IntCounter,
}

impl Keeper {
    /// Takes over the catalogue of a peer whose ingest thread runs. Its sources are running already.
    pub(super) fn new(parts: Parts, running: HashMap<String, Stage>, registry: &Registry) -> Self {
        let Parts { me, siblings, mesh, control, file, private, opener, ended, loaded } = parts;
        let metrics = Metrics {
            version: registry.gauge("catalogue_version", "Version of the sources and routes that can be changed."),
            changes: registry
                .counter("catalogue_changes_total", "Versions of the catalogue that this peer has taken over."),
            late: registry.counter(
                "catalogue_late_total",
                "Versions that this peer took over after it had read beyond where they begin: until then it made other events.",
            ),
            undecided: registry.counter(
                "catalogue_undecided_total",
                "Changes that this peer had promised to wait for, and of which it heard no more.",
            ),
        };
        let Loaded { kept, planner, plan } = loaded;
        metrics.version.set(i64::try_from(kept.catalogue.version).unwrap_or(i64::MAX));
        let state = State { kept, planner, plan, promised: None, changing: false, running };
        let state = Mutex::new(state);
        Self(Arc::new(Shared { me, siblings, mesh, control, file, private, opener, ended, metrics, state }))
    }

    /// Answers the others, and takes over what they have; looks at the folder of files.
    pub(super) async fn run(
        self,
        mut asked: mpsc::Receiver<Asked>,
        folder: Option<PathBuf>,
        stop: CancellationToken,
    ) {
        let answering = async {
            while let Some((ask, answer)) = asked.recv().await {
                // Who asked may be gone.
                let _ = answer.send(self.answer(ask).await);
            }
        };
        let looking = async {
            match folder {
                Some(folder) => folder::follow(&self, &folder).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = answering => {}
            () = self.follow_siblings() => {}
            () = looking => {}
        }
    }

    /// Ends the sources of the catalogue.
    pub(super) async fn end_sources(&self) {
        let running = std::mem::take(&mut self.0.state.lock().await.running);
        running.values().for_each(|stage| stage.stop.cancel());
        for stage in running.into_values() {
            stage.end("source").await;
        }
    }

    /// The catalogue as it is.
    pub(super) async fn catalogue(&self) -> Catalogue {
        self.0.state.lock().await.kept.catalogue.clone()
    }

    /// Makes a change at all ingest peers. `without`: those that are not connected need not agree.
    ///
    /// # Errors
    /// [`Refused`] says why nothing has changed.
    pub(super) async fn change(&self, change: Change, without: bool) -> Result<u64, Refused> {
        // Whoever waits for it may go; it is brought to an end all the same.
        let keeper = self.clone();
        let changing = tokio::spawn(async move {
            let prepared = keeper.begin(&change).await?;
            let changed = keeper.agree(change, prepared, without).await;
            if changed.is_err() {
                // Whatever came between: nobody waits for what does not come.
                keeper.0.control.release().await;
            }
            keeper.0.state.lock().await.changing = false;
            changed
        });
        changing.await.unwrap_or(Err(Refused::Ended(ingest::Ended)))
    }

    /// Channels whose streams belong to one user each.
    pub(super) fn private(&self) -> &HashSet<String> {
        &self.0.private
    }

    /// What a change would come to.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) async fn try_out(&self, change: &Change) -> Result<Plan, Refused> {
        let (_, plan) = self.0.state.lock().await.next(change, Vec::new()).map_err(Refused::Invalid)?;
        Ok(plan)
    }

    /// Goes on with another catalogue: keeps it, tells ingest, starts and ends sources.
    async fn take_over(&self, state: &mut State, next: Catalogue, plan: Plan) -> Result<(), Refused> {
        let version = next.version;
        let kept = Kept { catalogue: next, files: state.kept.files };
        if let Some(file) = &self.0.file {
            kept.write(file).await;
        }
        let mut added = Vec::new();
        let mut starting = Vec::new();
        for role in plan.sources.iter().filter(|role| !state.running.contains_key(&role.source.name)) {
            let name = &role.source.name;
            let Some(routes) = plan.routes.get(name) else { continue };
            let Some((lane, source)) = self.0.opener.open(role, routes) else { continue };
            let asked = state_of_sibling(&self.0.mesh, self.0.me, name, Instant::now() + ASK_STATE);
            let from = if self.siblings().is_empty() { None } else { asked.await };
            let from = from.and_then(|state| state.source(name).cloned());
            let (output, events) = mpsc::channel(SOURCE_EVENTS);
            let starts: Starts =
                from.as_ref().map(|state| state.partitions.iter().collect()).unwrap_or_default();
            added.push(NewLane { lane, events, state: from });
            starting.push((name.clone(), source, starts, output));
        }
        let removed: Vec<_> = state.running.keys().filter(|name| !plan.has_source(name)).cloned().collect();
        let changed = plan.changed(&state.plan);
        let routes = plan.routes.iter().filter(|(source, _)| changed.contains(source));
        let change = ingest::Change {
            routes: routes.map(|(source, table)| (source.clone(), Arc::clone(table))).collect(),
            policies: plan.policies.clone(),
            added,
            removed: removed.clone(),
        };
        self.0.control.change(change).await?.map_err(|fault| Refused::Invalid(vec![fault]))?;
        for (name, source, starts, output) in starting {
            state.running.insert(name, run_source(source, starts, output, &self.0.ended));
        }
        for name in removed {
            self.0.opener.close(&name);
            if let Some(stage) = state.running.remove(&name) {
                tokio::spawn(async move {
                    sleep(READ_ON).await;
                    stage.end("source").await;
                });
            }
        }
        (state.kept, state.plan) = (kept, plan);
        self.0.metrics.version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.0.metrics.changes.inc();
        tracing::info!(version, sources = ?changed, "sources and routes changed");
        Ok(())
    }

    /// The files of the folder are taken in.
    async fn keep_files(&self, files: u64) {
        let mut state = self.0.state.lock().await;
        state.kept.files = Some(files);
        if let Some(file) = &self.0.file {
            state.kept.write(file).await;
        }
    }
}

impl State {
    /// Version, and what tells it from others of the same number.
    fn identity(&self) -> (u64, u64) {
        (self.kept.catalogue.version, self.planner.content(&self.kept.catalogue))
    }

    /// What a change makes of the catalogue, if it begins there, and of what is read.
    fn next(&mut self, change: &Change, at: Vec<(Epoch, u64)>) -> Result<(Catalogue, Plan), Vec<String>> {
        let mut faults = Vec::new();
        let before = |name: &Name| self.kept.catalogue.get(name).map(|known| known.origin);
        let mut said = |name: &Name, origin| match (before(name), origin) {
            (Some(Origin::Files), Some(Origin::Admin) | None) => {
                faults.push(format!("{name} is in a file of the peers' folder; change it there"));
            }
            (Some(Origin::Admin), Some(Origin::Files)) => {
                faults.push(format!(
                    "{name} is in a file, and an operator has made one of that name; remove that first"
                ));
            }
            _ => {}
        };
        for Definition { name, origin, .. } in &change.add {
            said(name, Some(*origin));
        }
        if change.origin == Origin::Admin {
            change.remove.iter().for_each(|name| said(name, None));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut next = self.kept.catalogue.clone();
        next.apply(change, at).map_err(|invalid| vec![invalid.to_string()])?;
        let plan = self.planner.plan(&next, Some(&self.plan))?;
        Ok((next, plan))
    }
}

/// What an ingest peer reads and makes: its configuration, and the catalogue that it has on disk.
///
/// # Errors
/// If the catalogue cannot be read, or does not go together with the configuration.
pub fn with_catalogue(role: &IngestRole, private: &Arc<HashSet<String>>) -> anyhow::Result<IngestRole> {
    let Plan { routes, sources, .. } = Loaded::open(role, Arc::clone(private))?.plan;
    let present = routes.values().flat_map(|table| table.iter()).filter(|route| !route.life.is_over());
    Ok(IngestRole {
        routes: present.map(|route| (*route.config).clone()).collect(),
        sources: role.sources.iter().cloned().chain(sources).collect(),
        ..role.clone()
    })
}

/// Starts a source.
pub(super) fn run_source(
    source: Box<dyn Source>,
    starts: Starts,
    output: mpsc::Sender<crate::source::SourceEvent>,
    ended: &CancellationToken,
) -> Stage {
    let stop = CancellationToken::new();
    let running = tokio::spawn(source.run(starts, output, stop.clone()));
    // Who was told to stop may end.
    let (stopped, ended) = (stop.clone(), ended.clone());
    let task = tokio::spawn(async move {
        let outcome = running.await;
        if let Err(error) = outcome {
            tracing::error!(%error, "a source failed");
        }
        if !stopped.is_cancelled() {
            ended.cancel();
        }
    });
    Stage { stop, task }
}
