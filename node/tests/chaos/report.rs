//! The table: fault → what clients saw of it.

use std::{fmt, time::Duration};

use crate::{checker::Findings, cluster::Counts};

/// What one fault did.
#[derive(Debug)]
pub struct Row {
    pub fault: String,
    pub seconds: f64,
    /// Of all clients together.
    pub found: Findings,
    /// Events that had not come to all clients when the patience ended.
    pub behind: u64,
    pub longest_pause: Duration,
    /// Connections that clients had to make again although their edge was left alone.
    pub disconnected: u64,
    /// Peers that ended by themselves.
    pub dead: Vec<String>,
    pub all: Counts,
    pub edges: Counts,
    /// Cores used, by whom.
    pub cores: Vec<(&'static str, f64)>,
    pub notes: String,
}

impl Row {
    pub fn is_lossless(&self) -> bool {
        self.found.faults() == 0 && self.behind == 0 && self.disconnected == 0 && self.dead.is_empty()
    }

    /// Share of events that edges received and had already.
    pub fn duplicates(&self) -> f64 {
        self.edges.get("duplicates") / self.edges.get("received").max(1.0)
    }
}

/// Faults of clients that are told in words below a row.
const STORIES: usize = 6;

/// The heads of the columns.
pub const HEAD: &str = "fault                                       lost doubled disorder | longest  refetched             duplicates        \
                        | takeovers yields gaps repaired/told drops | cores";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, edges, all, .. } = self;
        write!(
            f,
            "{:<42} {:>5} {:>7} {:>8} | {:>7.0?} {:>7} {:>8.0} KB {:>7} {:>6.3} % | {:>9} {:>6} {:>13}/{:<4} {:>5} |",
            self.fault,
            found.lost + self.behind,
            found.doubled,
            found.reordered + found.unlinked + found.odd,
            self.longest_pause,
            edges.get("refetched"),
            edges.get("feed bytes") / 1e3,
            edges.get("duplicates"),
            self.duplicates() * 100.0,
            all.get("takeovers"),
            all.get("yields"),
            edges.get("gaps repaired"),
            edges.get("gaps told"),
            all.get("queue drops"),
        )?;
        for (who, cores) in &self.cores {
            write!(f, " {who} {cores:.2}")?;
        }
        let batches = all.get("batches") / self.seconds;
        write!(f, " | {} events in {:.1} s, {batches:.0} batches/s", found.received, self.seconds)?;
        if self.behind > 0 {
            write!(f, "; {} did not come in time", self.behind)?;
        }
        if self.disconnected > 0 {
            write!(f, "; {} disconnected", self.disconnected)?;
        }
        if !self.dead.is_empty() {
            write!(f, "; ended by themselves: {:?}", self.dead)?;
        }
        if !self.notes.is_empty() {
            write!(f, "; {}", self.notes)?;
        }
        for story in found.stories.iter().take(STORIES) {
            write!(f, "\n    {story}")?;
        }
        Ok(())
    }
}
