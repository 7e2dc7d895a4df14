//! `tickmesh check`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::value::RawValue;
use tickmesh::{
    config::{Config, IngestRole},
    ops::metrics::now_us,
    source::MAX_RECORD_BYTES,
    transform::{Operators, Sample, Taken, Transform, Tried, becomes, try_routes},
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
            println!("\n{}", sample.display());
            self.try_routes(role, &config, &read_sample(sample)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Says what each route makes of a record.
    fn try_routes(&self, role: &IngestRole, config: &Config, value: &str) -> anyhow::Result<()> {
        let routes: Vec<_> = role.routes.iter().collect();
        let (topic, key) = (self.topic.clone(), self.key.clone());
        let sample = Sample { topic, key, value: RawValue::from_string(value.to_owned())? };
        for Tried { route, becomes } in try_routes(&routes, &config.private, sample)? {
            println!("  {route}");
            becomes.iter().for_each(|line| println!("    {line}"));
        }
        for source in &role.sources {
            let name = &source.source.name;
            if !role.routes.iter().any(|route| route.source == *name) {
                let transform = Transform::new(&[], source.source.channels(), &config.private)?;
                let value = Bytes::from(value.to_owned());
                let record = Taken { topic: "", key: None, value: &value, engine_time_us: now_us() };
                println!("  source {name}, as it is");
                for outcome in Operators::new(&[]).make(&transform, Epoch::from_u64(0), record).outcomes {
                    becomes(outcome).iter().for_each(|line| println!("    {line}"));
                }
            }
        }
        Ok(())
    }
}

fn read_sample(path: &Path) -> anyhow::Result<String> {
    let name = || format!("cannot read {}", path.display());
    let length = fs::metadata(path).with_context(name)?.len();
    ensure!(
        length <= MAX_RECORD_BYTES as u64,
        "{}: {length} bytes; a record has at most {MAX_RECORD_BYTES}",
        path.display()
    );
    fs::read_to_string(path).with_context(name)
}
