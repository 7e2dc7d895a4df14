//! The log: what really happened. Peers read it through [`Log::read`]; the checker compares with it.

use tickmesh_protocol::{Epoch, Position, Sequence};

use super::queue::Time;

/// Partitions, each a list of records that grows, loses its beginning, and may be made anew.
#[derive(Debug)]
pub struct Log {
    partitions: Vec<Partition>,
    /// Every event there ever was, by stream, in order.
    streams: Vec<Vec<Truth>>,
}

#[derive(Debug)]
pub struct Partition {
    /// The epochs it has had, the last one included.
    epochs: Vec<Epoch>,
    epoch: Epoch,
    /// Position of `records[0]`.
    base: u64,
    /// Position of the oldest record that can still be read.
    begin: u64,
    records: Vec<Option<Record>>,
}

/// A record of a stream; a position may also hold none, as the markers of transactions do.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub stream: usize,
    /// Index in the stream's list of events.
    pub index: usize,
}

/// One event as it is in the log.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    pub position: Position,
    pub appended: Time,
    /// When it could no longer be read.
    pub gone: Option<Time>,
    /// Ingest peers that have read it, as bits.
    pub read_by: u32,
}

/// What reading gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub epoch: Epoch,
    /// Where reading really began: later than asked for if the beginning is gone, or if the partition is another one.
    pub from: u64,
    /// Streams of the records, from `from` on.
    pub streams: Vec<Option<usize>>,
    /// Whether that is the end of the log.
    pub reached: bool,
}

impl Log {
    /// `first[p]` is the position at which partition `p` begins.
    pub fn new(seed: u64, first: &[u64], streams: usize) -> Self {
        let partitions = first.iter().enumerate().map(|(partition, first)| {
            let epoch = epoch(seed, partition, 0);
            Partition { epochs: vec![epoch], epoch, base: *first, begin: *first, records: Vec::new() }
        });
        Self { partitions: partitions.collect(), streams: vec![Vec::new(); streams] }
    }

    /// Appends a record of a stream, or one without. Returns its position.
    pub fn append(&mut self, partition: usize, stream: Option<usize>, now: Time) -> Position {
        let log = &mut self.partitions[partition];
        let number = log.base + log.records.len() as u64;
        let position = Position { epoch: log.epoch, sequence: sequence(number) };
        log.records.push(stream.map(|stream| Record { stream, index: self.streams[stream].len() }));
        if let Some(stream) = stream {
            let truth = Truth { position, appended: now, gone: None, read_by: 0 };
            self.streams[stream].push(truth);
        }
        position
    }

    /// Takes the oldest records away, so that `keep` are left. Returns the new beginning.
    pub fn trim(&mut self, partition: usize, keep: u64, now: Time) -> u64 {
        let end = self.partitions[partition].end();
        let begin = end.saturating_sub(keep).max(self.partitions[partition].begin);
        self.drop_before(partition, begin, now);
        begin
    }

    /// Deletes a partition and makes it anew: another epoch, numbers from zero.
    pub fn recreate(&mut self, seed: u64, partition: usize, now: Time) -> Epoch {
        let end = self.partitions[partition].end();
        self.drop_before(partition, end, now);
        let mut epochs = std::mem::take(&mut self.partitions[partition].epochs);
        let epoch = epoch(seed, partition, epochs.len());
        epochs.push(epoch);
        self.partitions[partition] = Partition { epochs, epoch, base: 0, begin: 0, records: Vec::new() };
        epoch
    }

    fn drop_before(&mut self, partition: usize, begin: u64, now: Time) {
        let log = &mut self.partitions[partition];
        for number in log.begin..begin {
            if let Some(Some(record)) = log.records.get((number - log.base) as usize) {
                let truth = &mut self.streams[record.stream][record.index];
                truth.gone = Some(now);
            }
        }
        log.begin = begin;
    }

    /// Reads at most `most` records of a partition. A reader that comes with another epoch than the partition has now begins
    /// at the beginning of what is there.
    pub fn read(
        &mut self,
        partition: usize,
        at: Option<(Epoch, u64)>,
        most: usize,
        reader: Option<usize>,
    ) -> Read {
        let log = &self.partitions[partition];
        let from = match at {
            Some((epoch, position)) if epoch == log.epoch => position.clamp(log.begin, log.end()),
            _ => log.begin,
        };
        let first = (from - log.base) as usize;
        let records = &log.records[first..log.records.len().min(first + most)];
        if let Some(reader) = reader {
            for record in records.iter().flatten() {
                self.streams[record.stream][record.index].read_by |= 1 << reader;
            }
        }
        Read {
            epoch: log.epoch,
            from,
            streams: records.iter().map(|record| record.map(|record| record.stream)).collect(),
            reached: first + records.len() == log.records.len(),
        }
    }

    pub fn partition(&self, partition: usize) -> &Partition {
        &self.partitions[partition]
    }

    /// Every event of a stream, in order.
    pub fn stream(&self, stream: usize) -> &[Truth] {
        &self.streams[stream]
    }

    /// Where an event is in the list of its stream.
    pub fn index_of(&self, stream: usize, position: Position) -> Option<usize> {
        let events = &self.streams[stream];
        // Epochs follow one another and are few: search backward for the last event not after it.
        let mut end = events.len();
        while let Some(last) = end.checked_sub(1) {
            let epoch = events[last].position.epoch;
            let begin = events[..end].partition_point(|event| event.position.epoch != epoch);
            if epoch == position.epoch {
                let found = events[begin..end]
                    .binary_search_by_key(&position.sequence, |event| event.position.sequence);
                return found.ok().map(|found| begin + found);
            }
            end = begin;
        }
        None
    }
}

impl Partition {
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many epochs were before this one; none, if it never was one of this partition.
    pub fn generation(&self, epoch: Epoch) -> Option<usize> {
        self.epochs.iter().position(|known| *known == epoch)
    }

    /// Position of the oldest record that can be read.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Position of the next record.
    pub fn end(&self) -> u64 {
        self.base + self.records.len() as u64
    }
}

fn epoch(seed: u64, partition: usize, generation: usize) -> Epoch {
    // Epochs are hashes: neither in order nor near one another.
    Epoch::from_u64(super::random::Random::of(seed, (partition as u64) << 32 | generation as u64).next())
}

fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap_or(Sequence::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_loses_its_beginning_and_is_made_anew() {
        let mut log = Log::new(1, &[10], 2);
        for stream in [Some(0), Some(1), None, Some(0)] {
            log.append(0, stream, 5);
        }
        let old = log.partition(0).epoch();
        assert_eq!(log.trim(0, 3, 6), 11);
        let read = log.read(0, Some((old, 3)), 2, Some(2));
        assert_eq!((read.from, read.streams, read.reached), (11, vec![Some(1), None], false));
        assert_eq!(log.stream(1)[0].read_by, 4);
        assert_eq!(log.stream(0)[0].gone, Some(6));
        assert_eq!(log.stream(0)[1].gone, None);
        let new = log.recreate(1, 0, 7);
        assert!(new != old);
        assert_eq!(log.stream(0)[1].gone, Some(7));
        assert_eq!((log.partition(0).generation(old), log.partition(0).generation(new)), (Some(0), Some(1)));
        let position = log.append(0, Some(0), 8);
        assert_eq!(position.sequence.get(), 0);
        assert_eq!(log.read(0, Some((old, 13)), 9, None).from, 0);
        assert_eq!(log.index_of(0, position), Some(2));
        assert_eq!(log.index_of(0, Position { epoch: old, ..position }), None);
        assert_eq!(log.index_of(0, log.stream(0)[1].position), Some(1));
    }
}
