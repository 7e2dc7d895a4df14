//! `tickmesh check`.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use tickmesh::{
    config::{Config, IngestRole},
    ops::metrics::now_us,
    source::MAX_RECORD_BYTES,
    transform::{Made, Operators, Rejected, RouteConfig, Taken, Transform, jq},
};
use tickmesh_protocol::Epoch;

/// Check a configuration: every fault at once, nothing started.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tickmesh check --config node.toml\n  \
                        tickmesh check --config node.toml --sample record.json --topic market.trades\n  \
                        TICKMESH_NODE__REGION=us-east tickmesh check --config node.toml\n\n\
                        Exit code: 0 if the configuration is good, 2 if not.")]
pub struct Check {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A file that holds the value of one record: shows what each route makes of it
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// The topic of the sample; every route is shown if left out
    #[arg(long, requires = "sample")]
    topic: Option<String>,
    /// The key of the sample
    #[arg(long, requires = "sample")]
    key: Option<String>,
}

impl Check {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        println!("{}: good", self.config.display());
        println!("  node     {} in {}", config.name, config.region);
        if let Some(edge) = &config.edge {
            println!("  edge     ws://{}/ws", edge.listen);
        }
        if let Some(role) = &config.ingest {
            for source in &role.sources {
                let name = &source.source.name;
                let routes = role.routes.iter().filter(|route| route.source == *name).count();
                let routes =
                    if routes == 0 { "records pass as they are".into() } else { format!("{routes} routes") };
                println!("  source   {name}: {routes}");
            }
        }
        println!("  operator http://{}", config.ops.listen);
        if let Some(sample) = &self.sample {
            let role =
                config.ingest.as_ref().context("--sample needs a configuration with the role ingest")?;
            let value = read_sample(sample)?;
            println!("\n{}", sample.display());
            // As at ingest: programs may need a deep stack.
            std::thread::scope(|scope| {
                let tried = std::thread::Builder::new()
                    .stack_size(jq::STACK_BYTES)
                    .spawn_scoped(scope, || self.try_routes(role, &config, &value))?;
                tried.join().map_err(|_| anyhow::anyhow!("a route failed"))?
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Says what each route makes of a record.
    fn try_routes(&self, role: &IngestRole, config: &Config, value: &Bytes) -> anyhow::Result<()> {
        for route in &role.routes {
            let topic = self.topic.as_deref().unwrap_or(&route.topic);
            let key = self.key.clone().map(Bytes::from);
            let record = Taken { topic, key: key.as_ref(), value, engine_time_us: now_us() };
            println!("  {}", Named(route));
            for outcome in try_route(route, config, record)? {
                println!("    {outcome}");
            }
        }
        for source in &role.sources {
            let name = &source.source.name;
            if !role.routes.iter().any(|route| route.source == *name) {
                let transform = Transform::new(&[], source.source.channels(), &config.private)?;
                let record = Taken { topic: "", key: None, value, engine_time_us: now_us() };
                println!("  source {name}, as it is");
                for outcome in transform.apply(record) {
                    println!("    {}", outcome_of(outcome, &mut Operators::new(&[].into())));
                }
            }
        }
        Ok(())
    }
}

/// How a route is told from the others.
struct Named<'a>(&'a RouteConfig);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteConfig { source, topic, channel, .. } = self.0;
        write!(f, "route of source {source}, topic {topic}, to {channel}")
    }
}

fn read_sample(path: &Path) -> anyhow::Result<Bytes> {
    let name = || format!("cannot read {}", path.display());
    let length = fs::metadata(path).with_context(name)?.len();
    ensure!(
        length <= MAX_RECORD_BYTES as u64,
        "{}: {length} bytes; a record has at most {MAX_RECORD_BYTES}",
        path.display()
    );
    Ok(fs::read(path).with_context(name)?.into())
}

fn try_route(route: &RouteConfig, config: &Config, record: Taken<'_>) -> anyhow::Result<Vec<String>> {
    let transform = Transform::new(std::slice::from_ref(route), None, &config.private)?;
    let mut operators = Operators::new(&[route.clone()].into());
    operators.begin(SAMPLE, true);
    let outcomes = transform.apply(record);
    if outcomes.is_empty() {
        return Ok(vec!["nothing: its filter or split leaves nothing of it".into()]);
    }
    Ok(outcomes.into_iter().map(|outcome| outcome_of(outcome, &mut operators)).collect())
}

/// The log that the sample is the only record of.
const SAMPLE: Epoch = Epoch::from_u64(0);

fn outcome_of(outcome: Result<Made, Rejected>, operators: &mut Operators) -> String {
    let events = match outcome {
        Ok(Made::Event(event)) => vec![event],
        Ok(Made::Trades { route, trades }) => match operators.take(SAMPLE, route, &trades) {
            Ok((events, _)) => events,
            Err(refused) => return format!("dead letter: {refused}"),
        },
        Err(Rejected::Unrouted(topic)) => return format!("nothing: it does not take topic {topic:?}"),
        Err(rejected) => return format!("dead letter: {rejected}"),
    };
    let text = |event: tickmesh::transform::Transformed| {
        format!("{} {}", event.stream, String::from_utf8_lossy(&event.data))
    };
    events.into_iter().map(text).collect::<Vec<_>>().join("\n    ")
}
