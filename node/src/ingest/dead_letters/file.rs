//! Dead letters in a file: a line of JSON each. When the file is full it is put aside, in place of what was put aside before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use prometheus::IntCounter;

use super::{Letter, Sink};
use crate::{
    durable::{MODE, beside, make_folder_of},
    source::writing::WriteError,
};

/// Longest line that is read: a letter with the largest value, in base64, and all else.
const MAX_LINE_BYTES: u64 = 24 << 20;

/// A file that takes letters.
#[derive(Debug)]
pub struct LetterFile {
    path: PathBuf,
    max_bytes: u64,
    /// Letters that were deleted to make room.
    deleted: Option<IntCounter>,
}

impl LetterFile {
    pub fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self { path, max_bytes, deleted: None }
    }

    /// Counts letters that are deleted.
    pub fn counting(self, deleted: &IntCounter) -> Self {
        Self { deleted: Some(deleted.clone()), ..self }
    }

    /// The file and the one that was put aside, the older first.
    fn all(&self) -> [PathBuf; 2] {
        [aside(&self.path), self.path.clone()]
    }

    /// Adds letters, all or none; when it returns the disk has them.
    ///
    /// # Errors
    /// If the disk is full or takes nothing. The file is then as it was.
    pub fn append(&self, letters: &[Arc<Letter>]) -> io::Result<()> {
        let lines: String = letters.iter().map(|letter| letter.to_line()).collect();
        let folder = make_folder_of(&self.path)?;
        let length = fs::metadata(&self.path).map_or(0, |file| file.len());
        if length > 0 && length + lines.len() as u64 > self.max_bytes {
            self.put_aside()?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(&self.path)?;
        let length = file.metadata()?.len();
        let written = write(&mut file, length, lines.as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() {
            // A part of a line would hide the next one.
            let _ = file.set_len(length);
        }
        written?;
        if length == 0 {
            // The name is in the folder.
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn put_aside(&self) -> io::Result<()> {
        let aside = aside(&self.path);
        let lost = match File::open(&aside) {
            Ok(file) => BufReader::new(file).split(b'\n').count() as u64,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        fs::rename(&self.path, &aside)?;
        if lost > 0 {
            tracing::error!(path = %aside.display(), letters = lost,
                "the oldest dead letters are deleted: the file is full; put them back in time, or raise dead_letters.max_bytes");
            if let Some(deleted) = &self.deleted {
                deleted.inc_by(lost);
            }
        }
        Ok(())
    }

    /// Gives all letters, oldest first, until `take` says that it has enough. What is none is passed over and counted.
    ///
    /// # Errors
    /// If a file is there and cannot be read.
    pub fn read(&self, mut take: impl FnMut(Letter) -> bool) -> io::Result<u64> {
        let mut strange = 0;
        // Opened both before either is read, so that a file that is put aside meanwhile is not read twice, or not at all.
        let files: Vec<_> = self
            .all()
            .iter()
            .filter_map(|path| match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                opened => Some(opened),
            })
            .collect::<Result<_, _>>()?;
        for file in files {
            let mut lines = BufReader::new(file);
            loop {
                let mut line = Vec::new();
                if (&mut lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
                    break;
                }
                match str::from_utf8(&line).ok().and_then(Letter::from_line) {
                    Some(letter) => {
                        if !take(letter) {
                            return Ok(strange);
                        }
                    }
                    None => strange += 1,
                }
            }
        }
        Ok(strange)
    }
}

fn aside(path: &Path) -> PathBuf {
    beside(path, "1")
}

/// Adds to a file. If a write was cut off there by the end of the process, its rest is a line of its own.
fn write(file: &mut File, length: u64, lines: &[u8]) -> io::Result<()> {
    if length > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
    }
    file.write_all(lines)
}

/// The file as a sink; several sources may share it.
pub struct FileSink(Arc<Mutex<LetterFile>>);

impl FileSink {
    pub fn new(file: Arc<Mutex<LetterFile>>) -> Self {
        Self(file)
    }
}

impl Sink for FileSink {
    fn write<'a>(&'a mut self, letters: &'a [Arc<Letter>]) -> BoxFuture<'a, Result<(), WriteError>> {
        let (file, letters) = (self.0.clone(), letters.to_vec());
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || {
                let file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.append(&letters)
                    .map_err(|error| WriteError::Failed(format!("{}: {error}", file.path.display())))
            });
            written.await.unwrap_or_else(|error| Err(WriteError::Failed(error.to_string())))
        })
    }
}
