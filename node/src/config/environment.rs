//! Keys from the environment: `TICKMESH_EDGE__LISTEN` sets `edge.listen`, `TICKMESH_SOURCE__0__BROKERS` the `brokers` of
//! the first `[[source]]`. They win over the file.

use toml::{Table, Value};

use super::Faults;

const PREFIX: &str = "TICKMESH_";

/// Puts every variable of the form `TICKMESH_<SECTION>__<KEY>` into the table. Others, without `__`, are not ours.
pub(super) fn apply(table: &mut Table, variables: impl Iterator<Item = (String, String)>, faults: &Faults) {
    for (name, text) in variables {
        let Some(path) = name.strip_prefix(PREFIX).filter(|path| path.contains("__")) else { continue };
        let path = path.to_ascii_lowercase();
        let parts: Vec<&str> = path.split("__").collect();
        if let Err(reason) = set(table, &parts, value_of(&text)) {
            faults.push(format!("environment variable {name}"), reason);
        }
    }
}

/// As TOML where it is TOML (`8`, `true`, `["a"]`, `"8"`), else the text itself.
fn value_of(text: &str) -> Value {
    let parsed: Option<Table> = format!("value = {text}").parse().ok();
    parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn set(table: &mut Table, path: &[&str], value: Value) -> Result<(), String> {
    let [first, rest @ ..] = path else { return Err("names no key".into()) };
    if first.is_empty() {
        return Err("has an empty part in its name".into());
    }
    if rest.is_empty() {
        table.insert((*first).to_owned(), value);
        return Ok(());
    }
    match table.entry(*first).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => set(inner, rest, value),
        Value::Array(items) => {
            let [index, rest @ ..] = rest else { return Err("names no key".into()) };
            let count = items.len();
            let item = index.parse::<usize>().ok().and_then(|index| items.get_mut(index));
            match item {
                Some(Value::Table(inner)) => set(inner, rest, value),
                _ => {
                    Err(format!("{first} has {count} entries, so there is none numbered {index:?} (from 0)"))
                }
            }
        }
        _ => Err(format!("{first} is no section")),
    }
}
