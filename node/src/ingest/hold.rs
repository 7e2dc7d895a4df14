//! Waiting at a position of the log until it is known how it goes on. Pure.

use std::collections::HashMap;

use tickmesh_protocol::Epoch;

use crate::source::SourceEvent;

/// Positions that no record may pass.
#[derive(Debug)]
pub(super) struct Hold {
    at: HashMap<Epoch, u64>,
    sources: Vec<String>,
}

impl Hold {
    pub(super) fn new(at: &[(Epoch, u64)], sources: Vec<String>) -> Self {
        Self { at: at.iter().copied().collect(), sources }
    }

    /// Whether a source waits where it is told to.
    pub(super) fn holds(&self, source: &str) -> bool {
        self.sources.iter().any(|held| held == source)
    }

    /// The first position of a partition that has to wait: of one that is not named, the first of all.
    pub(super) fn at(&self, epoch: Epoch) -> u64 {
        self.at.get(&epoch).copied().unwrap_or(0)
    }

    /// What of an event may go on, and what has to wait. Everything of the same source that comes after has to wait then, too.
    pub(super) fn split(&self, event: SourceEvent) -> (Option<SourceEvent>, Option<SourceEvent>) {
        match event {
            SourceEvent::Records(mut records) => {
                let waits = records.iter().position(|record| record.position >= self.at(record.epoch));
                let Some(waits) = waits else { return (Some(SourceEvent::Records(records)), None) };
                let rest = records.split_off(waits);
                let first = (!records.is_empty()).then_some(SourceEvent::Records(records));
                (first, Some(SourceEvent::Records(rest)))
            }
            SourceEvent::Refused { ref record, .. } if record.position >= self.at(record.epoch) => {
                (None, Some(event))
            }
            // What appears now, nobody has agreed upon.
            SourceEvent::Begin { epoch, .. } if !self.at.contains_key(&epoch) => (None, Some(event)),
            SourceEvent::Refused { .. } | SourceEvent::Begin { .. } | SourceEvent::Reached { .. } => {
                (Some(event), None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Record;

    fn record(epoch: u64, position: u64) -> Record {
        Record {
            topic: "t".into(),
            partition: 0,
            position,
            epoch: Epoch::from_u64(epoch),
            term: None,
            key: None,
            value: bytes::Bytes::new(),
            engine_time_us: 0,
        }
    }

    fn positions(event: Option<SourceEvent>) -> Vec<u64> {
        match event {
            Some(SourceEvent::Records(records)) => records.iter().map(|record| record.position).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_comes_after_a_record_that_waits_waits_too() {
        let hold = Hold::new(&[(Epoch::from_u64(1), 10), (Epoch::from_u64(2), 5)], vec!["engine".into()]);
        let records = vec![record(1, 8), record(2, 4), record(1, 10), record(2, 3)];
        let (goes, waits) = hold.split(SourceEvent::Records(records));
        assert_eq!((positions(goes), positions(waits)), (vec![8, 4], vec![10, 3]));
        let (goes, waits) = hold.split(SourceEvent::Records(vec![record(3, 0)]));
        assert!(goes.is_none() && positions(waits) == [0], "a partition that nobody has named");
        let begin = |epoch| SourceEvent::Begin {
            topic: "t".into(),
            partition: 0,
            epoch: Epoch::from_u64(epoch),
            position: 99,
            first: false,
            term: None,
        };
        assert!(matches!(hold.split(begin(1)), (Some(_), None)));
        assert!(matches!(hold.split(begin(3)), (None, Some(_))));
    }
}
