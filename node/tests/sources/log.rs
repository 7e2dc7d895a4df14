//! What a log must be able to do so that its source can be held to the same behaviour as all others.

/// A kind of log with a server of its own. A log of the name that is asked for has [`Self::PARTITIONS`] partitions.
pub trait Log: Sized {
    /// What `kind` of a `[[source]]` says.
    const KIND: &'static str;
    const PARTITIONS: u32;
    /// How often its server is killed in a test: once, where a start takes long.
    const KILLS: u32;

    /// Chooses addresses and folders; the server is down.
    async fn prepare() -> Self;
    /// A server that is up and stays alive. Where a start takes long it serves other tests as well, which have other names.
    async fn shared() -> Self {
        let mut log = Self::prepare().await;
        log.start().await;
        log
    }
    /// Starts the server on its address and with what it has stored, and waits until it answers.
    async fn start(&mut self);
    /// Ends the server at once, as SIGKILL does.
    fn kill(&mut self);

    /// Makes a log that holds nothing, and waits until it is there.
    async fn create(&self, name: &str);
    async fn delete(&self, name: &str);
    /// Writes values to a partition; when it returns, the server has all of them.
    async fn append(&self, name: &str, partition: u32, values: &[String]);
    /// Deletes all but the last records of a partition, as limits do.
    async fn keep_last(&self, name: &str, partition: u32, keep: usize);
    /// All that a partition holds, read by another way than the source's: position and value.
    async fn contents(&self, name: &str, partition: u32) -> Vec<(u64, String)>;

    /// The keys of the `[[source]]` that reads the log, but for `name`, `kind` and `start`.
    fn keys(&self, name: &str) -> String {
        self.keys_at(name, None)
    }
    /// The same for another server's address, host and port.
    fn keys_at(&self, name: &str, address: Option<&str>) -> String;
    /// The same with credentials that the server refuses.
    fn wrong_keys(&self, name: &str) -> String;
    /// The same for who may write there as well.
    fn writing_keys(&self, name: &str) -> String {
        self.keys(name)
    }
    /// From now on nothing can be written to the topic of dead letters; or nobody has made it.
    async fn refuse_letters(&self, _topic: &str) {}
    /// From now on it can.
    async fn take_letters(&self, topic: &str);
    /// Words of the condition when the server refuses them.
    const REFUSED: &'static str;
    /// Words of the condition while there is no such log.
    const MISSING: &'static str;
}

/// A log whose server can be put back to what it had stored before.
pub trait Restorable: Log {
    /// Copies what is stored. The server is down.
    fn back_up(&self);
    /// Puts the copy in place of what has come since. The server is down.
    fn put_back(&self);
}

/// Values of a partition by their numbers.
pub fn values(partition: u32, numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("{partition}:{number}")).collect()
}
