//! `tickmesh-sim model`: worlds of peers made of exactly the state machines of `tickmesh_protocol`, in virtual time, with
//! everything going wrong that can go wrong. Each seed is a world; what goes wrong in it is a [`scenario`] that can be repeated,
//! shortened and read. At the end of each world everything is healed, and every client must have everything.
//!
//! | module | holds |
//! |---|---|
//! | [`scenario`] | what a world is made of and what befalls it; from a seed, and in words |
//! | [`world`] | the world itself: peers, network, clients, and what must be true |
//! | [`log`] | the log: what really happened |
//! | [`shrink`] | a failing scenario made short |
//! | [`mutation`] | bugs put in on purpose, which the model must find |

pub mod log;
pub mod mutation;
pub mod queue;
pub mod random;
pub mod scenario;
pub mod shrink;
mod summary;
pub mod world;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use self::{scenario::Scenario, summary::Summary, world::Failure};

/// Seeds that a thread takes at once: a tenth of a second of work.
const CHUNK: u64 = 32;

/// How often a long run says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Torture the state machines in virtual time: many seeds, each a world with faults, each exactly repeatable
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tickmesh-sim model --seeds 10000                      seeds 0 to 9999\n  \
    tickmesh-sim model --first-seed 1000000 --seeds 500   others\n  \
    tickmesh-sim model --first-seed 4711 --seeds 1 --trace    one world, and everything that happens in it\n\n\
    A failing seed is shortened to the few things that are needed to fail, and told as a story. With --trace that story's \
    whole course is printed as well.\n\
    Exit code 0 only if no seed fails.")]
pub struct Model {
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first_seed: u64,
    /// How many seeds
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    seeds: u64,
    /// Threads; as many as there are processors if left out
    #[arg(long)]
    threads: Option<usize>,
    /// Print everything that happens, of the shortened story where a seed fails
    #[arg(long)]
    trace: bool,
    /// Stop after so many failing seeds
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    max_failures: usize,
    /// Folder for report.json
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// A seed whose world went wrong.
struct Failed {
    seed: u64,
    failure: Failure,
}

impl Model {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ensure!(self.seeds > 0, "--seeds is at least 1");
        ensure!(
            self.first_seed.checked_add(self.seeds).is_some(),
            "--first-seed and --seeds go beyond the last number"
        );
        let begun = Instant::now();
        let (mut summary, failed) = self.run_all(begun);
        summary.seconds = begun.elapsed().as_secs_f64();
        for failed in &failed {
            summary.failures.push(self.tell(failed));
        }
        if self.trace && self.seeds == 1 && failed.is_empty() {
            self.tell_course(&scenario::generate(self.first_seed));
        }
        println!("{summary}");
        if let Some(folder) = &self.report {
            summary.write(folder)?;
        }
        Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn run_all(&self, begun: Instant) -> (Summary, Vec<Failed>) {
        let threads = self.threads.or_else(|| thread::available_parallelism().ok().map(usize::from));
        let threads = threads.unwrap_or(1).clamp(1, 256);
        let next = AtomicU64::new(0);
        let results = Mutex::new((Summary::new(self.first_seed), Vec::new()));
        thread::scope(|scope| {
            for number in 0..threads {
                let (next, results) = (&next, &results);
                scope.spawn(move || self.run_some(next, results, (number == 0).then_some(begun)));
            }
        });
        let (summary, mut failed) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.sort_by_key(|failed: &Failed| failed.seed);
        failed.truncate(self.max_failures.max(1));
        (summary, failed)
    }

    /// Takes seeds until there are no more, or enough have failed.
    fn run_some(
        &self,
        next: &AtomicU64,
        results: &Mutex<(Summary, Vec<Failed>)>,
        mut progress: Option<Instant>,
    ) {
        loop {
            let first = next.fetch_add(CHUNK, Ordering::Relaxed);
            if first >= self.seeds {
                return;
            }
            let mut summary = Summary::new(self.first_seed);
            let mut failed = Vec::new();
            for seed in first..(first + CHUNK).min(self.seeds) {
                let seed = self.first_seed + seed;
                let scenario = scenario::generate(seed);
                let outcome = world::run(&scenario, None, false);
                summary.add(&scenario, &outcome);
                failed.extend(outcome.failure.map(|failure| Failed { seed, failure }));
            }
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.0.merge(&summary);
            results.1.extend(failed);
            if results.1.len() >= self.max_failures.max(1) {
                next.store(self.seeds, Ordering::Relaxed);
            }
            if progress.is_some_and(|at| at.elapsed() >= PROGRESS_EVERY) {
                eprintln!("{} of {} seeds, {} failed", results.0.seeds, self.seeds, results.1.len());
                progress = Some(Instant::now());
            }
        }
    }

    /// Tells a failure as a short story.
    fn tell(&self, failed: &Failed) -> summary::FailedSeed {
        eprintln!("seed {} fails; looking for the shortest story", failed.seed);
        let scenario = scenario::generate(failed.seed);
        let whole = scenario.ops.len();
        let (short, failure) = shrink::shrink(scenario, failed.failure.clone(), None);
        println!("seed {} fails ({:?}): {}", failed.seed, failed.failure.fault, failed.failure);
        println!("in short ({} of {whole} things that happen are needed):", short.ops.len());
        let story = scenario::story(&short);
        for line in &story {
            println!("    {line}");
        }
        println!("    => {failure}");
        if self.trace {
            self.tell_course(&short);
        }
        println!("again: tickmesh-sim model --first-seed {} --seeds 1 --trace\n", failed.seed);
        summary::FailedSeed { seed: failed.seed, failure: failed.failure.clone(), story, in_short: failure }
    }

    fn tell_course(&self, scenario: &Scenario) {
        for line in scenario::story(scenario) {
            println!("    {line}");
        }
        for line in world::run(scenario, None, true).trace {
            println!("{line}");
        }
    }
}
