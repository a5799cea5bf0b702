//! Small file systems, which a test can fill without hurting anybody: in a mount namespace of its own,
//! for which a test needs no privileges where the kernel lets users make them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

/// Tells the second process that it is the second, and where it may mount.
const INSIDE: &str = "TOLLGATE_FAULTS_INSIDE";
/// How to get a mount namespace: as root, or as anybody together with a user namespace.
const WAYS: [&[&str]; 2] = [&["--mount"], &["--map-root-user", "--mount"]];

/// What disks a test has.
pub(super) enum Disks {
    /// Small ones can be mounted below this directory; nobody else sees them, and they are gone with this
    /// process.
    Small(PathBuf),
    /// None can be mounted.
    AsTheyAre,
}

/// Runs this test again where disks can be small; `None` = that has been done, and it passed. Everything
/// the test starts there (the server above all) sees its disks, and they outlive the server.
pub(super) fn apart(test: &str) -> Option<Disks> {
    if let Some(directory) = std::env::var_os(INSIDE) {
        return Some(Disks::Small(directory.into()));
    }
    let directory = TempDir::new().unwrap();
    let Some(way) = WAYS
        .into_iter()
        .find(|way| may_mount(way, directory.path()))
    else {
        println!("LEFT OUT: full disks, because no mount namespace can be made here");
        return Some(Disks::AsTheyAre);
    };
    let mut child = Command::new("sh")
        .args(["-c", "exec unshare \"$@\" 2>&1", "sh"])
        .args(way)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        println!("{}", line.unwrap());
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}, as said above");
    None
}

fn may_mount(way: &[&str], directory: &Path) -> bool {
    let mut command = Command::new("unshare");
    command.args(way).args(["mount", "-t", "tmpfs"]);
    let tried = command.args(["-o", "size=64k", "tollgate"]).arg(directory);
    tried.output().is_ok_and(|output| output.status.success())
}

impl Disks {
    /// Mounts a file system of so many bytes, if that can be done.
    pub(super) fn mount(&self, directory: &Path, bytes: u64) {
        fs::create_dir_all(directory).unwrap();
        if let Disks::AsTheyAre = self {
            return;
        }
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700")])
            .arg("tollgate")
            .arg(directory)
            .status()
            .unwrap();
        assert!(status.success(), "mount: {status}");
    }
}

/// Keeps a file system full: takes all that is free, and what becomes free, until it is emptied.
pub(super) struct Filler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
    path: PathBuf,
}

impl Filler {
    /// Begins to fill the file system of this directory; returns when it is full for the first time.
    pub(super) fn fill(directory: &Path) -> Filler {
        let path = directory.join("filler");
        let mut file = File::create(&path).unwrap();
        fill_up(&mut file);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                fill_up(&mut file);
                std::thread::sleep(Duration::from_millis(1));
            }
            file.metadata().map_or(0, |metadata| metadata.len())
        });
        Filler { stop, thread, path }
    }

    /// Gives everything back; how many bytes it was at last.
    pub(super) fn empty(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let bytes = self.thread.join().unwrap();
        fs::remove_file(self.path).unwrap();
        bytes
    }
}

/// Writes until nothing more goes in, not even a page.
fn fill_up(file: &mut File) {
    let zeros = vec![0; 1 << 20];
    for size in [1 << 20, 4 << 10] {
        while file.write_all(&zeros[..size]).is_ok() {}
    }
}
