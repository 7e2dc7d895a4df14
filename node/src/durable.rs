//! Files that are replaced as a whole: whenever the process or the machine ends, the old one is there or the new one.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Only this user: what peers keep holds user ids and the secrets of sources.
pub const MODE: u32 = 0o600;

/// Puts bytes in the place of a file, all or nothing.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = make_folder_of(path)?;
    // What a write left that was killed is written over.
    let new = beside(path, "new");
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if let Err(error) = written {
        // A part of a file would only take room on a disk that has none.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    // The name is in the folder.
    fs::File::open(folder)?.sync_all()
}

/// The folder of a file, made if there is none.
pub fn make_folder_of(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    Ok(folder)
}

/// A path in the same folder, for what belongs to a file.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ending}"));
    name.into()
}
