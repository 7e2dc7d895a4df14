//! The configuration of a route.

mod operator;

use std::{collections::BTreeSet, fmt};

use tickmesh_protocol::{
    catalogue::check_name,
    policy::{ChannelPolicy, Retain},
    stream::is_part,
};

pub use self::operator::{OperatorConfig, Reads};
use super::{jq::Filter, operators::Kind};
use crate::config::reader::Section;

/// One `[[route]]` of the configuration. Its jq programs have been seen to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// What it is called, so that it can be changed. Empty if it need not be.
    pub name: String,
    /// Name of the source whose records it takes.
    pub source: String,
    /// Glob over the source's topics.
    pub topic: String,
    /// A channel: its events, as other routes of the source make them of the records of those topics, take the records' place.
    pub from: Option<String>,
    /// jq program that says of a record whether it is taken: true or false. All are, if left out.
    pub filter: Option<String>,
    /// jq program whose outputs take the record's place, each for itself.
    pub split: Option<String>,
    /// A channel name, or a jq program that makes one.
    pub channel: String,
    /// jq program that makes the key of the stream.
    pub key: String,
    pub makes: Makes,
    /// What is done for the clients of the channel. Whether that goes together is seen where all routes are.
    pub policy: ChannelPolicy,
}

/// What a route makes of what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Makes {
    /// The record's value as it is, or each part of it.
    AsItIs,
    /// What a jq program makes of that.
    Data(String),
    /// What an operator makes of all of them.
    Operator(OperatorConfig),
}

impl RouteConfig {
    /// A route that takes all records of a topic, and passes their values as they are.
    pub fn new(source: &str, topic: &str, channel: &str, key: &str) -> Self {
        Self {
            name: String::new(),
            source: source.into(),
            topic: topic.into(),
            from: None,
            filter: None,
            split: None,
            channel: channel.into(),
            key: key.into(),
            makes: Makes::AsItIs,
            policy: ChannelPolicy::default(),
        }
    }

    pub fn read(section: &mut Section) -> Option<Self> {
        let name = section.or("name", String::new());
        if !name.is_empty()
            && let Err(invalid) = check_name(&name)
        {
            section.fault("name", invalid);
        }
        let source = section.required("source");
        let topic = section.or("topic", "*".to_owned());
        let from = section.optional("from").filter(|from: &String| {
            is_part(from) || {
                section.fault("from", format!("{from:?} is no channel"));
                false
            }
        });
        let filter = program(section, "filter");
        let split = program(section, "split");
        let channel: Option<String> = section.required("channel");
        let key = section.required("key").inspect(|key: &String| check_jq(section, "key", key));
        let makes = read_makes(section);
        let retain = match &makes {
            Some(Makes::Operator(OperatorConfig { kind: Kind::Depth(_), .. })) => Retain::Book,
            // Who subscribes sees where they stand at once.
            Some(Makes::Operator(_)) => Retain::Last,
            _ => Retain::default(),
        };
        let policy = ChannelPolicy {
            retain: section.parsed("retain").unwrap_or(retain),
            on_slow: section.parsed("on_slow").unwrap_or_default(),
        };
        if let Some(channel) = channel.as_deref().filter(|channel| !is_part(channel)) {
            check_jq(section, "channel", channel);
            if matches!(makes, Some(Makes::Operator(_))) {
                section.fault("channel", "what an operator makes needs a channel that is named");
            }
        }
        Some(Self {
            name,
            source: source?,
            topic,
            from,
            filter,
            split,
            channel: channel?,
            key: key?,
            makes: makes?,
            policy,
        })
    }

    /// The channel, if the log does not say again what was told there.
    pub fn computed_channel(&self) -> Option<&str> {
        (matches!(self.makes, Makes::Operator(_)) || self.from.is_some()).then_some(&*self.channel)
    }

    /// Whether it combines records, which only those of one partition can be.
    pub fn combines(&self) -> bool {
        matches!(&self.makes, Makes::Operator(OperatorConfig { kind: Kind::Combine(_), .. }))
    }
}

/// The routes that one takes from, by way of others as well. Of routes with `from`, those that stand above feed those below.
pub fn feeding(routes: &[&RouteConfig], index: usize) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    let mut waiting = vec![index];
    while let Some(at) = waiting.pop() {
        let Some(RouteConfig { source, from: Some(from), .. }) = routes.get(at) else { continue };
        for (other, route) in routes.iter().enumerate() {
            let makes = route.channel == *from || !is_part(&route.channel);
            let before = route.from.is_none() || other < at;
            if makes && before && route.source == *source && all.insert(other) {
                waiting.push(other);
            }
        }
    }
    all
}

impl fmt::Display for RouteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, source, topic, channel, .. } = self;
        if name.is_empty() {
            write!(f, "route of source {source}, topic {topic}, to {channel}")
        } else {
            write!(f, "route {name} of source {source}, topic {topic}, to {channel}")
        }
    }
}

fn read_makes(section: &mut Section) -> Option<Makes> {
    let named = ["data"].into_iter().chain(operator::NAMES).filter(|key| section.has(key));
    if let [first, second, ..] = named.collect::<Vec<_>>()[..] {
        section.fault(second, format!("a route has {first} or {second}, not both; write another route"));
    }
    let data = program(section, "data");
    match operator::read(section) {
        Some(operator) => operator.map(Makes::Operator),
        None => Some(data.map_or(Makes::AsItIs, Makes::Data)),
    }
}

fn program(section: &mut Section, key: &'static str) -> Option<String> {
    section.optional(key).inspect(|text: &String| check_jq(section, key, text))
}

fn check_jq(section: &Section, key: &str, program: &str) {
    if let Err(error) = Filter::compile(program) {
        section.fault(key, error);
    }
}
