//! The partitions that are read live, and how far.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use rdkafka::{
    Message, Offset, Statistics, TopicPartitionList, error::KafkaResult, message::BorrowedMessage,
};
use tickmesh_protocol::Epoch;

use super::{
    discovery::{Placed, Probe, Stuck},
    holding::YOUNG_FOR,
    numbering::epoch_of,
    reading::record_of,
    term::{set_term, term_of},
};
use crate::source::{Place, Record, SourceEvent};

/// All partitions of a source that are read, by topic.
#[derive(Default)]
pub(super) struct Partitions {
    topics: HashMap<Arc<str>, Topic>,
    /// Partitions that have not come to the end of their log yet.
    behind: usize,
}

struct Topic {
    /// Not there at the moment; its partitions are not assigned.
    gone: bool,
    partitions: BTreeMap<i32, Partition>,
}

/// How far a partition is read.
pub(super) struct Partition {
    pub(super) epoch: Epoch,
    /// Cluster id, topic and topic id.
    pub(super) log: Arc<str>,
    /// How often the log has lost its end.
    pub(super) generation: u32,
    /// The offset that comes next.
    pub(super) next: i64,
    /// The leader epoch of the last record.
    term: Option<u32>,
    /// Where the log ended when reading began, or when it was asked for again, until that is reached.
    goal: Option<i64>,
    /// Until then its records are held back until older partitions are read, as `holding.rs` tells.
    young_until: Option<Instant>,
    /// Records that are.
    held: usize,
}

impl Partition {
    fn is_young(&self, now: Instant) -> bool {
        self.young_until.is_some_and(|until| now < until)
    }

    /// Whether young partitions wait for it.
    fn is_elder(&self, now: Instant) -> bool {
        self.held == 0 && !self.is_young(now)
    }
}

impl Partitions {
    /// Begins with a partition.
    pub(super) fn add(&mut self, topic: &Arc<str>, log: &Arc<str>, placed: Placed) -> SourceEvent {
        let state = self
            .topics
            .entry(topic.clone())
            .or_insert_with(|| Topic { gone: false, partitions: BTreeMap::new() });
        let Placed { partition, at, young } = placed;
        let young_until = match state.partitions.get(&partition) {
            Some(before) => before.young_until,
            None => young.then(|| Instant::now() + YOUNG_FOR),
        };
        let epoch = epoch_of(log, partition, at.generation);
        let new = Partition {
            epoch,
            log: log.clone(),
            generation: at.generation,
            next: at.next,
            term: at.term,
            goal: Some(at.high),
            young_until,
            held: 0,
        };
        let before = state.partitions.insert(partition, new);
        self.behind += usize::from(before.is_none_or(|before| before.goal.is_none()));
        let (partition, position) = (partition.unsigned_abs(), at.next.unsigned_abs());
        SourceEvent::Begin {
            topic: topic.clone(),
            partition,
            epoch,
            position,
            first: at.first,
            term: at.term,
        }
    }

    /// A partition that is there.
    pub(super) fn get(&self, topic: &str, partition: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partitions.get(&partition)
    }

    /// What was read last is in the log, though librdkafka doubts it: it need not ask again.
    pub(super) fn trust(&mut self, topic: &str, partition: i32) {
        if let Some(at) = self.topics.get_mut(topic).and_then(|topic| topic.partitions.get_mut(&partition)) {
            at.term = None;
        }
    }

    /// Makes a record of a message, unless it is one that came before; and whether it is to be held back.
    pub(super) fn take(&mut self, message: &BorrowedMessage<'_>) -> Option<(Record, bool)> {
        let (topic, _) = self.topics.get_key_value(message.topic())?;
        let topic = topic.clone();
        let at = self.topics.get_mut(&topic)?.partitions.get_mut(&message.partition())?;
        if message.offset() < at.next {
            return None;
        }
        at.next = message.offset().saturating_add(1);
        at.term = term_of(message);
        let held = at.young_until.is_some() && (at.held > 0 || at.is_young(Instant::now()));
        at.held += usize::from(held);
        Some((record_of(message, topic, at.epoch), held))
    }

    /// Records that were held back are handed on.
    pub(super) fn let_go(&mut self, records: &[Record]) {
        for record in records {
            let topic = self.topics.get_mut(&record.topic);
            let at = i32::try_from(record.partition).ok().and_then(|at| topic?.partitions.get_mut(&at));
            if let Some(at) = at {
                at.held = at.held.saturating_sub(1);
            }
        }
    }

    /// The older partitions of topics of which records are held back.
    fn elders(&self) -> impl Iterator<Item = (&Arc<str>, i32, &Partition)> {
        let now = Instant::now();
        let holds = |topic: &Topic| topic.partitions.values().any(|at| at.held > 0);
        self.there().filter(move |(_, topic)| holds(topic)).flat_map(move |(name, topic)| {
            let elders = topic.partitions.iter().filter(move |(_, at)| at.is_elder(now));
            elders.map(move |(partition, at)| (name, *partition, at))
        })
    }

    /// Whose ends are to be asked for before what is held back may be handed on.
    pub(super) fn elder_places(&self) -> Vec<(Arc<str>, i32)> {
        self.elders().map(|(topic, partition, _)| (topic.clone(), partition)).collect()
    }

    /// Where partitions end now: they are read up to there.
    pub(super) fn set_goals(&mut self, ends: &[(Arc<str>, i32, i64)]) {
        for (topic, partition, end) in ends {
            let at = self.topics.get_mut(topic).and_then(|topic| topic.partitions.get_mut(partition));
            if let Some(at) = at.filter(|at| at.next < *end) {
                self.behind += usize::from(at.goal.is_none());
                at.goal = Some(at.goal.map_or(*end, |goal| goal.max(*end)));
            }
        }
    }

    /// Whether the older partitions have come to the ends that were asked for.
    pub(super) fn elders_ended(&self) -> bool {
        self.elders().all(|(_, _, at)| at.goal.is_none())
    }

    /// What records may be held back of, as a list for the client.
    pub(super) fn list_young(&self) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (topic, state) in self.there() {
            for (partition, at) in state.partitions.iter().filter(|(_, at)| at.young_until.is_some()) {
                put(&mut list, topic, *partition, at)?;
            }
        }
        Ok(list)
    }

    /// The topic is not there any more. Whether it was until now.
    pub(super) fn leave(&mut self, topic: &str) -> bool {
        self.topics.get_mut(topic).is_some_and(|topic| !std::mem::replace(&mut topic.gone, true))
    }

    /// The topic is there again.
    pub(super) fn come_back(&mut self, topic: &str) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.gone = false;
        }
    }

    /// Forgets a topic. Gives how far it was read.
    pub(super) fn forget(&mut self, topic: &str) -> Vec<(Epoch, Place)> {
        let Some(topic) = self.topics.remove(topic) else { return Vec::new() };
        self.behind -= topic.partitions.values().filter(|at| at.goal.is_some()).count();
        let place = |at: &Partition| Place { position: at.next.unsigned_abs(), term: at.term };
        topic.partitions.values().map(|at| (at.epoch, place(at))).collect()
    }

    /// Partitions that are read.
    pub(super) fn count(&self) -> usize {
        self.there().map(|(_, topic)| topic.partitions.len()).sum()
    }

    fn there(&self) -> impl Iterator<Item = (&Arc<str>, &Topic)> {
        self.topics.iter().filter(|(_, topic)| !topic.gone)
    }

    /// All partitions that are read, as questions.
    pub(super) fn stuck(&self) -> Vec<Stuck> {
        let of = |(topic, state): (&Arc<str>, &Topic)| {
            let stuck = |(partition, at): (&i32, &Partition)| Stuck {
                topic: topic.clone(),
                partition: *partition,
                next: at.next,
                term: at.term,
            };
            state.partitions.iter().map(stuck).collect::<Vec<_>>()
        };
        self.there().flat_map(of).collect()
    }

    /// Partitions that have come to where their log ended when they began. Each is given once.
    pub(super) fn reached(&mut self) -> Vec<SourceEvent> {
        let mut events = Vec::new();
        if self.behind == 0 {
            return events;
        }
        let partitions = self.topics.values_mut().flat_map(|topic| topic.partitions.values_mut());
        // Not before its records are.
        for at in partitions.filter(|at| at.held == 0 && at.goal.is_some_and(|goal| at.next >= goal)) {
            at.goal = None;
            events.push(SourceEvent::Reached { epoch: at.epoch, position: at.next.unsigned_abs() });
        }
        self.behind -= events.len();
        events
    }

    /// Which partitions may have come to their end without a record there. librdkafka tells the number of a partition
    /// that ended, and not its topic.
    pub(super) fn doubtful(&self, ended: &BTreeSet<i32>) -> Vec<Probe> {
        if self.behind == 0 || ended.is_empty() {
            return Vec::new();
        }
        let of = |(topic, state): (&Arc<str>, &Topic)| {
            let doubtful = state.partitions.iter().filter(|(partition, _)| ended.contains(partition));
            let probe = |(partition, at): (&i32, &Partition)| {
                let (topic, until) = (topic.clone(), at.goal?);
                Some(Probe { topic, partition: *partition, next: at.next, until })
            };
            doubtful.filter_map(probe).collect::<Vec<_>>()
        };
        self.there().flat_map(of).collect()
    }

    /// Nothing that is to be read is left before the end of the partition.
    pub(super) fn emptied(&mut self, probe: &Probe) {
        let topic = self.topics.get_mut(&probe.topic);
        let at = topic.and_then(|topic| topic.partitions.get_mut(&probe.partition));
        if let Some(at) = at.filter(|at| at.next == probe.next && at.goal == Some(probe.until)) {
            // Markers of transactions and what compaction took have no record; the term is that of one.
            at.next = probe.until;
            at.term = None;
        }
    }

    /// What to assign of one topic.
    pub(super) fn list_of(&self, topic: &str) -> KafkaResult<TopicPartitionList> {
        list_of(self.topics.get_key_value(topic))
    }

    /// What to assign of these partitions of a topic.
    pub(super) fn list_some(&self, topic: &str, partitions: &[Placed]) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for placed in partitions {
            if let Some(at) = self.get(topic, placed.partition) {
                put(&mut list, topic, placed.partition, at)?;
            }
        }
        Ok(list)
    }

    /// What to assign of all that is there.
    pub(super) fn list(&self) -> KafkaResult<TopicPartitionList> {
        list_of(self.there())
    }

    /// Records that are in the logs and have not been read.
    pub(super) fn lag(&self, statistics: &Statistics) -> i64 {
        let mut lag = 0_i64;
        for (topic, state) in &self.topics {
            let Some(seen) = statistics.topics.get(&**topic) else { continue };
            for (partition, at) in &state.partitions {
                let Some(seen) = seen.partitions.get(partition).filter(|seen| seen.hi_offset >= 0) else {
                    continue;
                };
                // With nothing fetched ahead the fetch offset counts: transaction markers are behind it, and no record
                // that we are ever given has their offsets.
                let read = if seen.fetchq_cnt == 0 { at.next.max(seen.next_offset) } else { at.next };
                lag = lag.saturating_add((seen.hi_offset - read).max(0));
            }
        }
        lag
    }
}

fn list_of<'a>(
    topics: impl IntoIterator<Item = (&'a Arc<str>, &'a Topic)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (topic, state) in topics {
        for (partition, at) in &state.partitions {
            put(&mut list, topic, *partition, at)?;
        }
    }
    Ok(list)
}

fn put(list: &mut TopicPartitionList, topic: &str, partition: i32, at: &Partition) -> KafkaResult<()> {
    list.add_partition_offset(topic, partition, Offset::Offset(at.next))?;
    if let Some(term) = at.term {
        set_term(list, topic, partition, term);
    }
    Ok(())
}
