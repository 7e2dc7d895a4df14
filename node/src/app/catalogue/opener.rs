//! Opens sources, at the start and later.

use std::sync::Arc;

use tickmesh_protocol::policy::Retain;

use crate::{
    app::letters::Letters,
    config::SourceRole,
    ingest,
    ops::{health::Health, metrics::Registry},
    source::{Source, metrics::SourceMetrics},
    transform::RouteTable,
};

pub(in crate::app) struct Opener {
    region: String,
    metrics: SourceMetrics,
    health: Health,
    letters: Option<Letters>,
}

impl Opener {
    pub(in crate::app) fn new(
        region: &str,
        registry: &Registry,
        health: &Health,
        letters: Option<Letters>,
    ) -> Self {
        let metrics = SourceMetrics::new(registry);
        Self { region: region.to_owned(), metrics, health: health.clone(), letters }
    }

    /// A source and its way into ingest; none, if it is not read in this region.
    pub(in crate::app) fn open(
        &self,
        role: &SourceRole,
        routes: &RouteTable,
    ) -> Option<(ingest::Lane, Box<dyn Source>)> {
        let SourceRole { source: config, tiers } = role;
        let name = config.name.clone();
        if tiers.of(&self.region).is_none() {
            tracing::info!(source = name, region = self.region, "is not read in this region");
            return None;
        }
        let channels = config.channels();
        let mut present = routes.iter().filter(|route| !route.life.is_over()).peekable();
        let retains_last =
            present.peek().is_some() && present.all(|route| route.config.policy.retain == Retain::Last);
        let condition = self.health.condition(format!("source {name}"));
        let outbox = self.letters.as_ref().and_then(|letters| letters.outbox(config, &self.health));
        let source = config.clone().open(retains_last, &self.metrics, condition);
        let lane = ingest::Lane {
            routes: Arc::clone(routes),
            channels,
            tiers: tiers.clone(),
            reader: source.reader(),
            condition: self.health.condition(format!("ingest {name}")),
            lag: self.metrics.of(&name).lag,
            outbox,
            source: name,
        };
        Some((lane, source))
    }

    /// A source that is read no more is nothing that this peer needs.
    pub(in crate::app) fn close(&self, name: &str) {
        self.health.forget(&format!("source {name}"));
        self.health.forget(&format!("ingest {name}"));
        self.health.forget(&format!("dead letters {name}"));
    }
}
