//! One server per data directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The lock file, inside the data directory.
const NAME: &str = "tollgate.lock";

/// Holds a data directory while it lives; the system lets go of it when the process ends, however.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why a data directory cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another server holds it.
    #[error(
        "another server (process {holder}) uses the data directory {}; \
         one server runs per directory, set data_dir to another one",
        path.display()
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// The other process, as far as it is known.
        holder: String,
    },
    /// It cannot be made or opened.
    #[error("the data directory {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl DirectoryLock {
    /// Makes the directory if it is not there (for its owner only), and takes it.
    pub fn take(directory: &Path) -> Result<DirectoryLock, LockError> {
        let io = |source| LockError::Io {
            path: directory.to_owned(),
            source,
        };
        if !directory.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(io)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(NAME))
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held {
                    path: directory.to_owned(),
                    holder: match holder.trim() {
                        "" => "unknown".to_owned(),
                        known => known.to_owned(),
                    },
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(io)?;
        Ok(DirectoryLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once_and_let_go() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("a/b");
        let held = DirectoryLock::take(&directory).unwrap();
        match DirectoryLock::take(&directory) {
            Err(LockError::Held { holder, .. }) => {
                assert_eq!(holder, std::process::id().to_string());
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        DirectoryLock::take(&directory).unwrap();
    }
}
