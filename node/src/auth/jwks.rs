//! Keys from an address that an identity provider keeps (JWKS, RFC 7517 §5).
//!
//! One task fetches; whoever needs a key that is not there waits for its next answer, together with all others. Keys that
//! were fetched once stay until newer ones come, however long the address cannot be reached.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use reqwest::{Client, Url};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{CIRCUIT_PAUSE, Refusal, http};
use crate::ops::{breaker::Circuit, metrics::Registry};

/// How old keys may be: a provider that takes one back is believed after this.
const REFRESH: Duration = Duration::from_secs(300);

/// The least time between two questions, whatever key ids tokens name.
const LEAST_PAUSE: Duration = Duration::from_secs(5);

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Largest answer. A set of some keys has a few kilobytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Keys of one set at most.
const MAX_KEYS: usize = 64;

/// The keys, as they were last fetched.
#[derive(Debug)]
pub(super) struct Jwks {
    state: watch::Receiver<State>,
    wanted: Arc<Notify>,
}

#[derive(Clone, Debug, Default)]
struct State {
    keys: Arc<KeySet>,
    /// Questions that were answered, or not.
    attempts: u64,
    /// When the last one was.
    at: Option<Instant>,
}

#[derive(Debug, Default)]
struct KeySet {
    named: HashMap<String, Arc<DecodingKey>>,
    unnamed: Vec<Arc<DecodingKey>>,
}

impl KeySet {
    /// The usable keys of a set.
    fn of(set: &JwkSet, algorithm: Algorithm) -> Self {
        let mut keys = Self::default();
        for jwk in set.keys.iter().take(MAX_KEYS).filter(|jwk| signs(jwk)) {
            let Ok(key) = DecodingKey::from_jwk(jwk) else { continue };
            if key.family() != algorithm.family() {
                continue;
            }
            match &jwk.common.key_id {
                Some(id) => _ = keys.named.insert(id.clone(), Arc::new(key)),
                None => keys.unnamed.push(Arc::new(key)),
            }
        }
        keys
    }

    /// A token that names no key is for the only one there is.
    fn find(&self, id: Option<&str>) -> Option<Arc<DecodingKey>> {
        match id {
            Some(id) => self.named.get(id).cloned(),
            None if self.len() == 1 => self.named.values().chain(&self.unnamed).next().cloned(),
            None => None,
        }
    }

    fn len(&self) -> usize {
        self.named.len() + self.unnamed.len()
    }
}

fn signs(jwk: &Jwk) -> bool {
    jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature)
}

impl Jwks {
    /// Fetches the keys now, and again and again until `stop`.
    pub(super) fn start(
        url: Url,
        algorithm: Algorithm,
        registry: &Registry,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let client = http::client(TIMEOUT)?;
        let (sender, state) = watch::channel(State::default());
        let wanted = Arc::new(Notify::new());
        let circuit = Circuit::new(registry, "jwks", CIRCUIT_PAUSE);
        let fetching = Fetching { client, url, algorithm, circuit, wanted: wanted.clone(), state: sender };
        tokio::spawn(stop.run_until_cancelled_owned(fetching.run()));
        Ok(Self { state, wanted })
    }

    /// The key that a token names.
    pub(super) async fn key(&self, id: Option<&str>) -> Result<Arc<DecodingKey>, Refusal> {
        let mut state = self.state.clone();
        let seen = {
            let state = state.borrow();
            if let Some(key) = state.keys.find(id) {
                return Ok(key);
            }
            let asked_lately = state.at.is_some_and(|at| at.elapsed() < LEAST_PAUSE);
            if asked_lately {
                return Err(unknown(&state.keys));
            }
            state.attempts
        };
        self.wanted.notify_one();
        // Longer than an answer may take, as one question may be on its way already.
        match timeout(TIMEOUT * 2, state.wait_for(|state| state.attempts > seen)).await {
            Ok(Ok(state)) => state.keys.find(id).ok_or_else(|| unknown(&state.keys)),
            _ => Err(Refusal::Unavailable),
        }
    }
}

/// Who has no keys at all cannot say that one is unknown.
fn unknown(keys: &KeySet) -> Refusal {
    if keys.len() == 0 { Refusal::Unavailable } else { Refusal::UnknownKey }
}

struct Fetching {
    client: Client,
    url: Url,
    algorithm: Algorithm,
    circuit: Circuit,
    wanted: Arc<Notify>,
    state: watch::Sender<State>,
}

impl Fetching {
    async fn run(self) {
        loop {
            self.circuit.tries();
            let fetched = self.fetch().await;
            self.circuit.note(fetched.is_ok());
            let now = Instant::now();
            let next = match &fetched {
                Ok(keys) => {
                    tracing::debug!(keys = keys.len(), "keys for tokens fetched");
                    now + REFRESH
                }
                Err(error) => {
                    tracing::warn!(url = %self.url, error = %format!("{error:#}"), "no keys for tokens to be had");
                    now + LEAST_PAUSE
                }
            };
            self.state.send_modify(|state| {
                if let Ok(keys) = fetched {
                    state.keys = Arc::new(keys);
                }
                state.attempts += 1;
                state.at = Some(now);
            });
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.wanted.notified() => sleep_until(now + LEAST_PAUSE).await,
            }
        }
    }

    async fn fetch(&self) -> anyhow::Result<KeySet> {
        let response = self.client.get(self.url.clone()).send().await?;
        let body = http::body(response, MAX_ANSWER_BYTES).await?;
        let keys = KeySet::of(&serde_json::from_slice(&body)?, self.algorithm);
        anyhow::ensure!(keys.len() > 0, "it names no key for {:?}", self.algorithm);
        Ok(keys)
    }
}
