//! The configuration of a route.

use std::fmt;

use tickmesh_protocol::{
    feed::MAX_SOURCE_NAME_BYTES,
    policy::{ChannelPolicy, Retain},
    stream::is_part,
};

use super::{
    jq::Filter,
    operators::{Kind, candles, ticker},
};
use crate::config::reader::{Section, Span};

/// How often a candle that is open or a ticker is told at most, if nothing else is said.
const EVERY_MS: u64 = 1000;

/// One `[[route]]` of the configuration. Its jq programs have been seen to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// What it is called, so that it can be changed. Empty if it need not be.
    pub name: String,
    /// Name of the source whose records it takes.
    pub source: String,
    /// Glob over the source's topics.
    pub topic: String,
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
    /// What an operator makes of all trades.
    Operator(OperatorConfig),
}

/// An operator, and the jq programs that read a trade for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    pub kind: Kind,
    pub price: String,
    pub quantity: String,
    /// In milliseconds since 1970 UTC; the log's own time if left out.
    pub time: Option<String>,
}

impl RouteConfig {
    /// A route that takes all records of a topic, and passes their values as they are.
    pub fn new(source: &str, topic: &str, channel: &str, key: &str) -> Self {
        Self {
            name: String::new(),
            source: source.into(),
            topic: topic.into(),
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
        if !name.is_empty() && (!is_part(&name) || name.len() > MAX_SOURCE_NAME_BYTES) {
            section.fault(
                "name",
                format!("{name:?} is no name; write up to {MAX_SOURCE_NAME_BYTES} of a-z, 0-9, _ and -"),
            );
        }
        let source = section.required("source");
        let topic = section.or("topic", "*".to_owned());
        let filter = program(section, "filter");
        let split = program(section, "split");
        let channel: Option<String> = section.required("channel");
        let key = section.required("key").inspect(|key: &String| check_jq(section, "key", key));
        let makes = read_makes(section);
        let retain = match makes {
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
                section.fault("channel", "candles and ticker need a channel that is named");
            }
        }
        Some(Self {
            name,
            source: source?,
            topic,
            filter,
            split,
            channel: channel?,
            key: key?,
            makes: makes?,
            policy,
        })
    }

    /// The channel, if an operator makes all of it.
    pub fn computed_channel(&self) -> Option<&str> {
        matches!(self.makes, Makes::Operator(_)).then_some(&*self.channel)
    }
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
    let named = ["data", "candles", "ticker"].into_iter().filter(|key| section.has(key)).collect::<Vec<_>>();
    if let [first, second, ..] = named[..] {
        section.fault(second, format!("a route has {first} or {second}, not both; write another route"));
    }
    let data = program(section, "data");
    let candles = section.has("candles").then(|| {
        let mut table = section.section("candles");
        let intervals: Option<Vec<candles::Interval>> = table.parsed_list("intervals");
        let intervals = intervals.unwrap_or_default();
        if !(1..=candles::MAX_INTERVALS).contains(&intervals.len()) {
            table.fault(
                "intervals",
                format!("1 to {} of them, as in [\"1m\", \"1h\"]", candles::MAX_INTERVALS),
            );
        }
        read_operator(table, |every_ms| Kind::Candles(candles::Config { intervals, every_ms }))
    });
    let ticker = section.has("ticker").then(|| {
        let table = section.section("ticker");
        read_operator(table, |every_ms| Kind::Ticker(ticker::Config { every_ms }))
    });
    match candles.or(ticker) {
        Some(operator) => operator.map(Makes::Operator),
        None => Some(data.map_or(Makes::AsItIs, Makes::Data)),
    }
}

fn read_operator(mut table: Section, kind: impl FnOnce(u64) -> Kind) -> Option<OperatorConfig> {
    let every = table.optional::<Span>("every");
    let every_ms = every.map_or(EVERY_MS, |every| u64::try_from(every.0.as_millis()).unwrap_or(u64::MAX));
    let mut required = |key| table.required(key).inspect(|text: &String| check_jq(&table, key, text));
    let (price, quantity) = (required("price"), required("quantity"));
    let time = program(&mut table, "time");
    table.finish();
    Some(OperatorConfig { kind: kind(every_ms), price: price?, quantity: quantity?, time })
}

fn program(section: &mut Section, key: &'static str) -> Option<String> {
    section.optional(key).inspect(|text: &String| check_jq(section, key, text))
}

fn check_jq(section: &Section, key: &str, program: &str) {
    if let Err(error) = Filter::compile(program) {
        section.fault(key, error);
    }
}
