//! What a run over many seeds showed.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::Context;
use serde::Serialize;

use super::{
    scenario::Scenario,
    world::{Counts, Failure, Outcome},
};

/// Figures over all seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub first_seed: u64,
    pub seeds: u64,
    /// Worlds without any fault.
    pub calm: u64,
    pub seconds: f64,
    pub counts: Counts,
    /// How often each fault came.
    pub faults: BTreeMap<&'static str, u64>,
    pub failures: Vec<FailedSeed>,
}

/// A seed that failed, and its short story.
#[derive(Clone, Debug, Serialize)]
pub struct FailedSeed {
    pub seed: u64,
    pub failure: Failure,
    pub story: Vec<String>,
    /// How the short story fails.
    pub in_short: Failure,
}

impl Summary {
    pub fn new(first_seed: u64) -> Self {
        Self {
            first_seed,
            seeds: 0,
            calm: 0,
            seconds: 0.0,
            counts: Counts::default(),
            faults: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    pub fn add(&mut self, scenario: &Scenario, outcome: &Outcome) {
        self.seeds += 1;
        self.calm += u64::from(scenario.is_calm());
        self.counts.add(&outcome.counts);
        for op in scenario.ops.iter().filter(|op| op.what.is_fault()) {
            *self.faults.entry(op.what.kind()).or_default() += 1;
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.calm += other.calm;
        self.counts.add(&other.counts);
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }

    /// Writes `report.json` into a folder, which is made if it is not there.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join("report.json");
        fs::write(&file, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "{} seeds from {} on, {} of them without faults, in {:.1} s ({:.2} ms each)",
            self.seeds,
            self.first_seed,
            self.calm,
            self.seconds,
            self.seconds * 1000.0 / self.seeds.max(1) as f64
        )?;
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        writeln!(
            f,
            "events: {} appended, {} published ({} again), {} delivered to clients, {} duplicates dropped by edges",
            counts.appended, counts.published, counts.published_again, counts.delivered, counts.duplicates
        )?;
        writeln!(
            f,
            "{} batches lost, {} fetches, {} pages, {} gaps told, {} resets, {} takeovers, {} yields",
            counts.lost_messages,
            counts.fetches,
            counts.pages,
            counts.gaps_told,
            counts.resets,
            counts.takeovers,
            counts.yields
        )?;
        writeln!(
            f,
            "where only one ingest peer died: {} events, longest wait for a leader {:.1} ms, {} longer than 150 ms",
            counts.waited,
            counts.longest_wait_us as f64 / 1000.0,
            counts.waited_long
        )?;
        match self.failures.len() {
            0 => write!(f, "no seed failed"),
            failed => write!(f, "FAILED: {failed} seeds"),
        }
    }
}
