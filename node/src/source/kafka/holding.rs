//! Records of partitions that a topic has grown by, held back until what came before them is read.
//!
//! When a topic gets more partitions, keys move to other ones: of one key, the older records are in one partition and the newer
//! in another, and Kafka says nothing about the order between partitions. A stream that is taken to its new partition's epoch
//! does not go back, so an older record that came after a newer one would be lost to it.
//!
//! So records of a young partition wait. Once some have come, it is asked where the topic's older partitions end; what a producer
//! wrote for a key before it moved there is before those ends, as the records were read after. When the older partitions have been
//! read up to there, the records are handed on. It ends when every producer has learnt of the new partitions ([`YOUNG_FOR`]):
//! nothing moves any more.
//!
//! Worked example: a key's records are in partition 0 up to offset 99. The topic grows from two partitions to four, and the next
//! record of the key is in partition 2, offset 0. It is read while partition 0 was read up to 80 only. Partition 0 ends at 100 or
//! later now: the record waits until 100 is passed, and the key's stream has all events of the old epoch before the first of the
//! new.
//!
//! Where a topic does not grow by a whole multiple, keys also move between partitions that were there before, and wait for nothing:
//! so grow by whole multiples.

use std::time::{Duration, Instant};

use crate::source::Record;

/// How long records of a new partition are held back: producers learn of new partitions within five minutes by default
/// (`metadata.max.age.ms`), and this is twice as long.
pub(super) const YOUNG_FOR: Duration = Duration::from_secs(600);
/// Bytes that are held; then young partitions are paused until there is room.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// And records.
const MAX_RECORDS: usize = 8192;
/// Pause before it is asked again where older partitions end, if nobody could say.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What is held back.
pub(super) struct Holding {
    /// It has not been asked yet where the older partitions end.
    came: Vec<Record>,
    /// These wait for the answer, or for older partitions.
    waiting: Vec<Record>,
    bytes: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing waits, or it is to be asked at this time.
    Due(Instant),
    Asked,
    Answered,
}

impl Holding {
    pub(super) fn new(now: Instant) -> Self {
        Self { came: Vec::new(), waiting: Vec::new(), bytes: 0, step: Step::Due(now) }
    }

    pub(super) fn hold(&mut self, record: Record) {
        self.bytes += record.bytes();
        self.came.push(record);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.came.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES || self.came.len() + self.waiting.len() >= MAX_RECORDS
    }

    /// Whether it is to be asked now where older partitions end; everything that has come waits for that.
    pub(super) fn asks(&self, now: Instant) -> bool {
        !self.is_empty() && matches!(self.step, Step::Due(when) if when <= now)
    }

    pub(super) fn asked(&mut self) {
        self.waiting.append(&mut self.came);
        self.step = Step::Asked;
    }

    /// Nobody could be asked, or knew.
    pub(super) fn failed(&mut self, now: Instant) {
        self.step = Step::Due(now + ASK_AGAIN);
    }

    /// It is known where older partitions end.
    pub(super) fn answered(&mut self) {
        if self.step == Step::Asked {
            self.step = Step::Answered;
        }
    }

    /// What waits no longer, if the older partitions have come to their ends.
    pub(super) fn release(&mut self, elders_ended: bool, now: Instant) -> Vec<Record> {
        if self.step != Step::Answered || !elders_ended {
            return Vec::new();
        }
        self.step = Step::Due(now);
        let records = std::mem::take(&mut self.waiting);
        self.bytes -= records.iter().map(Record::bytes).sum::<usize>();
        records
    }

    /// All of it: what it waits for will not come.
    pub(super) fn take_all(&mut self, now: Instant) -> Vec<Record> {
        self.step = Step::Due(now);
        self.bytes = 0;
        let mut records = std::mem::take(&mut self.waiting);
        records.append(&mut self.came);
        records
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tickmesh_protocol::Epoch;

    use super::*;

    fn record(partition: u32, position: u64) -> Record {
        Record {
            topic: "market".into(),
            partition,
            position,
            epoch: Epoch::from_u64(u64::from(partition)),
            term: None,
            key: None,
            value: Bytes::from_static(b"12345678"),
            engine_time_us: 0,
        }
    }

    /// What can happen, one after the other.
    #[derive(Clone, Debug)]
    enum Happens {
        /// The producer writes, to the old partition before the key moves and to the new one after.
        Write,
        Move,
        ReadOld,
        ReadYoung,
        /// The question reaches the broker, which says where the old partition ends then.
        Answer,
        Fail,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            3 => Just(Happens::Write),
            1 => Just(Happens::Move),
            2 => Just(Happens::ReadOld),
            3 => Just(Happens::ReadYoung),
            2 => Just(Happens::Answer),
            1 => Just(Happens::Fail),
        ]
    }

    proptest! {
        #[test]
        fn nothing_of_a_young_partition_comes_before_what_was_written_before_it(
            story in prop::collection::vec(happens(), 1..200),
        ) {
            let now = Instant::now();
            let mut holding = Holding::new(now);
            // Numbers of records in the order of their writing, by partition; how far each is read.
            let (mut old, mut young, mut moved, mut written) = (Vec::new(), Vec::new(), false, 0_u64);
            let (mut read_old, mut read_young, mut goal) = (0, 0, 0);
            let mut handed_on = Vec::new();
            let ending = [Happens::Answer, Happens::ReadOld].iter().cycle().take(1000).cloned();
            let reading = std::iter::repeat_n(Happens::ReadYoung, 200);
            for step in story.into_iter().chain(reading).chain(ending) {
                match step {
                    Happens::Write => {
                        if moved { young.push(written) } else { old.push(written) }
                        written += 1;
                    }
                    Happens::Move => moved = true,
                    Happens::ReadOld if read_old < old.len() => {
                        handed_on.push(old[read_old]);
                        read_old += 1;
                    }
                    Happens::ReadYoung if read_young < young.len() => {
                        holding.hold(record(2, young[read_young]));
                        read_young += 1;
                    }
                    Happens::Answer if holding.step == Step::Asked => {
                        goal = old.len();
                        holding.answered();
                    }
                    Happens::Fail if holding.step == Step::Asked => holding.failed(now - ASK_AGAIN),
                    _ => {}
                }
                if holding.asks(now) {
                    holding.asked();
                }
                handed_on.extend(holding.release(read_old >= goal, now).iter().map(|record| record.position));
            }
            prop_assert!(holding.is_empty() && holding.bytes == 0);
            prop_assert_eq!(handed_on, Vec::from_iter(0..written), "each once, in the order of writing");
        }
    }

    #[test]
    fn it_is_full_by_records_and_by_bytes_and_gives_up_all() {
        let now = Instant::now();
        let mut holding = Holding::new(now);
        for position in 0..MAX_RECORDS as u64 {
            assert!(!holding.is_full() && holding.asks(now) == (position > 0));
            holding.hold(record(2, position));
        }
        assert!(holding.is_full());
        holding.asked();
        holding.hold(record(2, MAX_RECORDS as u64));
        let all = holding.take_all(now);
        assert_eq!(all.len(), MAX_RECORDS + 1);
        assert!(all.iter().zip(0..).all(|(record, position)| record.position == position));
        assert!(holding.is_empty() && !holding.is_full());
        holding.hold(Record { value: vec![0; MAX_BYTES].into(), ..record(2, 0) });
        assert!(holding.is_full());
    }
}
