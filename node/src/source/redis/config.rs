//! The `[[source]]` table with `kind = "redis"`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use tickmesh_protocol::checkpoint::MAX_STATE_NAME_BYTES;

use crate::{config::reader::Section, key_file, source::Start};

/// Most addresses: any node of a cluster names the others.
const MAX_URLS: usize = 16;
/// Most keys and patterns that are listed; each pattern is a walk through all keys of the server.
const MAX_LISTED: usize = 64;
/// Longest key, in bytes: checkpoints hold it.
pub(super) const MAX_KEY_BYTES: usize = MAX_STATE_NAME_BYTES;
/// How a pattern of keys begins. The rest is a glob as Redis has it.
const PATTERN: &str = "glob:";

/// What a Redis source reads, and from where.
#[derive(Clone)]
pub struct Config {
    /// Several only for a cluster, of which the first that answers is asked.
    pub(super) urls: Vec<ConnectionInfo>,
    pub cluster: bool,
    pub keys: Vec<String>,
    /// Globs.
    pub patterns: Vec<String>,
    /// The field of an entry that holds the record.
    pub field: String,
    /// The field that holds the record's own key.
    pub key_field: Option<String>,
    /// The field that holds the engine's time in microseconds since 1970. Without it, or where it is missing, the id's time
    /// counts.
    pub time_field: Option<String>,
    /// Read at each connection, so that it can be changed.
    password_file: Option<PathBuf>,
    /// Whose certificates the servers must have, instead of the system's authorities.
    pub(super) authorities: Option<Vec<u8>>,
    pub start: Start,
    /// Part of all epochs: who changes it says that the streams are others.
    pub epoch: String,
}

impl fmt::Debug for Config {
    /// Without users and passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("servers", &self.servers())
            .field("cluster", &self.cluster)
            .field("keys", &self.keys)
            .field("patterns", &self.patterns)
            .field("start", &self.start)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Reads the keys of a Redis source; files are relative to `folder`. `None` if a fault makes it useless; every fault is
    /// noted.
    pub fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let cluster = section.or("cluster", false);
        let urls = read_urls(section, cluster);
        let keys = read_keys(section);
        let field = section.or("field", "value".to_owned());
        let key_field = section.optional("key_field");
        let time_field = section.optional("time_field");
        let password_file: Option<PathBuf> = section.optional("password_file");
        let password_file = password_file.map(|file| folder.join(file));
        let ca_file: Option<PathBuf> = section.optional("ca_file");
        let start = section.or("start", Start::default());
        let epoch: String = section.or("epoch", "1".to_owned());
        let urls = urls?;
        if let Some(file) = &password_file {
            if let Err(error) = key_file::password(file) {
                section.fault("password_file", error);
            }
            if urls.iter().any(|url| url.redis_settings().password().is_some()) {
                section.fault("password_file", "the url has a password already");
            }
        }
        let authorities = ca_file.and_then(|file| read_authorities(section, &folder.join(file), &urls));
        let (keys, patterns) = keys?;
        Some(Self {
            urls,
            cluster,
            keys,
            patterns,
            field,
            key_field,
            time_field,
            password_file,
            authorities,
            start,
            epoch,
        })
    }

    /// The servers in words.
    pub(super) fn servers(&self) -> String {
        self.urls.iter().map(|url| url.addr().to_string()).collect::<Vec<_>>().join(",")
    }

    /// The keys and patterns in words.
    pub(super) fn wanted(&self) -> String {
        let patterns = self.patterns.iter().map(|glob| format!("{PATTERN}{glob}"));
        self.keys.iter().cloned().chain(patterns).collect::<Vec<_>>().join(", ")
    }

    /// How to connect to a server now.
    ///
    /// # Errors
    /// If the password cannot be read.
    pub(super) fn info(&self, url: &ConnectionInfo) -> Result<ConnectionInfo, String> {
        let settings = url.redis_settings().clone().set_skip_set_lib_name();
        Ok(url.clone().set_redis_settings(match &self.password_file {
            Some(file) => settings.set_password(key_file::password(file)?),
            None => settings,
        }))
    }

    /// What identifies a stream within the world, as far as anybody knows: the configured name and the key.
    pub(super) fn log(&self, key: &str) -> String {
        format!("{}/{key}", self.epoch)
    }
}

fn read_urls(section: &mut Section, cluster: bool) -> Option<Vec<ConnectionInfo>> {
    let texts = section.required_list("url")?;
    let most = if cluster { MAX_URLS } else { 1 };
    if texts.is_empty() || texts.len() > most {
        let reason = format!("write one address, or with cluster = true a list of up to {MAX_URLS}");
        section.fault("url", reason);
        return None;
    }
    let mut urls = Vec::with_capacity(texts.len());
    for text in &texts {
        match read_url(text, cluster) {
            Ok(url) => urls.push(url),
            // What was written may hold a password, so it is not shown.
            Err(reason) => section.fault("url", reason),
        }
    }
    (urls.len() == texts.len()).then_some(urls)
}

fn read_url(text: &str, cluster: bool) -> Result<ConnectionInfo, String> {
    if !text.starts_with("redis://") && !text.starts_with("rediss://") {
        return Err("is no address; write redis://host:6379, or rediss:// for TLS".to_owned());
    }
    if text.contains('#') || text.contains('?') {
        return Err("has nothing behind the number of the database".to_owned());
    }
    // The library's reasons are fixed words.
    let url = text.into_connection_info().map_err(|error| error.to_string())?;
    if cluster && url.redis_settings().db() != 0 {
        return Err("a cluster has no other database than 0".to_owned());
    }
    match url.addr() {
        ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } => Ok(url),
        _ => Err("is no address of a network".to_owned()),
    }
}

fn read_keys(section: &mut Section) -> Option<(Vec<String>, Vec<String>)> {
    let texts: Vec<String> = section.required("keys")?;
    if texts.is_empty() || texts.len() > MAX_LISTED {
        section.fault("keys", format!("list 1 to {MAX_LISTED} keys, or patterns as in {PATTERN}orders.*"));
        return None;
    }
    let (mut keys, mut patterns) = (Vec::new(), Vec::new());
    for text in &texts {
        let pattern = text.strip_prefix(PATTERN);
        let name = pattern.unwrap_or(text);
        if name.is_empty() || name.len() > MAX_KEY_BYTES {
            section.fault("keys", format!("{text:?}: a key has 1 to {MAX_KEY_BYTES} bytes"));
            return None;
        }
        if pattern.is_none() && text.contains('*') {
            section.fault("keys", format!("{text:?}: a pattern begins with {PATTERN}"));
            return None;
        }
        let list = if pattern.is_some() { &mut patterns } else { &mut keys };
        if !list.iter().any(|known| known == name) {
            list.push(name.to_owned());
        }
    }
    Some((keys, patterns))
}

fn read_authorities(section: &mut Section, file: &Path, urls: &[ConnectionInfo]) -> Option<Vec<u8>> {
    if !urls.iter().all(|url| matches!(url.addr(), ConnectionAddr::TcpTls { .. })) {
        section.fault("ca_file", "is read only with addresses of the form rediss://");
        return None;
    }
    let read = key_file::authorities(file);
    read.map(String::into_bytes).map_err(|error| section.fault("ca_file", error)).ok()
}

#[cfg(test)]
mod tests;
