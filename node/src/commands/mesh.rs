//! `tickmesh mesh`.

use std::{
    collections::{BTreeMap, HashMap},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::body::Bytes;
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;

use super::operators::{Ask, ask};

/// Show how a running peer sees the mesh: who leads what, heads, lags.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tickmesh mesh\n  tickmesh mesh --ops http://10.0.0.7:9100 --topics trades\n\n\
                        Ask an ingest peer: edges know who is connected, not who leads."
)]
pub struct Mesh {
    /// The operators' address of the peer ([ops] listen)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9100")]
    ops: Uri,
    /// Only topics whose name holds this
    #[arg(long, value_name = "TEXT")]
    topics: Option<String>,
    /// The page as it is, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Page {
    name: String,
    region: String,
    peer: String,
    publishers: Vec<String>,
    /// Circuit breakers, by their targets.
    #[serde(default)]
    circuits: BTreeMap<String, String>,
    ingest: Option<Ingest>,
}

#[derive(Deserialize)]
struct Ingest {
    #[serde(flatten)]
    me: Sibling,
    siblings: Vec<Sibling>,
    topics: Vec<Topic>,
}

#[derive(Deserialize)]
struct Sibling {
    peer: Option<String>,
    region: String,
    late_us: u64,
    sources: Vec<Source>,
}

#[derive(Deserialize)]
struct Source {
    name: String,
    warm: bool,
    lag: u64,
}

#[derive(Deserialize)]
struct Topic {
    topic: String,
    ranks: Vec<String>,
    leads: bool,
    unpublished: u64,
    streams: u64,
    newest: Option<Newest>,
}

#[derive(Deserialize)]
struct Newest {
    stream: String,
    sequence: u64,
}

impl Mesh {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let body = super::runtime()?.block_on(self.fetch())?;
        if self.json {
            println!("{}", String::from_utf8_lossy(&body));
            return Ok(ExitCode::SUCCESS);
        }
        let page = serde_json::from_slice(&body).context("the answer is no page of tickmesh")?;
        self.print(&page);
        Ok(ExitCode::SUCCESS)
    }

    async fn fetch(&self) -> anyhow::Result<Bytes> {
        let page = Ask { method: Method::GET, path: "/mesh", headers: &[], body: String::new() };
        let (status, body) = ask(&self.ops, page).await?;
        if status != StatusCode::OK {
            bail!("{} answers {status}; is it a peer of this version?", self.ops);
        }
        Ok(body)
    }

    fn print(&self, page: &Page) {
        println!("{} in {}: {}", page.name, page.region, page.peer);
        for (target, state) in &page.circuits {
            println!("  circuit to {target}: {state}");
        }
        let Some(ingest) = &page.ingest else {
            println!("\nAn edge. Connected ingest peers:");
            for publisher in &page.publishers {
                println!("  {publisher}");
            }
            return;
        };
        println!(
            "\n  {:<10} {:<12} {:<16} {:<8} {:>10} {:>10}",
            "peer", "region", "source", "state", "lag", "late"
        );
        let siblings = ingest.siblings.iter().map(|sibling| (short(sibling.peer.as_deref()), sibling));
        for (peer, sibling) in [("this one".to_owned(), &ingest.me)].into_iter().chain(siblings) {
            for source in &sibling.sources {
                let state = if source.warm { "warm" } else { "warming" };
                let late = format!("{:.1} ms", Duration::from_micros(sibling.late_us).as_secs_f64() * 1000.0);
                let Source { name, lag, .. } = source;
                println!("  {peer:<10} {:<12} {name:<16} {state:<8} {lag:>10} {late:>10}", sibling.region);
            }
        }
        let wanted = |topic: &&Topic| self.topics.as_ref().is_none_or(|text| topic.topic.contains(text));
        let topics: Vec<_> = ingest.topics.iter().filter(wanted).collect();
        println!(
            "\n  {:<36} {:<9} {:<28} {:>7} {:>7}  newest",
            "topic", "leader", "ranks", "streams", "waiting"
        );
        let mut led: HashMap<String, usize> = HashMap::new();
        for topic in &topics {
            let first = topic.ranks.first().map(String::as_str);
            // A peer that took over leads though it is not the first.
            let leader = if topic.leads { "this one".to_owned() } else { short(first) };
            *led.entry(leader.clone()).or_default() += 1;
            let ranks: Vec<_> = topic.ranks.iter().map(|rank| short(Some(rank))).collect();
            let newest = topic.newest.as_ref().map(|newest| format!("{} {}", newest.stream, newest.sequence));
            println!(
                "  {:<36} {leader:<9} {:<28} {:>7} {:>7}  {}",
                topic.topic,
                ranks.join(" "),
                topic.streams,
                topic.unpublished,
                newest.unwrap_or_default()
            );
        }
        let mut led: Vec<_> =
            led.into_iter().map(|(peer, topics)| format!("{peer} leads {topics}")).collect();
        led.sort_unstable();
        println!("\n  {} topics: {}", topics.len(), led.join(", "));
    }
}

/// The end of a peer id, which differs from others as its beginning does not.
fn short(peer: Option<&str>) -> String {
    let Some(peer) = peer else { return "nobody".to_owned() };
    let begin = peer.char_indices().rev().nth(7).map_or(0, |(at, _)| at);
    peer[begin..].to_owned()
}
