//! The configuration of one peer: one TOML file, every key also from the environment, checked whole before anything
//! starts. Each module reads its own section; this file puts them together and checks what spans several.

mod environment;
pub mod reader;

use std::{
    collections::{BTreeSet, HashSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::Table;

use self::reader::{Fault, Faults, Section};
use crate::{
    auth, edge,
    ingest::{self, dead_letters::Destination},
    mesh, ops, signing, source,
    transform::{Policies, RouteConfig, feeding},
};

/// Everything one peer is told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub region: String,
    /// Channels whose streams belong to one user each.
    pub private: Arc<HashSet<String>>,
    pub mesh: mesh::Config,
    pub auth: auth::Config,
    pub signing: signing::Config,
    /// With the edge role.
    pub edge: Option<edge::Config>,
    /// With the ingest role.
    pub ingest: Option<IngestRole>,
    pub ops: ops::Config,
}

/// What a peer with the ingest role is told besides.
#[derive(Clone, Debug)]
pub struct IngestRole {
    pub ingest: ingest::Config,
    pub sources: Vec<SourceRole>,
    pub routes: Vec<RouteConfig>,
    pub dead_letters: Option<ingest::dead_letters::Config>,
    /// Where it is kept how far this peer is; nowhere, for a peer that lives for a moment.
    pub checkpoint_file: Option<PathBuf>,
    /// Where sources and routes that were changed while running are kept, and what the files of its directory were.
    pub catalogue_file: Option<PathBuf>,
    /// `ingest.catalogue`: a folder of files with sources and routes, looked at while running.
    pub catalogue_folder: Option<PathBuf>,
    /// What files of sources are relative to.
    pub folder: PathBuf,
}

/// One source, and who reads it.
#[derive(Clone, Debug)]
pub struct SourceRole {
    pub source: source::Config,
    pub tiers: ingest::Tiers,
}

/// A configuration that is not used, because of these faults.
#[derive(Debug)]
pub struct InvalidConfig {
    pub file: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match fault.key.as_str() {
                "" => write!(f, "{file}: {}", fault.reason)?,
                key => write!(f, "{file}: {key}: {}", fault.reason)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for InvalidConfig {}

/// Why a configuration was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {error}", file.display())]
    Read { file: PathBuf, error: io::Error },
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
}

impl Config {
    /// Loads and checks a file together with the environment's `TICKMESH_` variables. Files that it names are relative to
    /// its own folder. Binds nothing, starts nothing, writes nothing.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        let text = fs::read_to_string(file).map_err(|error| LoadError::Read { file: file.into(), error })?;
        Ok(Self::parse(&text, file, std::env::vars())?)
    }

    /// Checks a configuration text with the given environment.
    pub fn parse(
        text: &str,
        file: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, InvalidConfig> {
        let faults = Faults::default();
        let mut table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                faults.push("", error.to_string().trim());
                return Err(InvalidConfig { file: file.into(), faults: faults.take() });
            }
        };
        environment::apply(&mut table, environment, &faults);
        let config = Self::read(table, file.parent().unwrap_or(Path::new("")), &faults);
        let faults = faults.take();
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(InvalidConfig { file: file.into(), faults }),
        }
    }

    fn read(table: Table, folder: &Path, faults: &Faults) -> Option<Self> {
        let mut root = Section::root(table, faults.clone());

        let mut node = root.section("node");
        let name = node.required::<String>("name");
        let region = node.required::<String>("region");
        let roles = roles(&mut node);
        let private: HashSet<String> = node.or("private", auth::default_private());
        let data_dir = folder.join(node.or("data_dir", PathBuf::from("data")));
        for channel in private.iter().filter(|channel| !tickmesh_protocol::stream::is_part(channel)) {
            node.fault("private", format!("{channel:?} is no channel name"));
        }
        for (key, value) in [("name", &name), ("region", &region)] {
            if let Some(value) = value.as_deref().filter(|value| !tickmesh_protocol::stream::is_part(value)) {
                node.fault(key, format!("{value:?}: only a-z, 0-9, _ and -"));
            }
        }
        node.finish();

        let mut mesh = read_section(&mut root, "mesh", mesh::Config::read);
        for file in [&mut mesh.key_file, &mut mesh.network_key_file] {
            *file = folder.join(&*file);
        }
        let ops = read_section(&mut root, "ops", |section| ops::Config::read(section, folder));
        let mut auth = read_section(&mut root, "auth", |section| auth::Config::read(section, folder));
        if roles.contains("ingest") {
            let file = format!("{}.revocations", name.as_deref().unwrap_or_default());
            auth.revocations_file = Some(data_dir.join(file));
        }
        let signing = if root.has("signing") {
            read_section(&mut root, "signing", |section| {
                signing::Config::read(section, folder, &roles, &private)
            })
        } else {
            signing::Config::default()
        };
        let private = Arc::new(private);
        let edge = roles
            .contains("edge")
            .then(|| {
                let mut edge = read_section(&mut root, "edge", edge::Config::read);
                edge.permissions.private = Arc::clone(&private);
                edge.permissions.roles = auth.roles.clone();
                if auth.admits() {
                    // Where clients can sign in, those who do not have only what is listed for them.
                    edge.permissions.anonymous.get_or_insert_default();
                }
                edge
            })
            .or_else(|| unused(&mut root, "edge", "edge"));
        // Peers that are tried out in one folder must not share it.
        let file = |kind| data_dir.join(format!("{}.{kind}", name.as_deref().unwrap_or_default()));
        let files = (file("checkpoint"), file("catalogue"));
        let ingest =
            roles.contains("ingest").then(|| read_ingest(&mut root, folder, files, &private)).or_else(|| {
                for key in ["ingest", "source", "route", "dead_letters"] {
                    unused::<()>(&mut root, key, "ingest");
                }
                None
            });
        root.finish();
        Some(Self { name: name?, region: region?, private, mesh, auth, signing, edge, ingest, ops })
    }
}

impl IngestRole {
    /// The policies of all channels that routes and sources name, and what of that does not go together.
    pub fn policies(&self, private: &HashSet<String>) -> (Policies, Vec<String>) {
        let (mut policies, mut faults) = (Policies::default(), Vec::new());
        for RouteConfig { source, topic, channel, policy, .. } in &self.routes {
            let by = format!("the route of source {source:?}, topic {topic:?}");
            faults.extend(policies.name(channel, *policy, private, by).err());
        }
        for SourceRole { source, .. } in &self.sources {
            // What passes without a route is what the source says it is.
            let routed = self.routes.iter().any(|route| route.source == source.name);
            for channel in source.channels().into_iter().flatten().filter(|_| !routed) {
                // What makes a channel private is asked of nobody: the source's own wish gives way.
                let policy =
                    source.policy(channel).filter(|policy| policy.check(private.contains(*channel)).is_ok());
                let by = format!("the source {:?}", source.name);
                faults.extend(policies.name(channel, policy.unwrap_or_default(), private, by).err());
            }
        }
        faults.extend(chaining_faults(&self.routes, &self.sources, private));
        (policies, faults)
    }
}

fn roles(node: &mut Section) -> BTreeSet<String> {
    let roles: BTreeSet<String> =
        node.required::<Vec<String>>("roles").unwrap_or_default().into_iter().collect();
    for role in roles.iter().filter(|role| !matches!(role.as_str(), "edge" | "ingest")) {
        node.fault("roles", format!("no role {role:?}; known: edge, ingest"));
    }
    if roles.is_empty() {
        node.fault("roles", "at least one of edge, ingest");
    }
    roles
}

fn read_section<T>(root: &mut Section, key: &'static str, read: impl FnOnce(&mut Section) -> T) -> T {
    let mut section = root.section(key);
    let value = read(&mut section);
    section.finish();
    value
}

/// A section that no role of this peer reads is a mistake, not something to pass over in silence.
fn unused<T>(root: &mut Section, key: &'static str, role: &str) -> Option<T> {
    if root.has(key) {
        root.fault(key, format!("is read only with the role {role:?}, which node.roles does not name"));
        root.skip(key);
    }
    None
}

fn read_ingest(
    root: &mut Section,
    folder: &Path,
    (checkpoint_file, catalogue_file): (PathBuf, PathBuf),
    private: &HashSet<String>,
) -> IngestRole {
    let mut catalogue_folder = None;
    let ingest = read_section(root, "ingest", |section| {
        catalogue_folder = section.optional::<PathBuf>("catalogue").map(|catalogue| folder.join(catalogue));
        ingest::Config::read(section)
    });
    let sources: Vec<_> = root
        .sections("source")
        .into_iter()
        .filter_map(|mut section| {
            let tiers = ingest::Tiers::read(&mut section);
            source::Config::read(section, folder).map(|source| SourceRole { source, tiers })
        })
        .collect();
    if sources.is_empty() && catalogue_folder.is_none() {
        root.fault("source", "an ingest peer needs at least one [[source]]");
    }
    let mut names = HashSet::new();
    for SourceRole { source, .. } in &sources {
        if !names.insert(source.name.clone()) {
            root.fault("source", format!("two sources are named {:?}", source.name));
        }
    }
    let mut routes = Vec::new();
    for mut section in root.sections("route") {
        let route = RouteConfig::read(&mut section);
        if let Some(RouteConfig { name, .. }) = &route
            && !name.is_empty()
            && routes.iter().any(|known: &RouteConfig| known.name == *name)
        {
            section.fault("name", format!("two routes are named {name:?}"));
        }
        routes.extend(route);
        section.finish();
    }
    for route in routes.iter().filter(|route| !names.contains(&route.source)) {
        root.fault("route", format!("no source is named {:?}", route.source));
    }
    let dead_letters =
        root.has("dead_letters").then(|| read_dead_letters(root, folder, &checkpoint_file, &sources));
    let dead_letters = dead_letters.flatten();
    let role = IngestRole {
        ingest,
        sources,
        routes,
        dead_letters,
        checkpoint_file: Some(checkpoint_file),
        catalogue_file: Some(catalogue_file),
        catalogue_folder,
        folder: folder.to_owned(),
    };
    for fault in role.policies(private).1 {
        root.fault("route", fault);
    }
    role
}

/// What of routes that take what others make, and of those that combine, does not go together.
fn chaining_faults(routes: &[RouteConfig], sources: &[SourceRole], private: &HashSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let all: Vec<_> = routes.iter().collect();
    for (index, route) in routes.iter().enumerate() {
        let RouteConfig { source, topic, from, channel, .. } = route;
        let me = format!("the route of source {source:?}, topic {topic:?}, to {channel:?}");
        if let Some(from) = from {
            if feeding(&all, index).is_empty() {
                faults.push(format!(
                    "{me} takes from {from:?}, which no route of that source makes, or only one with `from` below it"
                ));
            }
            if private.contains(from) {
                faults.push(format!("{me} takes from {from:?}, which is private"));
            }
        }
        let several_topics = sources.iter().any(|of| of.source.name == *source && of.source.has_topics());
        if route.combines() && several_topics && topic.contains(['*', '?']) {
            faults.push(format!(
                "{me} combines, and can take the records of one partition only: name one topic, without * or ?"
            ));
        }
    }
    faults
}

fn read_dead_letters(
    root: &mut Section,
    folder: &Path,
    checkpoint_file: &Path,
    sources: &[SourceRole],
) -> Option<ingest::dead_letters::Config> {
    let journal = checkpoint_file.with_extension("put-back");
    let config = read_section(root, "dead_letters", |section| {
        ingest::dead_letters::Config::read(section, folder, journal)
    })?;
    if let Destination::Topic(topic) = &config.to {
        for SourceRole { source, .. } in sources {
            let name = &source.name;
            if source.writer().is_none() {
                root.fault("dead_letters.topic", format!("the source {name:?} has no log that keeps them; write file = \"data/dead-letters.jsonl\""));
            }
            if source.reads(topic) {
                root.fault(
                    "dead_letters.topic",
                    format!("the source {name:?} reads {topic:?}, so its dead letters would come again"),
                );
            }
        }
    }
    Some(config)
}

#[cfg(test)]
mod tests;
