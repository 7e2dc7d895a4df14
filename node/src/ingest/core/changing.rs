//! What sources and routes that change are to what is numbered and kept.

use std::sync::Arc;

use tickmesh_protocol::{Epoch, catalogue::Standing, feed::SourceStatus, sequencer::Reading};

use super::Core;
use crate::{
    ingest::{control::Past, hold::Hold, rescan::Log, worker::Lane},
    transform::{RouteTable, table::computed_channels},
};

impl Core {
    /// How far every partition of the sources that are read has been read.
    pub(in crate::ingest) fn standing(&self, lanes: &[Lane]) -> Vec<Standing> {
        let standing = |(epoch, reading): (Epoch, Reading)| {
            let lane = lanes.get(usize::from(self.partitions.get(&epoch)?.source.0))?;
            (!lane.removed).then(|| Standing { source: lane.source.clone(), epoch, next: reading.next })
        };
        self.sequencer.partitions().filter_map(standing).collect()
    }

    /// A partition that has been read beyond where it should be held.
    pub(in crate::ingest) fn past(&self, hold: &Hold, lanes: &[Lane]) -> Option<Past> {
        let held = self.standing(lanes).into_iter().filter(|standing| hold.holds(&standing.source));
        let past = |Standing { epoch, next, .. }| Past { epoch, next, at: hold.at(epoch) };
        held.map(past).find(|past| past.next > past.at)
    }

    /// Other routes of a source, which its transform has already.
    pub(in crate::ingest) fn change_routes(&self, lane: &mut Lane, routes: &RouteTable) {
        lane.operators.change(routes);
        for (epoch, at) in self.partitions.iter().filter(|(_, at)| at.source == lane.id) {
            lane.operators.go_on(*epoch, at.partition);
        }
        self.store.add_computed(computed_channels(routes));
        self.store.change_routes(&lane.source, Arc::clone(routes));
    }

    /// A source more.
    pub(in crate::ingest) fn added(&mut self, lane: &Lane, log: Log) {
        self.sources.push(lane.source.as_str().into());
        self.store.add_computed(computed_channels(&log.routes));
        self.store.add_log(log);
        self.metrics.warm.with_label_values(&[&*lane.source]).set(0);
        let status = SourceStatus { name: lane.source.clone(), warm: false, lag: 0 };
        self.store.update_status(|to| to.sources.push(status));
    }

    /// A source fewer: it is not waited for any more.
    pub(in crate::ingest) fn removed(&self, lane: &Lane) {
        self.metrics.warm.with_label_values(&[&*lane.source]).set(0);
        self.store.update_status(|status| status.sources.retain(|source| source.name != lane.source));
    }
}
