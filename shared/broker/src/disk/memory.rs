//! A disk in memory, for tests. A crash drops what was not synced, file content and names alike; operations fail on demand;
//! it can be full.
//!
//! A failed sync behaves as on Linux: what it should have written is never written, not even by a later sync that
//! succeeds, although readers see it until the crash.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile, Lock, Open};

use control::Control;
pub(crate) use control::Operation;
pub(crate) use crash::Unsynced;

mod control;
mod crash;

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk {
    root: Arc<Mutex<Directory>>,
    control: Arc<Control>,
}

#[derive(Clone, Debug)]
enum Node {
    File(Arc<Content>),
    Directory(Arc<Mutex<Directory>>),
}

#[derive(Debug, Default)]
struct Directory {
    /// The names that the system shows.
    names: BTreeMap<String, Node>,
    /// The names on the disk.
    durable: BTreeMap<String, Node>,
}

#[derive(Debug)]
struct Content {
    state: Mutex<State>,
    control: Arc<Control>,
    /// The file is from before a crash, and must not be used any more.
    crashed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The content that the system shows.
    bytes: Vec<u8>,
    /// The content on the disk.
    durable: Vec<u8>,
    /// The changes since the last sync.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { position: usize, bytes: Vec<u8> },
    SetLength(usize),
}

impl MemoryDisk {
    /// Makes a call of `operation` fail, after `after` successful ones.
    pub(crate) fn fail(&self, operation: Operation, after: usize, kind: io::ErrorKind) {
        self.control.fail(operation, after, kind);
    }

    /// Removes the failures that have not happened yet.
    pub(crate) fn fail_no_more(&self) {
        self.control.fail_no_more();
    }

    /// Sets the free space in bytes; `None` is any number.
    pub(crate) fn set_free(&self, bytes: Option<u64>) {
        self.control.set_free(bytes);
    }

    /// Makes syncs of files wait, until [`Self::release_syncs`].
    pub(crate) fn hold_syncs(&self) {
        self.control.hold_syncs();
    }

    /// Lets one of the waiting syncs continue.
    pub(crate) fn release_one_sync(&self) {
        self.control.release_one_sync();
    }

    /// Lets all syncs continue.
    pub(crate) fn release_syncs(&self) {
        self.control.release_syncs();
    }

    /// Waits until `number` syncs of files wait.
    pub(crate) fn until_held(&self, number: usize) {
        self.control.until_held(number);
    }

    /// The number of syncs of files so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.control.syncs()
    }

    /// The current content of a file.
    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        lock(&self.file(path).unwrap().state).bytes.clone()
    }

    /// Changes a file durably and without the broker: damage at rest.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.file(path).unwrap();
        let mut state = lock(&file.state);
        change(&mut state.bytes);
        state.durable = state.bytes.clone();
        state.pending.clear();
    }

    /// Crashes the machine or the process. Files that were opened before cannot be used any more, unless everything is
    /// kept.
    pub(crate) fn crash(&self, unsynced: Unsynced) {
        self.fail_no_more();
        crash::crash(&self.root, unsynced);
    }

    fn directory(&self, path: &Path) -> io::Result<Arc<Mutex<Directory>>> {
        let mut at = Arc::clone(&self.root);
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let next = lock(&at).names.get(&*name.to_string_lossy()).cloned();
            at = match next {
                Some(Node::Directory(directory)) => directory,
                Some(Node::File(_)) => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
                None => return Err(io::Error::from(io::ErrorKind::NotFound)),
            };
        }
        Ok(at)
    }

    fn parent(&self, path: &Path) -> io::Result<(Arc<Mutex<Directory>>, String)> {
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok((parent, path.file_name().unwrap().to_string_lossy().into_owned()))
    }

    fn file(&self, path: &Path) -> io::Result<Arc<Content>> {
        let (parent, name) = self.parent(path)?;
        match lock(&parent).names.get(&name) {
            Some(Node::File(file)) => Ok(Arc::clone(file)),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        self.control.check(Operation::Open)?;
        let (parent, name) = self.parent(path)?;
        let mut parent = lock(&parent);
        let found = match parent.names.get(&name) {
            Some(Node::Directory(_)) => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Some(Node::File(file)) => Some(Arc::clone(file)),
            None => None,
        };
        match (found, how) {
            (Some(_), Open::New) => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            (Some(file), Open::Empty) => {
                file.truncate(0);
                Ok(file)
            }
            (Some(file), _) => Ok(file),
            (None, Open::Read | Open::Edit) => Err(io::Error::from(io::ErrorKind::NotFound)),
            (None, _) => {
                let control = Arc::clone(&self.control);
                let file =
                    Arc::new(Content { state: Mutex::default(), control, crashed: AtomicBool::new(false) });
                parent.names.insert(name, Node::File(Arc::clone(&file)));
                Ok(file)
            }
        }
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.control.check(Operation::CreateDirectory)?;
        let (parent, name) = self.parent(path)?;
        let mut parent = lock(&parent);
        if parent.names.contains_key(&name) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        parent.names.insert(name, Node::Directory(Arc::default()));
        Ok(())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        Ok(lock(&*self.directory(directory)?).names.keys().cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.control.check(Operation::Rename)?;
        let (parent, from) = self.parent(from)?;
        let (_, to) = self.parent(to)?;
        let mut parent = lock(&parent);
        let node = parent.names.remove(&from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if let Some(Node::File(replaced)) = parent.names.insert(to, node) {
            self.control.give_back(lock(&replaced.state).bytes.len());
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let file = self.file(path)?;
        self.control.check(Operation::Remove)?;
        let (parent, name) = self.parent(path)?;
        lock(&parent).names.remove(&name);
        self.control.give_back(lock(&file.state).bytes.len());
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let removed = self.directory(path)?;
        self.control.check(Operation::Remove)?;
        let (parent, name) = self.parent(path)?;
        lock(&parent).names.remove(&name);
        self.control.give_back(size(&removed));
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let directory = self.directory(path)?;
        self.control.check(Operation::SyncDirectory)?;
        let mut directory = lock(&directory);
        directory.durable = directory.names.clone();
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Lock> {
        Ok(Lock { _file: None })
    }
}

impl DiskFile for Content {
    fn length(&self) -> io::Result<u64> {
        Ok(lock(&self.state).bytes.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.control.check(Operation::Read)?;
        let state = lock(&self.state);
        let from = position as usize;
        let bytes = state.bytes.get(from..from + buffer.len());
        buffer.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        assert!(!self.crashed.load(Ordering::Relaxed), "written to after a crash");
        let failed = self.control.check(Operation::Write);
        // A failing write writes a part.
        let wanted = if failed.is_err() { bytes.len() / 2 } else { bytes.len() };
        let mut state = lock(&self.state);
        let position = position as usize;
        let growth = (position + wanted).saturating_sub(state.bytes.len());
        let granted = self.control.take(growth);
        let written = wanted - (growth - granted);
        let change = Change::Write { position, bytes: bytes[..written].to_vec() };
        apply(&mut state.bytes, &change);
        state.pending.push(change);
        failed?;
        if written < bytes.len() { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        assert!(!self.crashed.load(Ordering::Relaxed), "truncated after a crash");
        self.control.check(Operation::SetLength)?;
        self.truncate(length as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.control.begin_sync();
        let failed = self.control.check(Operation::Sync);
        let mut state = lock(&self.state);
        let pending = std::mem::take(&mut state.pending);
        failed?;
        for change in &pending {
            apply(&mut state.durable, change);
        }
        Ok(())
    }
}

impl Content {
    fn truncate(&self, length: usize) {
        let mut state = lock(&self.state);
        let before = state.bytes.len();
        let change = Change::SetLength(length);
        apply(&mut state.bytes, &change);
        state.pending.push(change);
        self.control.give_back(before.saturating_sub(length));
    }
}

fn size(directory: &Mutex<Directory>) -> usize {
    let sizes = lock(directory)
        .names
        .values()
        .map(|node| match node {
            Node::File(file) => lock(&file.state).bytes.len(),
            Node::Directory(below) => size(below),
        })
        .collect::<Vec<_>>();
    sizes.into_iter().sum()
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { bytes: written, .. } if written.is_empty() => {}
        Change::Write { position, bytes: written } => {
            let end = position + written.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*position..end].copy_from_slice(written);
        }
        Change::SetLength(length) => bytes.resize(*length, 0),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
