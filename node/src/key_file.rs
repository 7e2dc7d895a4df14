//! Files with keys: small, and readable by their owner only where they are made here.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

/// Reads a file of at most so many bytes.
pub fn read(path: &Path, most: usize) -> io::Result<String> {
    let mut text = String::new();
    // One byte more, so that what is too large is not taken for something shorter.
    File::open(path)?.take(most as u64 + 1).read_to_string(&mut text)?;
    if text.len() > most {
        return Err(io::Error::other(format!("more than {most} bytes")));
    }
    Ok(text)
}

/// Makes a file that its owner alone can read. An existing file is never overwritten.
pub fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
