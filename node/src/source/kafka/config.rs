//! The `[[source]]` table with `kind = "kafka"`, and the settings each client of librdkafka gets.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use regex::Regex;

use crate::{config::reader::Section, key_file, source::Start};

/// Longest pattern of topic names, in bytes; a compiled one stays far below the regex crate's own memory limit.
const MAX_PATTERN_BYTES: usize = 256;

/// What a Kafka source reads, and from where.
#[derive(Clone)]
pub struct Config {
    pub brokers: String,
    pub topics: Vec<TopicPattern>,
    /// Handed to librdkafka as they are.
    pub properties: Vec<(String, String)>,
    pub start: Start,
}

/// One entry of `topics`.
#[derive(Clone, Debug)]
pub enum TopicPattern {
    Name(String),
    /// Written with a leading `^`, as librdkafka has it.
    Matching(Regex),
}

impl fmt::Debug for Config {
    /// Without the values of properties: there may be passwords among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties: Vec<&str> = self.properties.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("Config")
            .field("brokers", &self.brokers)
            .field("topics", &self.topics)
            .field("properties", &properties)
            .field("start", &self.start)
            .finish()
    }
}

/// Settings that the source depends on, and why nobody else may set them.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set brokers instead"),
    ("metadata.broker.list", "set brokers instead"),
    ("client.id", "each of the source's clients has its own, so that brokers' logs tell them apart"),
    ("group.id", "every ingest peer reads every partition; there is no group"),
    ("group.instance.id", "every ingest peer reads every partition; there is no group"),
    ("group.protocol", "every ingest peer reads every partition; there is no group"),
    ("partition.assignment.strategy", "every ingest peer reads every partition; there is no group"),
    ("enable.auto.commit", "nothing is committed: the position is the sequence clients hold"),
    ("auto.commit.enable", "nothing is committed: the position is the sequence clients hold"),
    ("enable.auto.offset.store", "nothing is committed: the position is the sequence clients hold"),
    ("isolation.level", "aborted transactions must never reach a client"),
    ("enable.partition.eof", "the source sets it where it needs it"),
    ("auto.offset.reset", "a lost position must be noticed; set start instead"),
    ("allow.auto.create.topics", "reading must not create topics"),
    ("statistics.interval.ms", "metrics depend on it"),
    ("log.queue", "the source reads librdkafka's log"),
    ("topic.blacklist", "list the topics to read instead"),
];

/// Defaults that properties may change. Low latency first: an ingest peer reads few partitions and hands on at once.
const DEFAULTS: &[(&str, &str)] = &[
    // A broker answers a fetch as soon as it has one record.
    ("fetch.min.bytes", "1"),
    // How long a fetch waits at the broker when there is nothing. It does not delay records, which end the wait. But a
    // partition that is added waits for the fetch under way, so not the default 500.
    ("fetch.wait.max.ms", "100"),
    // After an error on one partition the next try; the default 500 would be half a second of silence per leader change.
    ("fetch.error.backoff.ms", "50"),
    // How long fetching rests once the local queue is full; the default 1000 would leave the queue empty for most of it.
    ("fetch.queue.backoff.ms", "20"),
    // Fetched ahead per partition. Ingest takes what is there at once, so more only costs memory while it is slow.
    ("queued.min.messages", "10000"),
    // The bound of that memory over all partitions of the source.
    ("queued.max.messages.kbytes", "32768"),
    // From connection lost to the first retry, and the longest pause: a broker that is back is found within a second.
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "1000"),
    // A broker whose machine vanished answers nothing at all; 10 s is far above any answer and far below the default 30.
    ("socket.connection.setup.timeout.ms", "10000"),
    ("socket.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    // Small requests must leave at once.
    ("socket.nagle.disable", "true"),
    // Leader changes are found by errors at once; this finds them on silent partitions.
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("topic.metadata.refresh.fast.interval.ms", "50"),
    // A flipped bit in a price must be an error, not a price.
    ("check.crcs", "true"),
];

/// How what is written is written: each record once, to all replicas in sync, at once; what takes longer is tried again from
/// outside, where it is counted. The broker decides what is too large.
const PRODUCER: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "0"),
    ("message.timeout.ms", "5000"),
    ("message.max.bytes", "100000000"),
    ("compression.type", "lz4"),
];

/// Whether a setting is none of a producer's.
fn of_consumers(key: &str) -> bool {
    key.starts_with("fetch.") || key.starts_with("queued.") || key == "check.crcs"
}

type ReadFile = fn(&Path) -> Result<String, String>;

/// Keys that name files, and the properties that these hold: secrets need not be in a configuration, and paths are relative to
/// it, not to where the process was started.
const FILES: &[(&str, &str, ReadFile)] = &[
    ("password_file", "sasl.password", key_file::password),
    ("ca_file", "ssl.ca.pem", key_file::authorities),
];

/// What the client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Reads live.
    Live,
    /// Asks for topics, partitions and where they begin and end.
    Discovery,
    /// Reads ranges again.
    Reread,
    /// Looks at single records.
    Scan,
    /// Writes dead letters, and puts records back.
    Write,
    /// Reads dead letters.
    Letters,
    /// Asks for the settings of topics.
    Config,
}

impl Config {
    /// Reads the keys of a Kafka source; files are relative to `folder`. `None` if a fault makes it useless; every fault is noted.
    pub fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let brokers: Option<String> = section.required("brokers");
        let brokers = brokers.filter(|brokers| {
            let good = !brokers.trim().is_empty();
            if !good {
                section.fault("brokers", "is empty; write host:port, several with commas between");
            }
            good
        });
        let topics = read_topics(section);
        let properties = read_properties(section);
        let files = read_files(section, folder);
        let start = section.or("start", Start::default());
        let properties = merged(section, properties?, files?)?;
        let config = Self { brokers: brokers?, topics: topics?, properties, start };
        // librdkafka itself knows best which keys and values it takes; no connection is made here.
        match config.client(Use::Live, "check").create_native_config() {
            Ok(_) => Some(config),
            Err(error) => {
                section.fault("properties", error);
                None
            }
        }
    }

    /// Whether a topic is to be read.
    pub fn wants(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| match pattern {
            TopicPattern::Name(name) => name == topic,
            TopicPattern::Matching(regex) => regex.is_match(topic),
        })
    }

    /// Whether every topic of the cluster must be looked at.
    pub(super) fn has_patterns(&self) -> bool {
        self.topics.iter().any(|pattern| matches!(pattern, TopicPattern::Matching(_)))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().filter_map(|pattern| match pattern {
            TopicPattern::Name(name) => Some(name.as_str()),
            TopicPattern::Matching(_) => None,
        })
    }

    /// The settings of one client of the source called `source`.
    pub(super) fn client(&self, use_for: Use, source: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        let writes = use_for == Use::Write;
        let defaults = DEFAULTS.iter().filter(|(key, _)| !writes || !of_consumers(key));
        for (key, value) in defaults {
            config.set(*key, *value);
        }
        for (key, value) in self.properties.iter().filter(|(key, _)| !writes || !of_consumers(key)) {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", format!("tickmesh-{source}-{}", use_for.suffix()));
        if writes {
            for (key, value) in PRODUCER {
                config.set(*key, *value);
            }
            config.set_log_level(RDKafkaLogLevel::Error);
            return config;
        }
        config.set("allow.auto.create.topics", "false");
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("isolation.level", "read_committed");
        // A position that is gone is an error to be told, never a silent jump.
        config.set("auto.offset.reset", "error");
        if !matches!(use_for, Use::Discovery | Use::Config) {
            // librdkafka assigns partitions only to a client with a group. It is never joined and nothing is committed.
            config.set("group.id", "tickmesh");
        }
        // Who reads must learn that a partition ends in records that are not for it, such as transaction markers.
        config.set("enable.partition.eof", if use_for == Use::Discovery { "false" } else { "true" });
        // Lag and brokers are gauges that people look at, so a few seconds old is fresh.
        config.set("statistics.interval.ms", if use_for == Use::Live { "2000" } else { "0" });
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }
}

impl TopicPattern {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Matching(regex) => regex.as_str(),
        }
    }
}

impl Use {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Discovery => "discovery",
            Self::Reread => "reread",
            Self::Scan => "scan",
            Self::Write => "write",
            Self::Letters => "letters",
            Self::Config => "config",
        }
    }
}

fn read_topics(section: &mut Section) -> Option<Vec<TopicPattern>> {
    let texts: Vec<String> = section.required("topics")?;
    if texts.is_empty() {
        section.fault("topics", "is empty; list topic names, or patterns as in ^market\\..*");
        return None;
    }
    let mut patterns = Vec::with_capacity(texts.len());
    for text in &texts {
        match read_topic(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(reason) => section.fault("topics", format!("{text:?}: {reason}")),
        }
    }
    (patterns.len() == texts.len()).then_some(patterns)
}

fn read_topic(text: &str) -> Result<TopicPattern, String> {
    if text.starts_with('^') {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(format!("a pattern has at most {MAX_PATTERN_BYTES} bytes"));
        }
        return Regex::new(text).map(TopicPattern::Matching).map_err(|error| error.to_string());
    }
    // Kafka's own rule for names.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=249).contains(&text.len()) && text.bytes().all(legal) && text != "." && text != ".." {
        Ok(TopicPattern::Name(text.to_owned()))
    } else {
        Err("no topic can have this name; a pattern begins with ^".to_owned())
    }
}

/// Properties that are read from files of their own.
fn read_files(section: &mut Section, folder: &Path) -> Option<Vec<(String, String)>> {
    let (mut properties, mut good) = (Vec::new(), true);
    for &(key, property, read) in FILES {
        let Some(file) = section.optional::<PathBuf>(key) else { continue };
        match read(&folder.join(file)) {
            Ok(text) => properties.push((property.to_owned(), text)),
            Err(error) => {
                section.fault(key, error);
                good = false;
            }
        }
    }
    good.then_some(properties)
}

fn merged(
    section: &mut Section,
    mut properties: Vec<(String, String)>,
    files: Vec<(String, String)>,
) -> Option<Vec<(String, String)>> {
    let twice = files.iter().find(|(key, _)| properties.iter().any(|(other, _)| other == key));
    if let Some((key, _)) = twice {
        section.fault("properties", format!("{key} is read from a file already"));
        return None;
    }
    properties.extend(files);
    Some(properties)
}

fn read_properties(section: &mut Section) -> Option<Vec<(String, String)>> {
    let table: toml::Table = section.or("properties", toml::Table::new());
    let mut properties = Vec::with_capacity(table.len());
    let mut good = true;
    for (key, value) in table {
        if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == key) {
            section.fault("properties", format!("{key} cannot be set: {reason}"));
            good = false;
            continue;
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(truth) => truth.to_string(),
            other => {
                section.fault(
                    "properties",
                    format!("{key} must be a text, an integer or a truth value, not {}", other.type_str()),
                );
                good = false;
                continue;
            }
        };
        properties.push((key, text));
    }
    good.then_some(properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::read_text;

    fn read(text: &str) -> (Option<Config>, Vec<String>) {
        read_text(text, |section| Config::read(section, Path::new("")))
    }

    #[test]
    fn a_good_table_is_taken_as_it_is() {
        let (config, faults) = read(
            "brokers = 'a:1,b:2'\ntopics = ['market.trades', '^orders\\..*']\nstart = 'beginning'\n\
             [properties]\n'fetch.wait.max.ms' = 20\n'socket.keepalive.enable' = false",
        );
        assert_eq!(faults, Vec::<String>::new());
        let config = config.unwrap();
        assert_eq!(config.start, Start::Beginning);
        assert!(config.wants("market.trades") && config.wants("orders.alice"));
        assert!(!config.wants("market.trades2") && !config.wants("my.orders.alice"));
        assert!(!format!("{config:?}").contains("20"), "no values of properties in logs: {config:?}");
        let client = config.client(Use::Live, "engine");
        assert_eq!(client.get("fetch.wait.max.ms"), Some("20"), "properties win over defaults");
        assert_eq!(client.get("client.id"), Some("tickmesh-engine-live"));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let (config, faults) = read(
            "brokers = ' '\ntopics = ['^(', 'a b']\nstart = 'middle'\n\
             [properties]\n'group.id' = 'x'\n'isolation.level' = 'read_uncommitted'\n'fetch.min.bytes' = 1.5",
        );
        assert!(config.is_none());
        let all = faults.join("\n");
        for part in [
            "brokers: is empty",
            "\"^(\"",
            "\"a b\"",
            "start: ",
            "group.id",
            "isolation.level",
            "fetch.min.bytes",
        ] {
            assert!(all.contains(part), "no word about {part} in:\n{all}");
        }
    }

    #[test]
    fn secrets_and_certificates_come_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        file("kafka.password", "s3cret\n");
        file("ca.pem", include_str!("../../../tests/tls/ca.pem"));
        let read = |text: &str| {
            let text = format!("brokers = 'a:1'\ntopics = ['t']\n{text}");
            read_text(&text, |section| Config::read(section, folder.path()))
        };
        let files = "password_file = 'kafka.password'\nca_file = 'ca.pem'\n";
        let secured = "[properties]\n'security.protocol' = 'SASL_SSL'\n'sasl.mechanism' = 'SCRAM-SHA-512'";
        let (config, faults) = read(&format!("{files}{secured}"));
        assert_eq!(faults, Vec::<String>::new());
        let config = config.unwrap();
        let client = config.client(Use::Live, "engine");
        assert_eq!(client.get("sasl.password"), Some("s3cret"));
        assert!(client.get("ssl.ca.pem").is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")));
        assert!(!format!("{config:?}").contains("s3cret"));
        for (bad, word) in [
            ("password_file = 'none'", "password_file: cannot read"),
            ("ca_file = 'kafka.password'", "ca_file: "),
            (
                "password_file = 'kafka.password'\n[properties]\n'sasl.password' = 'other'",
                "sasl.password is read from a file already",
            ),
        ] {
            let (config, faults) = read(bad);
            assert!(
                config.is_none() && faults.join("\n").contains(word),
                "no word about {word:?} in {faults:?}"
            );
        }
    }

    #[test]
    fn librdkafka_checks_the_properties_it_gets() {
        for property in ["'fetch.minimum.bytes' = 1", "'fetch.min.bytes' = 'many'"] {
            let (config, faults) =
                read(&format!("brokers = 'a:1'\ntopics = ['t']\n[properties]\n{property}"));
            assert!(config.is_none(), "{property} was taken");
            assert_eq!(faults.len(), 1, "{faults:?}");
        }
    }
}
