//! Adds entries to streams of the server or cluster that a source reads, and reads them.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::Cmd;
use tokio::{sync::mpsc, time::timeout};

use super::{
    answers::{self, Entry},
    config::Config,
    id::Id,
    link::{Link, MAX_REDIRECTIONS, Trouble, redirected},
};
use crate::source::writing::{LogWriter, Message, WRITE_TIMEOUT, WriteError};

/// The field of a key, where the configuration names none.
const KEY_FIELD: &str = "key";
/// Entries that are asked for at once.
const PAGE: usize = 256;

/// Writes over a connection of its own. What the server confirms is as safe as its `appendfsync` makes it.
pub struct Writer {
    config: Config,
    link: Option<Link>,
}

impl Writer {
    pub fn new(config: Config) -> Self {
        Self { config, link: None }
    }

    /// Asks the server that has the key, wherever that is in a cluster.
    async fn ask(&mut self, questions: &[Cmd]) -> Result<Vec<redis::Value>, Trouble> {
        let mut node = self.config.urls.first().cloned().map(|node| (node, false));
        let mut redirections = 0;
        loop {
            let mut link = match self.link.take() {
                Some(link) => link,
                None => {
                    let (node, asking) = node.clone().ok_or(Trouble::Strange("no address"))?;
                    Link::connect(&self.config, &node, asking).await?
                }
            };
            let answers = link.ask_all(questions.to_vec()).await?;
            let answers: Result<Vec<_>, Trouble> = answers.into_iter().collect();
            match answers {
                Ok(answers) => {
                    self.link = Some(link);
                    return Ok(answers);
                }
                Err(trouble) => match redirected(&self.config, &trouble) {
                    Some(next) if redirections < MAX_REDIRECTIONS => {
                        node = Some(next);
                        redirections += 1;
                    }
                    _ => return Err(trouble),
                },
            }
        }
    }

    fn entry(&self, message: &Message) -> Cmd {
        let mut command = redis::cmd("XADD");
        command.arg(&message.topic).arg("*").arg(&self.config.field).arg(&message.value[..]);
        if let Some(key) = &message.key {
            command.arg(self.key_field()).arg(&key[..]);
        }
        if let Some(field) = self.config.time_field.as_ref().filter(|_| message.time_us > 0) {
            command.arg(field).arg(message.time_us);
        }
        for (name, value) in &message.headers {
            command.arg(name).arg(value);
        }
        command
    }

    fn key_field(&self) -> &str {
        self.config.key_field.as_deref().unwrap_or(KEY_FIELD)
    }

    fn message_of(&self, topic: &str, entry: &Entry) -> Message {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        Message {
            topic: topic.to_owned(),
            key: entry.field(self.key_field()).cloned(),
            value: entry.field(&self.config.field).cloned().unwrap_or_default(),
            headers: entry.pairs().map(|(name, value)| (text(name), text(value))).collect(),
            ..Message::default()
        }
    }
}

impl From<Trouble> for WriteError {
    fn from(trouble: Trouble) -> Self {
        Self::Failed(trouble.to_string())
    }
}

impl LogWriter for Writer {
    fn append<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), WriteError>> {
        Box::pin(async move {
            // Another key may be with another node.
            for of_key in messages.chunk_by(|a, b| a.topic == b.topic) {
                let commands: Vec<_> = of_key.iter().map(|message| self.entry(message)).collect();
                let added = timeout(WRITE_TIMEOUT, self.ask(&commands)).await;
                added.map_err(|_| WriteError::Failed("no answer in time".to_owned()))??;
            }
            Ok(())
        })
    }

    fn read_all<'a>(
        &'a mut self,
        topic: &'a str,
        output: mpsc::Sender<Message>,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        Box::pin(async move {
            let (mut from, end) = (Id { ms: 0, n: 0 }, Id { ms: u64::MAX, n: u64::MAX });
            loop {
                let answer = self.ask(&[answers::range(topic, from, end, PAGE)]).await?.pop();
                let entries = answers::entries(answer.ok_or(Trouble::Strange("none"))?)?;
                for entry in &entries {
                    if output.send(self.message_of(topic, entry)).await.is_err() {
                        return Ok(());
                    }
                }
                match entries.last() {
                    Some(last) if entries.len() == PAGE => {
                        from = Id { ms: last.id.ms, n: last.id.n.saturating_add(1) };
                    }
                    _ => return Ok(()),
                }
            }
        })
    }
}
