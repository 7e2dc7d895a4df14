//! Asking the operators' port of a running peer.

use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::{Body, Bytes, to_bytes};
use hyper::{Method, Request, StatusCode, Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest page that is read: some ten thousand topics.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// What is asked for.
pub struct Ask<'a> {
    pub method: Method,
    pub path: &'a str,
    /// Headers by name.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: String,
}

/// Asks a peer; status and body of its answer.
pub async fn ask(ops: &Uri, ask: Ask<'_>) -> anyhow::Result<(StatusCode, Bytes)> {
    let Some(host) = ops.host() else { bail!("--ops {ops}: write it as http://host:port") };
    let address = format!("{host}:{}", ops.port_u16().unwrap_or(9100));
    let answer = async {
        let stream = TcpStream::connect(&address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(ask.method).uri(ask.path).header("host", &address);
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Body::from(ask.body))?).await?;
        let status = response.status();
        anyhow::Ok((status, to_bytes(Body::new(response.into_body()), MAX_PAGE_BYTES).await?))
    };
    let answered = timeout(PATIENCE, answer).await.context("no answer in time").and_then(|answer| answer);
    answered
        .with_context(|| format!("cannot ask {address}; is the peer running, and is this its [ops] listen?"))
}
