//! A folder of files with sources and routes: `ingest.catalogue`. When its content changes, that is a change of the catalogue.
//!
//! It is compared with what was there when it was taken in last, not with the catalogue: files that are brought to one peer after
//! the other would undo one another otherwise. Who has them first makes the change, and for the others there is nothing left to do.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tickmesh_protocol::catalogue::{Change, Definition, MAX_CATALOGUE_BYTES, Origin};
use tokio::time::sleep;

use super::{Keeper, plan::definitions};
use crate::transform::table::digest;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Most files, so that a wrong folder is noticed.
const MAX_FILES: usize = 1024;

/// What is in the folder.
pub(super) struct Files {
    pub(super) definitions: Vec<Definition>,
    pub(super) hash: u64,
}

impl Files {
    /// Reads all `*.toml`, in the order of their names.
    ///
    /// # Errors
    /// Everything that is wrong, with the file.
    pub(super) fn read(folder: &Path) -> Result<Self, Vec<String>> {
        let texts = texts(folder).map_err(|fault| vec![fault])?;
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for (file, text) in &texts {
            match definitions(text, Origin::Files) {
                Ok(definitions) => {
                    for definition in definitions {
                        if !seen.insert(definition.name.clone()) {
                            faults.push(format!("{}: {} is there twice", file.display(), definition.name));
                        }
                        found.push(definition);
                    }
                }
                Err(wrong) => {
                    faults.extend(wrong.into_iter().map(|fault| format!("{}: {fault}", file.display())));
                }
            }
        }
        if faults.is_empty() {
            Ok(Self {
                definitions: found,
                hash: digest(&format!("{:?}", texts.iter().map(|(_, text)| text).collect::<Vec<_>>())),
            })
        } else {
            Err(faults)
        }
    }
}

fn texts(folder: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let told = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| told(folder, &error))? {
        let path = entry.map_err(|error| told(folder, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > MAX_FILES {
        return Err(told(folder, &format!("{} files; at most {MAX_FILES}", files.len())));
    }
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for file in files {
        let text = crate::key_file::read(&file, MAX_CATALOGUE_BYTES).map_err(|error| told(&file, &error))?;
        bytes += text.len();
        if bytes > MAX_CATALOGUE_BYTES {
            return Err(told(folder, &format!("more than {MAX_CATALOGUE_BYTES} bytes in all files")));
        }
        texts.push((file, text));
    }
    Ok(texts)
}

/// Looks at the folder for ever.
pub(super) async fn follow(keeper: &Keeper, folder: &Path) {
    // What was wrong was told; so long as it is the same, it is not told again.
    let mut told = None;
    loop {
        sleep(LOOK).await;
        let path = folder.to_owned();
        let Ok(read) = tokio::task::spawn_blocking(move || Files::read(&path)).await else { return };
        let files = match read {
            Ok(files) => files,
            Err(faults) => {
                if told.as_ref() != Some(&faults) {
                    tracing::error!(folder = %folder.display(), ?faults, "the files change nothing, since something is wrong with them");
                    told = Some(faults);
                }
                continue;
            }
        };
        if keeper.files().await == Some(files.hash) {
            told = None;
            continue;
        }
        match keeper.take_files(files).await {
            Ok(()) => told = None,
            Err(refused) => {
                let faults = vec![refused.to_string()];
                if told.as_ref() != Some(&faults) {
                    tracing::error!(folder = %folder.display(), %refused, passing = refused.is_passing(), "the files change nothing");
                    told = Some(faults);
                }
            }
        }
    }
}

impl Keeper {
    /// What was in the folder when it was taken in last.
    async fn files(&self) -> Option<u64> {
        self.0.state.lock().await.kept.files
    }

    async fn take_files(&self, files: Files) -> Result<(), super::Refused> {
        let Files { definitions, hash } = files;
        let catalogue = self.catalogue().await;
        let of_files = catalogue.present().filter(|known| known.origin == Origin::Files);
        let gone =
            of_files.filter(|known| definitions.iter().all(|definition| definition.name != known.name));
        let change = Change {
            origin: Origin::Files,
            remove: gone.map(|known| known.name.clone()).collect(),
            add: definitions.into_iter().filter(|new| catalogue.get(&new.name) != Some(new)).collect(),
        };
        if !change.remove.is_empty() || !change.add.is_empty() {
            self.change(change, false).await?;
        }
        self.keep_files(hash).await;
        Ok(())
    }
}
