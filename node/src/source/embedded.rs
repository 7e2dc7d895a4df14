//! A market inside the process, for the demo and for tests: matching engines whose log can be read live and again, like
//! Kafka's, with nothing installed.
//!
//! The log has one topic, [`TOPIC`], with a partition for each symbol (`trades`, `depth`, `book` and `ticker` of it), one
//! for `ticker.global` and one for the orders of the demo users. Nothing is stored: a record is a pure function of the
//! settings, its partition and its position, so every peer with the same settings has the same log. It ends where the
//! wall clock is: a record is there when its engine time has come. At the start everything since the market's opening is
//! worked out without writing it: at the default rate half a second for each hour in a release build, ten times that in
//! a debug build.
//!
//! `depth.<symbol>` tells every change of a book, and once a second, with `"snapshot":true`, all of it.
//! `book.<symbol>` is the whole book (at most [`MAX_LEVELS`] levels a side, by cancelling the worst): take it, then apply
//! each `depth.<symbol>` with a higher sequence. Tickers count since the opening: `open`, `high`, `low`, `volume`, and
//! `change`, which is the price less `open`.

mod book;
mod config;
mod history;
mod instrument;
mod market;
mod random;
mod render;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tickmesh_protocol::{
    Epoch,
    policy::{ChannelPolicy, OnSlow, Retain},
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use self::history::History;
pub use self::{
    book::MAX_LEVELS,
    config::Config,
    market::{Collector, Market, Setting, USERS, Want, Written},
};
use super::{
    LogReader, MAX_READ_POSITIONS, ReadError, Record, Source, SourceEvent, Starts, Stretch,
    metrics::{Figures, SourceMetrics},
};
use crate::ops::{health::Condition, metrics::now_us};

/// The one topic of the log.
pub const TOPIC: &str = "market";

/// The channels of its streams.
pub const CHANNELS: [&str; 5] = ["trades", "depth", "book", "ticker", "orders"];
/// Part of the epoch: another engine writes other records under the same positions.
const ENGINE_VERSION: u32 = 2;
/// Most records handed on at once, the rest of their tick not counted.
const MAX_BATCH_RECORDS: usize = 512;
/// Ticks worked out between two looks at whether to stop.
const CATCH_UP_TICKS: u64 = 2_000;
/// Ticks worked out at once when reading live: a few milliseconds, as other tasks wait meanwhile.
const STEP_TICKS: u64 = 200;
/// Longest sleep: how late a wall clock that was set forward is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// What fits what it writes: differences of a book, events that say everything, and what nobody may miss.
pub fn policy(channel: &str) -> ChannelPolicy {
    match channel {
        "depth" => ChannelPolicy { retain: Retain::Book, on_slow: OnSlow::Resync },
        "book" | "ticker" => ChannelPolicy { retain: Retain::Last, on_slow: OnSlow::Conflate },
        _ => ChannelPolicy::default(),
    }
}

/// A market that is read live.
pub struct Embedded {
    log: Arc<Log>,
    figures: Figures,
    condition: Condition,
}

/// The log as its readers see it.
struct Log {
    topic: Arc<str>,
    epochs: Vec<Epoch>,
    history: History,
    /// One range at a time: re-reading is pure work for one core.
    reading: Semaphore,
}

impl Embedded {
    pub fn new(name: &str, config: Config, metrics: &SourceMetrics, condition: Condition) -> Self {
        let setting = config.setting;
        let epochs = (0..setting.partitions()).map(|partition| epoch_of(&setting, partition)).collect();
        let history = History::new(Market::new(&setting));
        let log = Log { topic: TOPIC.into(), epochs, history, reading: Semaphore::new(1) };
        Self { log: Arc::new(log), figures: metrics.of(name), condition }
    }
}

fn epoch_of(setting: &Setting, partition: usize) -> Epoch {
    let Setting { seed, symbols, rate, origin_ms } = setting;
    let log = format!("embedded/{ENGINE_VERSION}/{seed}/{rate}/{origin_ms}/{}", symbols.join(","));
    Epoch::of(&log, number_of(partition), "offset")
}

/// Partitions are few, so nothing is ever cut off.
fn number_of(partition: usize) -> u32 {
    u32::try_from(partition).unwrap_or(u32::MAX)
}

impl Source for Embedded {
    fn run(
        self: Box<Self>,
        starts: Starts,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.read_live(&starts, output) => {}
            }
        })
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(Reader(self.log.clone()))
    }
}

/// The re-reading side.
struct Reader(Arc<Log>);

impl Embedded {
    /// Ends when nobody listens any more.
    async fn read_live(&self, starts: &Starts, output: mpsc::Sender<SourceEvent>) {
        let Some(now) = self.catch_up().await else { return };
        self.condition.ready();
        self.figures.brokers_up.set(1);
        self.figures.partitions.set(i64::try_from(self.log.epochs.len()).unwrap_or(i64::MAX));
        let mut cursor = self.log.cursor(now, starts);
        // Nobody listens any more if one of the following cannot be sent.
        for begin in self.log.begins(&cursor.next) {
            if output.send(begin).await.is_err() {
                return;
            }
        }
        let mut reached = false;
        loop {
            let (records, at_end) = self.log.step(&mut cursor);
            let nothing = records.is_empty();
            self.figures.records.inc_by(records.len() as u64);
            if !nothing && output.send(SourceEvent::Records(records)).await.is_err() {
                return;
            }
            if at_end && !reached {
                reached = true;
                for event in self.log.reached(&cursor.next) {
                    if output.send(event).await.is_err() {
                        return;
                    }
                }
            }
            if at_end {
                let next_us = cursor.market.next_ms().saturating_mul(1000);
                let next = Duration::from_micros(next_us.saturating_sub(now_us()));
                tokio::time::sleep(next.min(MAX_SLEEP)).await;
            } else if nothing {
                // Long stretches may be skipped, on the way to where reading goes on.
                tokio::task::yield_now().await;
            }
        }
    }

    /// The market as it is now. Between the pieces of work other tasks run, and a stop is noticed.
    async fn catch_up(&self) -> Option<Market> {
        let mut market = self.log.history.latest()?;
        let began_ms = market.next_ms();
        while market.next_ms() <= now_us() / 1000 {
            let log = self.log.clone();
            let work = move || {
                let mut nothing = Collector::new(Want::Nothing);
                for _ in 0..CATCH_UP_TICKS {
                    if market.next_ms() > now_us() / 1000 {
                        break;
                    }
                    market.step(&mut nothing);
                    log.history.offer(&market);
                }
                market
            };
            market = tokio::task::spawn_blocking(work).await.ok()?;
            let worked_out_ms = market.next_ms() - began_ms;
            tracing::debug!(worked_out_ms, "working out the market since its opening");
        }
        Some(market)
    }
}

/// Live reading: the market, and the position that comes next in each partition.
struct Cursor {
    market: Market,
    next: Vec<u64>,
}

impl Log {
    /// Reading goes on where `starts` says, and elsewhere with what comes from now on. Since the market is a function of
    /// the time, its log never loses anything; a place that lies ahead of the clock is waited for.
    fn cursor(&self, now: Market, starts: &Starts) -> Cursor {
        let known = |(epoch, next): (&Epoch, &u64)| starts.of(*epoch).map_or(*next, |place| place.position);
        let next: Vec<u64> = self.epochs.iter().zip(now.positions()).map(known).collect();
        let mut market = now;
        for (partition, position) in next.iter().enumerate() {
            if market.positions().get(partition).is_some_and(|at| position < at)
                && let Some(earlier) = self.history.before(partition, *position)
                && earlier.tick() < market.tick()
            {
                market = earlier;
            }
        }
        Cursor { market, next }
    }

    fn begins(&self, next: &[u64]) -> impl Iterator<Item = SourceEvent> {
        self.epochs.iter().zip(next).enumerate().map(|(partition, (epoch, position))| SourceEvent::Begin {
            topic: self.topic.clone(),
            partition: number_of(partition),
            epoch: *epoch,
            position: *position,
            first: *position == 0,
            term: None,
        })
    }

    fn reached(&self, next: &[u64]) -> impl Iterator<Item = SourceEvent> {
        let reached =
            |(epoch, position): (&Epoch, &u64)| SourceEvent::Reached { epoch: *epoch, position: *position };
        self.epochs.iter().zip(next).map(reached)
    }

    /// Works out the market for some records or ticks. Gives what is to be handed on, and whether that is all there is
    /// up to now.
    fn step(&self, cursor: &mut Cursor) -> (Vec<Record>, bool) {
        let mut collector = Collector::new(Want::Everything);
        let market = &mut cursor.market;
        for _ in 0..STEP_TICKS {
            if market.next_ms() > now_us() / 1000 || collector.records.len() >= MAX_BATCH_RECORDS {
                break;
            }
            market.step(&mut collector);
            self.history.offer(market);
        }
        let at_end = market.next_ms() > now_us() / 1000;
        let mut records = Vec::with_capacity(collector.records.len());
        for written in collector.records {
            // What comes before the place where reading goes on has been read by others.
            let next = cursor.next.get_mut(written.partition).filter(|next| **next <= written.position);
            if let (Some(next), Some(record)) = (next, self.record(written)) {
                *next = record.position + 1;
                records.push(record);
            }
        }
        (records, at_end)
    }

    fn record(&self, written: Written) -> Option<Record> {
        Some(Record {
            topic: self.topic.clone(),
            partition: number_of(written.partition),
            position: written.position,
            epoch: *self.epochs.get(written.partition)?,
            term: None,
            key: None,
            value: Bytes::from(written.value),
            engine_time_us: written.time_ms.saturating_mul(1000),
        })
    }

    /// Writes a range again, as far as its time has come.
    fn write_again(&self, partition: usize, from: u64, until: u64) -> Option<Stretch> {
        let mut market = self.history.before(partition, from)?;
        let mut collector = Collector::new(Want::Range { partition, from, until });
        let now_ms = now_us() / 1000;
        while market.positions().get(partition).is_some_and(|next| *next < until)
            && market.next_ms() <= now_ms
        {
            market.step(&mut collector);
            self.history.offer(&market);
        }
        let end = market.positions().get(partition).copied()?;
        Some(Stretch {
            epoch: *self.epochs.get(partition)?,
            until: end.min(until).max(from),
            records: collector.records.into_iter().filter_map(|written| self.record(written)).collect(),
        })
    }
}

impl LogReader for Reader {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        until: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        Box::pin(async move {
            let unavailable =
                |reason: &str| ReadError::Unavailable { topic: topic.to_owned(), reason: reason.to_owned() };
            let index = usize::try_from(partition).ok().filter(|index| *index < self.0.epochs.len());
            let Some(index) = index.filter(|_| topic == TOPIC) else {
                return Err(ReadError::UnknownPartition { topic: topic.to_owned(), partition });
            };
            if until.saturating_sub(from) > MAX_READ_POSITIONS {
                return Err(ReadError::TooLarge { topic: topic.to_owned() });
            }
            let turn = self.0.reading.acquire().await.map_err(|_| unavailable("the reader has ended"))?;
            let log = self.0.clone();
            let stretch = tokio::task::spawn_blocking(move || log.write_again(index, from, until)).await;
            drop(turn);
            stretch.ok().flatten().ok_or_else(|| unavailable("the market cannot be worked out"))
        })
    }
}

#[cfg(test)]
mod tests;
