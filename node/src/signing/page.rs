//! The public keys, for clients: `/.well-known/jwks.json`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use axum::{
    Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};
use tickmesh_protocol::signature::{KeySet, MAX_KEY_SET_BYTES};

use crate::key_file;

/// Where the keys are served.
pub const PATH: &str = "/.well-known/jwks.json";

/// How long whoever asks may keep the answer: a new public key is there so long before anything is signed with it.
pub const MAX_AGE: Duration = Duration::from_secs(300);

/// How often it is looked at most whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Which keys are served.
#[derive(Clone, Debug)]
pub struct PublicKeys {
    /// The public half of the key that this peer signs with.
    pub own: Option<KeySet>,
    /// Others: those of ingest peers, retired ones, the next one.
    pub file: Option<PathBuf>,
}

impl PublicKeys {
    /// All of them, as they are now.
    ///
    /// # Errors
    /// If the file cannot be read or holds no set of public keys.
    pub fn read(&self) -> anyhow::Result<KeySet> {
        let own = self.own.clone().unwrap_or_default();
        let Some(file) = &self.file else { return Ok(own) };
        let name = file.display();
        let text = key_file::read(file, MAX_KEY_SET_BYTES).with_context(|| format!("cannot read {name}"))?;
        let others = KeySet::parse(text.as_bytes());
        others.and_then(|others| own.with(&others)).with_context(|| name.to_string())
    }
}

/// What is served, and since when.
struct Shown {
    body: String,
    looked: Instant,
    stamp: Option<(SystemTime, u64)>,
}

impl Shown {
    fn look(keys: &PublicKeys) -> anyhow::Result<Self> {
        let stamp = keys.file.as_deref().and_then(stamp);
        Ok(Self { body: keys.read()?.to_json(), looked: Instant::now(), stamp })
    }

    /// Reads the file again if it has changed. It is small, and looked at once a second at most, so that nobody waits for it.
    fn refresh(&mut self, keys: &PublicKeys) {
        let Some(file) = keys.file.as_deref().filter(|_| self.looked.elapsed() >= LOOK_EVERY) else { return };
        self.looked = Instant::now();
        let now = stamp(file);
        if now == self.stamp {
            return;
        }
        self.stamp = now;
        match keys.read() {
            Ok(keys) => {
                tracing::info!(file = %file.display(), keys = keys.ids().count(), "public keys read again");
                self.body = keys.to_json();
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "the public keys stay as they were");
            }
        }
    }
}

/// Changes when the file does.
fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let data = fs::metadata(file).ok()?;
    Some((data.modified().ok()?, data.len()))
}

/// The page; any site may ask for it.
///
/// # Errors
/// If the keys cannot be read.
pub fn router(keys: PublicKeys) -> anyhow::Result<Router> {
    let shown = Arc::new(Mutex::new(Shown::look(&keys)?));
    let page = move || {
        let body = {
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            shown.refresh(&keys);
            shown.body.clone()
        };
        async move { answer(body) }
    };
    Ok(Router::new().route(PATH, get(page)))
}

fn answer(body: String) -> impl IntoResponse {
    let headers: [(HeaderName, String); 4] = [
        (header::CONTENT_TYPE, "application/jwk-set+json".into()),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".into()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".into()),
        (header::CACHE_CONTROL, format!("public, max-age={}", MAX_AGE.as_secs())),
    ];
    (headers, body)
}
