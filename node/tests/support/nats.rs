//! A real nats-server with JetStream for one test, from the path. Self-contained: any integration test may take it in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]
#![allow(dead_code, reason = "each integration test takes in this file and uses a part of it")]

#[allow(clippy::duplicate_mod, reason = "the file of each server stands alone")]
#[path = "ports.rs"]
mod ports;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use async_nats::{
    ConnectOptions,
    jetstream::{self, Context},
};

use self::ports::free_port;

/// It needs a tenth of a second on a quiet machine.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The user of the tests, whose password is also that.
pub const USER: &str = "tester";

/// A server that ends with its value.
pub struct NatsServer {
    directory: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server on a free port and waits until it answers.
    pub async fn start() -> Self {
        let mut server = Self::prepare();
        server.restart().await;
        server
    }

    /// Chooses a port and a folder without starting: [`Self::restart`] does.
    pub fn prepare() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let server = Self { directory, port, child: None };
        server.authorize(&format!("authorization {{ users: [{{ user: {USER}, password: {USER} }}] }}"));
        fs::write(server.password_file(), USER).expect("a password");
        server
    }

    /// Says who is let in, and how, from the next start on.
    pub fn authorize(&self, authorization: &str) {
        self.configure(&format!("jetstream {{ store_dir: {:?} }}\n{authorization}\n", self.store()));
    }

    /// From the next start on there is no JetStream.
    pub fn without_jetstream(&self) {
        self.configure("");
    }

    fn configure(&self, more: &str) {
        let text = format!("listen: 127.0.0.1:{}\n{more}", self.port);
        fs::write(self.directory.path().join("nats.conf"), text).expect("nats.conf");
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file with the password of [`USER`].
    pub fn password_file(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Ends the server at once (SIGKILL), as a machine that fails does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    /// Starts the server on its port and store, and does not wait until it answers.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the server is running already");
        let log = fs::File::options().create(true).append(true).open(self.log()).expect("a log file");
        let child = Command::new("nats-server")
            .arg("-c")
            .arg(self.directory.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("nats-server must be in the path; ./test sees to it");
        self.child = Some(child);
    }

    /// Starts the server, and waits until it answers the user of the tests.
    pub async fn restart(&mut self) {
        self.spawn();
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(client) = self.options().connect(self.url()).await
                && jetstream::new(client).query_account().await.is_ok()
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the server does not answer:\n{}",
                fs::read_to_string(self.log()).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Copies what the server has stored, which must be down: a backup.
    pub fn back_up(&self) {
        assert!(self.child.is_none(), "the server is running");
        copy(&self.store(), &self.directory.path().join("backup"));
    }

    /// Puts back what was copied, in place of what has come since.
    pub fn put_back(&self) {
        assert!(self.child.is_none(), "the server is running");
        fs::remove_dir_all(self.store()).expect("a store");
        copy(&self.directory.path().join("backup"), &self.store());
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("nats.log")
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions::new().user_and_password(USER.into(), USER.into())
    }

    /// A client of the tests, which connects again by itself.
    pub async fn client(&self) -> async_nats::Client {
        self.options().connect(self.url()).await.expect("the server answers")
    }

    pub async fn jetstream(&self) -> Context {
        jetstream::new(self.client().await)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let new = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &new);
        } else {
            fs::copy(entry.path(), new).expect("a copy");
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
