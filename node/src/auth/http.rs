//! Asking for keys, and about tokens, by HTTP.

use std::time::Duration;

use anyhow::ensure;
use reqwest::{Client, Response, redirect::Policy};

/// A client that waits so long for an answer, and goes nowhere else for it.
pub(crate) fn client(timeout: Duration) -> reqwest::Result<Client> {
    Client::builder().timeout(timeout).redirect(Policy::none()).build()
}

/// The body of an answer that is a good one, and has no more than so many bytes.
pub(crate) async fn body(response: Response, limit: usize) -> anyhow::Result<Vec<u8>> {
    let mut response = response.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        ensure!(body.len() + chunk.len() <= limit, "more than {limit} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
