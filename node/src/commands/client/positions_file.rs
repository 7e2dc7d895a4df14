//! `--resume FILE`: where the streams stood when this client last ran.
//!
//! The file is replaced as a whole, so it is there in whole whenever the process ends. Positions of streams that are not
//! followed this time stay in it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tickmesh::key_file;

use super::streams::Positions;

/// 80,000 streams with the longest names; a file beyond that is some other file.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Only this user: names of private streams hold user ids.
const MODE: u32 = 0o600;

pub(super) struct PositionsFile {
    path: PathBuf,
    positions: Positions,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    positions: Positions,
}

impl PositionsFile {
    /// Reads the file; it need not be there yet.
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let name = path.display();
        let positions = match key_file::read(&path, MAX_BYTES) {
            Ok(text) => {
                let content: Content = serde_json::from_str(&text).with_context(|| {
                    format!(
                        "{name}: no positions as --resume writes them; remove the file to begin with what is new"
                    )
                })?;
                content.positions
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Positions::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        };
        let file = Self { path, positions };
        // What cannot be written is told now, not after hours.
        file.write()?;
        Ok(file)
    }

    pub(super) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Keeps these positions, if any is another than before.
    pub(super) fn keep(&mut self, positions: Positions) -> anyhow::Result<()> {
        if positions.iter().all(|(name, seen)| self.positions.get(name) == Some(seen)) {
            return Ok(());
        }
        self.positions.extend(positions);
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string(&Content { positions: self.positions.clone() })?;
        replace(&self.path, &text).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::{Epoch, Position, Sequence, client::LastSeen};

    use super::*;

    fn positions(number: u64) -> Positions {
        let sequence = Sequence::new(number).unwrap();
        let at = LastSeen::At(Position { epoch: Epoch::from_u64(7), sequence });
        [("trades.a", at), ("trades.b", LastSeen::Sequence(sequence)), ("trades.c", LastSeen::Nothing)]
            .map(|(name, seen)| (name.to_owned(), seen))
            .into()
    }

    #[test]
    fn what_is_kept_is_read_again_and_other_streams_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        let mut file = PositionsFile::open(path.clone()).unwrap();
        assert!(file.positions().is_empty());
        file.keep(positions(1)).unwrap();
        assert_eq!(PositionsFile::open(path.clone()).unwrap().positions(), &positions(1));
        let one: Positions = positions(2).into_iter().take(1).collect();
        PositionsFile::open(path.clone()).unwrap().keep(one.clone()).unwrap();
        let mut both = positions(1);
        both.extend(one);
        assert_eq!(PositionsFile::open(path.clone()).unwrap().positions(), &both);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [path]);
    }

    #[test]
    fn a_broken_file_is_told_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        for text in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"positions":{"trades.a":-1}}"#,
            r#"{"positions":{"trades.a":{"epoch":"7"}}}"#,
        ] {
            fs::write(&path, text).unwrap();
            let error = PositionsFile::open(path.clone()).err().unwrap();
            assert!(
                format!("{error:#}").contains("positions: no positions as --resume writes them"),
                "{error:#}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let error = PositionsFile::open(folder.path().join("absent/positions")).err().unwrap();
        assert!(format!("{error:#}").contains("cannot write"), "{error:#}");
    }
}
