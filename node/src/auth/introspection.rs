//! Tokens that only the exchange's OAuth2 server can read (token introspection, RFC 7662).
//!
//! An answer is kept for a while; many who show the same token at once share one question. The tokens of open connections
//! are asked about again each time their answer is old: when one is not active any more, its connections end. While the
//! server cannot be reached, nobody new is let in, and nobody is thrown out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream,
};
use reqwest::{Client, Url};
use serde_json::{Map, Value};
use tickmesh_protocol::client::Secret;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{CIRCUIT_PAUSE, ClaimNames, Identity, Proof, Refusal, config::IntrospectionConfig, http};
use crate::ops::{breaker::Circuit, metrics::Registry};

/// Answers kept at most: of tokens in use, and of others that were shown lately.
const MAX_ANSWERS: usize = 200_000;

/// Largest answer of the server.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Tokens asked about again at the same time.
const RECHECKS_AT_ONCE: usize = 8;

/// Names a token here: its hash, so that nothing but the question needs the token itself.
type TokenHash = [u8; 32];
type Outcome = Result<Arc<Identity>, Refusal>;
type Question = Shared<BoxFuture<'static, Outcome>>;

#[derive(Debug)]
pub(super) struct Introspection(Arc<Server>);

#[derive(Debug)]
struct Server {
    client: Client,
    url: Url,
    client_id: String,
    client_secret: Secret,
    /// How old an answer may be.
    fresh_for: Duration,
    claims: ClaimNames,
    state: Mutex<State>,
    generation: AtomicU64,
    circuit: Circuit,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<TokenHash, Answer>,
    asking: HashMap<TokenHash, Question>,
}

#[derive(Debug)]
struct Answer {
    token: Secret,
    outcome: Outcome,
    at: Instant,
}

impl Answer {
    /// Whether a connection rests on it.
    fn is_used(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|identity| Arc::strong_count(identity) > 1)
    }
}

impl Introspection {
    pub(super) fn start(
        config: &IntrospectionConfig,
        claims: &ClaimNames,
        registry: &Registry,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let client = http::client(config.timeout)?;
        let server = Arc::new(Server {
            client,
            url: config.url.clone(),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            fresh_for: config.cache,
            claims: claims.clone(),
            state: Mutex::default(),
            generation: AtomicU64::new(0),
            circuit: Circuit::new(registry, "oauth2", CIRCUIT_PAUSE),
        });
        tokio::spawn(stop.run_until_cancelled_owned(server.clone().recheck_all()));
        Ok(Self(server))
    }

    /// Whose token this is.
    pub(super) async fn verify(&self, token: &Secret) -> Outcome {
        let hash = *blake3::hash(token.reveal().as_bytes()).as_bytes();
        let question = {
            let mut state = self.0.state();
            if let Some(answer) =
                state.answers.get(&hash).filter(|answer| answer.at.elapsed() < self.0.fresh_for)
            {
                return answer.outcome.clone();
            }
            match state.asking.get(&hash) {
                Some(question) => question.clone(),
                None => {
                    let question = Arc::clone(&self.0).ask(hash, token.clone()).boxed().shared();
                    state.asking.insert(hash, question.clone());
                    question
                }
            }
        };
        question.await
    }

    /// Whether a token that was active still is, as far as is known. The answer about a token in use is never forgotten.
    pub(super) fn has(&self, hash: &TokenHash) -> bool {
        self.0.state().answers.get(hash).is_some_and(|answer| answer.outcome.is_ok())
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks about a token and keeps the answer.
    async fn ask(self: Arc<Self>, hash: TokenHash, token: Secret) -> Outcome {
        let allowed = self.circuit.allows();
        let answered = if allowed { Some(self.question(&token).await) } else { None };
        let now = Instant::now();
        let mut state = self.state();
        state.asking.remove(&hash);
        let outcome = match answered {
            None => return Err(Refusal::Unavailable),
            Some(Err(error)) => {
                tracing::warn!(url = %self.url, error = %format!("{error:#}"), "no token introspection to be had");
                self.circuit.note(false);
                return Err(Refusal::Unavailable);
            }
            Some(Ok(claims)) => {
                self.circuit.note(true);
                self.outcome(hash, claims.as_ref())
            }
        };
        if state.answers.len() >= MAX_ANSWERS && !state.answers.contains_key(&hash) {
            let fresh_for = self.fresh_for;
            state.answers.retain(|_, answer| answer.is_used() || answer.at.elapsed() < fresh_for);
            if state.answers.len() >= MAX_ANSWERS {
                return Err(Refusal::Unavailable);
            }
        }
        let known = state.answers.get(&hash).map(|answer| &answer.outcome);
        // Connections that rest on the answer before rest on this one.
        let outcome = known.filter(|known| **known == outcome).cloned().unwrap_or(outcome);
        state.answers.insert(hash, Answer { token, outcome: outcome.clone(), at: now });
        outcome
    }

    fn outcome(&self, hash: TokenHash, claims: Option<&Map<String, Value>>) -> Outcome {
        let identity = self.claims.read(claims.ok_or(Refusal::Inactive)?)?;
        let now = Duration::from_micros(crate::ops::metrics::now_us());
        if identity.expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::Expired);
        }
        let Proof::Token { id, .. } = identity.proof else { return Err(Refusal::Claims) };
        Ok(Arc::new(Identity { proof: Proof::Opaque { id, hash }, ..identity }))
    }

    /// The claims of an active token; nothing of one that is not.
    async fn question(&self, token: &Secret) -> anyhow::Result<Option<Map<String, Value>>> {
        let form = [("token", token.reveal()), ("token_type_hint", "access_token")];
        let request = self
            .client
            .post(self.url.clone())
            .basic_auth(&self.client_id, Some(self.client_secret.reveal()))
            .header(reqwest::header::ACCEPT, "application/json")
            .form(&form);
        let response = request.send().await.map_err(reqwest::Error::without_url)?;
        let body = http::body(response, MAX_ANSWER_BYTES).await?;
        // What does not parse is not repeated: it may hold anything.
        let claims: Map<String, Value> =
            serde_json::from_slice(&body).ok().context("the answer is no JSON object")?;
        match claims.get("active") {
            Some(Value::Bool(true)) => Ok(Some(claims)),
            Some(Value::Bool(false)) => Ok(None),
            _ => anyhow::bail!("the answer does not say whether the token is active"),
        }
    }

    /// Asks again about the tokens of open connections, and forgets the others.
    async fn recheck_all(self: Arc<Self>) {
        // Within one and a half times the age of an answer a token is known to be inactive.
        let mut tick = time::interval(self.fresh_for / 2);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let old: Vec<_> = {
                let mut state = self.state();
                let fresh_for = self.fresh_for;
                state.answers.retain(|_, answer| answer.is_used() || answer.at.elapsed() < fresh_for);
                let old = state.answers.iter().filter(|(_, answer)| answer.at.elapsed() >= fresh_for);
                old.map(|(hash, answer)| (*hash, answer.token.clone())).collect()
            };
            stream::iter(old)
                .for_each_concurrent(RECHECKS_AT_ONCE, |(hash, token)| self.recheck(hash, token))
                .await;
        }
    }

    async fn recheck(&self, hash: TokenHash, token: Secret) {
        if !self.circuit.allows() {
            return;
        }
        let answered = self.question(&token).await;
        let now = Instant::now();
        let mut state = self.state();
        self.circuit.note(answered.is_ok());
        let Some(answer) = state.answers.get_mut(&hash) else { return };
        match answered {
            Ok(Some(_)) => answer.at = now,
            Ok(None) => {
                answer.outcome = Err(Refusal::Inactive);
                answer.at = now;
                self.generation.fetch_add(1, Ordering::Release);
            }
            Err(error) => {
                tracing::warn!(url = %self.url, error = %format!("{error:#}"), "a token cannot be asked about again");
            }
        }
    }
}
