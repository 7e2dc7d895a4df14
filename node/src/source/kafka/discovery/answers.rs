//! What discovery is asked: where stuck partitions go on, and whether others have come to their end.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
};
use tokio::sync::mpsc;

use super::{
    Checked, Discovery, Known, News, Placed, Probe, RPC_TIMEOUT, Stopped, Stuck, nobody_answers, tell,
};
use crate::{
    ops::metrics::now_us,
    source::kafka::{
        config::Config,
        context::{Context, Status, kind_of},
        describe::Found,
        holding::YOUNG_FOR,
        numbering::{At, Extent, known, move_on},
        reading::tell_lost,
        scan::Scanner,
    },
};

impl Discovery {
    /// Looks where partitions begin and end. What has become another topic meanwhile is not part of the answer: its
    /// numbers mean something else.
    pub(super) fn answer(&mut self, stuck: Vec<Stuck>) -> Result<(), Stopped> {
        let before: HashMap<Arc<str>, String> =
            self.known.iter().map(|(topic, known)| (topic.clone(), known.found.clone())).collect();
        let mut checked = Vec::with_capacity(stuck.len());
        let mut complete = true;
        for stuck in stuck {
            if self.news.is_closed() {
                return Err(Stopped);
            }
            match self.client.fetch_watermarks(&stuck.topic, stuck.partition, RPC_TIMEOUT) {
                Ok((low, high)) => {
                    let extent = Extent { low, high, cut: None };
                    checked.push(Checked { stuck, extent, searched: false });
                }
                Err(error) => {
                    complete = false;
                    self.status.figures.error(&kind_of(error.rdkafka_error_code()));
                    if nobody_answers(&error) {
                        break;
                    }
                }
            }
        }
        complete &= self.find_cuts(&mut checked);
        match self.round() {
            Ok(told) => told?,
            Err(error) => {
                self.fail(&error);
                checked.clear();
                complete = false;
            }
        }
        checked.retain(|Checked { stuck, .. }| {
            let now = self.known.get(&stuck.topic).filter(|known| known.gone_since.is_none());
            now.is_some_and(|now| before.get(&stuck.topic) == Some(&now.found))
        });
        tell(&self.news, News::Checked { checked, complete })
    }

    /// Looks for cuts where there may be one: in logs that end too early; or, if nothing else explains why somebody is
    /// stuck, in all. What cannot be looked at is taken out of the answer. Whether all could.
    fn find_cuts(&self, checked: &mut Vec<Checked>) -> bool {
        let inside =
            |checked: &Checked| (checked.extent.low..=checked.extent.high).contains(&checked.stuck.next);
        let unexplained = checked.iter().all(inside);
        let suspect = |checked: &Checked| {
            checked.stuck.term.is_some() && (unexplained || checked.stuck.next > checked.extent.high)
        };
        if !checked.iter().any(suspect) {
            return true;
        }
        let stopped = || self.news.is_closed();
        let scanner = match Scanner::new(&self.config, &self.status, &stopped) {
            Ok(scanner) => scanner,
            Err(error) => {
                self.status.error("scan", &error, "cannot make a client");
                checked.clear();
                return false;
            }
        };
        let count = checked.len();
        checked.retain_mut(|checked| {
            let Some(term) = checked.stuck.term.filter(|_| suspect(checked)) else { return true };
            let Stuck { topic, partition, next, .. } = &checked.stuck;
            let (low, high) = (checked.extent.low, checked.extent.high);
            match scanner.cut(topic, *partition, (*next, term), (low, high)) {
                Ok(cut) => {
                    checked.extent.cut = cut;
                    checked.searched = true;
                    true
                }
                Err(error) => {
                    self.status.error("scan", &error, "cannot look where a log was cut");
                    false
                }
            }
        });
        checked.len() == count
    }

    /// Looks where partitions end.
    pub(super) fn tell_ends(&self, places: &[(Arc<str>, i32)]) -> Result<(), Stopped> {
        let end = |(topic, partition): &(Arc<str>, i32)| {
            let (_, high) = self.client.fetch_watermarks(topic, *partition, RPC_TIMEOUT)?;
            Ok((topic.clone(), *partition, high))
        };
        let ends: KafkaResult<Vec<_>> = places.iter().map(end).collect();
        if let Err(error) = &ends {
            self.status.error("discovery", error, "cannot learn where a partition ends");
        }
        tell(&self.news, News::Ends { ends: ends.ok() })
    }

    /// Looks whether partitions hold anything that is still to be read.
    pub(super) fn probe(&self, probes: Vec<Probe>) -> Result<(), Stopped> {
        let stopped = || self.news.is_closed();
        let (mut empty, mut unknown) = (Vec::new(), Vec::new());
        match Scanner::new(&self.config, &self.status, &stopped) {
            Ok(scanner) => {
                for probe in probes {
                    match scanner.first_after(&probe.topic, probe.partition, probe.next) {
                        Ok(Some(found)) if found.offset < probe.until => {}
                        Ok(_) => empty.push(probe),
                        Err(_) => unknown.push(probe),
                    }
                }
            }
            Err(error) => {
                self.status.error("scan", &error, "cannot make a client");
                unknown = probes;
            }
        }
        tell(&self.news, News::Probed { empty, unknown })
    }
}

/// Where reading of a partition begins that was not read before.
pub(super) fn place(
    config: &Config,
    status: &Arc<Status>,
    news: &mpsc::Sender<News>,
    (topic, log, partition): (&str, &str, i32),
    (low, high): (i64, i64),
    from_end: bool,
) -> KafkaResult<Placed> {
    let known = known(&status.starts(), log, partition);
    let Some((generation, place)) = known else {
        let next = if from_end { high } else { low };
        let at = At { generation: 0, next, term: None, high, first: next == 0 };
        return Ok(Placed { partition, at, young: false });
    };
    let next = i64::try_from(place.position).unwrap_or(i64::MAX);
    let mut extent = Extent { low, high, cut: None };
    // Where the end is not too early, librdkafka asks whether the last record is still there, once reading begins.
    if let Some(term) = place.term.filter(|_| next > high) {
        let stopped = || news.is_closed();
        let scanner = Scanner::new(config, status, &stopped)?;
        extent.cut = scanner.cut(topic, partition, (next, term), (low, high))?;
    }
    let at = At { generation, next, term: place.term, high, first: next == 0 };
    let Some(moved) = move_on(at, extent) else { return Ok(Placed { partition, at, young: false }) };
    tell_lost(status, topic, partition, at, extent, moved);
    Ok(Placed { partition, at: moved, young: false })
}

/// Partitions of a topic whose keys may have older records in others.
#[derive(Default)]
pub(super) struct Young {
    /// That have appeared since others were read.
    pub(super) grown: BTreeSet<i32>,
    /// Whose first record is no older than producers may take to learn of them.
    recent: BTreeSet<i32>,
}

impl Young {
    pub(super) fn has(&self, partition: i32) -> bool {
        self.grown.contains(&partition) || self.recent.contains(&partition)
    }
}

/// The young ones of the partitions that are not read yet. Their age is asked for only when a topic is met first: what appears
/// later is new.
pub(super) fn young(
    client: &BaseConsumer<Context>,
    status: &Status,
    topic: &str,
    of: &Known,
    found: &Found,
) -> Young {
    let log = &of.log;
    let new = || found.partitions.iter().copied().filter(|partition| !of.assigned.contains(partition));
    if new().next().is_none() {
        return Young::default();
    }
    let starts = status.starts().clone();
    let unknown: BTreeSet<i32> =
        new().filter(|partition| known(&starts, log, *partition).is_none()).collect();
    let grows = !of.assigned.is_empty() || new().count() > unknown.len();
    let mut young = Young { grown: if grows { unknown } else { BTreeSet::new() }, ..Young::default() };
    if of.assigned.is_empty() && found.partitions.len() > 1 {
        match recent(client, topic, &found.partitions) {
            // One that is new altogether has no older partitions.
            Ok(recent) if recent.len() < found.partitions.len() => young.recent = recent,
            Ok(_) => {}
            Err(error) => status.error("discovery", &error, "cannot learn how old partitions are"),
        }
    }
    young
}

/// Partitions whose first record ever is from the last minutes, or that have none yet.
fn recent(client: &BaseConsumer<Context>, topic: &str, partitions: &[i32]) -> KafkaResult<BTreeSet<i32>> {
    let youth_us = u64::try_from(YOUNG_FOR.as_micros()).unwrap_or(u64::MAX);
    let since = i64::try_from(now_us().saturating_sub(youth_us) / 1000).unwrap_or(i64::MAX);
    let mut times = TopicPartitionList::new();
    for partition in partitions {
        times.add_partition_offset(topic, *partition, Offset::Offset(since))?;
    }
    let firsts = client.offsets_for_times(times, RPC_TIMEOUT)?;
    let mut recent = BTreeSet::new();
    for first in firsts.elements() {
        let young = match first.offset() {
            Offset::Offset(offset) => offset == 0,
            // Nothing since then; was there anything before?
            _ => client.fetch_watermarks(topic, first.partition(), RPC_TIMEOUT)?.1 == 0,
        };
        if young {
            recent.insert(first.partition());
        }
    }
    Ok(recent)
}
