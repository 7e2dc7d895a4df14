//! Streams and topics by number and by name: worlds count, machines name.

use std::collections::BTreeMap;

use tickmesh_protocol::{StreamName, Topic};

use crate::model::scenario::stream_name;

/// Streams and topics, by number and by name.
pub(super) struct Names {
    pub(super) streams: Vec<StreamName>,
    /// The topic of each stream.
    pub(super) topic_of: Vec<usize>,
    pub(super) topics: Vec<Topic>,
    by_name: BTreeMap<StreamName, usize>,
}

impl Names {
    pub(super) fn new(streams: usize) -> Self {
        let mut names =
            Self { streams: Vec::new(), topic_of: Vec::new(), topics: Vec::new(), by_name: BTreeMap::new() };
        for number in 0..streams {
            let Ok(name) = stream_name(number).parse::<StreamName>() else { continue };
            let topic = Topic::spanning(&name);
            let at = names.topics.iter().position(|known| *known == topic).unwrap_or_else(|| {
                names.topics.push(topic);
                names.topics.len() - 1
            });
            names.topic_of.push(at);
            names.by_name.insert(name.clone(), number);
            names.streams.push(name);
        }
        names
    }

    pub(super) fn stream(&self, name: &StreamName) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn topic(&self, topic: &Topic) -> Option<usize> {
        self.topics.iter().position(|known| known == topic)
    }
}
