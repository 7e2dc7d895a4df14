//! `tickmesh check`.

use std::{path::PathBuf, process::ExitCode};

use tickmesh::config::Config;

/// Check a configuration: every fault at once, nothing started.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tickmesh check --config node.toml\n  \
                        TICKMESH_NODE__REGION=us-east tickmesh check --config node.toml\n\n\
                        Exit code: 0 if the configuration is good, 2 if not.")]
pub struct Check {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
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
        Ok(ExitCode::SUCCESS)
    }
}
