//! What is asked of servers about streams, and their answers as typed values.

use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Value};

use super::{id::Id, link::Trouble, numbering::Info};

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: Id,
    /// Names and values, in turn.
    fields: Vec<Bytes>,
}

impl Entry {
    /// The value of a field; of several the first.
    pub(super) fn field(&self, name: &str) -> Option<&Bytes> {
        let mut pairs = self.fields.chunks_exact(2);
        pairs.find(|pair| pair[0] == name.as_bytes()).map(|pair| &pair[1])
    }

    /// All names with their values.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.fields.chunks_exact(2).map(|pair| (&pair[0], &pair[1]))
    }

    pub(super) fn bytes(&self) -> usize {
        self.fields.iter().map(Bytes::len).sum()
    }

    /// Tells it from another entry with the same id.
    pub(super) fn digest(&self) -> u32 {
        let mut hasher = blake3::Hasher::new();
        for part in &self.fields {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let mut first = [0; 4];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
        u32::from_le_bytes(first)
    }
}

/// Waits for entries of any of the streams after an id each.
pub(super) fn read_after(streams: &[(&str, Id)], count: usize, wait: Duration) -> Cmd {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(count).arg("BLOCK").arg(u64::try_from(wait.as_millis()).unwrap_or(0).max(1));
    command.arg("STREAMS");
    for (key, _) in streams {
        command.arg(*key);
    }
    for (_, after) in streams {
        command.arg(after.to_string());
    }
    command
}

/// The entries from one id up to another, both included.
pub(super) fn range(key: &str, from: Id, to: Id, count: usize) -> Cmd {
    let mut command = redis::cmd("XRANGE");
    command.arg(key).arg(from.to_string()).arg(to.to_string()).arg("COUNT").arg(count);
    command
}

pub(super) fn info(key: &str) -> Cmd {
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(key);
    command
}

/// A step of a walk through the keys of a server.
pub(super) fn scan(cursor: u64, glob: &str, count: usize) -> Cmd {
    let mut command = redis::cmd("SCAN");
    command.arg(cursor).arg("MATCH").arg(glob).arg("COUNT").arg(count).arg("TYPE").arg("stream");
    command
}

/// Which nodes have which keys of a cluster.
pub(super) fn slots() -> Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    command
}

/// What [`read_after`] gives: streams that have entries, with them.
pub(super) fn entries_by_key(answer: Value) -> Result<Vec<(Bytes, Vec<Entry>)>, Trouble> {
    let streams = match answer {
        Value::Nil => return Ok(Vec::new()),
        answer => list(answer)?,
    };
    let read = |stream| match <[Value; 2]>::try_from(list(stream)?) {
        Ok([key, found]) => Ok((bytes(key)?, entries(found)?)),
        Err(_) => Err(Trouble::Strange("a stream is a key and entries")),
    };
    streams.into_iter().map(read).collect()
}

/// What [`range`] gives.
pub(super) fn entries(answer: Value) -> Result<Vec<Entry>, Trouble> {
    list(answer)?.into_iter().map(entry).collect()
}

fn entry(value: Value) -> Result<Entry, Trouble> {
    let Ok([id, fields]) = <[Value; 2]>::try_from(list(value)?) else {
        return Err(Trouble::Strange("an entry is an id and fields"));
    };
    let fields = list(fields)?.into_iter().map(bytes).collect::<Result<_, _>>()?;
    Ok(Entry { id: id_of(id)?, fields })
}

/// What [`info`] gives.
pub(super) fn info_of(answer: Value) -> Result<Info, Trouble> {
    let (mut info, mut counted) = (Info::default(), false);
    let mut parts = list(answer)?.into_iter();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        match &*bytes(name)? {
            b"length" => info.length = number(&value)?,
            b"last-generated-id" => info.last_given = id_of(value)?,
            b"max-deleted-entry-id" => info.max_deleted = id_of(value)?,
            b"entries-added" => (info.added, counted) = (number(&value)?, true),
            b"first-entry" if value != Value::Nil => {
                let entry = entry(value)?;
                (info.first, info.first_digest) = (Some(entry.id), entry.digest());
            }
            b"last-entry" if value != Value::Nil => info.last = Some(entry(value)?.id),
            _ => {}
        }
    }
    if !counted {
        return Err(Trouble::Strange("the server does not count entries; Redis 7.0 is the oldest that does"));
    }
    Ok(info)
}

/// What [`scan`] gives: where the walk goes on, at its end zero, and keys.
pub(super) fn scanned(answer: Value) -> Result<(u64, Vec<Bytes>), Trouble> {
    let Ok([next, keys]) = <[Value; 2]>::try_from(list(answer)?) else {
        return Err(Trouble::Strange("a scan gives a cursor and keys"));
    };
    let keys = list(keys)?.into_iter().map(bytes).collect::<Result<_, _>>()?;
    Ok((parse(&bytes(next)?)?, keys))
}

/// What [`slots`] gives: host and port of each node that leads some keys. An empty host is that of the node which was asked.
pub(super) fn leaders(answer: Value) -> Result<Vec<(String, u16)>, Trouble> {
    let mut leaders = Vec::new();
    for range in list(answer)? {
        // First and last slot, the leader, its replicas.
        let Some(leader) = list(range)?.into_iter().nth(2) else { continue };
        let mut parts = list(leader)?.into_iter();
        let (Some(host), Some(port)) = (parts.next(), parts.next()) else { continue };
        let host = if host == Value::Nil { String::new() } else { text(&bytes(host)?)?.to_owned() };
        let port = u16::try_from(number(&port)?).map_err(|_| Trouble::Strange("a port beyond all ports"))?;
        if !leaders.contains(&(host.clone(), port)) {
            leaders.push((host, port));
        }
    }
    Ok(leaders)
}

fn list(value: Value) -> Result<Vec<Value>, Trouble> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(Trouble::Strange("a list was expected")),
    }
}

fn bytes(value: Value) -> Result<Bytes, Trouble> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into()),
        _ => Err(Trouble::Strange("a text was expected")),
    }
}

fn number(value: &Value) -> Result<u64, Trouble> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| Trouble::Strange("a count is negative")),
        _ => Err(Trouble::Strange("a number was expected")),
    }
}

fn text(bytes: &Bytes) -> Result<&str, Trouble> {
    std::str::from_utf8(bytes).map_err(|_| Trouble::Strange("a text is no UTF-8"))
}

fn parse<T: std::str::FromStr>(bytes: &Bytes) -> Result<T, Trouble> {
    text(bytes)?.parse().map_err(|_| Trouble::Strange("a number was expected"))
}

fn id_of(value: Value) -> Result<Id, Trouble> {
    let bytes = bytes(value)?;
    text(&bytes)?.parse().map_err(|_| Trouble::Strange("an id was expected"))
}

#[cfg(test)]
mod tests;
