//! Writes to subjects that a JetStream stream takes, and reads them.

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{
        consumer::DeliverPolicy,
        context::{PublishError, PublishErrorKind},
    },
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Config,
    link::{Link, Trouble},
};
use crate::source::writing::{LogWriter, Message, WRITE_TIMEOUT, WriteError};

/// Writes over a connection of its own, and waits until a stream has confirmed each message.
pub struct Writer {
    config: Config,
    source: String,
    link: Option<Link>,
}

impl Writer {
    pub fn new(config: Config, source: &str) -> Self {
        Self { config, source: source.to_owned(), link: None }
    }

    async fn link(&mut self) -> Result<Link, WriteError> {
        match self.link.take().filter(|link| link.lost().now_or_never().is_none()) {
            Some(link) => Ok(link),
            None => Ok(Link::connect(&self.config.access, &self.source, "letters").await?),
        }
    }

    async fn publish(&self, link: &Link, messages: &[Message]) -> Result<(), WriteError> {
        let mut confirmed = Vec::with_capacity(messages.len());
        for message in messages {
            let mut headers = HeaderMap::new();
            for (name, value) in &message.headers {
                headers.insert(name.as_str(), line(value));
            }
            if let Some(id) = &message.id {
                headers.insert(NATS_MESSAGE_ID, id.as_str());
            }
            if let Some(name) = self.config.time_header.as_deref().filter(|_| message.time_us > 0) {
                headers.insert(name, message.time_us.to_string());
            }
            let (subject, value) = (message.topic.clone(), message.value.clone());
            let sent = link.jetstream.publish_with_headers(subject, headers, value).await;
            confirmed.push(sent.map_err(|error| refused(message, &error))?);
        }
        for (message, confirmed) in messages.iter().zip(confirmed) {
            confirmed.await.map_err(|error| refused(message, &error))?;
        }
        Ok(())
    }
}

/// A header ends with its line.
fn line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn refused(message: &Message, error: &PublishError) -> WriteError {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => WriteError::TooLarge(error.to_string()),
        PublishErrorKind::StreamNotFound => {
            WriteError::Failed(format!("no stream takes the subject {}; make one that does", message.topic))
        }
        _ => WriteError::Failed(format!("{} is not confirmed: {error}", message.topic)),
    }
}

impl From<Trouble> for WriteError {
    fn from(trouble: Trouble) -> Self {
        Self::Failed(trouble.reason)
    }
}

impl LogWriter for Writer {
    fn append<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), WriteError>> {
        Box::pin(async move {
            let link = self.link().await?;
            let published = timeout(WRITE_TIMEOUT, self.publish(&link, messages)).await;
            let published =
                published.unwrap_or_else(|_| Err(WriteError::Failed("no answer in time".to_owned())));
            if let Err(WriteError::Failed(reason)) = published {
                return Err(link.explain(Trouble::new("request", reason)).into());
            }
            self.link = Some(link);
            published
        })
    }

    fn read_all<'a>(
        &'a mut self,
        topic: &'a str,
        output: mpsc::Sender<Message>,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        Box::pin(async move {
            let link = self.link().await?;
            let failed = |error: &dyn std::fmt::Display| WriteError::Failed(error.to_string());
            let stream = link.jetstream.stream_by_subject(topic).await.map_err(|error| failed(&error))?;
            let consumer = link.consumer(&stream, &[topic.to_owned()], DeliverPolicy::All).await?;
            let mut pending = consumer.cached_info().num_pending;
            while pending > 0 {
                let fetch = consumer.fetch().max_messages(link.ahead()).messages();
                let mut messages = fetch.await.map_err(|error| failed(&error))?;
                let before = pending;
                while pending > 0
                    && let Some(message) = messages.next().await
                {
                    let message = message.map_err(|error| failed(&error))?;
                    pending -= 1;
                    if output.send(message_of(&message)).await.is_err() {
                        return Ok(());
                    }
                }
                if pending == before {
                    return Err(WriteError::Failed("the stream does not give what it holds".to_owned()));
                }
            }
            // Should it not hear of it, it forgets by itself.
            let _ = link.jetstream.delete_consumer_from_stream(&consumer.cached_info().name, &stream).await;
            self.link = Some(link);
            Ok(())
        })
    }
}

fn message_of(message: &async_nats::Message) -> Message {
    let headers = message.headers.iter().flat_map(|headers| headers.iter());
    let header = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
        (name.to_string(), values.first().map(ToString::to_string).unwrap_or_default())
    };
    Message {
        topic: message.subject.to_string(),
        value: Bytes::copy_from_slice(&message.payload),
        headers: headers.map(header).collect(),
        ..Message::default()
    }
}
