//! NATS JetStream as one of the logs.

use async_nats::jetstream::{message::PublishMessage, stream};
use futures_util::TryStreamExt;

use crate::{
    log::{Log, Restorable},
    nats::{NatsServer, USER},
};

/// Unanswered publications: enough to keep a server on the same machine busy.
const AT_ONCE: usize = 256;

pub struct Nats(NatsServer);

impl Log for Nats {
    const KIND: &'static str = "nats";
    const PARTITIONS: u32 = 1;
    const KILLS: u32 = 3;
    const REFUSED: &'static str = "the server refuses the credentials";
    const MISSING: &'static str = "there is no stream";

    async fn prepare() -> Self {
        Self(NatsServer::prepare())
    }

    async fn start(&mut self) {
        self.0.restart().await;
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn create(&self, name: &str) {
        let subjects = vec![format!("{name}.>")];
        let config = stream::Config { name: name.to_owned(), subjects, ..stream::Config::default() };
        self.0.jetstream().await.create_stream(config).await.expect("a stream");
    }

    async fn delete(&self, name: &str) {
        self.0.jetstream().await.delete_stream(name).await.expect("the stream is deleted");
    }

    async fn append(&self, name: &str, _partition: u32, values: &[String]) {
        let jetstream = self.0.jetstream().await;
        for values in values.chunks(AT_ONCE) {
            let mut answers = Vec::new();
            for value in values {
                let message = PublishMessage::build().payload(value.clone().into());
                answers
                    .push(jetstream.send_publish(format!("{name}.some"), message).await.expect("published"));
            }
            for answer in answers {
                answer.await.expect("the server takes it");
            }
        }
    }

    async fn keep_last(&self, name: &str, _partition: u32, keep: usize) {
        let stream = self.0.jetstream().await.get_stream(name).await.expect("the stream");
        stream.purge().keep(keep as u64).await.expect("purged");
    }

    async fn contents(&self, name: &str, _partition: u32) -> Vec<(u64, String)> {
        let mut stream = self.0.jetstream().await.get_stream(name).await.expect("the stream");
        let messages = stream.info().await.expect("info").state.messages;
        let consumer = stream
            .create_consumer(async_nats::jetstream::consumer::push::OrderedConfig {
                deliver_subject: format!("contents.{name}"),
                ..Default::default()
            })
            .await
            .expect("a consumer");
        let mut all = Vec::new();
        let mut read = consumer.messages().await.expect("messages");
        while (all.len() as u64) < messages {
            let message = read.try_next().await.expect("a message").expect("the stream goes on");
            let position = message.info().expect("its place").stream_sequence;
            all.push((position, String::from_utf8(message.payload.to_vec()).expect("text")));
        }
        all
    }

    async fn take_letters(&self, topic: &str) {
        let subjects = vec![topic.to_owned()];
        let config = stream::Config { name: "letters".to_owned(), subjects, ..stream::Config::default() };
        self.0.jetstream().await.create_stream(config).await.expect("a stream");
    }

    fn keys_at(&self, name: &str, address: Option<&str>) -> String {
        let url = address.map_or_else(|| self.0.url(), |address| format!("nats://{address}"));
        let file = self.0.password_file();
        format!("url = {url:?}\nstream = {name:?}\nuser = {USER:?}\npassword_file = {file:?}\n")
    }

    fn wrong_keys(&self, name: &str) -> String {
        self.keys(name).replace(&format!("user = {USER:?}"), "user = \"nobody\"")
    }
}

impl Restorable for Nats {
    fn back_up(&self) {
        self.0.back_up();
    }

    fn put_back(&self) {
        self.0.put_back();
    }
}
