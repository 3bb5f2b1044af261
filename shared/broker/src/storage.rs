//! A data directory: its disk, its lock, small files that are replaced atomically, and reserved disk space, with which
//! records can be deleted from a full disk.
//!
//! # Stability contract
//! A small file is its content, followed by a last line: `crc32c ` and the checksum of the content in eight hexadecimal
//! digits. A file without that line was written by an earlier version and is read without a check. `reserve` holds
//! [`RESERVE`] zeros and may be missing.
//!
//! It must not know what the files mean.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use tracing::{error, info};

use crate::disk::{Disk, Lock, Open, is_shortage};
use crate::locks;
use crate::segment::Mark;

/// The reserved bytes: enough for the small files that are written when records of many Kafka partitions are deleted.
const RESERVE: usize = 1024 * 1024;
/// The bytes that must be free besides the reserve before writes are accepted again.
const FREE_FOR_WRITES: usize = 1024 * 1024;
const CHECKSUM: &str = "crc32c ";

/// One data directory.
#[derive(Debug)]
pub(crate) struct Storage {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Held for reading while something is written, and for writing while the reserve is released and filled again, so
    /// that no other write of the broker uses the space in between.
    reserve: RwLock<()>,
    /// Why nothing can be written, during a shortage. Never held during input or output.
    full: Mutex<Option<String>>,
    /// The operating system releases the lock when the process ends in any way.
    _lock: Lock,
}

/// Content that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The file.
    pub(crate) file: PathBuf,
    /// The position of the damage, and the offset that belongs there; `None` where the whole file is unusable.
    pub(crate) at: Option<Mark>,
    /// What is wrong.
    pub(crate) what: String,
}

impl Storage {
    /// Opens a directory; it is created if absent. Fails with `WouldBlock` where another process has it open.
    pub(crate) fn open(disk: Arc<dyn Disk>, root: &Path) -> io::Result<Self> {
        create_directories(&*disk, root)?;
        let lock = disk.lock(&root.join("lock"))?;
        let root = root.to_owned();
        let storage = Self { disk, root, reserve: RwLock::default(), full: Mutex::default(), _lock: lock };
        if let Err(error) = storage.fill_reserve() {
            storage.note_shortage(&error);
        }
        Ok(storage)
    }

    /// The disk.
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Why nothing can be written now; `None` without a shortage. Never waits for the disk.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.full().clone()
    }

    /// Permits writing while the guard is held. After a shortage, each call checks for free space.
    ///
    /// # Errors
    /// Where the shortage lasts.
    pub(crate) fn begin_write(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        if self.full().is_some() {
            self.check_for_space()?;
        }
        Ok(locks::read(&self.reserve))
    }

    /// Ends a shortage if there is free space again.
    ///
    /// # Errors
    /// Where the shortage lasts.
    pub(crate) fn check_for_space(&self) -> io::Result<()> {
        let _alone = locks::write(&self.reserve);
        if self.full().is_none() {
            return Ok(());
        }
        self.fill_reserve()?;
        *self.full() = None;
        info!(data_dir = %self.root.display(), "embedded broker: the disk has free space again; writes are accepted");
        Ok(())
    }

    /// Records a shortage, if `error` is one; whether it is.
    pub(crate) fn note_shortage(&self, error: &io::Error) -> bool {
        if is_shortage(error) && self.full().replace(error.to_string()).is_none() {
            error!(
                data_dir = %self.root.display(), %error,
                "embedded broker: writes are refused until the disk has free space; delete files on it"
            );
        }
        is_shortage(error)
    }

    /// Does work that frees space in the end but may need a little first. On a full disk it is tried again with the
    /// reserved space.
    pub(crate) fn free_space<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if self.note_shortage(&error) => {
                let _alone = locks::write(&self.reserve);
                self.disk.open(&self.reserve_path(), Open::Empty)?;
                let done = work();
                // If this fails, the disk is still full: writes are refused until it succeeds.
                let _ = self.fill_reserve();
                done
            }
            done => done,
        }
    }

    /// Replaces a small file atomically: after a crash at any moment it has either the old or the new content.
    pub(crate) fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut checked = content.to_vec();
        checked.extend_from_slice(format!("\n{CHECKSUM}{:08x}\n", crc32c::crc32c(content)).as_bytes());
        self.replace_whole(path, &checked)
    }

    /// Replaces a file as [`Self::replace`] does, by exactly these bytes.
    pub(crate) fn replace_whole(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let draft = path.with_extension("new");
        let file = self.disk.open(&draft, Open::Empty)?;
        let written = file.write_all_at(bytes, 0).and_then(|()| file.sync());
        if let Err(error) = written {
            // Frees its space; the next draft starts empty in any case.
            let _ = self.disk.remove_file(&draft);
            return Err(error);
        }
        self.disk.rename(&draft, path)?;
        self.disk.sync_directory(path.parent().unwrap_or(&self.root))
    }

    /// Reads a small file; `None` where there is none. Fails with [`Damage`] where it is not as it was written.
    pub(crate) fn read_small(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let Some(mut bytes) = self.read_whole(path)? else { return Ok(None) };
        let line = bytes.iter().rposition(|&byte| byte != b'\n').and_then(|end| {
            let start = bytes[..end].iter().rposition(|&byte| byte == b'\n')?;
            let checksum = std::str::from_utf8(&bytes[start + 1..=end]).ok()?.strip_prefix(CHECKSUM)?;
            Some((start, u32::from_str_radix(checksum, 16).ok()))
        });
        if let Some((length, checksum)) = line {
            bytes.truncate(length);
            if checksum != Some(crc32c::crc32c(&bytes)) {
                return Err(Damage::whole(path, "its checksum is wrong").into());
            }
        }
        Ok(Some(bytes))
    }

    /// Reads a file; `None` where there is none.
    pub(crate) fn read_whole(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let file = match self.disk.open(path, Open::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = vec![0; file.length()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(bytes))
    }

    /// Stores bytes that are removed from `path` in a new file beside it, durably; its path.
    pub(crate) fn keep_aside(&self, path: &Path, position: u64, bytes: &[u8]) -> io::Result<PathBuf> {
        let directory = path.parent().unwrap_or(&self.root);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let taken = self.disk.names(directory)?;
        let mut name = format!("{stem}.cut-at-{position}");
        let mut number = 1;
        while taken.contains(&name) {
            number += 1;
            name = format!("{stem}.cut-at-{position}-{number}");
        }
        let aside = directory.join(name);
        let file = self.disk.open(&aside, Open::New)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        self.disk.sync_directory(directory)?;
        Ok(aside)
    }

    /// Removes a file, if it exists.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Gives the reserve its full size.
    ///
    /// # Errors
    /// Where the disk has no space for it and [`FREE_FOR_WRITES`] more.
    fn fill_reserve(&self) -> io::Result<()> {
        let file = self.disk.open(&self.reserve_path(), Open::Any)?;
        let length = file.length()?;
        let missing = (RESERVE + FREE_FOR_WRITES).saturating_sub(length as usize);
        let grown = file.write_all_at(&vec![0; missing], length);
        if file.length()? > RESERVE as u64 {
            file.set_length(RESERVE as u64)?;
        }
        grown
    }

    fn reserve_path(&self) -> PathBuf {
        self.root.join("reserve")
    }

    fn full(&self) -> MutexGuard<'_, Option<String>> {
        locks::lock(&self.full)
    }
}

impl Damage {
    /// Damage to a whole file or directory.
    pub(crate) fn whole(file: &Path, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), at: None, what: what.into() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged", self.file.display())?;
        if let Some(Mark { offset, position }) = self.at {
            write!(f, " at byte {position}, offset {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for Damage {}

impl From<Damage> for io::Error {
    fn from(damage: Damage) -> Self {
        Self::new(io::ErrorKind::InvalidData, damage)
    }
}

/// Whether the process may not sync a directory, or the file system cannot.
fn is_not_allowed(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

/// Creates a directory and its parents, durably: acknowledged records must not be lost with the name of a directory.
fn create_directories(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    create_directories(disk, parent)?;
    let created = match disk.create_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        created => created.map(|()| true)?,
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match disk.sync_directory(parent) {
        // It existed before; its creator is responsible for its name.
        Err(error) if !created && is_not_allowed(&error) => Ok(()),
        synced => synced,
    }
}
