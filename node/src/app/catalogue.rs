//! Sources and routes that change while peers run: what [`tickmesh_protocol::catalogue`] says, done.
//!
//! | file | holds |
//! |---|---|
//! | here | how ingest peers agree on a change, and what one does then |
//! | `plan` | from definitions to routes and sources, checked |
//! | `opener` | opens sources |
//! | `folder` | a folder of files whose changes are changes of the catalogue |
//! | `kept` | the catalogue on disk |
//! | `pages` | what an operator asks |

mod folder;
mod kept;
pub(super) mod opener;
pub(super) mod pages;
pub(super) mod plan;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use prometheus::{IntCounter, IntGauge};
use tickmesh_protocol::{
    Epoch, PublisherKey,
    catalogue::{Answer, Ask, Catalogue, Change, Definition, MAX_STANDING, Name, Origin, Standing, begin_of},
    feed::{FeedFrame, FeedRequest, MAX_REASON_BYTES},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub(super) use self::kept::Kept;
use self::{
    opener::Opener,
    plan::{Plan, Planner},
};
use super::{
    Stage,
    ingest_stage::{SOURCE_EVENTS, state_of_sibling},
};
use crate::{
    ingest::{self, Asked, Control, NewLane},
    mesh::{MeshHandle, identity::peer_of},
    ops::metrics::Registry,
    source::{Source, Starts},
};

/// How long a sibling may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Between two rounds of questions how far everybody is: long enough to see a pace.
const ROUND: Duration = Duration::from_millis(20);

/// How many times the time between two rounds a version begins ahead of the foremost, at first.
const AHEAD: u64 = 2;

/// Tries to find a position that nobody has read beyond; each is twice as far ahead.
const TRIES: u32 = 5;

/// After this, who has promised and heard nothing asks the others. All answers that its asker may wait for take less.
const PROMISE: Duration = Duration::from_secs(5);

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
    #[error(transparent)]
    Ended(#[from] ingest::Ended),
}

impl Refused {
    /// Whether the same may be possible in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Absent(_) => true,
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
        let mut state = self.0.state.lock().await;
        let next = state.next(change, Vec::new()).map_err(Refused::Invalid)?;
        let State { kept, planner, .. } = &mut *state;
        planner.plan(&next, Some(&kept.catalogue)).map_err(Refused::Invalid)
    }

    /// Checks a change, and keeps others from beginning one here. Which sources it is about.
    async fn begin(&self, change: &Change) -> Result<Vec<String>, Refused> {
        let plan = self.try_out(change).await?;
        let mut state = self.0.state.lock().await;
        if state.changing || state.promised.is_some() {
            return Err(Refused::Busy("another change is being made".into()));
        }
        state.changing = true;
        Ok(plan.changed(&state.plan))
    }

    async fn agree(&self, change: Change, sources: Vec<String>, without: bool) -> Result<u64, Refused> {
        let live = self.siblings();
        let absent = self.0.siblings.iter().filter(|key| !live.contains(key));
        let absent: Vec<_> = absent.copied().collect();
        if !absent.is_empty() && !without {
            return Err(Refused::Absent(absent));
        }
        let mut ahead = AHEAD;
        for _ in 0..TRIES {
            let first = self.standings(&live).await?;
            sleep(ROUND).await;
            let second = self.standings(&live).await?;
            let at = begin_of(&first, &second, ahead);
            ahead *= 2;
            if self.0.control.hold(at.clone(), sources.clone()).await?.is_err() {
                continue;
            }
            match self.promises(&live, &change, &at).await {
                Ok(version) => {
                    let decided = self.all(&live, &Ask::Commit { version }).await;
                    for (peer, answer) in decided {
                        if !matches!(answer, Ok(Answer::Done)) {
                            tracing::warn!(
                                peer = names(&[peer]),
                                ?answer,
                                version,
                                "has not said that it takes the change over"
                            );
                        }
                    }
                    return self.decide(change, at).await;
                }
                Err(refused) => {
                    let version = self.0.state.lock().await.kept.catalogue.version + 1;
                    self.0.control.release().await;
                    self.all(&live, &Ask::Abort { version }).await;
                    if !refused.is_passing() {
                        return Err(refused);
                    }
                    tracing::debug!(%refused, "tries again further ahead");
                    if matches!(&refused, Refused::Sibling { reason, .. } if !reason.contains(BEYOND)) {
                        return Err(refused);
                    }
                }
            }
        }
        Err(Refused::Busy("records come faster than ingest peers can agree; try again".into()))
    }

    /// The siblings that are connected.
    fn siblings(&self) -> Vec<PublisherKey> {
        let live = self.0.mesh.live_publishers();
        let live = live.borrow();
        let mut siblings: Vec<_> = live.keys().copied().filter(|key| *key != self.0.me).collect();
        siblings.sort();
        siblings
    }

    /// How far this peer and the others are, who must have the same catalogue.
    async fn standings(&self, live: &[PublisherKey]) -> Result<Vec<Vec<Standing>>, Refused> {
        let (mine, own) = {
            let state = self.0.state.lock().await;
            (state.identity(), self.0.control.standing().await?)
        };
        let mut standings = vec![own];
        for (peer, answer) in self.all(live, &Ask::Standing).await {
            let refused = |reason: String, busy| Refused::Sibling { peer, reason, busy };
            match answer {
                Ok(Answer::Standing { version, content, partitions }) if (version, content) == mine => {
                    standings.push(partitions);
                }
                Ok(Answer::Standing { version, .. }) => {
                    let reason = format!(
                        "its routes are others than here: its catalogue is of version {version}, the one here of {}; if they are the same, \
                         compare the [[route]]s of the configuration files",
                        mine.0
                    );
                    return Err(refused(reason, version != mine.0));
                }
                Ok(Answer::Refused { reason, busy }) => return Err(refused(reason, busy)),
                Ok(_) => return Err(refused("it answers something else".into(), false)),
                Err(reason) => return Err(refused(reason, true)),
            }
        }
        if standings.iter().any(|partitions| partitions.len() > MAX_STANDING) {
            let reason = format!(
                "more than {MAX_STANDING} partitions are read; their routes cannot be changed while peers run"
            );
            return Err(Refused::Invalid(vec![reason]));
        }
        Ok(standings)
    }

    async fn promises(
        &self,
        live: &[PublisherKey],
        change: &Change,
        at: &[(Epoch, u64)],
    ) -> Result<u64, Refused> {
        let version = self.0.state.lock().await.kept.catalogue.version + 1;
        let ask = Ask::Promise { version, change: change.clone(), at: at.to_vec() };
        for (peer, answer) in self.all(live, &ask).await {
            let (reason, busy) = match answer {
                Ok(Answer::Done) => continue,
                Ok(Answer::Refused { reason, busy }) => (reason, busy),
                Ok(_) => ("it answers something else".into(), false),
                Err(reason) => (reason, true),
            };
            return Err(Refused::Sibling { peer, reason, busy });
        }
        Ok(version)
    }

    /// Everybody has promised.
    async fn decide(&self, change: Change, at: Vec<(Epoch, u64)>) -> Result<u64, Refused> {
        let mut state = self.0.state.lock().await;
        let next = state.next(&change, at).map_err(Refused::Invalid)?;
        let State { kept, planner, .. } = &mut *state;
        let plan = planner.plan(&next, Some(&kept.catalogue)).map_err(Refused::Invalid)?;
        self.take_over(&mut state, next, plan).await?;
        Ok(state.kept.catalogue.version)
    }

    /// Asks all at the same time.
    async fn all(&self, peers: &[PublisherKey], ask: &Ask) -> Vec<(PublisherKey, Result<Answer, String>)> {
        join_all(peers.iter().map(|peer| async { (*peer, self.ask(*peer, ask.clone()).await) })).await
    }

    async fn ask(&self, peer: PublisherKey, ask: Ask) -> Result<Answer, String> {
        let mesh = &self.0.mesh;
        timeout(ANSWER, ask_of(mesh, peer, ask)).await.unwrap_or_else(|_| Err("it does not answer".into()))
    }

    async fn answer(&self, ask: Ask) -> Answer {
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
                    Err((reason, busy)) => refused(&reason, busy),
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
    ) -> Result<(), (String, bool)> {
        if state.promised.is_some() {
            return Err(("another change is being made".into(), true));
        }
        let mine = state.kept.catalogue.version;
        if version != mine + 1 {
            return Err((format!("its catalogue is of version {mine}"), true));
        }
        let invalid = |faults: Vec<String>| (faults.join("; "), false);
        let next = state.next(change, at.clone()).map_err(invalid)?;
        let State { kept, planner, .. } = &mut *state;
        let plan = planner.plan(&next, Some(&kept.catalogue)).map_err(invalid)?;
        let sources = plan.changed(&state.plan);
        match self.0.control.hold(at, sources).await {
            Ok(Ok(())) => {}
            Ok(Err(past)) => return Err((format!("{BEYOND}: {past}"), true)),
            Err(ended) => return Err((ended.to_string(), true)),
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
    async fn follow_siblings(&self) {
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

/// How a sibling's refusal begins whose partitions have been read too far.
const BEYOND: &str = "it has read on";

fn refused(reason: &str, busy: bool) -> Answer {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Answer::Refused { reason: reason[..end].to_owned(), busy }
}

impl State {
    /// Version, and what tells it from others of the same number.
    fn identity(&self) -> (u64, u64) {
        (self.kept.catalogue.version, self.planner.content(&self.kept.catalogue))
    }

    fn next(&self, change: &Change, at: Vec<(Epoch, u64)>) -> Result<Catalogue, Vec<String>> {
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
        Ok(next)
    }
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
pub(super) async fn of_sibling(mesh: &MeshHandle, me: PublisherKey, until: Instant) -> Option<Catalogue> {
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
