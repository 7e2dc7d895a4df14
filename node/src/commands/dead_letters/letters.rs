//! Reads letters from where they are, each once.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
};

use anyhow::{Context, bail};
use tickmesh::{
    ingest::dead_letters::{Destination, Letter, LetterFile},
    source::{self, writing::Message},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Letters read ahead.
const AHEAD: usize = 64;

/// Letters as they come.
pub(super) struct Reading {
    letters: mpsc::Receiver<Letter>,
    task: JoinHandle<anyhow::Result<()>>,
    source: Option<String>,
    since: u64,
    /// What came before, by hashes: a letter is written again after a restart, and to a topic by each ingest peer.
    seen: HashSet<u64>,
    hashes: RandomState,
}

impl Reading {
    pub(super) fn open(
        from: Destination,
        sources: Vec<source::Config>,
        source: Option<String>,
        since: u64,
    ) -> Self {
        let (output, letters) = mpsc::channel(AHEAD);
        let task = match from {
            Destination::File { path, max_bytes } => tokio::task::spawn_blocking(move || {
                let name = path.display().to_string();
                let read =
                    LetterFile::new(path, max_bytes).read(|letter| output.blocking_send(letter).is_ok());
                let strange = read.with_context(|| format!("cannot read {name}"))?;
                if strange > 0 {
                    eprintln!("{name}: {strange} lines are no letters, and were passed over");
                }
                Ok(())
            }),
            Destination::Topic(topic) => tokio::spawn(read_topics(topic, sources, output)),
        };
        Self { letters, task, source, since, seen: HashSet::new(), hashes: RandomState::new() }
    }

    /// The next letter that is wanted.
    pub(super) async fn next(&mut self) -> Option<Letter> {
        loop {
            let letter = self.letters.recv().await?;
            let wanted = self.source.as_ref().is_none_or(|source| *source == letter.source)
                && letter.time >= self.since;
            if wanted && self.seen.insert(self.hashes.hash_one(&letter.id)) {
                return Some(letter);
            }
        }
    }

    /// Whether all were read.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        drop(self.letters);
        self.task.await?
    }
}

/// Sources of one server may share the topic: what comes again is passed over by who takes it.
async fn read_topics(
    topic: String,
    sources: Vec<source::Config>,
    output: mpsc::Sender<Letter>,
) -> anyhow::Result<()> {
    let mut troubles = HashMap::new();
    for source in sources {
        let Some(mut writer) = source.writer() else { continue };
        let (messages, mut read) = mpsc::channel::<Message>(AHEAD);
        let letters = output.clone();
        let passing = async move {
            while let Some(message) = read.recv().await {
                if let Some(letter) = Letter::from_message(&message)
                    && letters.send(letter).await.is_err()
                {
                    return;
                }
            }
        };
        let (read, ()) = tokio::join!(writer.read_all(&topic, messages), passing);
        if let Err(error) = read {
            troubles.insert(source.name, error);
        }
    }
    match troubles.into_iter().next() {
        Some((source, error)) => bail!("cannot read {topic} of source {source}: {error}"),
        None => Ok(()),
    }
}

/// Milliseconds since 1970 as `2026-11-27T07:10:22Z`.
pub(super) fn utc(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days since 0000-03-01 in eras of 400 years, as Howard Hinnant's `civil_from_days` has it.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn days_and_leap_years() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_763_422_000), "2026-11-27T07:10:22Z");
        assert_eq!(utc(4_107_542_399_000), "2100-02-28T23:59:59Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01T00:00:00Z");
    }
}
