//! Where reading goes on after a restart.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde::Deserialize;
use tickmesh_protocol::{Epoch, checkpoint::PartitionState};

/// Where reading begins on partitions that exist when the source is first up. Partitions that appear later are always
/// read from their beginning, or their first records would be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    #[default]
    End,
    Beginning,
}

/// Where to go on in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The position to read next.
    pub position: u64,
    /// The term of the last record before it; `None` if nobody knows.
    pub term: Option<u32>,
}

/// Where reading of a source goes on, by epoch. Empty: nothing is known, the configuration decides.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    places: HashMap<Epoch, Place>,
    topics: BTreeSet<Arc<str>>,
}

impl Starts {
    /// Takes up how far a partition was read, by a checkpoint or a sibling. Of two that differ the earlier place counts.
    pub fn add(&mut self, state: &PartitionState) {
        self.topics.insert(state.topic.clone());
        let place = Place { position: state.next, term: state.term };
        let known = self.places.entry(state.epoch).or_insert(place);
        if place.position < known.position {
            *known = place;
        }
    }

    /// Goes on elsewhere in an epoch.
    pub(super) fn replace(&mut self, epoch: Epoch, place: Place) {
        self.places.insert(epoch, place);
    }

    /// Where to go on in the partition of an epoch.
    pub fn of(&self, epoch: Epoch) -> Option<Place> {
        self.places.get(&epoch).copied()
    }

    /// Whether something was known of a topic of this name. A partition of it that is unknown then appeared since.
    pub fn knows_topic(&self, topic: &str) -> bool {
        self.topics.contains(topic)
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl<'a> FromIterator<&'a PartitionState> for Starts {
    fn from_iter<I: IntoIterator<Item = &'a PartitionState>>(states: I) -> Self {
        let mut starts = Self::default();
        states.into_iter().for_each(|state| starts.add(state));
        starts
    }
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::Sequence;

    use super::*;

    #[test]
    fn of_two_places_the_earlier_counts() {
        let state = |next, term| PartitionState {
            epoch: Epoch::from_u64(1),
            topic: "trades".into(),
            partition: 0,
            next,
            read_from: Sequence::ZERO,
            term,
        };
        let starts: Starts = [state(9, Some(2)), state(7, Some(1)), state(8, None)].iter().collect();
        assert_eq!(starts.of(Epoch::from_u64(1)), Some(Place { position: 7, term: Some(1) }));
        assert_eq!(starts.of(Epoch::from_u64(2)), None);
        assert!(starts.knows_topic("trades") && !starts.knows_topic("depth"));
        assert!(Starts::default().is_empty() && !starts.is_empty());
    }
}
