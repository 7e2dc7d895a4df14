//! What the client prints.

use std::io::Write;

use hdrhistogram::Histogram;
use serde::Deserialize;
use tickmesh::ops::metrics::now_us;
use tickmesh_protocol::client::DataMessage;

use super::Format;

/// Latencies are kept to three digits, in microseconds up to a minute: bounded, however long it runs.
const LONGEST_LATENCY_US: u64 = 60_000_000;

pub(super) struct Output {
    format: Format,
    events: u64,
    /// How often events are missing.
    gaps: u64,
    /// Events that came again, or too late.
    wrong: u64,
    /// Events that were signed as they should be, and that were not; told if signatures are looked at.
    verified: u64,
    forged: u64,
    latencies_us: Option<Histogram<u64>>,
}

/// The one field of the data that the client looks at: milliseconds since 1970 UTC, perhaps with a fraction.
#[derive(Deserialize)]
struct Timestamped {
    timestamp: f64,
}

impl Output {
    pub(super) fn new(format: Format, latency: bool) -> Self {
        let latencies_us = latency.then(|| Histogram::new_with_max(LONGEST_LATENCY_US, 3).ok()).flatten();
        Self { format, events: 0, gaps: 0, wrong: 0, verified: 0, forged: 0, latencies_us }
    }

    /// Prints an event. `verified`: whether its signature is good; nothing if it has none, or nobody looked.
    pub(super) fn event(&mut self, text: &str, event: &DataMessage<'_>, verified: Option<bool>) {
        self.events += 1;
        self.verified += u64::from(verified == Some(true));
        let latency_us = self.latencies_us.as_mut().and_then(|latencies| {
            let latency = latency_us(event)?;
            latencies.saturating_record(latency);
            Some(latency)
        });
        let latency_ms = latency_us.map(|latency| latency as f64 / 1000.0);
        let line = match (self.format, latency_ms) {
            (Format::Json, latency) => {
                let latency = latency.map(|latency| format!(",\"latency_ms\":{latency:.3}"));
                let verified = verified.map(|verified| format!(",\"verified\":{verified}"));
                let more = [verified, latency].into_iter().flatten().collect::<String>();
                format!("{}{more}}}", text.strip_suffix('}').unwrap_or(text))
            }
            (Format::Text, latency) => {
                let latency = latency.map(|latency| format!("{latency:>9.3} ms  ")).unwrap_or_default();
                let verified = match verified {
                    Some(true) => "verified  ",
                    Some(false) => "NOT VERIFIED  ",
                    None => "",
                };
                let (stream, sequence) = (event.stream.as_str(), event.sequence.get());
                format!("{stream:<24} {sequence:>10}  {latency}{verified}{}", event.data)
            }
        };
        // A reader that is gone, as `head` is, ends the program by the broken pipe it asked for.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            std::process::exit(0);
        }
    }

    pub(super) fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Events are lost, whether the edge told it or it shows.
    pub(super) fn missed(&mut self, text: &str) {
        self.gaps += 1;
        eprintln!("missed: {text}");
    }

    pub(super) fn wrong(&mut self, text: &str) {
        self.wrong += 1;
        eprintln!("wrong: {text}");
    }

    /// An event that is not signed as it should be.
    pub(super) fn forged(&mut self, text: &str) {
        self.forged += 1;
        eprintln!("not verified: {text}");
    }

    /// Prints the sums; whether nothing was wrong.
    pub(super) fn finish(&self) -> bool {
        eprint!("{} events, {} gaps, {} doubled or out of order", self.events, self.gaps, self.wrong);
        if self.verified + self.forged > 0 {
            eprint!(", {} verified, {} not signed as they should be", self.verified, self.forged);
        }
        if let Some(latencies) = &self.latencies_us {
            for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                eprint!(", {name} {:.2} ms", latencies.value_at_quantile(quantile) as f64 / 1000.0);
            }
        }
        eprintln!();
        self.gaps == 0 && self.wrong == 0 && self.forged == 0
    }
}

fn latency_us(event: &DataMessage<'_>) -> Option<u64> {
    let Timestamped { timestamp } = serde_json::from_str(event.data.get()).ok()?;
    let engine_us = (timestamp * 1000.0) as u64;
    Some(now_us().saturating_sub(engine_us))
}
