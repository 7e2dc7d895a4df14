//! What a run found, for machines (`report.json`) and for people (`report.html`).

use std::{fs, path::Path};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

/// The figures of one run. A run is good only if nothing was lost, doubled or reordered.
#[derive(Debug, Serialize)]
pub struct Report {
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub latency_ms: Latency,
    pub longest_pause_ms: f64,
    pub clients: usize,
    pub disconnected: u64,
    pub produced: u64,
    pub seconds: f64,
    pub deliveries_per_second: f64,
}

/// Engine to client, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    pub fn of(latencies_us: &Histogram<u64>) -> Self {
        let at = |quantile| latencies_us.value_at_quantile(quantile) as f64 / 1000.0;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latencies_us.max() as f64 / 1000.0 }
    }
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.received > 0 && self.lost + self.duplicated + self.reordered + self.disconnected == 0
    }

    /// Writes `report.json` and `report.html` into a folder, which is made if it is not there.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self)?;
        for (name, text) in [("report.json", &json), ("report.html", &self.to_html())] {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn to_html(&self) -> String {
        let verdict = if self.is_good() { "good: nothing lost, doubled or reordered" } else { "NOT good" };
        let rows: String = [
            ("clients", self.clients.to_string()),
            ("disconnected", self.disconnected.to_string()),
            ("seconds", format!("{:.1}", self.seconds)),
            ("produced", self.produced.to_string()),
            ("received", self.received.to_string()),
            ("deliveries/s", format!("{:.0}", self.deliveries_per_second)),
            ("lost", self.lost.to_string()),
            ("duplicated", self.duplicated.to_string()),
            ("reordered", self.reordered.to_string()),
            ("latency p50", format!("{:.2} ms", self.latency_ms.p50)),
            ("latency p99", format!("{:.2} ms", self.latency_ms.p99)),
            ("latency p99.9", format!("{:.2} ms", self.latency_ms.p999)),
            ("latency max", format!("{:.2} ms", self.latency_ms.max)),
            ("longest pause of a client", format!("{:.0} ms", self.longest_pause_ms)),
        ]
        .iter()
        .map(|(name, value)| format!("<tr><th>{name}<td>{value}\n"))
        .collect();
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>tickmesh load</title>\
             <style>body{{font:16px system-ui;margin:3rem auto;max-width:40rem}}th{{text-align:left;padding-right:2rem}}\
             td{{text-align:right;font-variant-numeric:tabular-nums}}</style>\
             <h1>tickmesh load</h1><p>{verdict}</p><table>\n{rows}</table></html>\n"
        )
    }
}
