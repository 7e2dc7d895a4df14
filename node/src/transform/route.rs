//! The configuration of a route.

use tickmesh_protocol::{policy::ChannelPolicy, stream::is_part};

use super::jq::Filter;
use crate::config::reader::Section;

/// One `[[route]]` of the configuration. Its jq programs have been seen to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Name of the source whose records it takes.
    pub source: String,
    /// Glob over the source's topics.
    pub topic: String,
    /// A channel name, or a jq program that makes one.
    pub channel: String,
    /// jq program that makes the key of the stream.
    pub key: String,
    /// jq program that makes the data; the record's value as it is, if left out.
    pub data: Option<String>,
    /// What is done for the clients of the channel. Whether that goes together is seen where all routes are.
    pub policy: ChannelPolicy,
}

impl RouteConfig {
    pub fn read(section: &mut Section) -> Option<Self> {
        let source = section.required("source");
        let topic = section.or("topic", "*".to_owned());
        let channel: Option<String> = section.required("channel");
        let key: Option<String> = section.required("key");
        let data: Option<String> = section.optional("data");
        let policy = ChannelPolicy {
            retain: section.parsed("retain").unwrap_or_default(),
            on_slow: section.parsed("on_slow").unwrap_or_default(),
        };
        if let Some(channel) = channel.as_deref().filter(|channel| !is_part(channel)) {
            check_jq(section, "channel", channel);
        }
        for (name, program) in [("key", &key), ("data", &data)] {
            if let Some(program) = program {
                check_jq(section, name, program);
            }
        }
        Some(Self { source: source?, topic, channel: channel?, key: key?, data, policy })
    }
}

fn check_jq(section: &Section, key: &str, program: &str) {
    if let Err(error) = Filter::compile(program) {
        section.fault(key, error);
    }
}
