//! Reads ranges again, over a connection of its own. Requests are served one after the other: who asks is behind and can wait
//! a moment.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tickmesh_protocol::position::MAX_SEQUENCE;
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::{
    answers,
    config::Config,
    id::Id,
    link::{Link, MAX_REDIRECTIONS, Trouble, redirected},
    numbering::{Info, epoch_of},
    reading::record_of,
    status::{Known, Status},
};
use crate::source::{LogReader, MAX_READ_BYTES, READ_DEADLINE, ReadError, Record, Stretch, WAITING_READS};

/// Entries that are asked for at once.
const PAGE: usize = 512;
/// Most positions in one range: all there are. What bounds an answer is what is found there.
const ALL_POSITIONS: u64 = MAX_SEQUENCE + 1;
/// Most records in one answer; callers page.
const MAX_READ_RECORDS: usize = 100_000;

/// Positions of the ranges that are read at once: four seconds, an eighth of one, some milliseconds, one, and parts of it.
const STEPS: [u64; 6] = [1 << 24, 1 << 19, 1 << 15, 1 << 12, 1 << 6, 1 << 3];

/// The re-reading side of a Redis source.
pub(super) struct Reader {
    config: Arc<Config>,
    status: Arc<Status>,
    waiting: Semaphore,
    /// Made with the first request, and kept while it works: most peers never re-read. With the node that it is to.
    link: Mutex<Option<Link>>,
}

/// Why a range is not read.
enum Failed {
    Trouble(Trouble),
    Read(ReadError),
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Reader {
    pub(super) fn new(config: Arc<Config>, status: Arc<Status>) -> Self {
        Self { config, status, waiting: Semaphore::new(WAITING_READS), link: Mutex::new(None) }
    }

    async fn read_in_turn(&self, key: &str, from: u64, until: u64) -> Result<Stretch, ReadError> {
        let unavailable = |reason: String| ReadError::Unavailable { topic: key.to_owned(), reason };
        let mut place = self.link.lock().await;
        let mut link = place.take();
        // One that broke since it was used last is made anew, once.
        let mut tries = if link.is_some() { 2 } else { 1 };
        let mut node = self.config.urls.first().cloned().map(|node| (node, false));
        let mut redirections = 0;
        loop {
            let read = async {
                let mut ready = match link.take() {
                    Some(link) => link,
                    None => {
                        let (node, asking) = node.clone().ok_or(Trouble::Strange("no address"))?;
                        Link::connect(&self.config, &node, asking).await?
                    }
                };
                let read = self.range(&mut ready, key, from, until).await;
                Ok::<_, Trouble>((read, ready))
            };
            let failed = match timeout(READ_DEADLINE, read).await {
                Err(_) => return Err(unavailable("no answer in time".to_owned())),
                Ok(Err(trouble)) => trouble,
                Ok(Ok((Ok(stretch), ready))) => {
                    *place = Some(ready);
                    return Ok(stretch);
                }
                Ok(Ok((Err(Failed::Read(error)), ready))) => {
                    *place = Some(ready);
                    return Err(error);
                }
                Ok(Ok((Err(Failed::Trouble(trouble)), _))) => trouble,
            };
            tries -= 1;
            if let Some(next) = redirected(&self.config, &failed).filter(|_| redirections < MAX_REDIRECTIONS)
            {
                node = Some(next);
                redirections += 1;
                tries = 1;
            } else if tries == 0 {
                self.status.figures.error(failed.kind());
                return Err(unavailable(failed.to_string()));
            }
        }
    }

    async fn range(&self, link: &mut Link, key: &str, from: u64, until: u64) -> Result<Stretch, Failed> {
        let info = match link.ask(answers::info(key)).await.and_then(answers::info_of) {
            Ok(info) => info,
            Err(Trouble::NoKey | Trouble::WrongType) => return Err(Failed::Read(unknown(key, 0))),
            Err(trouble) => return Err(trouble.into()),
        };
        let known = self.status.known(key).unwrap_or_default();
        if info.last_given < known.read {
            // Who reads live finds out what it is now.
            let reason = "the stream has lost its end, or is another one".to_owned();
            return Err(Failed::Read(ReadError::Unavailable { topic: key.to_owned(), reason }));
        }
        let oldest = info.oldest_position();
        if from < oldest {
            return Err(Failed::Read(ReadError::Trimmed {
                topic: key.to_owned(),
                partition: 0,
                from,
                oldest,
            }));
        }
        let epoch = epoch_of(&self.config.log(key), known.generation);
        let records = self.records(link, key, known, from.max(known.begun)..until).await?;
        let until = until_of(link, key, &info, from, until).await?;
        Ok(Stretch { epoch, until, records })
    }

    async fn records(
        &self,
        link: &mut Link,
        key: &str,
        known: Known,
        positions: std::ops::Range<u64>,
    ) -> Result<Vec<Record>, Failed> {
        let epoch = epoch_of(&self.config.log(key), known.generation);
        let topic: Arc<str> = key.into();
        let (mut records, mut bytes) = (Vec::new(), 0);
        let Some(last) = positions.end.checked_sub(1).filter(|last| *last >= positions.start) else {
            return Ok(records);
        };
        let (mut from, to) = (Id::at(positions.start), Id::at(last));
        loop {
            let entries = answers::entries(link.ask(answers::range(key, from, to, PAGE)).await?)?;
            let full = entries.len() >= PAGE;
            for entry in &entries {
                bytes += entry.bytes();
                if bytes > MAX_READ_BYTES || records.len() == MAX_READ_RECORDS {
                    return Err(Failed::Read(ReadError::TooLarge { topic: key.to_owned() }));
                }
                // Others are dead letters since they were read live.
                if let (record, None) = record_of(&self.config, &topic, epoch, entry, entry.digest()) {
                    records.push(record);
                }
            }
            match entries.last() {
                Some(last) if full => from = Id { ms: last.id.ms, n: last.id.n.saturating_add(1) },
                _ => return Ok(records),
            }
        }
    }
}

/// Up to where nothing more will be: where the next entry is, which may be far beyond what was asked for; at the end of the
/// stream what was asked for, or that end.
async fn until_of(link: &mut Link, key: &str, info: &Info, from: u64, until: u64) -> Result<u64, Trouble> {
    let end = info.last_given.next_position();
    if end <= until {
        return Ok(end.max(from));
    }
    let beyond = Id { ms: u64::MAX, n: u64::MAX };
    let next = answers::entries(link.ask(answers::range(key, Id::at(until), beyond, 1)).await?)?;
    let next = next.first().and_then(|entry| entry.id.position());
    Ok(next.unwrap_or(until).max(until))
}

fn unknown(key: &str, partition: u32) -> ReadError {
    ReadError::UnknownPartition { topic: key.to_owned(), partition }
}

impl LogReader for Reader {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        until: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        Box::pin(async move {
            if partition != 0 {
                return Err(unknown(topic, partition));
            }
            if until.saturating_sub(from) > ALL_POSITIONS {
                return Err(ReadError::TooLarge { topic: topic.to_owned() });
            }
            let Ok(_waiting) = self.waiting.try_acquire() else {
                let reason = "too many others are reading".to_owned();
                return Err(ReadError::Unavailable { topic: topic.to_owned(), reason });
            };
            self.read_in_turn(topic, from, until).await
        })
    }

    fn steps(&self) -> &'static [u64] {
        &STEPS
    }
}
