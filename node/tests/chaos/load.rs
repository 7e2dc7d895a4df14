//! The load: records with a running number per stream, at a rate, into Kafka.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rdkafka::ClientConfig;

use crate::kafka::KafkaProducer;

/// Streams that share a key share a topic of the mesh: few topics with several streams each, as few cores can sign.
const KEYS: usize = 4;
const VARIANTS: usize = 3;

/// Streams with a topic each, for faults that need many messages rather than many events.
const EXTRAS: usize = 32;

/// Users with private streams.
const USERS: usize = 3;

/// How many records of all go to them: one in so many.
const PRIVATE_SHARE: u64 = 20;

/// Partitions of the log; each holds the streams of one key, and a part of the extras.
pub const PARTITIONS: i32 = KEYS as i32;

pub const TOPIC: &str = "chaos";

/// Records written at once after the rate was changed or the broker was away; more would be another test.
const MOST_PER_BEAT: u64 = 2_000;

/// The names of the streams that all clients follow.
pub fn streams() -> Vec<String> {
    let keys = (0..KEYS).flat_map(|key| (0..VARIANTS).map(move |variant| (key, variant)));
    keys.map(|(key, variant)| format!("trades.pair{key}_usdt@v{variant}")).collect()
}

/// The names of the extra streams.
pub fn extras() -> Vec<String> {
    (0..EXTRAS).map(|key| format!("ticker.extra{key}")).collect()
}

/// The private streams of the users, and who they are.
pub fn private() -> Vec<(String, String)> {
    (0..USERS).map(|user| (format!("orders.user{user}"), format!("user{user}"))).collect()
}

/// A thread that writes until it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    rate: AtomicU64,
    extra_rate: AtomicU64,
    beat: Duration,
    stop: AtomicBool,
    /// Of [`streams`].
    usual: Vec<Written>,
    /// Of [`extras`].
    extra: Vec<Written>,
    /// Of [`private`].
    private: Vec<Written>,
}

struct Written {
    stream: String,
    partition: i32,
    /// Records written, which is the number of the next.
    count: AtomicU64,
}

impl Load {
    /// Starts silent. `client`: the settings of a client of the broker. `beat`: how often records are written; at 5,000 a
    /// second and each 10 ms, 50 at a time. What ingest peers get at once they publish in one batch for each topic, and
    /// batches are what costs CPU.
    pub fn start(mut client: ClientConfig, beat: Duration) -> Self {
        client
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            // A broker that is away for half a minute is waited for.
            .set("queue.buffering.max.messages", "1000000")
            .set("message.timeout.ms", "300000");
        let producer = KafkaProducer::new(&client);
        let (rate, extra_rate) = (AtomicU64::new(0), AtomicU64::new(0));
        let usual = written(streams(), VARIANTS);
        let extra = written(extras(), EXTRAS / KEYS);
        let private = written(private().into_iter().map(|(stream, _)| stream).collect(), 1);
        let stop = AtomicBool::new(false);
        let shared = Shared { rate, extra_rate, beat, stop, usual, extra, private };
        let shared = Arc::new(shared);
        let thread = thread::Builder::new().name("load".into());
        let theirs = shared.clone();
        let thread = thread.spawn(move || theirs.run(&producer)).expect("a thread");
        Self { shared, thread: Some(thread) }
    }

    /// Records per second from now on, over all streams; 0 for none.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// Records of [`extras`] per second from now on; 0 for none, as at the start.
    pub fn set_extra_rate(&self, rate: u64) {
        self.shared.extra_rate.store(rate, Ordering::Relaxed);
    }

    /// Records written so far of each stream.
    pub fn written(&self) -> HashMap<String, u64> {
        let all = self.shared.all();
        all.map(|written| (written.stream.clone(), written.count.load(Ordering::Acquire))).collect()
    }

    /// Records written so far to each partition.
    pub fn partitions(&self) -> Vec<u64> {
        let mut counts = vec![0; KEYS];
        for written in self.shared.all() {
            counts[written.partition as usize] += written.count.load(Ordering::Acquire);
        }
        counts
    }
}

/// How far the writing of some streams is, at one rate.
struct Pace<'a> {
    streams: &'a [Written],
    rate: u64,
    begun: Instant,
    sent: u64,
    turn: usize,
}

impl<'a> Pace<'a> {
    fn new(streams: &'a [Written]) -> Self {
        Self { streams, rate: 0, begun: Instant::now(), sent: 0, turn: 0 }
    }

    /// Writes what is due.
    fn beat(&mut self, wanted: u64, producer: &KafkaProducer) {
        if wanted != self.rate {
            (self.rate, self.begun, self.sent) = (wanted, Instant::now(), 0);
        }
        let due = self.begun.elapsed().as_micros() as u64 * self.rate / 1_000_000;
        for _ in 0..due.saturating_sub(self.sent).min(MOST_PER_BEAT) {
            self.streams[self.turn].write(producer);
            self.turn = (self.turn + 1) % self.streams.len();
            self.sent += 1;
        }
    }
}

impl Shared {
    fn all(&self) -> impl Iterator<Item = &Written> {
        self.usual.iter().chain(&self.extra).chain(&self.private)
    }

    fn run(&self, producer: &KafkaProducer) {
        let (mut usual, mut extra) = (Pace::new(&self.usual), Pace::new(&self.extra));
        let mut private = Pace::new(&self.private);
        while !self.stop.load(Ordering::Relaxed) {
            let rate = self.rate.load(Ordering::Relaxed);
            usual.beat(rate, producer);
            private.beat(rate / PRIVATE_SHARE, producer);
            extra.beat(self.extra_rate.load(Ordering::Relaxed), producer);
            thread::sleep(self.beat);
        }
        producer.flush();
    }
}

impl Written {
    fn write(&self, producer: &KafkaProducer) {
        let number = self.count.load(Ordering::Relaxed);
        let record = format!(
            r#"{{"stream":"{}","data":{{"n":{number},"price":"36200.5","quantity":"0.25","side":"buy","timestamp":1724548381123}}}}"#,
            self.stream
        );
        producer.send(TOPIC, self.partition, Some(&record));
        self.count.store(number + 1, Ordering::Release);
    }
}

/// So many streams after one another share a partition.
fn written(streams: Vec<String>, per_partition: usize) -> Vec<Written> {
    let numbered = streams.into_iter().zip(0..);
    let written = numbered.map(|(stream, index): (String, usize)| {
        let partition = (index / per_partition) as i32;
        Written { stream, partition, count: AtomicU64::new(0) }
    });
    written.collect()
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A thread that failed has said why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
