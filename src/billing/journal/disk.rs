//! What the journal asks of the file system, in one place, so that tests can make it fail.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

/// Only the owner reads the journal: names and addresses are in it, secrets never.
const FILE_MODE: u32 = 0o600;
/// Of its folders.
pub const DIRECTORY_MODE: u32 = 0o700;
/// Zeros are written in pieces of this size where space cannot be set aside otherwise.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The file system.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// A new file of `bytes` zeros for which room is set aside.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(path)?;
        if let Err(error) = self.extend(&file, 0, bytes) {
            // A file without its room would keep what little there is.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(file)
    }

    /// Sets room aside from `from` to `to`.
    fn extend(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        set_aside(file, from, to)
    }

    /// Writes all of `bytes` at `offset`.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Returns when what was written to the file is on the device.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Likewise for the names in a folder.
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// Gives a file its name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// The real one.
#[derive(Debug)]
pub struct RealDisk;

impl Disk for RealDisk {}

fn set_aside(file: &File, from: u64, to: u64) -> io::Result<()> {
    let length = to.saturating_sub(from);
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), from, length)) {
        Ok(()) => return Ok(()),
        // Network file systems and ZFS, among others.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let mut at = from;
    while at < to {
        let piece = (to - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

/// Makes the folder, or makes an existing one the owner's alone.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)?;
    let metadata = std::fs::metadata(path)?;
    if metadata.permissions().mode() & 0o777 != DIRECTORY_MODE {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(DIRECTORY_MODE))?;
    }
    Ok(())
}
