//! Reading again, over the embedded log, and over it with faults put in.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tickmesh_protocol::{Previous, StreamName, signature::MessageKey};

use super::*;
use crate::{
    ops::{health::Health, metrics::now_us},
    source::{
        self, Source,
        embedded::{CHANNELS, Embedded, Setting, TOPIC},
        metrics::SourceMetrics,
    },
};

/// A log with something done to it.
struct Faulty {
    log: Arc<dyn LogReader>,
    /// Positions before this are gone.
    oldest: AtomicU64,
    /// Where the log ends.
    end: AtomicU64,
    /// More records at once are too many.
    most: AtomicU64,
    /// Ranges that were read.
    reads: Mutex<Vec<(u64, u64)>>,
    /// Reads wait for a permit each.
    gate: Semaphore,
}

impl LogReader for Faulty {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        until: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        async move {
            self.reads.lock().unwrap().push((from, until));
            self.gate.acquire().await.unwrap().forget();
            let (oldest, end) = (self.oldest.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
            if from < oldest {
                return Err(ReadError::Trimmed { topic: topic.to_owned(), partition, from, oldest });
            }
            if until - from > self.most.load(Ordering::SeqCst) {
                return Err(ReadError::TooLarge { topic: topic.to_owned() });
            }
            self.log.read(topic, partition, from, until.min(end.max(from))).await
        }
        .boxed()
    }
}

struct Bench {
    rescan: Rescan,
    log: Arc<Faulty>,
    registry: Registry,
    epoch: Epoch,
    stop: CancellationToken,
}

/// Signs one channel of several.
fn signer() -> Arc<Signer> {
    let channels = HashSet::from(["depth".to_owned()]);
    Arc::new(Signer::new(MessageKey::from_bytes(&[7; 32]), channels))
}

/// Partitions of two symbols: each symbol, tickers, orders.
const ORDERS: u32 = 3;
/// Records of partition 0 that are surely there.
const THERE: u64 = 6_000;

impl Bench {
    /// A market that opened some time ago, and private orders.
    async fn new(bytes: usize) -> Self {
        let symbols = ["btc_usdt", "eth_usdt"].map(str::to_owned).to_vec();
        let setting = Setting { seed: 5, symbols, rate: 20_000, origin_ms: now_us() / 1000 - 2_000 };
        let registry = Registry::new();
        let config = source::embedded::Config { setting };
        let condition = Health::default().condition("source market");
        let market = Embedded::new("market", config, &SourceMetrics::new(&registry), condition);
        let log = Arc::new(Faulty {
            log: market.reader(),
            oldest: AtomicU64::new(0),
            end: AtomicU64::new(THERE),
            most: AtomicU64::new(u64::MAX),
            reads: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        });
        let there = log.log.read(TOPIC, 0, 0, THERE).await.unwrap();
        assert_eq!(there.until, THERE, "the market is old enough");
        let private = Arc::new(HashSet::from(["orders".to_owned()]));
        let logs = vec![Log {
            source: "market".into(),
            reader: log.clone(),
            routes: Arc::from([]),
            channels: Some(&CHANNELS),
        }];
        let stop = CancellationToken::new();
        let rescan = Rescan::new(logs, private, signer(), bytes, &registry, stop.clone()).unwrap();
        Self { rescan, log, registry, epoch: there.epoch, stop }
    }

    fn wanted(&self, from: u64, until: u64) -> Wanted<'static> {
        Wanted { source: "market", epoch: self.epoch, topic: TOPIC, partition: 0, from, until }
    }

    async fn read(&self, from: u64, until: u64) -> Result<Part, RescanError> {
        self.rescan.read(self.wanted(from, until)).await
    }

    /// Reads part after part.
    async fn read_all(&self, from: u64, until: u64) -> Vec<Event> {
        let mut events = Vec::new();
        let mut next = from;
        while next < until {
            let part = self.read(next, until).await.unwrap();
            assert!(part.next > next, "no progress at {next}");
            events.extend_from_slice(&part);
            next = part.next;
        }
        events
    }

    fn reads(&self) -> usize {
        self.log.reads.lock().unwrap().len()
    }

    fn metric(&self, name: &str) -> u64 {
        let shown = self.registry.render();
        let line = shown.lines().find(|line| line.starts_with(&format!("tickmesh_{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

const PLENTY: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_ask_for_one_range_share_one_read() {
    let bench = Bench::new(PLENTY).await;
    bench.log.gate.forget_permits(Semaphore::MAX_PERMITS);
    let ask = (0..50).map(|_| {
        let (rescan, wanted) = (bench.rescan.clone(), bench.wanted(100, 1_100));
        tokio::spawn(async move { rescan.read(wanted).await.unwrap() })
    });
    let asked: Vec<_> = ask.collect();
    while bench.metric("log_reread_shared_total") < 49 {
        tokio::task::yield_now().await;
    }
    bench.log.gate.add_permits(1);
    let parts: Vec<Part> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(bench.reads(), 1);
    assert_eq!(bench.metric("log_rereads_total"), 1);
    assert_eq!(bench.metric("log_reread_records_total"), 4096);
    for part in &parts {
        assert!(std::ptr::eq(&part[0], &parts[0][0]), "the same memory");
        assert_eq!((part.len(), part.next, part.read_from()), (1_000, 1_100, 0));
    }
    // Whoever comes later needs no read at all.
    assert_eq!(bench.read(4_000, 5_000).await.unwrap().next, 4_096);
    assert_eq!((bench.reads(), bench.metric("log_reread_shared_total")), (1, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_are_those_of_the_log() {
    let bench = Bench::new(PLENTY).await;
    let events = bench.read_all(10, 5_000).await;
    let log = bench.log.log.read(TOPIC, 0, 10, 5_000).await.unwrap();
    assert_eq!(events.len(), log.records.len());
    let mut last: HashMap<StreamName, (u64, u64)> = HashMap::new();
    for (event, record) in events.iter().zip(&log.records) {
        assert_eq!((event.sequence.get(), event.epoch), (record.position, record.epoch));
        assert_eq!(event.engine_time_us, record.engine_time_us);
        // As when the log was read live: by the same key, of the same channels.
        assert_eq!(event.signature.is_some(), event.stream.channel() == "depth");
        assert_eq!(event.signature, signer().sign(&event.stream, event.position(), &event.data));
        let chunk = record.position / 4096;
        let text = String::from_utf8(record.value.to_vec()).unwrap();
        let data = std::str::from_utf8(&event.data).unwrap();
        assert!(text.contains(&format!("\"{}\"", event.stream.as_str())) && text.contains(data), "{text}");
        let before = last.insert(event.stream.clone(), (chunk, record.position));
        match (event.previous, before) {
            (Previous::At(at), Some((of, position))) => assert_eq!((at.get(), chunk), (position, of)),
            (Previous::Unknown { read_from }, Some((of, _))) => {
                assert_eq!(read_from.get(), chunk * 4096);
                assert!(of < chunk, "only the first of a chunk does not know");
            }
            // The first chunk is cut at its front by what was asked for.
            (Previous::At(at), None) => assert!(at.get() < 10),
            (Previous::Unknown { read_from }, None) => assert_eq!(read_from.get(), 0),
            (Previous::Reset { .. }, _) => panic!("no epoch began: {event:?}"),
        }
    }
    let private = Wanted {
        partition: ORDERS,
        epoch: bench.log.log.read(TOPIC, ORDERS, 0, 1).await.unwrap().epoch,
        ..bench.wanted(0, 1)
    };
    assert!(!bench.log.log.read(TOPIC, ORDERS, 0, 1).await.unwrap().records.is_empty());
    let part = bench.rescan.read(private).await.unwrap();
    assert!(!part.is_empty(), "private events as well: who may have them is asked before");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_told_and_what_is_left_is_given() {
    let bench = Bench::new(PLENTY).await;
    bench.log.oldest.store(4_500, Ordering::SeqCst);
    let trimmed = |from, oldest| {
        RescanError::Read(ReadError::Trimmed { topic: TOPIC.into(), partition: 0, from, oldest })
    };
    assert_eq!(bench.read(100, 200).await.unwrap_err(), trimmed(100, 4_500));
    let reads = bench.reads();
    let both = tokio::join!(bench.read(4_400, 5_000), bench.read(4_600, 5_000));
    assert_eq!(both.0.unwrap_err(), trimmed(4_400, 4_500));
    let part = both.1.unwrap();
    assert_eq!((part.read_from(), part[0].sequence.get(), part.next), (4_500, 4_600, 5_000));
    assert_eq!(bench.reads(), reads + 2, "one that fails and one that is shared");
    bench.log.oldest.store(0, Ordering::SeqCst);
    let wanted = Wanted { partition: 9, ..bench.wanted(0, 1) };
    let unknown = bench.rescan.read(wanted).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: TOPIC.into(), partition: 9 }.into());
    let other = Wanted { epoch: Epoch::from_u64(1), ..bench.wanted(100, 200) };
    let error = bench.rescan.read(other).await.unwrap_err();
    assert_eq!(error, RescanError::OtherEpoch { asked: Epoch::from_u64(1), now: bench.epoch });
    let other = Wanted { source: "other", ..bench.wanted(0, 1) };
    assert_eq!(bench.rescan.read(other).await.unwrap_err(), RescanError::UnknownSource("other".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_with_too_many_bytes_is_read_in_smaller_chunks() {
    let bench = Bench::new(PLENTY).await;
    let whole = bench.read_all(0, 3_000).await;
    let small = Bench::new(PLENTY).await;
    small.log.most.store(64, Ordering::SeqCst);
    let pieces = small.read_all(0, 600).await;
    let text = |events: &[Event]| events.iter().map(|e| (e.sequence, e.stream.clone())).collect::<Vec<_>>();
    assert_eq!(text(&pieces), text(&whole[..pieces.len()]));
    // Two sizes that are too large for each stretch of 512, one of them known from the first.
    let reads = small.reads();
    assert!(reads <= 1 + 2 + 10, "{reads} reads");
    small.log.most.store(4, Ordering::SeqCst);
    let error = small.read(5_000, 5_100).await.unwrap_err();
    assert_eq!(error, ReadError::TooLarge { topic: TOPIC.into() }.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_log_is_no_hole() {
    let bench = Bench::new(PLENTY).await;
    bench.log.end.store(500, Ordering::SeqCst);
    let part = bench.read(400, 600).await.unwrap();
    assert_eq!((part.len(), part.next), (100, 500), "as far as the log goes");
    assert_eq!(bench.read(500, 600).await.unwrap().next, 500);
    assert!(bench.read(700, 800).await.unwrap().is_empty());
    let reads = bench.reads();
    assert_eq!(bench.read(450, 500).await.unwrap().next, 500);
    assert_eq!(bench.reads(), reads, "what is kept serves who wants no more");
    bench.log.end.store(THERE, Ordering::SeqCst);
    assert_eq!(bench.read(500, 600).await.unwrap().next, 600, "the log went on");
    assert_eq!(bench.reads(), reads + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_bounded_and_too_many_are_refused() {
    let bench = Bench::new(1).await;
    bench.read_all(0, THERE).await;
    assert_eq!(bench.reads(), 2);
    bench.read(0, 1).await.unwrap();
    assert_eq!(bench.reads(), 3, "the first chunk had to go");
    bench.log.gate.forget_permits(Semaphore::MAX_PERMITS);
    let ask = |number: u32| {
        let (rescan, wanted) =
            (bench.rescan.clone(), Wanted { partition: 10 + number, ..bench.wanted(0, 1) });
        tokio::spawn(async move { rescan.read(wanted).await.map(|_| ()) })
    };
    let asked: Vec<_> = (0..300).map(ask).collect();
    let (busy, waiting): (Vec<_>, Vec<_>) = {
        let mut left = asked;
        while left.iter().filter(|task| task.is_finished()).count() < 300 - MAX_WAITING {
            tokio::task::yield_now().await;
        }
        left.drain(..).partition(|task| task.is_finished())
    };
    for task in busy {
        assert_eq!(task.await.unwrap(), Err(RescanError::Busy));
    }
    assert_eq!(bench.reads(), 3 + READING, "only so many at a time");
    bench.stop.cancel();
    for task in waiting {
        assert_eq!(task.await.unwrap(), Err(RescanError::Ended), "nobody waits for ever");
    }
}
