//! Files with keys: small, and readable by their owner only where they are made here.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

/// Largest file with a password, and with certificates: a bundle of all public authorities has 0.2 MB.
const MAX_PASSWORD_BYTES: usize = 4096;
const MAX_AUTHORITIES_BYTES: usize = 1024 * 1024;

/// Reads a password: the file's only line.
///
/// # Errors
/// Why there is none, in words that name the file.
pub fn password(path: &Path) -> Result<String, String> {
    let text = read(path, MAX_PASSWORD_BYTES).map_err(|error| unreadable(path, &error))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() { Err(format!("{} is empty", path.display())) } else { Ok(password.to_owned()) }
}

/// Reads the certificates of authorities, in PEM.
///
/// # Errors
/// Why there are none, in words that name the file.
pub fn authorities(path: &Path) -> Result<String, String> {
    let text = read(path, MAX_AUTHORITIES_BYTES).map_err(|error| unreadable(path, &error))?;
    let holds_any = text.contains("-----BEGIN ");
    if holds_any { Ok(text) } else { Err(format!("{} holds no certificate in PEM", path.display())) }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

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
