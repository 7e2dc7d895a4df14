//! API keys, stored hashed in a file that is read again while the peer runs.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tickmesh_protocol::UserId;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{Identity, Pattern, Proof, Refusal};

/// How often it is looked whether the file has changed: within five seconds a removed key ends its connections.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A key, as it stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Names the key to people, in logs and for revocation.
    pub id: String,
    /// BLAKE3 of the key, in hexadecimal digits. Keys are random, so that a hash without salt tells nothing.
    pub hash: String,
    pub user: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Keys of the public streams it may have; all that its roles allow, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Vec<String>>,
}

/// A new key: 256 random bits.
pub fn new_api_key() -> String {
    // By way of the crate that makes keys anyway.
    let secret = libp2p::identity::ed25519::SecretKey::generate();
    format!("tk_{}", blake3::hash(secret.as_ref()).to_hex())
}

/// What is kept of a key.
pub fn hash_of(key: &str) -> String {
    blake3::hash(key.as_bytes()).to_hex().to_string()
}

/// The keys of a file.
#[derive(Debug)]
pub(super) struct ApiKeys(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    keys: RwLock<Arc<HashMap<[u8; 32], Arc<Identity>>>>,
    generation: AtomicU64,
}

impl ApiKeys {
    /// Reads the file now, and again whenever it changes until `stop`.
    pub(super) fn open(file: &Path, stop: CancellationToken) -> anyhow::Result<Self> {
        let seen = stamp(file);
        let keys = read(file)?;
        let shared = Arc::new(Shared {
            file: file.to_owned(),
            keys: RwLock::new(Arc::new(keys)),
            generation: AtomicU64::new(0),
        });
        let watched = shared.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move { watched.watch(seen).await }));
        Ok(Self(shared))
    }

    pub(super) fn verify(&self, key: &str) -> Result<Arc<Identity>, Refusal> {
        let hash = *blake3::hash(key.as_bytes()).as_bytes();
        self.0.keys().get(&hash).cloned().ok_or(Refusal::UnknownApiKey)
    }

    /// Whether a key that was accepted is still there.
    pub(super) fn has(&self, id: &str, hash: &[u8; 32]) -> bool {
        self.0
            .keys()
            .get(hash)
            .is_some_and(|identity| matches!(&identity.proof, Proof::ApiKey { id: known, .. } if known == id))
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

impl Shared {
    fn keys(&self) -> Arc<HashMap<[u8; 32], Arc<Identity>>> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn watch(&self, mut seen: Option<(SystemTime, u64)>) {
        let mut look = time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let now = stamp(&self.file);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.file) {
                Ok(keys) => {
                    tracing::info!(file = %self.file.display(), keys = keys.len(), "API keys read again");
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                    self.generation.fetch_add(1, Ordering::Release);
                }
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "the API keys stay as they were")
                }
            }
        }
    }
}

/// Changes when the file does.
fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let data = fs::metadata(file).ok()?;
    Some((data.modified().ok()?, data.len()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<ApiKey>,
}

/// Reads and checks a whole file.
pub(super) fn read(file: &Path) -> anyhow::Result<HashMap<[u8; 32], Arc<Identity>>> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let File { key } = toml::from_str(&text).with_context(|| format!("{name} holds no API keys"))?;
    let mut keys = HashMap::new();
    let mut ids = std::collections::HashSet::new();
    for key in key {
        ensure!(ids.insert(key.id.clone()), "{name}: two keys have the id {:?}", key.id);
        let hash = *blake3::Hash::from_hex(&key.hash)
            .with_context(|| format!("{name}: key {:?}: hash is not 64 hexadecimal digits", key.id))?
            .as_bytes();
        let user = UserId::new(&key.user).with_context(|| format!("{name}: key {:?}: user", key.id))?;
        let pairs = key.pairs.map(|pairs| pairs.iter().map(|pair| pair.parse::<Pattern>()).collect());
        let pairs = pairs.transpose().with_context(|| format!("{name}: key {:?}: pairs", key.id))?;
        let proof = Proof::ApiKey { id: key.id, hash };
        let identity =
            Arc::new(Identity { user, roles: key.roles, pairs, issued_at: None, expires_at: None, proof });
        ensure!(keys.insert(hash, identity).is_none(), "{name}: one key stands there twice");
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    fn entry(id: &str, key: &str) -> String {
        format!("[[key]]\nid = {id:?}\nhash = {:?}\nuser = \"Alice\"\npairs = [\"btc_*\"]\n", hash_of(key))
    }

    #[tokio::test]
    async fn keys_come_and_go_with_the_file() {
        let file = file(&entry("bot-1", "abc"));
        let stop = CancellationToken::new();
        let keys = ApiKeys::open(file.path(), stop.clone()).unwrap();
        let identity = keys.verify("abc").unwrap();
        assert_eq!((identity.user.as_str(), keys.verify("abd")), ("Alice", Err(Refusal::UnknownApiKey)));
        let Proof::ApiKey { id, hash } = identity.proof.clone() else { panic!("proof of an API key") };

        for (text, is_there, generation) in [
            // Unreadable: nothing changes. The next is another key of the same name.
            ("nonsense".to_owned(), true, 0),
            (entry("bot-1", "xyz"), false, 1),
        ] {
            fs::write(file.path(), &text).unwrap();
            let before = stamp(file.path());
            while keys.generation() < generation {
                time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!((keys.has(&id, &hash), stamp(file.path()) == before), (is_there, true));
        }
        assert!(keys.verify("xyz").is_ok());
        stop.cancel();
    }

    #[test]
    fn a_file_is_checked_whole() {
        let twice = entry("a", "abc") + &entry("b", "abc");
        let same_id = entry("a", "abc") + &entry("a", "abd");
        let bad_hash = "[[key]]\nid = \"a\"\nhash = \"12\"\nuser = \"a\"\n".to_owned();
        let unknown = entry("a", "abc") + "colour = 1\n";
        for (text, words) in [
            (twice, "twice"),
            (same_id, "the id \"a\""),
            (bad_hash, "64 hexadecimal"),
            (unknown, "no API keys"),
        ] {
            let error = format!("{:#}", read(file(&text).path()).unwrap_err());
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("abc"), "{error}");
        }
    }
}
