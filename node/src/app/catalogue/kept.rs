//! The catalogue on disk, as JSON: with it a peer that starts reads what the others do, and knows what it made of which record.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tickmesh_protocol::catalogue::{Catalogue, Entry};

use super::folder;
use crate::durable;

/// Largest file that is read: the largest catalogue, with what JSON adds.
const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;

/// What a peer keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::app) struct Kept {
    pub(in crate::app) catalogue: Catalogue,
    /// What was in the folder of files when it was taken in last.
    pub(in crate::app) files: Option<u64>,
}

impl Kept {
    /// What is in the file; or, at the very first start, in the folder.
    ///
    /// # Errors
    /// If either is there and cannot be used.
    pub(in crate::app) fn open(file: Option<&Path>, folder: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(kept) = file.map(Self::read).transpose()?.flatten() {
            return Ok(kept);
        }
        let Some(folder) = folder else { return Ok(Self::default()) };
        let files = folder::Files::read(folder).map_err(|faults| anyhow::anyhow!(faults.join("\n")))?;
        let entry = |definition| Entry { definition, since: 0, until: None };
        let entries = files.definitions.into_iter().map(entry).collect();
        let catalogue = Catalogue { entries, ..Catalogue::default() };
        catalogue.check().with_context(|| format!("{} (ingest.catalogue)", folder.display()))?;
        Ok(Self { catalogue, files: Some(files.hash) })
    }

    fn read(file: &Path) -> anyhow::Result<Option<Self>> {
        let name = || format!("the catalogue in {}", file.display());
        let bytes = match fs::metadata(file) {
            Ok(of) => {
                ensure!(of.len() <= MAX_FILE_BYTES, "{}: more than {MAX_FILE_BYTES} bytes", file.display());
                fs::read(file).with_context(name)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(name),
        };
        let kept: Self = serde_json::from_slice(&bytes).with_context(name)?;
        kept.catalogue.check().with_context(name)?;
        Ok(Some(kept))
    }

    /// Writes it. A disk that does not take it is told, and stops nothing: siblings have it as well.
    pub(in crate::app) async fn write(&self, file: &Path) {
        let (file, bytes): (PathBuf, _) = (file.to_owned(), serde_json::to_vec_pretty(self));
        let written = tokio::task::spawn_blocking(move || {
            bytes
                .map_err(io::Error::other)
                .and_then(|bytes| durable::replace(&file, &bytes))
                .map_err(|error| (file, error))
        });
        if let Ok(Err((file, error))) = written.await {
            tracing::error!(file = %file.display(), %error, "the catalogue cannot be kept; after a restart it comes from the siblings");
        }
    }
}
