//! A disk in memory for tests. A crash drops what was not synced, file content and names alike; operations fail on
//! demand; it can be full.
//!
//! A failed sync behaves as on Linux: what it should have written is never written, also not by a later sync that
//! succeeds, though readers see it until the crash.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{Disk, DiskFile, Lock, Open};

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk {
    root: Arc<Mutex<Directory>>,
    control: Arc<Control>,
}

#[derive(Debug, Default)]
struct Control {
    faults: Mutex<Vec<Fault>>,
    /// How many bytes it can still take; no bound where absent.
    room: Mutex<Option<u64>>,
    held: Mutex<Held>,
    changed: Condvar,
    syncs: Mutex<u64>,
}

#[derive(Debug, Default)]
struct Held {
    /// Syncs of files wait.
    on: bool,
    /// How many wait.
    waiting: usize,
    /// How many may go on nevertheless.
    passes: usize,
}

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Open,
    Read,
    Write,
    SetLength,
    Sync,
    Rename,
    Remove,
    CreateDirectory,
    SyncDirectory,
}

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// Nothing.
    Dropped,
    /// All of it: the process was killed and the machine went on.
    Kept,
    /// Some of it: of each file a part of what was written last, of the names some. The number chooses which.
    Some(u64),
}

#[derive(Debug)]
struct Fault {
    operation: Operation,
    /// How many calls succeed before.
    after: usize,
    kind: io::ErrorKind,
}

#[derive(Clone, Debug)]
enum Node {
    File(Arc<Content>),
    Directory(Arc<Mutex<Directory>>),
}

#[derive(Debug, Default)]
struct Directory {
    names: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
}

#[derive(Debug)]
struct Content {
    state: Mutex<State>,
    control: Arc<Control>,
    /// Set once a crash has made another file of this one.
    dead: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { position: usize, bytes: Vec<u8> },
    SetLength(usize),
}

impl MemoryDisk {
    /// Lets the call of `operation` fail that comes after `after` others.
    pub(crate) fn fail(&self, operation: Operation, after: usize, kind: io::ErrorKind) {
        lock(&self.control.faults).push(Fault { operation, after, kind });
    }

    /// Forgets the failures that have not come yet.
    pub(crate) fn fail_no_more(&self) {
        lock(&self.control.faults).clear();
    }

    /// Says how many more bytes it can take; `None` is any number.
    pub(crate) fn set_room(&self, bytes: Option<u64>) {
        *lock(&self.control.room) = bytes;
    }

    /// From now on syncs of files wait, until [`Self::let_syncs_go`].
    pub(crate) fn hold_syncs(&self) {
        lock(&self.control.held).on = true;
    }

    /// Lets one of the syncs of files that wait go on.
    pub(crate) fn let_one_sync_go(&self) {
        let mut held = lock(&self.control.held);
        held.passes += 1;
        self.control.changed.notify_all();
        while held.passes > 0 {
            held = self.control.changed.wait(held).unwrap();
        }
    }

    /// Lets syncs of files go on.
    pub(crate) fn let_syncs_go(&self) {
        lock(&self.control.held).on = false;
        self.control.changed.notify_all();
    }

    /// Waits until `number` syncs of files wait.
    pub(crate) fn until_held(&self, number: usize) {
        let held = lock(&self.control.held);
        let wait =
            self.control
                .changed
                .wait_timeout_while(held, std::time::Duration::from_secs(20), |held| held.waiting < number);
        let (mut held, waited) = wait.unwrap();
        if waited.timed_out() {
            held.on = false;
            drop(held);
            self.control.changed.notify_all();
            panic!("nobody syncs");
        }
    }

    /// How many syncs of files there were.
    pub(crate) fn syncs(&self) -> u64 {
        *lock(&self.control.syncs)
    }

    /// The content of a file now.
    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        lock(&self.file(path).unwrap().state).bytes.clone()
    }

    /// Changes a file behind the back of everybody, durably: damage at rest.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.file(path).unwrap();
        let mut state = lock(&file.state);
        change(&mut state.bytes);
        state.durable = state.bytes.clone();
        state.pending.clear();
    }

    /// The machine stops and starts again: `unsynced` says what is left of what was not synced. Open files from before
    /// are of no use any more.
    pub(crate) fn crash(&self, unsynced: Unsynced) {
        self.fail_no_more();
        let seed = match unsynced {
            Unsynced::Kept => return,
            Unsynced::Dropped => None,
            Unsynced::Some(seed) => Some(seed),
        };
        // Xorshift never leaves zero.
        let mut chance = Chance(seed.unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        restart(&self.root, seed, &mut chance, &mut Survivors::new());
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
                file.cut(0);
                Ok(file)
            }
            (Some(file), _) => Ok(file),
            (None, Open::Read | Open::Edit) => Err(io::Error::from(io::ErrorKind::NotFound)),
            (None, _) => {
                let control = Arc::clone(&self.control);
                let file =
                    Arc::new(Content { state: Mutex::default(), control, dead: AtomicBool::new(false) });
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
        let there = state.bytes.get(from..from + buffer.len());
        buffer.copy_from_slice(there.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        assert!(!self.dead.load(Ordering::Relaxed), "written to after a crash");
        let failed = self.control.check(Operation::Write);
        // A write that fails has written a part.
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
        assert!(!self.dead.load(Ordering::Relaxed), "cut after a crash");
        self.control.check(Operation::SetLength)?;
        self.cut(length as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.control.wait_while_held();
        *lock(&self.control.syncs) += 1;
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
    fn cut(&self, length: usize) {
        let mut state = lock(&self.state);
        let before = state.bytes.len();
        let change = Change::SetLength(length);
        apply(&mut state.bytes, &change);
        state.pending.push(change);
        self.control.give_back(before.saturating_sub(length));
    }
}

impl Control {
    fn check(&self, operation: Operation) -> io::Result<()> {
        let mut faults = lock(&self.faults);
        let due = faults.iter_mut().position(|fault| {
            let now = fault.operation == operation && fault.after == 0;
            if fault.operation == operation {
                fault.after = fault.after.saturating_sub(1);
            }
            now
        });
        due.map_or(Ok(()), |at| Err(io::Error::from(faults.remove(at).kind)))
    }

    fn take(&self, bytes: usize) -> usize {
        match &mut *lock(&self.room) {
            None => bytes,
            Some(room) => {
                let granted = bytes.min(*room as usize);
                *room -= granted as u64;
                granted
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        if let Some(room) = &mut *lock(&self.room) {
            *room += bytes as u64;
        }
    }

    fn wait_while_held(&self) {
        let mut held = lock(&self.held);
        held.waiting += 1;
        self.changed.notify_all();
        held = self.changed.wait_while(held, |held| held.on && held.passes == 0).unwrap();
        held.passes = held.passes.saturating_sub(1);
        held.waiting -= 1;
        self.changed.notify_all();
    }
}

/// A small generator, so that a crash can be repeated.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

type Survivors = HashMap<*const Content, Arc<Content>>;

fn restart(directory: &Arc<Mutex<Directory>>, seed: Option<u64>, chance: &mut Chance, files: &mut Survivors) {
    let mut directory = lock(directory);
    let mut names = directory.durable.clone();
    if seed.is_some() {
        let all: Vec<String> = directory.names.keys().chain(directory.durable.keys()).cloned().collect();
        for name in all {
            if chance.below(2) == 0 {
                match directory.names.get(&name) {
                    Some(node) => names.insert(name, node.clone()),
                    None => names.remove(&name),
                };
            }
        }
    }
    for node in names.values_mut() {
        match node {
            Node::Directory(below) => restart(below, seed, chance, files),
            Node::File(file) => {
                let survivor = files.entry(Arc::as_ptr(file)).or_insert_with(|| {
                    file.dead.store(true, Ordering::Relaxed);
                    let bytes = survivors(&lock(&file.state), seed, chance);
                    let state = State { durable: bytes.clone(), bytes, pending: Vec::new() };
                    let control = Arc::clone(&file.control);
                    Arc::new(Content { state: Mutex::new(state), control, dead: AtomicBool::new(false) })
                });
                *node = Node::File(Arc::clone(survivor));
            }
        }
    }
    directory.durable = names.clone();
    directory.names = names;
}

fn survivors(state: &State, seed: Option<u64>, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = state.durable.clone();
    if seed.is_none() {
        return bytes;
    }
    let kept = chance.below(state.pending.len() + 1);
    for change in &state.pending[..kept] {
        apply(&mut bytes, change);
    }
    if let Some(Change::Write { position, bytes: torn }) = state.pending.get(kept) {
        let torn = torn[..chance.below(torn.len() + 1)].to_vec();
        apply(&mut bytes, &Change::Write { position: *position, bytes: torn });
    }
    bytes
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
