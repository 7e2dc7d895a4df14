//! The load: records with a running number per stream, at a rate, into Kafka.

use std::{
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

/// Partitions of the log; each holds the streams of one key.
pub const PARTITIONS: i32 = KEYS as i32;

pub const TOPIC: &str = "chaos";

/// Records written at once after the rate was changed or the broker was away; more would be another test.
const MOST_PER_BEAT: u64 = 2_000;

/// The names of all streams; the index is the stream's number in [`Load`].
pub fn streams() -> Vec<String> {
    let keys = (0..KEYS).flat_map(|key| (0..VARIANTS).map(move |variant| (key, variant)));
    keys.map(|(key, variant)| format!("trades.pair{key}_usdt@v{variant}")).collect()
}

/// A thread that writes until it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    rate: AtomicU64,
    beat_us: AtomicU64,
    stop: AtomicBool,
    /// Records written of each stream, which is the number of the next.
    written: Vec<AtomicU64>,
}

impl Load {
    /// Starts silent. `client`: the settings of a client of the broker.
    pub fn start(mut client: ClientConfig, beat: Duration) -> Self {
        client
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            // A broker that is away for half a minute is waited for.
            .set("queue.buffering.max.messages", "1000000")
            .set("message.timeout.ms", "300000");
        let producer = KafkaProducer::new(&client);
        let written = streams().iter().map(|_| AtomicU64::new(0)).collect();
        let (rate, beat_us) = (AtomicU64::new(0), AtomicU64::new(beat.as_micros() as u64));
        let shared = Arc::new(Shared { rate, beat_us, stop: AtomicBool::new(false), written });
        let thread = thread::Builder::new().name("load".into());
        let theirs = shared.clone();
        let thread = thread.spawn(move || theirs.run(&producer)).expect("a thread");
        Self { shared, thread: Some(thread) }
    }

    /// Records per second from now on, over all streams; 0 for none.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// How often records are written from now on: at 5,000 a second and each 10 ms, 50 at a time. What ingest peers get at
    /// once they publish in one batch for each topic, and batches are what costs CPU.
    pub fn set_beat(&self, beat: Duration) {
        self.shared.beat_us.store(beat.as_micros() as u64, Ordering::Relaxed);
    }

    /// Records written so far of each stream.
    pub fn written(&self) -> Vec<u64> {
        self.shared.written.iter().map(|count| count.load(Ordering::Acquire)).collect()
    }
}

impl Shared {
    fn run(&self, producer: &KafkaProducer) {
        let names = streams();
        let (mut turn, mut rate, mut begun, mut sent) = (0, 0, Instant::now(), 0);
        while !self.stop.load(Ordering::Relaxed) {
            let wanted = self.rate.load(Ordering::Relaxed);
            if wanted != rate {
                (rate, begun, sent) = (wanted, Instant::now(), 0);
            }
            let due = (begun.elapsed().as_micros() as u64 * rate / 1_000_000).saturating_sub(sent);
            for _ in 0..due.min(MOST_PER_BEAT) {
                self.write(producer, &names, turn);
                turn = (turn + 1) % names.len();
                sent += 1;
            }
            thread::sleep(Duration::from_micros(self.beat_us.load(Ordering::Relaxed)));
        }
        producer.flush();
    }

    fn write(&self, producer: &KafkaProducer, names: &[String], stream: usize) {
        let number = self.written[stream].load(Ordering::Relaxed);
        let record = format!(
            r#"{{"stream":"{}","data":{{"n":{number},"price":"36200.5","quantity":"0.25","side":"buy","timestamp":1724548381123}}}}"#,
            names[stream]
        );
        producer.send(TOPIC, (stream / VARIANTS) as i32, Some(&record));
        self.written[stream].store(number + 1, Ordering::Release);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A thread that failed has said why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
