//! Public keys from an address, for clients.

use std::time::Duration;

use anyhow::Context;
use reqwest::Url;
use tickmesh_protocol::signature::{KeySet, MAX_KEY_SET_BYTES};

use crate::auth::http;

/// How long an answer may take: a client waits for it before its first event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for a set of keys (JWKS).
///
/// # Errors
/// If there is no answer, or it is no set with a key that verifies.
pub async fn fetch_keys(url: &Url) -> anyhow::Result<KeySet> {
    let fetch = async {
        let response = http::client(TIMEOUT)?.get(url.clone()).send().await?;
        let body = http::body(response, MAX_KEY_SET_BYTES).await?;
        anyhow::Ok(KeySet::parse(&body)?)
    };
    fetch.await.with_context(|| format!("no keys to be had from {url}"))
}
