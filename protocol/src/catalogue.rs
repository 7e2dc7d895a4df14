//! The catalogue: sources and routes that change while peers run, and how ingest peers agree from which position of the log on.
//!
//! All ingest peers make the same events of the same records, so a change must take effect at the same record everywhere. Each change
//! is a new *version*, with a position for every partition: records before it are read by the old routes, from it on by the new ones.
//! One peer, which the operator asked, goes about it:
//!
//! ```text
//! asked ─> all   Standing              how far they are, twice, to see how fast
//! asked ─> all   Promise { change, at: a little ahead of the foremost }
//!                                      nobody reads beyond `at` before the next word
//! asked ─> all   Commit                each keeps the catalogue on disk, and goes on
//! asked          applies it itself, last
//! ```
//!
//! If one refuses, all are told [`Ask::Abort`] and nothing has changed. Who has promised and hears nothing more asks the others: if
//! one of them has the version, it was decided; else it is let go.
//!
//! ```
//! use tickmesh_protocol::{Epoch, catalogue::{Catalogue, Change, Definition, Kind, Name, Origin}};
//!
//! let route = |text: &str| Definition {
//!     name: Name { kind: Kind::Route, name: "trades".into() }, origin: Origin::Admin, text: text.into(),
//! };
//! let epoch = Epoch::from_u64(7);
//! let mut catalogue = Catalogue::default();
//! catalogue.apply(&Change { origin: Origin::Admin, remove: vec![], add: vec![route("key = '.s'")] }, vec![(epoch, 100)]).unwrap();
//! catalogue.apply(&Change { origin: Origin::Admin, remove: vec![], add: vec![route("key = '.symbol'")] }, vec![(epoch, 200)]).unwrap();
//! assert_eq!((catalogue.version, catalogue.present().count()), (2, 1));
//! // Record 150 was made an event by the first, and is so again when the log is read again.
//! let lives: Vec<_> = catalogue.entries.iter().map(|entry| catalogue.life(entry)).collect();
//! assert!(lives[0].covers(epoch, 150) && !lives[1].covers(epoch, 150));
//! assert!(!lives[0].covers(epoch, 200) && lives[1].covers(epoch, 200));
//! // A partition that appeared later knows only the newest.
//! assert!(!lives[0].covers(Epoch::from_u64(8), 0) && lives[1].covers(Epoch::from_u64(8), 0));
//! ```

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Epoch, feed::MAX_SOURCE_NAME_BYTES, stream::is_part};

/// Longest text of a definition: a route with long programs has a kilobyte.
pub const MAX_DEFINITION_BYTES: usize = 16 * 1024;

/// Longest sum of texts in one change, so that it fits a request.
pub const MAX_CHANGE_BYTES: usize = 64 * 1024;

/// Most definitions in one change.
pub const MAX_CHANGE: usize = 256;

/// Most definitions that are present.
pub const MAX_PRESENT: usize = 1024;

/// Most definitions that were removed and are still known, for who reads the log again.
pub const MAX_REMOVED: usize = 256;

/// Longest sum of texts, present and removed: the catalogue fits one frame.
pub const MAX_CATALOGUE_BYTES: usize = 256 * 1024;

/// Most positions of all versions that are still known, 64 versions over 128 partitions; of what is older it counts as if it had
/// always been.
pub const MAX_POSITIONS: usize = 8192;

/// Most partitions of one peer in a [`Standing`].
pub const MAX_STANDING: usize = 2048;

/// What a definition defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Source,
    Route,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Route => "route",
        })
    }
}

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A file in the peers' directory of routes.
    Files,
    /// An operator.
    Admin,
}

/// What a definition is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    pub kind: Kind,
    /// Letters of a stream's part, at most [`MAX_SOURCE_NAME_BYTES`].
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}

/// One source or route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    #[serde(flatten)]
    pub name: Name,
    pub origin: Origin,
    /// As in the configuration: the keys of a `[[source]]` or `[[route]]`, TOML.
    pub text: String,
}

/// What an operator wants. What is added under a name that is present takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Who wants it: whatever it adds is of the same.
    pub origin: Origin,
    pub remove: Vec<Name>,
    pub add: Vec<Definition>,
}

/// A definition, and in which versions it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub definition: Definition,
    /// The version that brought it; zero: it has always been.
    pub since: u64,
    /// The version that took it away.
    pub until: Option<u64>,
}

/// Where a version begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    pub version: u64,
    /// The first position of each partition that is read by it; of partitions that are not named, all.
    pub at: Vec<(Epoch, u64)>,
}

/// All sources and routes that are not fixed, with their past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    pub version: u64,
    pub entries: Vec<Entry>,
    /// Of the last versions, oldest first.
    pub switches: Vec<Switch>,
}

/// Which records a route is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    since: Option<Arc<BTreeMap<Epoch, u64>>>,
    until: Option<Arc<BTreeMap<Epoch, u64>>>,
}

impl Life {
    pub fn covers(&self, epoch: Epoch, position: u64) -> bool {
        let reached = |at: &BTreeMap<Epoch, u64>| position >= at.get(&epoch).copied().unwrap_or(0);
        self.since.as_deref().is_none_or(reached) && !self.until.as_deref().is_some_and(reached)
    }

    /// Whether it was taken away.
    pub fn is_over(&self) -> bool {
        self.until.is_some()
    }
}

/// A text that sources and routes cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name; write up to {MAX_SOURCE_NAME_BYTES} of a-z, 0-9, _ and -")]
pub struct InvalidName(String);

/// Whether a source or a route may be called so: the name stands in labels of metrics, names of threads and client ids.
///
/// # Errors
/// If it is too long, or has other letters than a part of a stream's name.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    if is_part(name) && name.len() <= MAX_SOURCE_NAME_BYTES {
        Ok(())
    } else {
        Err(InvalidName(name.chars().take(MAX_SOURCE_NAME_BYTES).collect()))
    }
}

/// Why a change is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChange {
    #[error("it changes nothing")]
    Nothing,
    #[error("no {0} is in the catalogue")]
    Unknown(Name),
    #[error("{0} is named twice")]
    Twice(Name),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("{what}: {count}; at most {most}")]
    TooMuch { what: &'static str, count: usize, most: usize },
}

impl Change {
    /// # Errors
    /// If it breaks a limit of its own.
    pub fn check(&self) -> Result<(), InvalidChange> {
        let names = || self.add.iter().map(|definition| &definition.name).chain(&self.remove);
        let most = |what, count, most| {
            if count > most { Err(InvalidChange::TooMuch { what, count, most }) } else { Ok(()) }
        };
        most("definitions in one change", names().count(), MAX_CHANGE)?;
        for definition in &self.add {
            most("bytes of a definition", definition.text.len(), MAX_DEFINITION_BYTES)?;
        }
        most("bytes of a change", self.add.iter().map(|of| of.text.len()).sum(), MAX_CHANGE_BYTES)?;
        let mut seen = std::collections::BTreeSet::new();
        for name in names() {
            check_name(&name.name)?;
            if !seen.insert(name) {
                return Err(InvalidChange::Twice(name.clone()));
            }
        }
        Ok(())
    }
}

impl Catalogue {
    /// What is in it now.
    pub fn present(&self) -> impl Iterator<Item = &Definition> {
        self.entries.iter().filter(|entry| entry.until.is_none()).map(|entry| &entry.definition)
    }

    pub fn get(&self, name: &Name) -> Option<&Definition> {
        self.present().find(|definition| definition.name == *name)
    }

    /// Makes the next version: `at` says from where on it counts. What is added as it is present already stays as it is.
    ///
    /// # Errors
    /// Says why nothing was changed.
    pub fn apply(&mut self, change: &Change, at: Vec<(Epoch, u64)>) -> Result<(), InvalidChange> {
        change.check()?;
        if let Some(unknown) = change.remove.iter().find(|name| self.get(name).is_none()) {
            return Err(InvalidChange::Unknown(unknown.clone()));
        }
        let same = |definition: &&Definition| self.get(&definition.name) != Some(definition);
        let add: Vec<_> = change.add.iter().filter(same).cloned().collect();
        if add.is_empty() && change.remove.is_empty() {
            return Err(InvalidChange::Nothing);
        }
        let mut next = self.clone();
        next.version += 1;
        for entry in next.entries.iter_mut().filter(|entry| entry.until.is_none()) {
            let name = &entry.definition.name;
            if change.remove.contains(name) || add.iter().any(|definition| definition.name == *name) {
                entry.until = Some(next.version);
            }
        }
        let entry = |definition| Entry { definition, since: next.version, until: None };
        next.entries.extend(add.into_iter().map(entry));
        next.switches.push(Switch { version: next.version, at });
        let count = next.present().count();
        if count > MAX_PRESENT {
            return Err(InvalidChange::TooMuch { what: "sources and routes", count, most: MAX_PRESENT });
        }
        next.forget();
        let bytes = next.present().map(|definition| definition.text.len()).sum();
        if bytes > MAX_CATALOGUE_BYTES {
            let what = "bytes of all sources and routes";
            return Err(InvalidChange::TooMuch { what, count: bytes, most: MAX_CATALOGUE_BYTES });
        }
        *self = next;
        Ok(())
    }

    /// Forgets the oldest of what was removed, and where old versions began, until the rest is within its limits.
    fn forget(&mut self) {
        loop {
            let positions: usize = self.switches.iter().map(|switch| switch.at.len().max(1)).sum();
            let bytes: usize = self.entries.iter().map(|entry| entry.definition.text.len()).sum();
            let removed = self.entries.iter().filter_map(|entry| entry.until);
            let (count, oldest) = (removed.clone().count(), removed.min());
            let oldest = if positions > MAX_POSITIONS && self.switches.len() > 1 {
                self.switches.first().map(|switch| switch.version)
            } else if count > MAX_REMOVED || bytes > MAX_CATALOGUE_BYTES {
                oldest
            } else {
                None
            };
            let Some(version) = oldest else { return };
            self.entries.retain(|entry| entry.until.is_none_or(|until| until > version));
            for entry in self.entries.iter_mut().filter(|entry| entry.since <= version) {
                entry.since = 0;
            }
            self.switches.retain(|switch| switch.version > version);
        }
    }

    /// Which records an entry is for.
    pub fn life(&self, entry: &Entry) -> Life {
        self.lives().life(entry)
    }

    /// Makes [`Life`]s that share the positions of their versions.
    pub fn lives(&self) -> Lives {
        let map = |switch: &Switch| (switch.version, Arc::new(switch.at.iter().copied().collect()));
        Lives(self.switches.iter().map(map).collect())
    }

    /// # Errors
    /// If it breaks a limit, or its versions do not make sense: it comes from a file or another peer.
    pub fn check(&self) -> Result<(), InvalidChange> {
        let most = |what, count, most| {
            if count > most { Err(InvalidChange::TooMuch { what, count, most }) } else { Ok(()) }
        };
        most("sources and routes", self.present().count(), MAX_PRESENT)?;
        most("removed sources and routes", self.entries.len() - self.present().count(), MAX_REMOVED)?;
        most(
            "positions",
            self.switches.iter().map(|switch| switch.at.len()).sum(),
            MAX_POSITIONS + MAX_STANDING,
        )?;
        let bytes = self.entries.iter().map(|entry| entry.definition.text.len()).sum();
        most("bytes of all sources and routes", bytes, MAX_CATALOGUE_BYTES)?;
        let mut seen = std::collections::BTreeSet::new();
        for definition in self.present() {
            if !seen.insert(&definition.name) {
                return Err(InvalidChange::Twice(definition.name.clone()));
            }
        }
        Ok(())
    }
}

/// See [`Catalogue::lives`].
pub struct Lives(BTreeMap<u64, Arc<BTreeMap<Epoch, u64>>>);

impl Lives {
    pub fn life(&self, entry: &Entry) -> Life {
        // What began before all that is known has always been.
        let since = self.0.get(&entry.since).cloned();
        let until = entry.until.map(|until| self.0.get(&until).cloned().unwrap_or_default());
        Life { since, until }
    }
}

/// How far a peer is in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub source: String,
    pub epoch: Epoch,
    /// The position that it reads next.
    pub next: u64,
}

/// What an ingest peer asks another about the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How far it is.
    Standing,
    /// To read no record at or after these positions until it hears more. Of partitions of the named sources that are not named: none.
    Promise { version: u64, change: Change, at: Vec<(Epoch, u64)> },
    /// The promised version is decided.
    Commit { version: u64 },
    /// It is not.
    Abort { version: u64 },
    /// All of its catalogue.
    Whole,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Standing {
        version: u64,
        /// Tells peers apart that have other routes, in their configuration or under the same version.
        content: u64,
        /// At most [`MAX_STANDING`].
        partitions: Vec<Standing>,
    },
    /// What was asked is so.
    Done,
    /// It is not, and why. `busy`: it may be later.
    Refused {
        reason: String,
        busy: bool,
    },
    /// It has read on beyond a position; one further ahead may do.
    Beyond {
        reason: String,
    },
    Whole(Catalogue),
}

/// Where a version may begin: nobody has read there yet, nor will before all have promised, at the pace that two rounds of answers
/// show. `ahead` is how many times the time between the rounds that takes.
pub fn begin_of(first: &[Vec<Standing>], second: &[Vec<Standing>], ahead: u64) -> Vec<(Epoch, u64)> {
    let furthest = |round: &[Vec<Standing>]| {
        let mut furthest: BTreeMap<Epoch, u64> = BTreeMap::new();
        for Standing { epoch, next, .. } in round.iter().flatten() {
            let known = furthest.entry(*epoch).or_default();
            *known = (*known).max(*next);
        }
        furthest
    };
    let before = furthest(first);
    let lead = |(epoch, next): (Epoch, u64)| {
        let pace = next.saturating_sub(before.get(&epoch).copied().unwrap_or(next));
        (epoch, next.saturating_add(pace.saturating_mul(ahead)))
    };
    furthest(second).into_iter().map(lead).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        Name { kind: Kind::Route, name: name.into() }
    }

    fn definition(of: &str, text: &str) -> Definition {
        Definition { name: name(of), origin: Origin::Admin, text: text.into() }
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let mut catalogue = Catalogue::default();
        let change = |remove: &[&str], add: &[(&str, &str)]| Change {
            origin: Origin::Admin,
            remove: remove.iter().map(|of| name(of)).collect(),
            add: add.iter().map(|(of, text)| definition(of, text)).collect(),
        };
        catalogue.apply(&change(&[], &[("a", "1")]), vec![]).unwrap();
        let before = catalogue.clone();
        for (bad, reason) in [
            (change(&[], &[]), "it changes nothing"),
            (change(&[], &[("a", "1")]), "it changes nothing"),
            (change(&["b"], &[]), "no route \"b\" is in the catalogue"),
            (change(&["a"], &[("a", "2")]), "route \"a\" is named twice"),
            (change(&[], &[("A b", "2")]), "\"A b\" is no name"),
            (change(&[], &[("b", &"x".repeat(MAX_DEFINITION_BYTES + 1))]), "bytes of a definition: 16385"),
        ] {
            let error = catalogue.apply(&bad, vec![]).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
            assert_eq!(catalogue, before);
        }
    }

    #[test]
    fn the_past_is_bounded_and_the_present_stays() {
        let epoch = Epoch::from_u64(1);
        let mut catalogue = Catalogue::default();
        let stays = Change { origin: Origin::Admin, remove: vec![], add: vec![definition("stays", "x")] };
        catalogue.apply(&stays, vec![(epoch, 5)]).unwrap();
        for version in 0..2000_u64 {
            let change = Change {
                origin: Origin::Admin,
                remove: vec![],
                add: vec![definition("moves", &version.to_string())],
            };
            catalogue.apply(&change, vec![(epoch, 10 + version)]).unwrap();
            catalogue.check().unwrap();
        }
        assert_eq!((catalogue.version, catalogue.present().count()), (2001, 2));
        assert_eq!(catalogue.entries.len(), 2 + MAX_REMOVED);
        let of = |text: &str| catalogue.entries.iter().find(|entry| entry.definition.text == text).unwrap();
        assert!(catalogue.life(of("x")).covers(epoch, 2), "as if it had always been");
        let at = |position| {
            let covers = |entry: &&Entry| catalogue.life(entry).covers(epoch, position);
            let texts = catalogue.entries.iter().filter(covers).map(|entry| &*entry.definition.text);
            texts.filter(|text| *text != "x").collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            (at(2008), at(2009), at(9999), at(1900)),
            ("1998".into(), "1999".into(), "1999".into(), "1890".into())
        );
        // One at a time, whatever is asked: the oldest known one stands for those before it.
        assert_eq!(at(1), at(1700));
    }

    #[test]
    fn a_version_begins_ahead_of_the_foremost_where_records_come() {
        let standing =
            |epoch, next| Standing { source: "engine".into(), epoch: Epoch::from_u64(epoch), next };
        let first = [vec![standing(1, 100), standing(2, 7)], vec![standing(1, 90)]];
        let second = [vec![standing(1, 110), standing(2, 7)], vec![standing(1, 112), standing(3, 4)]];
        let at: Vec<_> =
            begin_of(&first, &second, 3).into_iter().map(|(epoch, at)| (epoch.as_u64(), at)).collect();
        assert_eq!(at, [(1, 112 + 3 * 12), (2, 7), (3, 4)]);
    }
}
