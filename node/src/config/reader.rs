//! Reads configuration key by key and gathers every fault, instead of stopping at the first as serde does.

use std::{cell::RefCell, fmt, rc::Rc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use toml::{Table, Value};

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Dotted path of the key, as in `source[0].brokers`; empty where the whole file is meant.
    pub key: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// Everything found wrong so far, shared by all sections of one file.
#[derive(Clone, Debug, Default)]
pub struct Faults(Rc<RefCell<Vec<Fault>>>);

impl Faults {
    pub fn push(&self, key: impl Into<String>, reason: impl fmt::Display) {
        self.0.borrow_mut().push(Fault { key: key.into(), reason: reason.to_string() });
    }

    pub fn take(&self) -> Vec<Fault> {
        self.0.take()
    }
}

/// A table of the configuration that is being read. Keys that nobody asked for are faults: call [`Section::finish`].
#[derive(Debug)]
pub struct Section {
    path: String,
    table: Table,
    asked: Vec<&'static str>,
    faults: Faults,
}

impl Section {
    pub fn root(table: Table, faults: Faults) -> Self {
        Self { path: String::new(), table, asked: Vec::new(), faults }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.table.remove(key)
    }

    /// A value that may be missing; a fault and `None` if it has the wrong form.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key)?;
        match value.try_into() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(key, error.to_string().trim());
                None
            }
        }
    }

    /// A value with a default.
    pub fn or<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A value that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        if !self.table.contains_key(key) {
            self.asked.push(key);
            self.fault(key, "is missing");
            return None;
        }
        self.optional(key)
    }

    /// A value that is parsed from a string, such as an address.
    pub fn parsed<T>(&mut self, key: &'static str) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: fmt::Display,
    {
        let text: String = self.optional(key)?;
        text.parse().map_err(|error| self.fault(key, format!("{text:?}: {error}"))).ok()
    }

    /// A list of values that are parsed from strings; each bad one is a fault of its own.
    pub fn parsed_list<T>(&mut self, key: &'static str) -> Option<Vec<T>>
    where
        T: std::str::FromStr,
        T::Err: fmt::Display,
    {
        let texts: Vec<String> = self.optional(key)?;
        let parse = |text: &String| match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(key, format!("{text:?}: {error}"));
                None
            }
        };
        Some(texts.iter().filter_map(parse).collect())
    }

    /// A list of texts that must be there, or one that stands for a list of it alone.
    pub fn required_list(&mut self, key: &'static str) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        Some(match self.required(key)? {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        })
    }

    /// A table inside this one; an empty one if it is missing.
    pub fn section(&mut self, key: &'static str) -> Self {
        let table = match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.fault(key, format!("must be a table, not {}", other.type_str()));
                Table::new()
            }
        };
        Self { path: self.path_of(key), table, asked: Vec::new(), faults: self.faults.clone() }
    }

    /// Whether a key or table is there and has not been read yet.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Passes over a key whose fault has been noted already.
    pub fn skip(&mut self, key: &'static str) {
        self.take(key);
    }

    /// An array of tables inside this one.
    pub fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let items = match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.fault(key, format!("must be an array of tables ([[{key}]]), not {}", other.type_str()));
                Vec::new()
            }
        };
        let mut sections = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            match item {
                Value::Table(table) => {
                    sections.push(Self { path, table, asked: Vec::new(), faults: self.faults.clone() });
                }
                other => self.faults.push(path, format!("must be a table, not {}", other.type_str())),
            }
        }
        sections
    }

    /// Notes that something is wrong with a key of this section.
    pub fn fault(&self, key: &str, reason: impl fmt::Display) {
        self.faults.push(self.path_of(key), reason);
    }

    /// Ends the reading: whatever is left in the table is a key that does not exist.
    pub fn finish(self) {
        for key in self.table.keys() {
            self.fault(key, format!("no such key; known here: {}", self.asked.join(", ")));
        }
    }
}

/// A length of time as text: `250ms`, `30s`, `5m`, `24h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (number, unit) = split_unit(&text);
        let milliseconds_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(format!("{text:?} is no length of time; write 250ms, 30s, 5m or 24h")),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(milliseconds_per_unit))
            .map(|milliseconds| Self(Duration::from_millis(milliseconds)))
            .ok_or_else(|| format!("{text:?} is no length of time; write 250ms, 30s, 5m or 24h"))
    }
}

/// An amount of memory as text: `64KiB`, `1MiB`, `2GiB`, `500B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub usize);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (number, unit) = split_unit(&text);
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(format!("{text:?} is no amount of memory; write 500B, 64KiB, 1MiB or 2GiB")),
        };
        number
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no amount of memory; write 500B, 64KiB, 1MiB or 2GiB"))
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

/// Reads a text as one section, in tests: what was read, and each fault as "key: reason".
#[cfg(test)]
pub fn read_text<T>(text: &str, read: impl FnOnce(&mut Section) -> T) -> (T, Vec<String>) {
    let faults = Faults::default();
    let mut section = Section::root(text.parse().unwrap(), faults.clone());
    let value = read(&mut section);
    section.finish();
    (value, faults.take().into_iter().map(|fault| format!("{}: {}", fault.key, fault.reason)).collect())
}
