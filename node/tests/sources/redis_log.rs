//! Redis Streams as one of the logs.

use std::time::Duration;

use redis::{Client, Connection};

use crate::{
    log::Log,
    redis_server::{DURABLE, RedisServer, position_of, run},
};

/// Users of the server: who reads, and no more; and who writes.
const USERS: &str = "user default off\nuser writer on >w ~* +@all\n\
                     user reader on >secret ~* +xread +xrange +xinfo|stream +scan\n";
/// Entries that are added at once.
const AT_ONCE: usize = 512;

pub struct Redis(RedisServer);

impl Redis {
    fn connection(&self) -> Connection {
        let url = format!("redis://writer:w@127.0.0.1:{}", self.0.port);
        Client::open(url).and_then(|client| client.get_connection()).expect("a connection")
    }
}

impl Log for Redis {
    const KIND: &'static str = "redis";
    const PARTITIONS: u32 = 1;
    const KILLS: u32 = 3;
    const REFUSED: &'static str = "the server refuses the user or the password";
    const MISSING: &'static str = "no key is there of";

    async fn prepare() -> Self {
        Self(RedisServer::prepare(&format!("{DURABLE}{USERS}")))
    }

    async fn start(&mut self) {
        self.0.restart();
        // Who has not signed in is not told that the server is still loading.
        while run::<String>(&mut self.connection(), &["PING"]).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn create(&self, name: &str) {
        // A stream is made by its first entry, or by a group of readers.
        let mut connection = self.connection();
        run::<()>(&mut connection, &["XGROUP", "CREATE", name, "nobody", "$", "MKSTREAM"]).expect("a stream");
        run::<usize>(&mut connection, &["XGROUP", "DESTROY", name, "nobody"]).expect("no group");
    }

    async fn delete(&self, name: &str) {
        run::<usize>(&mut self.connection(), &["DEL", name]).expect("the key is deleted");
    }

    async fn append(&self, name: &str, _partition: u32, values: &[String]) {
        let mut connection = self.connection();
        for values in values.chunks(AT_ONCE) {
            let mut all = redis::pipe();
            for value in values {
                all.cmd("XADD").arg(name).arg("*").arg("value").arg(value).ignore();
            }
            all.query::<()>(&mut connection).expect("the server takes them");
        }
    }

    async fn keep_last(&self, name: &str, _partition: u32, keep: usize) {
        let keep = keep.to_string();
        run::<usize>(&mut self.connection(), &["XTRIM", name, "MAXLEN", &keep]).expect("trimmed");
    }

    async fn contents(&self, name: &str, _partition: u32) -> Vec<(u64, String)> {
        let entries: Vec<(String, Vec<String>)> =
            run(&mut self.connection(), &["XRANGE", name, "-", "+"]).expect("the stream");
        entries.into_iter().map(|(id, fields)| (position_of(&id), fields[1].clone())).collect()
    }

    async fn refuse_letters(&self, topic: &str) {
        run::<()>(&mut self.connection(), &["SET", topic, "no stream"]).expect("a key");
    }

    async fn take_letters(&self, topic: &str) {
        run::<usize>(&mut self.connection(), &["DEL", topic]).expect("the key is deleted");
    }

    fn writing_keys(&self, name: &str) -> String {
        self.keys(name).replace("reader:secret@", "writer:w@")
    }

    fn keys_at(&self, name: &str, address: Option<&str>) -> String {
        let server = format!("127.0.0.1:{}", self.0.port);
        format!("url = \"redis://reader:secret@{}\"\nkeys = [{name:?}]\n", address.unwrap_or(&server))
    }

    fn wrong_keys(&self, name: &str) -> String {
        self.keys(name).replace(":secret@", ":wrong@")
    }
}
