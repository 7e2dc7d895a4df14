//! Verifies what the exchange has signed.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use reqwest::Url;
use tickmesh::{auth::Pattern, key_file, signing::fetch_keys};
use tickmesh_protocol::{
    Position,
    client::DataMessage,
    signature::{InvalidSignature, KeySet, MAX_KEY_SET_BYTES},
};

/// The least time between two looks for a key that is not known, whatever key ids events name.
const LEAST_PAUSE: Duration = Duration::from_secs(30);

/// The exchange's keys, and what they must have signed.
pub(super) struct Signatures {
    source: Source,
    keys: KeySet,
    loaded: Instant,
    required: Vec<Pattern>,
}

enum Source {
    File(PathBuf),
    Url(Url),
}

/// What a signature says of an event.
pub(super) enum Verdict {
    Unsigned,
    Good,
    Wrong(String),
}

impl Verdict {
    pub(super) fn is_good(&self) -> Option<bool> {
        match self {
            Self::Unsigned => None,
            Self::Good => Some(true),
            Self::Wrong(_) => Some(false),
        }
    }
}

impl Source {
    async fn load(&self) -> anyhow::Result<KeySet> {
        match self {
            Self::Url(url) => fetch_keys(url).await,
            Self::File(file) => {
                let name = file.display();
                let text = key_file::read(file, MAX_KEY_SET_BYTES);
                let text = text.with_context(|| format!("cannot read {name}"))?;
                KeySet::parse(text.as_bytes()).with_context(|| format!("{name}"))
            }
        }
    }
}

impl Signatures {
    /// With the keys of a file, or of an address.
    pub(super) async fn new(from: &str, required: Vec<Pattern>) -> anyhow::Result<Self> {
        let source = if from.starts_with("http://") || from.starts_with("https://") {
            Source::Url(from.parse().with_context(|| format!("{from}: no address"))?)
        } else {
            Source::File(from.into())
        };
        let keys = source.load().await.context("--jwks")?;
        Ok(Self { source, keys, loaded: Instant::now(), required })
    }

    pub(super) async fn judge(&mut self, event: &DataMessage<'_>) -> Verdict {
        let Some(signature) = &event.signature else {
            let required = self.required.iter().any(|pattern| pattern.matches(event.stream.as_str()));
            return if required { Verdict::Wrong("not signed".into()) } else { Verdict::Unsigned };
        };
        let Some(epoch) = event.epoch else {
            return Verdict::Wrong("signed, but without the epoch that is signed".into());
        };
        let at = Position { epoch, sequence: event.sequence };
        let data = event.data.get().as_bytes();
        let mut verdict = self.keys.verify(signature, &event.stream, at, data);
        if matches!(verdict, Err(InvalidSignature::UnknownKey(_))) && self.loaded.elapsed() > LEAST_PAUSE {
            // The exchange may have a new key. The old ones stay where there is no answer.
            self.loaded = Instant::now();
            if let Ok(keys) = self.source.load().await {
                self.keys = keys;
                verdict = self.keys.verify(signature, &event.stream, at, data);
            }
        }
        match verdict {
            Ok(_) => Verdict::Good,
            Err(error) => Verdict::Wrong(error.to_string()),
        }
    }
}
