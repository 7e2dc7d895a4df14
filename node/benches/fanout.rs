//! Fan-out of one event of about 200 bytes to 1,000 and 10,000 loopback connections: the CPU time that the server spends
//! for each delivery, beside the floor, a bare loop of `send`. The receivers live in a child process, so that only
//! the server's time is counted; the receiving side of the kernel's loopback is in both figures.
//!
//! Criterion's times are CPU times per fan-out. The lines that begin with `fanout` are what to look at.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a benchmark stops at any fault")]

#[path = "support/edge.rs"]
mod support;

use std::{
    cell::{Cell, RefCell},
    env, fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use tickmesh::ops::metrics::Registry;
use tickmesh_protocol::{Epoch, Event, Previous, Sequence, client::write_data_message};

use self::support::{FIRST_SEQUENCE, QuietEdge, raise_file_limit, resident_bytes, signed, subscribe};

const STREAM: &str = "trades.btc_usdt";

/// Makes the whole frame about 200 bytes long.
const DATA: &[u8] = br#"{"price":"36200.51","quantity":"0.01250000","side":"buy","id":1724548381123,"maker":"a1b2c3d4e5","timestamp":1724548381123}"#;

/// Where the child finds its task.
const TASK: &str = "FANOUT_RECEIVERS";

fn main() {
    raise_file_limit();
    if let Ok(task) = env::var(TASK) {
        return receivers::run(&task);
    }
    let mut criterion =
        Criterion::default().sample_size(10).measurement_time(Duration::from_secs(4)).configure_from_args();
    for connections in [1_000, 10_000] {
        let floor = bench_floor(&mut criterion, connections, 1);
        let floor_of_ten = bench_floor(&mut criterion, connections, 10);
        let edge = EdgeUnderTest::start(connections);
        let one = edge.bench(&mut criterion, 1);
        let ten = edge.bench(&mut criterion, 10);
        let memory = edge.memory_per_connection;
        edge.stop();
        println!(
            "fanout connections={connections} floor_us={floor:.2} edge_us={one:.2} ratio={:.2} \
             floor_10_pending_us={floor_of_ten:.2} edge_10_pending_us={ten:.2} ratio_10_pending={:.2} \
             idle_connection_bytes={memory}",
            one / floor,
            ten / floor_of_ten
        );
    }
    criterion.final_summary();
}

/// CPU time of all threads of this process, in nanoseconds.
fn cpu_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The child that holds the receiving ends, and what it has received.
struct Receivers {
    child: Child,
    control: RefCell<TcpStream>,
    received: Cell<u64>,
}

impl Receivers {
    fn start(kind: &str, address: SocketAddr, connections: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let control_address = listener.local_addr().unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .env(TASK, format!("{kind} {address} {connections} {control_address}"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (control, _) = listener.accept().unwrap();
        Self { child, control: RefCell::new(control), received: Cell::new(0) }
    }

    /// Waits until so many bytes more have come.
    fn wait_for(&self, bytes: u64) {
        let wanted = self.received.get() + bytes;
        while self.received.get() < wanted {
            let mut total = [0; 8];
            self.control.borrow_mut().read_exact(&mut total).unwrap();
            self.received.set(u64::from_le_bytes(total));
        }
        assert_eq!(self.received.get(), wanted, "nothing but the events comes");
    }

    /// Waits until all connections are made and greeted.
    fn wait_until_ready(&self) {
        self.control.borrow_mut().read_exact(&mut [0; 8]).unwrap();
    }

    fn stop(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn frame_bytes() -> usize {
    text(FIRST_SEQUENCE).len() + 4
}

fn text(sequence: u64) -> Vec<u8> {
    let mut text = Vec::new();
    write_data_message(&mut text, &event(sequence));
    text
}

fn event(sequence: u64) -> Event {
    Event {
        stream: STREAM.parse().unwrap(),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(sequence).unwrap(),
        previous: Previous::At(Sequence::new(sequence - 1).unwrap()),
        engine_time_us: 1,
        data: Bytes::from_static(DATA),
        signature: None,
    }
}

/// Runs one case and returns its CPU µs per delivery. `fan_out` delivers one round and waits for it; `prepare` makes
/// what that needs, outside of what is counted.
fn bench<T>(
    criterion: &mut Criterion,
    name: &str,
    connections: usize,
    pending: usize,
    mut prepare: impl FnMut() -> T,
    mut fan_out: impl FnMut(T),
) -> f64 {
    let (mut ns, mut rounds) = (0, 0);
    let mut group = criterion.benchmark_group(format!("fanout_{connections}"));
    group.throughput(Throughput::Elements((connections * pending) as u64));
    group.bench_function(BenchmarkId::new(name, pending), |bencher| {
        bencher.iter_custom(|iterations| {
            let prepared: Vec<T> = (0..iterations).map(|_| prepare()).collect();
            let before = cpu_ns();
            prepared.into_iter().for_each(&mut fan_out);
            let used = cpu_ns() - before;
            ns += used;
            rounds += iterations;
            Duration::from_nanos(used)
        });
    });
    group.finish();
    ns as f64 / 1000.0 / (rounds as usize * connections * pending) as f64
}

/// The floor: one `send` of all that is pending for each socket.
fn bench_floor(criterion: &mut Criterion, connections: usize, pending: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let receivers = Receivers::start("raw", listener.local_addr().unwrap(), connections);
    let mut sockets: Vec<TcpStream> = (0..connections).map(|_| listener.accept().unwrap().0).collect();
    for socket in &sockets {
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    receivers.wait_until_ready();
    let frames = vec![b'x'; frame_bytes() * pending];
    let result = bench(
        criterion,
        "floor",
        connections,
        pending,
        || (),
        |()| {
            for socket in &mut sockets {
                assert_eq!(socket.write(&frames).unwrap(), frames.len());
            }
            receivers.wait_for((frames.len() * connections) as u64);
        },
    );
    receivers.stop();
    result
}

/// An edge whose connections are all subscribed.
struct EdgeUnderTest {
    edge: QuietEdge,
    receivers: Receivers,
    connections: usize,
    memory_per_connection: usize,
    sequence: Cell<u64>,
}

impl EdgeUnderTest {
    fn start(connections: usize) -> Self {
        let edge = QuietEdge::start(Registry::new());
        let before = resident_bytes();
        let receivers = Receivers::start("ws", edge.address, connections);
        receivers.wait_until_ready();
        let memory_per_connection = resident_bytes().saturating_sub(before) / connections;
        Self { edge, receivers, connections, memory_per_connection, sequence: Cell::new(FIRST_SEQUENCE) }
    }

    fn bench(&self, criterion: &mut Criterion, pending: usize) -> f64 {
        let next_batch = || {
            let first = self.sequence.get();
            self.sequence.set(first + pending as u64);
            signed(first, (first..first + pending as u64).map(event).collect())
        };
        let bytes = (frame_bytes() * pending * self.connections) as u64;
        bench(criterion, "edge", self.connections, pending, next_batch, |batch| {
            self.edge.deliver(batch);
            self.receivers.wait_for(bytes);
        })
    }

    fn stop(self) {
        self.receivers.stop();
        self.edge.stop();
    }
}

/// The child process: holds connections and tells how many bytes have come.
mod receivers {
    use super::*;

    pub(super) fn run(task: &str) {
        let parts: Vec<&str> = task.split(' ').collect();
        let (kind, address, connections, control) = (parts[0], parts[1], parts[2].parse().unwrap(), parts[3]);
        let control = TcpStream::connect(control).unwrap();
        control.set_nodelay(true).unwrap();
        let sockets: Vec<TcpStream> = (0..connections).map(|_| connect(kind, address)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(receive(sockets, control));
    }

    fn connect(kind: &str, address: &str) -> TcpStream {
        let mut socket = TcpStream::connect(address).unwrap();
        if kind == "ws" {
            subscribe(&mut socket, &[STREAM]);
        }
        socket.set_nonblocking(true).unwrap();
        socket
    }

    async fn receive(sockets: Vec<TcpStream>, mut control: TcpStream) {
        let local = tokio::task::LocalSet::new();
        let total = std::rc::Rc::new(Cell::new(0_u64));
        for socket in sockets {
            let socket = tokio::net::TcpStream::from_std(socket).unwrap();
            let total = std::rc::Rc::clone(&total);
            local.spawn_local(async move {
                loop {
                    socket.readable().await.unwrap();
                    total.set(total.get() + drain(&socket));
                }
            });
        }
        local
            .run_until(async {
                control.write_all(&[0; 8]).unwrap();
                let mut told = 0;
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if total.get() != told {
                        told = total.get();
                        control.write_all(&told.to_le_bytes()).unwrap();
                    }
                }
            })
            .await;
    }

    /// Takes everything that has come.
    fn drain(socket: &tokio::net::TcpStream) -> u64 {
        let mut buffer = [0; 8192];
        let mut total = 0;
        loop {
            match socket.try_read(&mut buffer) {
                Ok(0) => std::process::exit(0),
                Ok(bytes) => total += bytes as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return total,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
