//! Segments that another database's server has left in the folder: a new database beside an old journal,
//! or a journal that was copied. Their records are nobody's here, and may still be wanted there.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::disk::{DIRECTORY_MODE, Disk};
use super::frame::Header;
use super::log::segment_name;
use super::scan::{header_of, list};

/// Moves the segments of other databases into folders of their own, inside the journal's. Says so in a
/// line for each of those databases. Segments that do not say theirs go with the journal they belong to.
/// Nothing happens when our own id is not known (0).
pub fn set_apart(directory: &Path, disk: &dyn Disk, database: u64) -> io::Result<Vec<String>> {
    if database == 0 {
        return Ok(Vec::new());
    }
    let mut headers = Vec::new();
    for number in list(directory, 0)? {
        match header_of(&directory.join(segment_name(number)))? {
            // The journal cannot be opened anyway.
            Header::Version(_) => return Ok(Vec::new()),
            Header::Bad => headers.push((number, None)),
            Header::Good {
                journal, database, ..
            } => headers.push((number, Some((journal, database)))),
        }
    }
    // The newest segment that says it decides for those of its journal that do not.
    let said = headers.iter().filter_map(|(_, header)| *header);
    let said = said.filter(|(_, database)| *database != 0);
    let owners: BTreeMap<u64, u64> = said.clone().collect();
    let ours = said.clone().any(|(_, owner)| owner == database);
    let newest = said
        .clone()
        .next_back()
        .map_or(database, |(_, owner)| owner);
    let mut foreign: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (number, header) in &headers {
        let owner = match header {
            Some((_, owner)) if *owner != 0 => *owner,
            Some((journal, _)) if ours => owners.get(journal).copied().unwrap_or(database),
            // What cannot be read stays if something else does.
            None if ours => database,
            Some((journal, _)) => owners.get(journal).copied().unwrap_or(newest),
            None => newest,
        };
        if owner != database {
            foreign.entry(owner).or_default().push(*number);
        }
    }
    let mut told = Vec::new();
    for (owner, numbers) in foreign {
        let to = make_folder(directory, owner)?;
        for number in &numbers {
            let name = segment_name(*number);
            disk.rename(&directory.join(&name), &to.join(&name))?;
        }
        disk.sync_directory(&to)?;
        disk.sync_directory(directory)?;
        told.push(format!(
            "{} segments are of the database {owner:016x}, and this one is {database:016x}: nothing in \
             them was counted here, and they are kept in {}; to have them counted, start a server with \
             that database and with them as its journal",
            numbers.len(),
            to.display()
        ));
    }
    Ok(told)
}

/// A folder that did not exist, so that nothing is written over.
fn make_folder(directory: &Path, owner: u64) -> io::Result<PathBuf> {
    let name = format!("of-another-database-{owner:016x}");
    let mut path = directory.join(&name);
    let mut more = 1u64;
    loop {
        match DirBuilder::new().mode(DIRECTORY_MODE).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                more += 1;
                path = directory.join(format!("{name}-{more}"));
            }
            made => return made.map(|()| path),
        }
    }
}
