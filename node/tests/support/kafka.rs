//! A real Apache Kafka broker (KRaft, one node) for one test, from the jars in the folder that `TICKMESH_KAFKA_LIBS`
//! names. Self-contained: any integration test may take it in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]
#![allow(dead_code, reason = "each integration test takes in this file and uses a part of it")]

#[allow(clippy::duplicate_mod, reason = "the file of each server stands alone")]
#[path = "ports.rs"]
mod ports;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};

use self::ports::free_port;

/// A broker needs 6 to 8 seconds on a quiet machine; tests share a busy one.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// For anything a running broker is asked.
const DEADLINE: Duration = Duration::from_secs(30);

/// Who may connect to [`KafkaBroker::sasl_bootstrap`] and [`KafkaBroker::tls_bootstrap`]; the password is the same.
pub const SASL_USER: &str = "tester";

/// Runs a broker until the process of the first argument is gone, and removes the folder of the second then.
const WHILE_IT_RUNS: &str = "runner=$1 folder=$2; shift 2; \"$@\" & while kill -0 $runner 2>/dev/null; do sleep 1; done; \
                             kill -9 $!; rm -rf \"$folder\"";

/// A broker that ends with its value, or with all tests.
pub struct KafkaBroker {
    directory: PathBuf,
    /// None if it serves other tests as well.
    _own: Option<tempfile::TempDir>,
    libs: PathBuf,
    port: u16,
    sasl_port: u16,
    tls_port: u16,
    child: Option<Child>,
}

static SHARED: Mutex<Weak<KafkaBroker>> = Mutex::new(Weak::new());

impl KafkaBroker {
    /// Starts a broker on free ports and waits until it answers.
    pub fn start() -> Self {
        let mut broker = Self::prepare();
        broker.restart();
        broker
    }

    /// A broker for all tests that leave it alive, each with topics of its own. cargo-nextest gives each test a process: the
    /// first one that comes here starts the broker, and it ends with nextest. Without nextest it ends with the last test
    /// that has it.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(broker) = shared.upgrade() {
            return broker;
        }
        // Repetitions of a run make topics of the same names again.
        let repetition = std::env::var("NEXTEST_STRESS_CURRENT").unwrap_or_default();
        let run = std::env::var("NEXTEST_RUN_ID").ok().map(|run| run + &repetition);
        let broker = Arc::new(run.map_or_else(Self::start, |run| Self::of_run(&run)));
        *shared = Arc::downgrade(&broker);
        broker
    }

    /// The broker of a run of nextest.
    fn of_run(run: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tickmesh-kafka-{run}"));
        fs::create_dir_all(&folder).expect("a folder for the broker");
        // Others wait here until it answers.
        let lock = fs::File::create(folder.join("lock")).expect("a lock file");
        lock.lock().expect("the lock");
        let place = folder.join("ports");
        if let Ok(ports) = fs::read_to_string(&place) {
            let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().expect("a port")).collect();
            let [port, sasl_port, tls_port] = ports[..] else { panic!("three ports: {ports:?}") };
            return Self {
                directory: folder,
                _own: None,
                libs: libs(),
                port,
                sasl_port,
                tls_port,
                child: None,
            };
        }
        let broker = Self::prepare_in(folder, None);
        let kafka = broker.kafka();
        let mut keeper = Command::new("setsid");
        keeper.args(["sh", "-c", WHILE_IT_RUNS, "sh"]).arg(std::os::unix::process::parent_id().to_string());
        keeper.arg(&broker.directory).arg(kafka.get_program()).args(kafka.get_args());
        keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut keeper = keeper.spawn().expect("setsid must be installed; ./test sees to it");
        broker.wait_until_it_answers(&mut keeper);
        let ports = format!("{} {} {}", broker.port, broker.sasl_port, broker.tls_port);
        fs::write(&place, ports).expect("the broker's ports");
        broker
    }

    /// Formats a broker's storage and chooses its ports without starting it: [`Self::restart`] does.
    pub fn prepare() -> Self {
        let own = tempfile::tempdir().expect("a temporary directory");
        Self::prepare_in(own.path().to_owned(), Some(own))
    }

    fn prepare_in(directory: PathBuf, own: Option<tempfile::TempDir>) -> Self {
        let [port, controller_port, sasl_port, tls_port] = [(); 4].map(|()| free_port());
        let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
        let [certificate, key] =
            ["server.pem", "server.key"].map(|name| fs::read(tls.join(name)).expect("a file"));
        fs::write(directory.join("keystore.pem"), [key, certificate].concat()).expect("keystore.pem");
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},\
             SASL_PLAINTEXT://127.0.0.1:{sasl_port},SASL_SSL://127.0.0.1:{tls_port}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl_port},SASL_SSL://127.0.0.1:{tls_port}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,\
             SASL_SSL:SASL_SSL\n\
             listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN\n\
             listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={keystore}\n\
             listener.name.sasl_plaintext.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_{SASL_USER}=\"{SASL_USER}\";\n\
             log.dirs={data}\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n",
            data = directory.join("data").display(),
            keystore = directory.join("keystore.pem").display(),
        );
        fs::write(directory.join("server.properties"), properties).expect("server.properties");
        let broker = Self { directory, _own: own, libs: libs(), port, sasl_port, tls_port, child: None };
        broker.format();
        broker
    }

    /// Gives the broker an empty storage. Kafka's own tool makes it, once for all tests: what it writes says nothing of ports
    /// and folders, and each start of Java costs two seconds.
    fn format(&self) {
        let formatted = self.libs.join("formatted-with-users");
        let data = self.directory.join("data");
        if !formatted.join("meta.properties").exists() {
            let status = self
                .java("format.log")
                .args(["kafka.tools.StorageTool", "format", "-t", "dGlja21lc2gtdGVzdC0xMg", "-c"])
                .arg(self.directory.join("server.properties"))
                .args(["--add-scram", &format!("SCRAM-SHA-512=[name={SASL_USER},password={SASL_USER}]")])
                .status()
                .expect("java must be installed; ./test sees to it");
            assert!(status.success(), "Kafka's storage cannot be formatted:\n{}", self.tail("format.log"));
            copy_files(&data, &formatted);
            return;
        }
        copy_files(&formatted, &data);
    }

    /// The address for `brokers` and `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The address where it asks who connects (SASL, PLAIN).
    pub fn sasl_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_port)
    }

    /// The address where it speaks TLS, by a certificate of `tests/tls`, and asks who connects (SASL, SCRAM-SHA-512).
    pub fn tls_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.tls_port)
    }

    /// The process of the broker, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the broker at once (SIGKILL), as a machine that fails does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the broker can be killed");
            child.wait().expect("the broker ends");
        }
    }

    /// Takes from a partition what is at or after an offset, as a disk does that did not keep what was acknowledged. The
    /// broker must be down.
    pub fn cut_log(&self, topic: &str, partition: i32, offset: u64) {
        assert!(self.child.is_none(), "the broker is running");
        let folder = self.directory.join(format!("data/{topic}-{partition}"));
        let path = folder.join("00000000000000000000.log");
        let log = fs::read(&path).expect("the first segment of the log");
        let mut at = 0;
        // Each batch begins with the offset of its first record and the length of what follows, big-endian.
        while at < log.len() {
            let first = u64::from_be_bytes(log[at..at + 8].try_into().unwrap());
            if first >= offset {
                break;
            }
            at += 12 + usize::try_from(u32::from_be_bytes(log[at + 8..at + 12].try_into().unwrap())).unwrap();
        }
        assert!(at < log.len(), "nothing at or after {offset}");
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(at as u64).expect("a shorter log");
        for index in ["index", "timeindex"] {
            let _ = fs::remove_file(folder.join(format!("00000000000000000000.{index}")));
        }
    }

    /// Starts the broker on its ports and data, and waits until it answers.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the broker is running already");
        let mut child = self.kafka().spawn().expect("java starts");
        self.wait_until_it_answers(&mut child);
        self.child = Some(child);
    }

    fn kafka(&self) -> Command {
        let mut command = self.java("kafka.log");
        command.arg("kafka.Kafka").arg(self.directory.join("server.properties"));
        command
    }

    fn wait_until_it_answers(&self, child: &mut Child) {
        let consumer: BaseConsumer = self.client().create().expect("a client");
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let answer = consumer.fetch_metadata(None, Duration::from_secs(1));
            if answer.is_ok_and(|metadata| !metadata.brokers().is_empty()) {
                return;
            }
            let ended = child.try_wait().ok().flatten();
            assert!(ended.is_none(), "the broker ended with {ended:?}:\n{}", self.tail("kafka.log"));
            assert!(Instant::now() < deadline, "the broker does not answer:\n{}", self.tail("kafka.log"));
        }
    }

    /// Creates a topic and waits until it is there.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let results = self.admin().create_topics([&topic], &options()).await.expect("create_topics");
        assert!(results.iter().all(Result::is_ok), "topic {name} cannot be created: {results:?}");
        self.wait_for_partitions(name, |count| count == usize::try_from(partitions).unwrap());
    }

    /// Says what the broker deletes of a topic: `delete` or `compact`.
    pub async fn set_cleanup(&self, topic: &str, policy: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("cleanup.policy", policy);
        let results = self.admin().alter_configs([&change], &options()).await.expect("alter_configs");
        assert!(results.iter().all(Result::is_ok), "{topic} cannot be changed: {results:?}");
    }

    /// Deletes topics, if there are any whose name begins so, and waits until they are gone.
    pub async fn delete_topics(&self, beginning: &str) {
        let consumer: BaseConsumer = self.client().create().expect("a client");
        let metadata = consumer.fetch_metadata(None, DEADLINE).expect("metadata");
        let names = metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name);
        for name in names.filter(|name| name.starts_with(beginning)) {
            self.delete_topic(name).await;
        }
    }

    /// Deletes a topic and waits until it is gone.
    pub async fn delete_topic(&self, name: &str) {
        let results = self.admin().delete_topics(&[name], &options()).await.expect("delete_topics");
        assert!(results.iter().all(Result::is_ok), "topic {name} cannot be deleted: {results:?}");
        self.wait_for_partitions(name, |count| count == 0);
    }

    /// Gives a topic more partitions.
    pub async fn add_partitions(&self, name: &str, total: usize) {
        let more = NewPartitions::new(name, total);
        let results = self.admin().create_partitions([&more], &options()).await.expect("create_partitions");
        assert!(results.iter().all(Result::is_ok), "topic {name} cannot grow: {results:?}");
        self.wait_for_partitions(name, |count| count == total);
    }

    /// Deletes the records before an offset, as retention does.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(before)).expect("a valid offset");
        self.admin().delete_records(&list, &options()).await.expect("delete_records");
    }

    /// A producer that writes each record once.
    pub fn producer(&self) -> KafkaProducer {
        KafkaProducer::new(self.client().set("enable.idempotence", "true"))
    }

    /// The settings of a client of this broker.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).set("reconnect.backoff.max.ms", "500");
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an admin client")
    }

    fn wait_for_partitions(&self, topic: &str, right: impl Fn(usize) -> bool) {
        let consumer: BaseConsumer = self.client().create().expect("a client");
        let deadline = Instant::now() + DEADLINE;
        loop {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)).expect("metadata");
            let with_leader = |partition: &&rdkafka::metadata::MetadataPartition| partition.leader() >= 0;
            let count =
                metadata.topics().iter().flat_map(|topic| topic.partitions()).filter(with_leader).count();
            if right(count) {
                return;
            }
            assert!(Instant::now() < deadline, "topic {topic} has {count} partitions with a leader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn java(&self, log: &str) -> Command {
        let log = fs::File::create(self.directory.join(log)).expect("a log file");
        let mut command = Command::new("java");
        command
            // Quick to start, small: a test broker handles little.
            .args(["-Xms128m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-XX:+UnlockDiagnosticVMOptions", "-XX:-BytecodeVerificationRemote", "-cp"])
            .arg(self.libs.join("*"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        command
    }

    fn tail(&self, log: &str) -> String {
        let text = fs::read_to_string(self.directory.join(log)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn libs() -> PathBuf {
    std::env::var_os("TICKMESH_KAFKA_LIBS").map(PathBuf::from).expect(
        "TICKMESH_KAFKA_LIBS must name the folder with Apache Kafka's jars; ./test fetches them and sets it",
    )
}

/// Copies the files of a folder; the one that says that it is complete last.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    let mut files: Vec<_> =
        fs::read_dir(from).expect("a folder").map(|file| file.expect("a file").path()).collect();
    files.sort_by_key(|file| file.file_name().is_some_and(|name| name == "meta.properties"));
    for file in files.iter().filter(|file| file.is_file()) {
        // Under another name first: another test may look at the same time.
        let name = file.file_name().expect("a name").to_string_lossy();
        let new = to.join(format!(".{name}.{}", std::process::id()));
        fs::copy(file, &new).and_then(|_| fs::rename(&new, to.join(&*name))).expect("a copy");
    }
}

impl Drop for KafkaBroker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(DEADLINE)).operation_timeout(Some(DEADLINE))
}

/// Writes records and knows how many the broker has taken.
pub struct KafkaProducer(ThreadedProducer<Deliveries>);

#[derive(Default)]
pub struct Deliveries {
    delivered: AtomicU64,
    failed: Mutex<Vec<KafkaError>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext<NoCustomPartitioner> for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => self.failed.lock().unwrap().push(error.clone()),
        }
    }
}

impl KafkaProducer {
    /// A producer with settings of its own, such as a transactional id.
    pub fn new(config: &ClientConfig) -> Self {
        Self(config.create_with_context(Deliveries::default()).expect("a producer"))
    }

    /// Hands a record to the producer, waiting for room; [`Self::flush`] waits for the broker.
    pub fn send(&self, topic: &str, partition: i32, value: Option<&str>) {
        self.send_keyed(topic, partition, None, value);
    }

    /// The same with a key.
    pub fn send_keyed(&self, topic: &str, partition: i32, key: Option<&str>, value: Option<&str>) {
        let mut record = BaseRecord::<str, str>::to(topic).partition(partition);
        record.key = key;
        record.payload = value;
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.0.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
                Err((error, _)) => panic!("a record cannot be sent to {topic}: {error}"),
            }
            assert!(Instant::now() < deadline, "the producer's queue stays full");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the broker has all records.
    pub fn flush(&self) {
        self.0.flush(DEADLINE).expect("the broker takes all records");
        let failed = self.0.context().failed.lock().unwrap();
        assert!(failed.is_empty(), "records were not taken: {failed:?}");
    }

    /// Records the broker has taken.
    pub fn delivered(&self) -> u64 {
        self.0.context().delivered.load(Ordering::Relaxed)
    }

    /// The client underneath, for transactions.
    pub fn native(&self) -> &ThreadedProducer<Deliveries> {
        &self.0
    }
}
