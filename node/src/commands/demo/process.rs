//! A peer of the demo as a process of its own, so that it can be killed as a crash would, and comes back.
//!
//! The process is this program again, with `--peer`: it reads its [`Plan`] from standard input, says [`READY`], and drains when
//! that input ends. So nothing is left behind, however the demo itself ends.

use std::{
    io::{self, BufRead, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use tickmesh::{app, ops};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    sync::oneshot,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::plan::Plan;

/// What a peer says when it is at work.
const READY: &str = "ready";

/// Largest plan that is read: many times what five peers need.
const MAX_PLAN_BYTES: u64 = 64 * 1024;

/// How long a peer may take to start. It takes a tenth of a second on an idle machine.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long a peer stays away: long enough to see that the others do without it.
pub const AWAY: Duration = Duration::from_secs(5);

/// A peer that is kept running.
pub struct Process {
    name: String,
    /// None while it is away.
    child: Arc<Mutex<Option<Child>>>,
    stop: CancellationToken,
    /// Cancelled when there is no process, and will be none.
    gone: CancellationToken,
}

impl Process {
    /// Starts a peer, and returns when it is at work.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let child = Arc::new(Mutex::new(None));
        let stop = CancellationToken::new();
        let life = Life::begin(&plan, &child).await?;
        let name = plan.name.clone();
        let gone = CancellationToken::new();
        // If the keeper fails, its process's input ends, and so does the process.
        let guard = gone.clone().drop_guard();
        let keeping = keep(plan, life, Arc::clone(&child), stop.clone());
        tokio::spawn(async move {
            let _guard = guard;
            keeping.await;
        });
        Ok(Self { name, child, stop, gone })
    }

    /// Kills it by SIGKILL; false if it is away already.
    pub fn kill(&self) -> io::Result<bool> {
        let Some(mut child) = take(&self.child) else { return Ok(false) };
        child.kill()?;
        child.wait()?;
        Ok(true)
    }

    /// Lets it deliver what it has, and end; kills it if it has not by `deadline`.
    pub async fn drain(&self, deadline: Instant) {
        self.stop.cancel();
        if timeout_at(deadline, self.gone.cancelled()).await.is_err() {
            tracing::error!(peer = self.name, "did not end in time");
            let _ = self.kill();
            self.gone.cancelled().await;
        }
    }
}

/// The pipes of a process: its input ends with this, its output when it ends.
struct Life {
    _input: ChildStdin,
    output: BufReader<pipe::Receiver>,
}

impl Life {
    async fn begin(plan: &Plan, place: &Mutex<Option<Child>>) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["demo", "--peer"])
            // Ctrl-C is for the demo, which ends its peers in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (mut input, output) = (child.stdin.take(), child.stdout.take());
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let begun = async {
            let (Some(mut input), Some(output)) = (input.take(), output) else { bail!("it has no pipes") };
            let mut line = serde_json::to_string(plan)?;
            line.push('\n');
            // Much less than a pipe holds, so nothing waits.
            input.write_all(line.as_bytes())?;
            let mut output = BufReader::new(pipe::Receiver::from_owned_fd(OwnedFd::from(output))?);
            let mut said = String::new();
            timeout(START_PATIENCE, output.read_line(&mut said)).await.context("it does not get ready")??;
            if said.trim_end() != READY {
                bail!("it ended before it was ready");
            }
            Ok(Self { _input: input, output })
        };
        let begun = begun.await.with_context(|| format!("{} does not start", plan.name));
        if begun.is_err() {
            end(place);
        }
        begun
    }

    async fn ended(&mut self) {
        let mut said = String::new();
        while matches!(self.output.read_line(&mut said).await, Ok(1..)) {
            said.clear();
        }
    }
}

/// Starts the peer again whenever it has ended, until `stop`.
async fn keep(plan: Plan, first: Life, place: Arc<Mutex<Option<Child>>>, stop: CancellationToken) {
    let mut life = Some(first);
    loop {
        if let Some(mut running) = life.take() {
            tokio::select! {
                () = running.ended() => end(&place),
                () = stop.cancelled() => {
                    let Life { _input: input, mut output } = running;
                    drop(input);
                    let mut said = String::new();
                    let _ = output.read_line(&mut said).await;
                    return end(&place);
                }
            }
        }
        tokio::select! {
            () = sleep(AWAY) => {}
            () = stop.cancelled() => return,
        }
        tokio::select! {
            begun = Life::begin(&plan, &place) => match begun {
                Ok(begun) => life = Some(begun),
                Err(error) => tracing::error!(error = format!("{error:#}"), "tried again"),
            },
            () = stop.cancelled() => return end(&place),
        }
    }
}

/// Nothing of it is left after this.
fn end(place: &Mutex<Option<Child>>) {
    if let Some(mut child) = take(place) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn take(place: &Mutex<Option<Child>>) -> Option<Child> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The process of one peer.
pub fn run() -> anyhow::Result<ExitCode> {
    ops::log::start(ops::log::Format::Text, "error");
    let mut line = String::new();
    io::stdin().lock().take(MAX_PLAN_BYTES).read_line(&mut line)?;
    // What serde says could show a part of a key.
    let plan: Plan = serde_json::from_str(&line).ok().context("--peer is for the demo itself")?;
    crate::commands::runtime()?.block_on(serve(plan))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(plan: Plan) -> anyhow::Result<()> {
    let stop = app::asked_to_stop();
    let running = Box::pin(plan.start()).await?;
    let (demo_lives, demo_ended) = oneshot::channel::<()>();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        drop(demo_lives);
    });
    println!("{READY}");
    tokio::select! {
        () = stop => {}
        _ = demo_ended => {}
        () = running.broken() => {}
    }
    running.drain().await;
    Ok(())
}
