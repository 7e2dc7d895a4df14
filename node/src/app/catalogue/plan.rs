//! From definitions to what ingest reads and makes: everything is checked here, against the configuration as well.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Component, Path},
    sync::Arc,
};

use tickmesh_protocol::catalogue::{Catalogue, Definition, Entry, Kind, Name, Origin};

use crate::{
    config::{
        IngestRole, SourceRole,
        reader::{Faults, Section},
    },
    ingest::Tiers,
    source,
    transform::{
        Policies, RouteConfig, RouteId, RouteTable, TableRoute,
        table::{self, digest},
    },
};

/// Properties of librdkafka that load code, or run it. Those that name files end in `.location`.
const REACHING: &[&str] =
    &["plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.id", "ssl.providers"];

/// Makes plans. It remembers what it has read, since programs take a while to compile.
pub(in crate::app) struct Planner {
    role: IngestRole,
    private: Arc<HashSet<String>>,
    /// By name and text.
    routes: HashMap<(String, String), Arc<RouteConfig>>,
}

/// What a catalogue and the configuration come to.
#[derive(Clone)]
pub(in crate::app) struct Plan {
    /// The routes of each source, in the order in which they are looked at.
    pub(in crate::app) routes: BTreeMap<String, RouteTable>,
    pub(in crate::app) policies: Policies,
    /// Sources of the catalogue.
    pub(in crate::app) sources: Vec<SourceRole>,
}

impl Plan {
    /// Sources whose routes are others than in another plan.
    pub(in crate::app) fn changed(&self, before: &Self) -> Vec<String> {
        let ids = |table: Option<&RouteTable>| {
            let routes = table.into_iter().flat_map(|table| table.iter());
            routes.map(|route| (route.id, route.life.is_over())).collect::<HashSet<_>>()
        };
        let names: BTreeSet<_> = self.routes.keys().chain(before.routes.keys()).collect();
        let differs = |name: &&String| ids(self.routes.get(*name)) != ids(before.routes.get(*name));
        names.into_iter().filter(differs).cloned().collect()
    }

    /// A source has routes from its beginning to its end, or none: records that pass as they are would become others at once.
    fn passing_faults(&self, before: &Self) -> Vec<String> {
        let is_routed = |table: &RouteTable| table.iter().any(|route| !route.life.is_over());
        let fault = |(source, table): (&String, &RouteTable)| match (
            is_routed(before.routes.get(source)?),
            is_routed(table),
        ) {
            (true, false) => Some(format!(
                "the last route of source {source:?} goes, and nobody would know what its records are; remove the source as well"
            )),
            (false, true) => Some(format!(
                "source {source:?} is read, and its records pass as they are; a route would be for all of them: add another source with it"
            )),
            _ => None,
        };
        self.routes.iter().filter_map(fault).collect()
    }

    pub(in crate::app) fn has_source(&self, name: &str) -> bool {
        self.sources.iter().any(|role| role.source.name == name)
    }
}

impl Planner {
    pub(in crate::app) fn new(role: &IngestRole, private: Arc<HashSet<String>>) -> Self {
        Self { role: role.clone(), private, routes: HashMap::new() }
    }

    /// Tells peers apart whose configuration or catalogue have other routes.
    pub(in crate::app) fn content(&self, catalogue: &Catalogue) -> u64 {
        let present: Vec<_> = catalogue.present().map(|of| (&of.name, &of.text)).collect();
        digest(&format!("{:?} {present:?}", self.role.routes))
    }

    /// Plans for a catalogue that comes after what is planned, or for one that all others have already.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(in crate::app) fn plan(
        &mut self,
        catalogue: &Catalogue,
        before: Option<&Plan>,
    ) -> Result<Plan, Vec<String>> {
        let mut faults = Vec::new();
        let (mut sources, mut routes) = (Vec::new(), Vec::new());
        for entry in &catalogue.entries {
            let Entry { definition, until, .. } = entry;
            match definition.name.kind {
                Kind::Source if until.is_none() => {
                    sources.extend(self.read_source(definition, &mut faults));
                }
                Kind::Source => {}
                Kind::Route => {
                    routes.extend(self.read_route(definition, &mut faults).map(|route| (entry, route)));
                }
            }
        }
        let named = |of: &Definition| (of.name.name.clone(), of.text.clone());
        let known: HashSet<_> = catalogue.entries.iter().map(|entry| named(&entry.definition)).collect();
        self.routes.retain(|key, _| known.contains(key));
        self.check(catalogue, &sources, &routes, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        // Of what was removed, too: edges were told of it.
        let all = IngestRole {
            sources: self.role.sources.iter().chain(&sources).cloned().collect(),
            routes: self
                .role
                .routes
                .iter()
                .cloned()
                .chain(routes.iter().map(|(_, of)| (**of).clone()))
                .collect(),
            ..self.role.clone()
        };
        let (policies, faults) = all.policies(&self.private);
        if !faults.is_empty() {
            return Err(faults);
        }
        let lives = catalogue.lives();
        let mut tables = BTreeMap::new();
        for name in all.sources.iter().map(|role| &role.source.name) {
            let fixed: Vec<_> =
                self.role.routes.iter().filter(|route| route.source == *name).cloned().collect();
            let mut table = table::fixed(&fixed).to_vec();
            let of_source = routes.iter().filter(|(_, route)| route.source == *name);
            table.extend(of_source.map(|(entry, route)| TableRoute {
                id: RouteId::changing(&route.name, entry.since),
                config: Arc::clone(route),
                life: lives.life(entry),
            }));
            tables.insert(name.clone(), table.into());
        }
        let plan = Plan { routes: tables, policies, sources };
        let faults = before.map(|before| plan.passing_faults(before)).unwrap_or_default();
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
    }

    fn check(
        &self,
        catalogue: &Catalogue,
        sources: &[SourceRole],
        routes: &[(&Entry, Arc<RouteConfig>)],
        faults: &mut Vec<String>,
    ) {
        let fixed_sources = self.role.sources.iter().map(|role| &role.source.name);
        let fixed: HashSet<_> = fixed_sources
            .map(|name| (Kind::Source, name))
            .chain(self.role.routes.iter().map(|route| (Kind::Route, &route.name)))
            .collect();
        for Definition { name, .. } in catalogue.present() {
            if fixed.contains(&(name.kind, &name.name)) {
                faults.push(format!("{name} is in the peer's configuration file; change it there"));
            }
        }
        let named: HashSet<_> =
            self.role.sources.iter().chain(sources).map(|role| &role.source.name).collect();
        for (_, route) in routes.iter().filter(|(entry, _)| entry.until.is_none()) {
            if !named.contains(&route.source) {
                faults.push(format!("route {:?}: no source is named {:?}", route.name, route.source));
            }
        }
    }

    fn read_source(&self, definition: &Definition, faults: &mut Vec<String>) -> Option<SourceRole> {
        let folder = self.role.folder.clone();
        let reaching = reaching_faults(definition);
        if !reaching.is_empty() {
            // It is not even looked at what these files hold.
            faults.extend(reaching);
            return None;
        }
        read(definition, faults, |mut section| {
            let tiers = Tiers::read(&mut section);
            source::Config::read(section, &folder).map(|source| SourceRole { source, tiers })
        })
    }

    fn read_route(&mut self, definition: &Definition, faults: &mut Vec<String>) -> Option<Arc<RouteConfig>> {
        let key = (definition.name.name.clone(), definition.text.clone());
        if let Some(route) = self.routes.get(&key) {
            return Some(Arc::clone(route));
        }
        let route = read(definition, faults, |mut section| {
            let route = RouteConfig::read(&mut section);
            section.finish();
            route
        });
        let route = Arc::new(route?);
        self.routes.insert(key, Arc::clone(&route));
        Some(route)
    }
}

/// What an operator sends over the network names files of the peer's own folder only, as a source shows their content to a server;
/// and no library or command, as those would run in the peer.
fn reaching_faults(definition: &Definition) -> Vec<String> {
    if definition.origin != Origin::Admin {
        return Vec::new();
    }
    let table: toml::Table = definition.text.parse().unwrap_or_default();
    let is_inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    let outside = |(key, file): (&String, &toml::Value)| {
        let outside = key.ends_with("_file") && !file.as_str().is_some_and(|file| is_inside(Path::new(file)));
        outside.then(|| {
            format!("{}: {key}: {file} is not in the folder of the peer's configuration", definition.name)
        })
    };
    let reaches = |key: &&String| key.ends_with(".location") || REACHING.contains(&key.as_str());
    let properties = table.get("properties").and_then(toml::Value::as_table);
    let reaching = properties.into_iter().flat_map(toml::Table::keys).filter(reaches);
    let reaching = reaching.map(|key| {
        format!("{}: properties: {key} can be set in the peer's configuration file only", definition.name)
    });
    table.iter().filter_map(outside).chain(reaching).collect()
}

fn read<T>(
    definition: &Definition,
    faults: &mut Vec<String>,
    read: impl FnOnce(Section) -> Option<T>,
) -> Option<T> {
    let Definition { name, text, .. } = definition;
    let found = Faults::default();
    let mut table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            faults.push(format!("{name}: {}", error.to_string().trim()));
            return None;
        }
    };
    table.insert("name".into(), name.name.clone().into());
    let value = read(Section::root(table, found.clone()));
    let before = faults.len();
    faults.extend(found.take().into_iter().map(|fault| format!("{name}: {}: {}", fault.key, fault.reason)));
    value.filter(|_| faults.len() == before)
}

/// The definitions in a document of `[[source]]` and `[[route]]` tables.
///
/// # Errors
/// Everything that is wrong with it; what the tables say is not looked at.
pub(in crate::app) fn definitions(text: &str, origin: Origin) -> Result<Vec<Definition>, Vec<String>> {
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| vec![error.to_string()])?;
    let (mut definitions, mut faults) = (Vec::new(), Vec::new());
    for (kind, key) in [(Kind::Source, "source"), (Kind::Route, "route")] {
        let tables = match table.remove(key) {
            None => continue,
            Some(toml::Value::Array(tables)) => tables,
            Some(_) => {
                faults.push(format!("{key} must be an array of tables: [[{key}]]"));
                continue;
            }
        };
        for (index, item) in tables.into_iter().enumerate() {
            let toml::Value::Table(mut table) = item else {
                faults.push(format!("{key}[{index}] must be a table"));
                continue;
            };
            match table.remove("name") {
                Some(toml::Value::String(name)) => {
                    let name = Name { kind, name };
                    definitions.push(Definition { name, origin, text: table.to_string() });
                }
                _ => faults
                    .push(format!("{key}[{index}] has no name; what is changed while peers run needs one")),
            }
        }
    }
    faults.extend(table.keys().map(|key| format!("{key}: only [[source]] and [[route]] can be changed")));
    if faults.is_empty() { Ok(definitions) } else { Err(faults) }
}
