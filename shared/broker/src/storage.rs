//! What all files of one data directory share: the disk, its lock, small files that are replaced whole, and the space
//! that is kept back so that a full disk can still be trimmed.
//!
//! # Stability contract
//! A small file is its content, then, as the last line, `crc32c ` and the checksum of the content in eight hexadecimal
//! digits. Without that line it was written by an earlier version and is taken as it is. `reserve` holds
//! [`RESERVE`] zeros and may be missing.
//!
//! This file does not know what the files say.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use tracing::{error, info};

use crate::disk::{Disk, Lock, Open, is_shortage};
use crate::segment::Mark;

/// How many bytes are kept back: enough for the small files of a trim, of many Kafka partitions.
const RESERVE: usize = 1024 * 1024;
/// How many bytes must be free beside the reserve before writes are taken again.
const ROOM: usize = 1024 * 1024;
const CHECKSUM: &str = "crc32c ";

/// One data directory.
#[derive(Debug)]
pub(crate) struct Storage {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Held for reading by who adds to the disk, for writing while the reserve is given away and taken back, so that
    /// nothing else of ours takes the room in between.
    reserve: RwLock<()>,
    /// Why the disk takes nothing, while it does not. Never held during input or output.
    full: Mutex<Option<String>>,
    /// Held as long as this lives; the system lets go of it when the process ends in any way.
    _lock: Lock,
}

/// What is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The file.
    pub(crate) file: PathBuf,
    /// Where in it, and which offset belongs there; absent where the whole file is of no use.
    pub(crate) at: Option<Mark>,
    /// What is wrong.
    pub(crate) what: String,
}

impl Storage {
    /// Opens a directory, which is created if absent. Fails with `WouldBlock` where another process has it open.
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

    /// Why nothing can be written now; `None` in good times. Never waits.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.full().clone()
    }

    /// Asks to add to the disk, while the guard lives. Fails where there is no room; looks for it at each call.
    pub(crate) fn room(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        if self.full().is_some() {
            self.look_for_room()?;
        }
        Ok(self.reserve.read().expect("no thread panics while it holds the lock"))
    }

    /// Looks whether there is room again; an error says that there is none.
    pub(crate) fn look_for_room(&self) -> io::Result<()> {
        let _all = self.reserve.write().expect("no thread panics while it holds the lock");
        if self.full().is_none() {
            return Ok(());
        }
        self.fill_reserve()?;
        *self.full() = None;
        info!(data_dir = %self.root.display(), "embedded broker: there is room again, writes are taken");
        Ok(())
    }

    /// Notes that something has run out, if `error` says so; whether it does.
    pub(crate) fn note_shortage(&self, error: &io::Error) -> bool {
        if is_shortage(error) && self.full().replace(error.to_string()).is_none() {
            error!(
                data_dir = %self.root.display(), %error,
                "embedded broker: writes are refused until there is room; free some of the disk"
            );
        }
        is_shortage(error)
    }

    /// Does work that frees space in the end, but may need a little of it first: where there is none, it is tried again
    /// with what was kept back.
    pub(crate) fn freeing<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if self.note_shortage(&error) => {
                let _all = self.reserve.write().expect("no thread panics while it holds the lock");
                self.disk.open(&self.reserve_path(), Open::Empty)?;
                let done = work();
                // Where this fails, there is no room: writes are refused until it succeeds.
                let _ = self.fill_reserve();
                done
            }
            done => done,
        }
    }

    /// Replaces a small file so that, whatever happens, either the old or the new content is there.
    pub(crate) fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut checked = content.to_vec();
        checked.extend_from_slice(format!("\n{CHECKSUM}{:08x}\n", crc32c::crc32c(content)).as_bytes());
        self.replace_whole(path, &checked)
    }

    /// Replaces a file by exactly these bytes, as [`Self::replace`] does.
    pub(crate) fn replace_whole(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let draft = path.with_extension("new");
        let file = self.disk.open(&draft, Open::Empty)?;
        let written = file.write_all_at(bytes, 0).and_then(|()| file.sync());
        if let Err(error) = written {
            // Gives back what it took; the next draft is a new file in any case.
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

    /// Keeps bytes that are cut from `path` in a file beside it, durably, and says which.
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

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Brings the reserve to its size; an error says that the disk does not have that and [`ROOM`] more.
    fn fill_reserve(&self) -> io::Result<()> {
        let file = self.disk.open(&self.reserve_path(), Open::Any)?;
        let length = file.length()?;
        let missing = (RESERVE + ROOM).saturating_sub(length as usize);
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
        self.full.lock().expect("no thread panics while it holds the lock")
    }
}

impl Damage {
    /// A file of which nothing can be used.
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

fn is_not_allowed(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

/// Creates a directory with those above it, durably: what is acknowledged must not hang on a name that is not.
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
        // It was there before, and who made it has seen to it.
        Err(error) if !created && is_not_allowed(&error) => Ok(()),
        synced => synced,
    }
}
