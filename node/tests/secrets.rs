//! Credentials stay between a client and their check: at its most talkative a peer repeats none of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn tickmesh() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tickmesh"))
}

fn token(user: &str) -> String {
    let output = tickmesh().args(["token", "--sub", user]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Kills what a failed test leaves behind.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn credentials_reach_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let child = tickmesh()
        .args(["demo", "--port", "0"])
        .env("RUST_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        .spawn();
    let mut demo = Demo(child.unwrap());
    let mut said = BufReader::new(demo.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let page =
        said.find_map(|line| line.trim().strip_prefix("page").map(|url| url.trim().to_owned())).unwrap();
    let url = format!("{}ws", page.replacen("http", "ws", 1));

    // Good ones, by every carrier, and a new one in the session.
    let (first, second) = (token("alice"), token("alice"));
    let bearer = format!("Bearer {first}");
    let protocols = format!("tickmesh.v1, bearer.{first}");
    for (url, header) in [
        (format!("{url}?token={first}"), None),
        (url.clone(), Some(("authorization", &bearer))),
        (url.clone(), Some(("sec-websocket-protocol", &protocols))),
    ] {
        let mut request = url.into_client_request().unwrap();
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (mut socket, _) = timeout(PATIENCE, connect_async(request)).await.unwrap().unwrap();
        let renewal = json!({"action": "authenticate", "token": second}).to_string();
        socket.send(Message::text(renewal)).await.unwrap();
        let mut renewed = false;
        while !renewed {
            let message = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
            let Message::Text(text) = message else { continue };
            renewed = serde_json::from_str::<Value>(&text).unwrap()["event"] == "authenticated";
        }
    }
    // And such as nobody accepts.
    let forged = format!("{first}f0rged");
    let key = "tk_gu3ssed_by_somebody";
    for (url, header) in [
        (format!("{url}?token={forged}"), None),
        (format!("{url}?api_key={key}"), None),
        (url.clone(), Some(("authorization", &*forged))),
        (url.clone(), Some(("x-api-key", key))),
    ] {
        let mut request = url.into_client_request().unwrap();
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let error = timeout(PATIENCE, connect_async(request)).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("401"), "{error}");
    }

    kill_process(Pid::from_child(&demo.0), Signal::TERM).unwrap();
    assert!(demo.0.wait().unwrap().success());
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("onAuthValidate"), "the log is as talkative as it can be");
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    for secret in [signature(&first), signature(&second), "f0rged".to_owned(), "gu3ssed".to_owned()] {
        if let Some(at) = log.find(&secret) {
            let line = log[..at].rsplit('\n').next().unwrap_or_default();
            panic!("a credential is in the log, after: {line}");
        }
    }
}
