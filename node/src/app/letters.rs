//! What carries dead letters to their sink: opened with ingest, and ended after it.

use std::sync::{Arc, Mutex};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Stage;
use crate::{
    ingest::dead_letters::{
        Carrier, Config, Destination, FileSink, LetterFile, Outbox, Sink, SinkMetrics, TopicSink,
    },
    ops::{breaker::Circuit, health::Health, metrics::Registry},
    source,
};

/// The carriers of a peer.
pub(super) struct Letters {
    to: Destination,
    metrics: SinkMetrics,
    registry: Registry,
    /// All sources share the file, and so whether it can be written.
    file: Option<(Arc<Mutex<LetterFile>>, Arc<Circuit>)>,
    carriers: TaskTracker,
    stop: CancellationToken,
}

impl Letters {
    pub(super) fn open(config: Config, registry: &Registry) -> Self {
        let metrics = SinkMetrics::new(registry);
        let file = match &config.to {
            Destination::File { path, max_bytes } => {
                let file = LetterFile::new(path.clone(), *max_bytes).counting(&metrics.deleted);
                let circuit = Circuit::new(registry, "dead_letters", Carrier::PAUSE);
                Some((Arc::new(Mutex::new(file)), Arc::new(circuit)))
            }
            Destination::Topic(_) => None,
        };
        let (carriers, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { to: config.to, metrics, registry: registry.clone(), file, carriers, stop }
    }

    /// Where the letters of a source are put; what carries them on runs from now on.
    pub(super) fn outbox(&self, source: &source::Config, health: &Health) -> Option<Outbox> {
        let name = &source.name;
        let (sink, own_topic, circuit): (Box<dyn Sink>, _, _) = match (&self.to, &self.file) {
            (Destination::Topic(topic), _) => {
                // A configuration with a source that cannot be written to was refused.
                let (writer, topic) = (source.writer()?, topic.clone());
                let circuit = Circuit::new(&self.registry, format!("dead_letters {name}"), Carrier::PAUSE);
                (Box::new(TopicSink { writer, topic: topic.clone() }), Some(topic), Arc::new(circuit))
            }
            (Destination::File { .. }, file) => {
                let (file, circuit) = file.as_ref()?;
                (Box::new(FileSink::new(file.clone())), None, circuit.clone())
            }
        };
        let condition = health.condition(format!("dead letters {name}"));
        let (outbox, carrier) = Carrier::new(name, sink, own_topic, &self.metrics, circuit, condition);
        self.carriers.spawn(carrier.run(self.stop.clone()));
        Some(outbox)
    }

    /// What ends all carriers, those that come later as well.
    pub(super) fn stage(&self) -> Stage {
        let (carriers, stop) = (self.carriers.clone(), self.stop.clone());
        let ended = stop.clone();
        let task = tokio::spawn(async move {
            ended.cancelled().await;
            carriers.close();
            carriers.wait().await;
        });
        Stage { stop, task }
    }
}
