//! Tokens of an OAuth2 server that nobody here wrote (npm `oidc-provider`): signed ones with the keys of its address, and
//! opaque ones that it is asked about.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[path = "support/ports.rs"]
mod ports;

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::any};
use jsonwebtoken::Algorithm;
use ports::free_port;
use serde_json::Value;
use tickmesh::auth::{self, Authenticator, ClaimNames, IntrospectionConfig, JwtConfig, JwtKeys, Refusal};
use tickmesh::ops::metrics::Registry;
use tickmesh_protocol::client::Credential;
use tickmesh_protocol::client::Secret;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: Duration = Duration::from_secs(30);

/// The server, on a port of its own.
struct Provider {
    process: Child,
    port: u16,
    /// It ends when it cannot write.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Provider {
    fn start(port: u16, algorithm: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oidc/server.mjs");
        let mut process = Command::new("node")
            .args([script, &port.to_string(), algorithm])
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = output.by_ref().map_while(Result::ok).any(|line| line == "ready");
        assert!(ready, "the server did not start; ./test installs what it needs in node/tests/oidc");
        Self { process, port, _output: output }
    }

    fn url(&self, path: &str) -> reqwest::Url {
        format!("http://127.0.0.1:{}{path}", self.port).parse().unwrap()
    }

    async fn post(&self, path: &str, client: &str, form: &[(&str, &str)]) -> reqwest::Response {
        let request = reqwest::Client::new().post(self.url(path));
        request.basic_auth(client, Some(format!("{client}-secret"))).form(form).send().await.unwrap()
    }

    /// A token of a client: signed, or opaque.
    async fn token(&self, client: &str, kind: &str) -> String {
        let resource = format!("http://tickmesh/{kind}");
        let form = [("grant_type", "client_credentials"), ("scope", "trader"), ("resource", &*resource)];
        let answer = self.post("/token", client, &form).await.text().await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn revoke(&self, client: &str, token: &str) {
        assert!(self.post("/token/revocation", client, &[("token", token)]).await.status().is_success());
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The tokens of clients name them by `client_id`, and their scope is their roles.
fn claims() -> ClaimNames {
    ClaimNames { user: "client_id".into(), roles: "scope".into(), pairs: "pairs".into() }
}

fn jwt(url: reqwest::Url, algorithm: Algorithm, issuer: String) -> auth::Config {
    let jwt = JwtConfig {
        algorithm,
        keys: JwtKeys::Url(url),
        issuer: Some(issuer),
        audience: Some("http://tickmesh/jwt".into()),
        leeway: Duration::from_secs(5),
    };
    auth::Config { jwt: Some(jwt), claims: claims(), ..auth::Config::default() }
}

fn open(config: &auth::Config) -> (Arc<Authenticator>, DropGuard) {
    let stop = CancellationToken::new();
    (Authenticator::open(config, &Registry::new(), stop.clone()).unwrap(), stop.drop_guard())
}

/// Counts questions, and passes them on or answers for the server.
async fn counting(
    answer: impl Fn(usize) -> (u16, String) + Clone + Send + Sync + 'static,
) -> (reqwest::Url, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let handler = any(move || {
        let (status, body) = answer(counted.fetch_add(1, Ordering::SeqCst));
        async move {
            sleep(Duration::from_millis(50)).await;
            (axum::http::StatusCode::from_u16(status).unwrap(), body)
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
    (url, count)
}

#[tokio::test]
async fn signed_tokens_are_checked_with_the_servers_keys_through_a_rotation_and_an_outage() {
    for (name, algorithm) in [("RS256", Algorithm::RS256), ("ES256", Algorithm::ES256)] {
        let port = free_port();
        let provider = Provider::start(port, name);
        let (authenticator, _stop) =
            open(&jwt(provider.url("/jwks"), algorithm, format!("http://127.0.0.1:{port}")));
        let token = provider.token("Alice", "jwt").await;
        let check = async |token: &str| authenticator.authenticate(&Credential::token(token)).await;
        let identity = check(&token).await.unwrap();
        assert_eq!((identity.user.as_str(), &*identity.roles), ("Alice", &["trader".to_owned()][..]));
        assert_eq!(identity.pairs, Some(vec!["btc_*".parse().unwrap()]));
        assert!(identity.expires_at.is_some());

        // The keys stay while the server is away.
        drop(provider);
        assert!(check(&token).await.is_ok());
        // It comes back with a new key, whose name nobody here knows; the question for it may have to wait its turn.
        let provider = Provider::start(port, name);
        let newer = provider.token("bob", "jwt").await;
        let known = async {
            while check(&newer).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, known).await.expect("the new key is fetched");
        assert_eq!(check(&token).await, Err(Refusal::UnknownKey), "the old key is gone");
    }
}

#[tokio::test]
async fn keys_are_asked_for_once_by_all_who_wait_and_not_again_for_every_unknown_name() {
    let (url, count) = counting(|_| (500, String::new())).await;
    let (authenticator, _stop) = open(&jwt(url, Algorithm::RS256, "x".into()));
    // Signed with a key that nobody knows, and named "k".
    let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.e30.AAAA";
    let credential = Credential::token(token);
    let many = (0..200).map(|_| authenticator.authenticate(&credential));
    let answers = futures_util::future::join_all(many).await;
    assert!(answers.iter().all(|answer| *answer == Err(Refusal::Unavailable)), "{answers:?}");
    for _ in 0..100 {
        assert!(authenticator.authenticate(&credential).await.is_err());
    }
    assert!(count.load(Ordering::SeqCst) <= 2, "{count:?} questions");
}

fn introspection(url: reqwest::Url, cache: Duration) -> auth::Config {
    let oauth2 = IntrospectionConfig {
        url,
        client_id: "gateway".into(),
        client_secret: Secret::new("gateway-secret"),
        cache,
        timeout: Duration::from_secs(2),
    };
    auth::Config { oauth2: Some(oauth2), claims: claims(), ..auth::Config::default() }
}

#[tokio::test]
async fn opaque_tokens_are_asked_about_until_they_are_revoked() {
    let provider = Provider::start(free_port(), "RS256");
    let (authenticator, _stop) =
        open(&introspection(provider.url("/token/introspection"), Duration::from_millis(200)));
    let token = provider.token("Alice", "opaque").await;
    let check = async |token: &str| authenticator.authenticate(&Credential::token(token)).await;
    let identity = check(&token).await.unwrap();
    assert_eq!((identity.user.as_str(), &*identity.roles), ("Alice", &["trader".to_owned()][..]));
    assert_eq!(identity.pairs, Some(vec!["btc_*".parse().unwrap()]));
    assert_eq!(check("guessed").await, Err(Refusal::Inactive));

    // A connection that goes on is noticed without a new question of its client.
    let generation = authenticator.generation();
    provider.revoke("Alice", &token).await;
    let noticed = async {
        while authenticator.still_accepts(&identity) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, noticed).await.expect("the token is known to be inactive");
    assert_ne!(authenticator.generation(), generation);
    assert_eq!(check(&token).await, Err(Refusal::Inactive));
}

#[tokio::test]
async fn an_introspection_that_fails_lets_nobody_in_and_is_left_alone() {
    for answer in [
        (500, String::new()),
        (200, "rubbish".to_owned()),
        (200, "[]".to_owned()),
        (200, r#"{"active":"yes"}"#.to_owned()),
        (200, "x".repeat(1024 * 1024)),
        (302, String::new()),
    ] {
        let told = answer.clone();
        let (url, count) = counting(move |_| told.clone()).await;
        let (authenticator, _stop) = open(&introspection(url, Duration::from_secs(30)));
        for n in 0..50 {
            let checked = authenticator.authenticate(&Credential::token(&format!("t{n}"))).await;
            assert_eq!(checked, Err(Refusal::Unavailable), "{answer:?}");
        }
        assert!((5..=6).contains(&count.load(Ordering::SeqCst)), "{count:?} questions");
    }
}

#[tokio::test]
async fn many_with_one_token_share_a_question_and_its_answer() {
    let (url, count) = counting(|_| (200, r#"{"active":true,"client_id":"Alice"}"#.to_owned())).await;
    let (authenticator, _stop) = open(&introspection(url, Duration::from_secs(30)));
    let credential = Credential::token("opaque");
    for _ in 0..2 {
        let many = (0..200).map(|_| authenticator.authenticate(&credential));
        for answer in futures_util::future::join_all(many).await {
            assert_eq!(answer.unwrap().user.as_str(), "Alice");
        }
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
