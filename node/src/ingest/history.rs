//! What has been published: signed batches in the order in which they went out, bounded by bytes and age, and where each
//! stream stands. Feeds and repair read from it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tickmesh_protocol::{Position, SignedBatch, StreamName};
use tokio::time::Instant;

/// Published batches and the head of each stream.
#[derive(Debug)]
pub(super) struct History {
    max_bytes: usize,
    max_age: Duration,
    bytes: usize,
    batches: VecDeque<(Instant, SignedBatch)>,
    heads: HashMap<StreamName, Position>,
}

impl History {
    pub(super) fn new(max_bytes: usize, max_age: Duration) -> Self {
        Self { max_bytes, max_age, bytes: 0, batches: VecDeque::new(), heads: HashMap::new() }
    }

    /// Keeps a batch that was published, by this peer or by another.
    pub(super) fn keep(&mut self, batch: SignedBatch, now: Instant) {
        for event in &batch.batch().events {
            let head = self.heads.entry(event.stream.clone()).or_insert_with(|| event.position());
            // Another publisher may send again what was sent already; a new epoch always counts.
            if head.epoch != event.epoch || head.sequence < event.sequence {
                *head = event.position();
            }
        }
        self.bytes += batch.envelope().len();
        self.batches.push_back((now, batch));
        while let Some((kept, oldest)) = self.batches.front() {
            let too_old = now.duration_since(*kept) > self.max_age;
            if self.bytes <= self.max_bytes && !too_old {
                break;
            }
            self.bytes -= oldest.envelope().len();
            self.batches.pop_front();
        }
    }

    /// The last position published on a stream.
    pub(super) fn head(&self, stream: &StreamName) -> Option<Position> {
        self.heads.get(stream).copied()
    }

    /// Bytes of envelopes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Batches held.
    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::{Batch, Epoch, Event, Previous, Sequence, SigningKey, Topic};

    use super::*;

    fn batch(counter: u64, sequence: u64, data: usize) -> SignedBatch {
        let key = SigningKey::from_bytes(&[1; 32]);
        let stream: StreamName = "trades.btc_usdt".parse().unwrap();
        let event = Event {
            stream: stream.clone(),
            epoch: Epoch::from_u64(1),
            sequence: Sequence::new(sequence).unwrap(),
            previous: Previous::Unknown { read_from: Sequence::ZERO },
            engine_time_us: 0,
            data: vec![b'1'; data].into(),
        };
        let batch = Batch {
            publisher: key.publisher(),
            boot: 1,
            counter,
            topic: Topic::spanning(&stream),
            events: vec![event],
            heads: Vec::new(),
        };
        SignedBatch::sign(batch, &key).unwrap()
    }

    #[test]
    fn it_stays_within_bytes_and_age() {
        let now = Instant::now();
        let mut history = History::new(10_000, Duration::from_secs(10));
        for n in 0..100 {
            history.keep(batch(n, n, 1000), now);
            assert!(history.bytes() <= 10_000);
        }
        assert!((5..=9).contains(&history.len()));
        history.keep(batch(100, 100, 10), now + Duration::from_secs(11));
        assert_eq!(history.len(), 1);
        let stream: StreamName = "trades.btc_usdt".parse().unwrap();
        assert_eq!(history.head(&stream).unwrap().sequence.get(), 100);
    }

    #[test]
    fn a_repeated_batch_does_not_move_the_head_back() {
        let mut history = History::new(10_000, Duration::from_secs(10));
        let stream: StreamName = "trades.btc_usdt".parse().unwrap();
        history.keep(batch(1, 7, 1), Instant::now());
        history.keep(batch(2, 5, 1), Instant::now());
        assert_eq!(history.head(&stream).unwrap().sequence.get(), 7);
    }
}
