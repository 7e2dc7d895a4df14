//! Whether a topic is compacted: then Kafka deletes all but the last record of each key, at a time of its own choosing, and what
//! a client has missed cannot be read again. Such a topic is read only where all routes of the source retain the last event.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use tokio::runtime::Handle;

use super::{
    config::{Config, Use},
    context::Context,
    discovery::RPC_TIMEOUT,
};

/// How old an answer may be: a topic that is changed is noticed within this.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The setting that says it.
const POLICY: &str = "cleanup.policy";

/// What is known of the topics.
pub(super) struct Cleanup {
    /// None where compacted topics may be read.
    asks: Option<Handle>,
    client: Option<AdminClient<Context>>,
    /// Whether a topic is compacted, and when that was asked; without an answer where asking is not allowed.
    known: BTreeMap<String, (Instant, Option<bool>)>,
}

impl Cleanup {
    pub(super) fn new(retains_last: bool, runtime: Handle) -> Self {
        Self { asks: (!retains_last).then_some(runtime), client: None, known: BTreeMap::new() }
    }

    /// Looks at topics whose answers are too old. Gives those that were asked about in vain, as that is not allowed.
    ///
    /// # Errors
    /// If no broker answers.
    pub(super) fn look<'a>(
        &mut self,
        config: &Config,
        context: impl FnOnce() -> Context,
        source: &str,
        topics: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<&'a str>, KafkaError> {
        let Some(runtime) = self.asks.clone() else { return Ok(Vec::new()) };
        let now = Instant::now();
        let fresh = |at: &Instant| now.duration_since(*at) < ASK_EVERY;
        let topics: Vec<&str> =
            topics.filter(|topic| !self.known.get(*topic).is_some_and(|(at, _)| fresh(at))).collect();
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let client = match &mut self.client {
            Some(client) => client,
            place => {
                let client = config.client(Use::Config, source).create_with_context(context())?;
                place.insert(client)
            }
        };
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(RPC_TIMEOUT));
        let answers = runtime.block_on(client.describe_configs(&resources, &options))?;
        let mut denied = Vec::new();
        for (topic, answer) in topics.into_iter().zip(answers) {
            match answer {
                Ok(resource) => {
                    if resource.specifier == OwnedResourceSpecifier::Topic(topic.to_owned()) {
                        self.known.insert(topic.to_owned(), (now, Some(is_compacted(&resource))));
                    }
                }
                // It went away meanwhile; the next round finds out.
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
                Err(
                    RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
                ) => {
                    self.known.insert(topic.to_owned(), (now, None));
                    denied.push(topic);
                }
                Err(code) => return Err(KafkaError::AdminOp(code)),
            }
        }
        Ok(denied)
    }

    /// Whether a topic must not be read as it is. One that nobody may ask about is taken for what topics usually are.
    pub(super) fn refuses(&self, topic: &str) -> bool {
        self.known.get(topic).is_some_and(|(_, compacted)| *compacted == Some(true))
    }
}

fn is_compacted(resource: &ConfigResource) -> bool {
    let policy = resource.get(POLICY).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    policy.split(',').any(|policy| policy.trim() == "compact")
}

/// What is wrong with a topic that is refused, and what would help.
pub(super) fn refusal(topic: &str) -> String {
    format!(
        "topic {topic} is compacted ({POLICY} = compact), so what a client missed cannot be read again; set retain = \"last\" in all \
         routes of this source, or {POLICY} = delete for the topic"
    )
}
