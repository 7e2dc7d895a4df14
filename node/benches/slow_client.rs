//! What a client that stops reading costs the others: 1,000 clients read one stream while another client, again and again,
//! subscribes to a heavy one and reads nothing until it is closed with 4408. Rounds without and with it take turns in one run;
//! in all of them one more client reads the heavy stream, so that the edge has the same work besides.
//!
//! The readers live in a child process and note for each event how long ago it was made. The last line is what to look at.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a benchmark stops at any fault")]

#[path = "support/edge.rs"]
mod support;

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tickmesh::ops::metrics::Registry;
use tickmesh_protocol::{Epoch, Event, Previous, Sequence, StreamName};

use self::support::{FIRST_SEQUENCE, QuietEdge, raise_file_limit, resident_bytes, signed, subscribe};

const STREAM: &str = "trades.btc_usdt";
const HEAVY: &str = "trades.heavy";

const READERS: usize = 1_000;

/// Rounds without and with the client that stops reading.
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_secs(8);

/// Between two events of the stream: 20,000 deliveries per second.
const EVERY: Duration = Duration::from_millis(50);

/// At each of them so many events of so many bytes on the heavy stream: in three seconds more than a socket and a queue take.
const HEAVY_EVENTS: u64 = 25;
const HEAVY_BYTES: usize = 8_000;

/// Where the child finds its task.
const TASK: &str = "SLOW_CLIENT_READERS";

fn main() {
    raise_file_limit();
    if let Ok(task) = env::var(TASK) {
        return readers::run(&task);
    }
    let mut edge = EdgeUnderTest::start();
    edge.round(false);
    let mut measured = [Vec::new(), Vec::new()];
    let (mut memory, mut closed) = (Vec::new(), 0);
    for round in 0..2 * ROUNDS {
        let (p99, disconnects) = edge.round(round % 2 == 1);
        measured[round % 2].push(p99);
        closed += disconnects;
        memory.push(resident_bytes() >> 20);
        println!("round={round} stuck_client={} p99_us={p99} resident_mib={}", round % 2 == 1, memory[round]);
    }
    edge.stop();
    let [without, with] = measured.map(median);
    println!(
        "slow_client readers={READERS} p99_without_us={without} p99_with_us={with} ratio={:.2} closed_4408={closed} \
         resident_mib_first={} resident_mib_last={}",
        with as f64 / without as f64,
        memory[0],
        memory[2 * ROUNDS - 1]
    );
}

fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// All clients are at the shard of the one that stops reading.
struct EdgeUnderTest {
    edge: QuietEdge,
    registry: Registry,
    child: Child,
    control: TcpStream,
    counter: u64,
    last: [u64; 2],
}

impl EdgeUnderTest {
    fn start() -> Self {
        let registry = Registry::new();
        let edge = QuietEdge::start(registry.clone());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let task = format!("{} {}", edge.address, listener.local_addr().unwrap());
        let child =
            Command::new(env::current_exe().unwrap()).env(TASK, task).stdin(Stdio::null()).spawn().unwrap();
        let (control, _) = listener.accept().unwrap();
        let mut edge = Self { edge, registry, child, control, counter: 0, last: [FIRST_SEQUENCE - 1; 2] };
        edge.take_p99();
        edge
    }

    /// The readers' 99th percentile since the last time it was taken, in microseconds.
    fn take_p99(&mut self) -> u64 {
        self.control.write_all(&[0]).unwrap();
        let mut p99 = [0; 8];
        self.control.read_exact(&mut p99).unwrap();
        u64::from_le_bytes(p99)
    }

    /// Returns the 99th percentile, and how many clients were closed as slow.
    fn round(&mut self, with_stuck: bool) -> (u64, u64) {
        let (before, end) = (self.disconnects(), Instant::now() + ROUND);
        let mut stuck = None;
        self.take_p99();
        while Instant::now() < end {
            let closed = self.disconnects() - before;
            if with_stuck && stuck.as_ref().is_none_or(|(number, _)| *number != closed) {
                let mut socket = TcpStream::connect(self.edge.address).unwrap();
                subscribe(&mut socket, &[HEAVY]);
                stuck = Some((closed, socket));
            }
            self.publish(0, STREAM, 1, 100);
            self.publish(1, HEAVY, HEAVY_EVENTS, HEAVY_BYTES);
            thread::sleep(EVERY);
        }
        let closed = self.disconnects() - before;
        assert_eq!(closed > 0, with_stuck, "only who does not read is closed");
        let p99 = self.take_p99();
        assert!(p99 > 0, "the readers have read");
        (p99, closed)
    }

    fn disconnects(&self) -> u64 {
        let text = self.registry.render();
        let value =
            text.lines().find_map(|line| line.strip_prefix("tickmesh_slow_client_disconnects_total "));
        value.unwrap().parse().unwrap()
    }

    /// Publishes events that say when they were made.
    fn publish(&mut self, index: usize, stream: &str, events: u64, bytes: usize) {
        let stream: StreamName = stream.parse().unwrap();
        let first = self.last[index] + 1;
        self.last[index] += events;
        self.counter += 1;
        let event = |sequence: u64| Event {
            stream: stream.clone(),
            epoch: Epoch::from_u64(1),
            sequence: Sequence::new(sequence).unwrap(),
            previous: Previous::At(Sequence::new(sequence - 1).unwrap()),
            engine_time_us: now_us(),
            data: format!(r#"{{"made":"{:020}","padding":"{}"}}"#, now_us(), "x".repeat(bytes)).into(),
            signature: None,
        };
        self.edge.deliver(signed(self.counter, (first..first + events).map(event).collect()));
    }

    fn stop(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.edge.stop();
    }
}

/// The child process: reads, and notes latencies.
mod readers {
    use std::{cell::RefCell, io::ErrorKind, mem, rc::Rc};

    use super::*;

    pub(super) fn run(task: &str) {
        let (address, control) = task.split_once(' ').unwrap();
        let mut sockets: Vec<_> = (0..READERS).map(|_| connect(address, STREAM)).collect();
        sockets.push(connect(address, HEAVY));
        let mut control = TcpStream::connect(control).unwrap();
        let latencies: Rc<RefCell<Vec<u64>>> = Rc::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            for socket in sockets {
                let socket = tokio::net::TcpStream::from_std(socket).unwrap();
                tokio::task::spawn_local(read(socket, Rc::clone(&latencies)));
            }
            loop {
                let mut asked = control.try_clone().unwrap();
                let wait = tokio::task::spawn_blocking(move || asked.read_exact(&mut [0]));
                if wait.await.unwrap().is_err() {
                    return;
                }
                let mut latencies = mem::take(&mut *latencies.borrow_mut());
                latencies.sort_unstable();
                let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or(0);
                control.write_all(&p99.to_le_bytes()).unwrap();
            }
        });
    }

    fn connect(address: &str, stream: &str) -> TcpStream {
        let mut socket = TcpStream::connect(address).unwrap();
        subscribe(&mut socket, &[stream]);
        socket.set_nonblocking(true).unwrap();
        socket
    }

    async fn read(socket: tokio::net::TcpStream, latencies: Rc<RefCell<Vec<u64>>>) {
        let (mut buffer, mut bytes) = (vec![0; 64 * 1024], Vec::new());
        loop {
            socket.readable().await.unwrap();
            match socket.try_read(&mut buffer) {
                Ok(0) => panic!("a reader was hung up on"),
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            }
            let now = now_us();
            while let Some(end) = first_frame(&bytes) {
                let frame: Vec<u8> = bytes.drain(..end).collect();
                // The heavy stream's reader is not one of those whom it is about.
                if let Some(made) = made_at(&frame).filter(|_| frame.len() < HEAVY_BYTES) {
                    latencies.borrow_mut().push(now.saturating_sub(made));
                }
            }
        }
    }

    /// Where the first frame ends, if it has come as a whole.
    fn first_frame(bytes: &[u8]) -> Option<usize> {
        let end = match *bytes.get(1)? {
            126 => 4 + usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])),
            127 => panic!("no frame is that large"),
            length => 2 + usize::from(length),
        };
        (bytes.len() >= end).then_some(end)
    }

    fn made_at(frame: &[u8]) -> Option<u64> {
        let field = br#""made":""#;
        let at = frame.windows(field.len()).position(|part| part == field)? + field.len();
        std::str::from_utf8(frame.get(at..at + 20)?).ok()?.parse().ok()
    }
}
