//! Which dead letters have been put back, so that none is twice, however often a letter was written or is read.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::durable::{MODE, make_folder_of};

/// Most letters that may be noted; a file of as many is 17 MB. Who has put back more puts the file aside, with the letters.
const MAX_NOTED: usize = 1_000_000;
/// Bytes of an id that are noted: 64 bits tell a million apart, but for one chance in 36 million.
const NOTE_BYTES: usize = 8;
/// A note as a line of hexadecimal digits.
const LINE_BYTES: usize = 2 * NOTE_BYTES + 1;

/// The file of what was put back, locked: two at once would put back the same.
#[derive(Debug)]
pub struct Journal {
    file: File,
    noted: HashSet<[u8; NOTE_BYTES]>,
}

/// Why the journal cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("another replay is going on")]
    Locked,
    #[error(
        "it holds {MAX_NOTED} letters, as many as it may; put it aside together with the dead letters that were put back"
    )]
    Full,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Journal {
    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    /// If another process has it, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        make_folder_of(path)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Locked,
            TryLockError::Error(error) => JournalError::Io(error),
        })?;
        let mut text = String::new();
        let most = (MAX_NOTED * LINE_BYTES) as u64;
        (&mut file).take(most + 1).read_to_string(&mut text)?;
        if text.len() as u64 > most {
            return Err(JournalError::Full);
        }
        if !text.is_empty() && !text.ends_with('\n') {
            // A process ended while it wrote the last line.
            file.set_len(text.rfind('\n').map_or(0, |at| at as u64 + 1))?;
        }
        let read = |line: &str| u64::from_str_radix(line, 16).ok().map(u64::to_be_bytes);
        let noted = text.lines().filter(|line| line.len() + 1 == LINE_BYTES).filter_map(read).collect();
        Ok(Self { file, noted })
    }

    /// Whether a letter has been put back.
    pub fn has(&self, id: &str) -> bool {
        self.noted.contains(&note_of(id))
    }

    /// Notes that a letter has been put back.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn note(&mut self, id: &str) -> Result<(), JournalError> {
        if self.noted.len() >= MAX_NOTED {
            return Err(JournalError::Full);
        }
        let note = note_of(id);
        if self.noted.insert(note) {
            self.file.write_all(format!("{:016x}\n", u64::from_be_bytes(note)).as_bytes())?;
        }
        Ok(())
    }

    /// Flushes what was noted to disk.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn note_of(id: &str) -> [u8; NOTE_BYTES] {
    let mut note = [0; NOTE_BYTES];
    note.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..NOTE_BYTES]);
    note
}
