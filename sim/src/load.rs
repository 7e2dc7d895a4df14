//! `tickmesh-sim load`: many clients, a rate of events, every sequence checked, latency measured.

mod client;
mod producer;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::{
    client::{LoadClient, Tally},
    producer::Producer,
};
use crate::report::{Latency, Report};

/// Connections that are opened at once: fewer than the usual backlog of a listener.
const CONNECT_AT_ONCE: usize = 64;

/// Ingest peers find a topic that is new within two seconds.
const DISCOVERY: Duration = Duration::from_secs(3);

/// How long the last events may be on their way after the last was produced.
const TAIL: Duration = Duration::from_secs(10);

/// Connect many clients to edges, make events at a rate, check every sequence, measure latency.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    tickmesh-sim load --clients 500 --subscribe trades.btc_usdt depth.btc_usdt --seconds 10     against a running demo\n  \
    tickmesh-sim load --clients 1000 --kafka 127.0.0.1:9092 --topic load --streams 50 --rate 5000 --seconds 10\n\n\
    Each client follows one of the streams, in turn, at one of the edges, in turn. With --kafka the events are made here, as\n\
    records {\"stream\", \"data\"}. Exit code 0 only if nothing was lost, doubled or reordered.")]
pub struct Load {
    /// Address of an edge; may be given several times
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/ws")]
    url: Vec<String>,
    /// Clients at once
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Streams to follow
    #[arg(long, value_name = "STREAM", num_args = 1.., required_unless_present = "kafka")]
    subscribe: Vec<String>,
    /// Brokers of a Kafka that the edges' ingest peers read; events are produced there
    #[arg(long, value_name = "BROKERS", requires = "topic")]
    kafka: Option<String>,
    /// Topic to produce to
    #[arg(long)]
    topic: Option<String>,
    /// Streams to produce, `load.s0` and so on
    #[arg(long, default_value_t = 50)]
    streams: usize,
    /// Events to produce per second, over all streams
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Folder for report.json and report.html
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

impl Load {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ensure!(
            self.clients > 0 && self.streams > 0 && self.rate > 0,
            "--clients, --streams and --rate are at least 1"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(self.load())?;
        println!("{}", serde_json::to_string_pretty(&report)?);
        if let Some(folder) = &self.report {
            report.write(folder)?;
            eprintln!("wrote {}", folder.join("report.html").display());
        }
        Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn load(&self) -> anyhow::Result<Report> {
        let streams: Arc<[String]> = match self.kafka {
            Some(_) => (0..self.streams).map(|n| format!("load.s{n}")).collect(),
            None => self.subscribe.iter().cloned().collect(),
        };
        let producer = match (&self.kafka, &self.topic) {
            (Some(brokers), Some(topic)) => {
                let producer = Producer::new(brokers, topic)?;
                sleep(DISCOVERY).await;
                Some(producer)
            }
            _ => None,
        };
        let clients = self.connect(&streams).await?;
        eprintln!("{} clients follow {} streams", clients.len(), streams.len());

        let deadline = Instant::now() + Duration::from_secs(self.seconds);
        let begun = Instant::now();
        let mut running = JoinSet::new();
        let stop = tokio_util::sync::CancellationToken::new();
        for client in clients {
            running.spawn(client.follow(Tally::new()?, stop.clone()));
        }
        let produced = match producer {
            Some(producer) => Some(producer.produce(&streams, self.rate, deadline).await?),
            None => {
                sleep(deadline - Instant::now()).await;
                None
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.gather(running, stop, produced, seconds).await
    }

    async fn connect(&self, streams: &Arc<[String]>) -> anyhow::Result<Vec<LoadClient>> {
        let mut clients = Vec::with_capacity(self.clients);
        let mut connecting = JoinSet::new();
        for index in 0..self.clients {
            if connecting.len() == CONNECT_AT_ONCE {
                clients.extend(joined(connecting.join_next().await)?);
            }
            let url = self.url[index % self.url.len()].clone();
            let stream = streams[index % streams.len()].clone();
            connecting.spawn(async move {
                LoadClient::connect(&url, stream).await.with_context(|| format!("client of {url}"))
            });
        }
        while let Some(client) = connecting.join_next().await {
            clients.extend(joined(Some(client))?);
        }
        Ok(clients)
    }

    /// Waits until every client has everything that was produced, or until nothing more can be expected.
    async fn gather(
        &self,
        mut running: JoinSet<Tally>,
        stop: tokio_util::sync::CancellationToken,
        produced: Option<Vec<u64>>,
        seconds: f64,
    ) -> anyhow::Result<Report> {
        if let Some(produced) = &produced {
            let expected: u64 = (0..self.clients).map(|index| produced[index % produced.len()]).sum();
            let all = async {
                while client::received() < expected {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            // What has not come by then is counted as lost below.
            let _ = timeout(TAIL, all).await;
        }
        stop.cancel();
        let mut sum = Tally::new()?;
        while let Some(tally) = running.join_next().await {
            let tally = tally?;
            if let Some(produced) = &produced {
                let index: usize = tally.stream.trim_start_matches("load.s").parse().unwrap_or(0);
                sum.lost += produced[index].saturating_sub(tally.received + tally.lost);
            }
            sum.add(&tally)?;
        }
        Ok(Report {
            received: sum.received,
            lost: sum.lost,
            duplicated: sum.duplicated,
            reordered: sum.reordered,
            latency_ms: Latency::of(&sum.latencies_us),
            longest_pause_ms: sum.longest_pause.as_secs_f64() * 1000.0,
            clients: self.clients,
            disconnected: sum.disconnected,
            produced: produced.map_or(0, |counts| counts.iter().sum()),
            seconds,
            deliveries_per_second: sum.received as f64 / seconds,
        })
    }
}

fn joined<T>(
    outcome: Option<Result<anyhow::Result<T>, tokio::task::JoinError>>,
) -> anyhow::Result<Option<T>> {
    outcome.map(|outcome| outcome?).transpose()
}
