//! What a crash leaves on a [`MemoryDisk`](super::MemoryDisk).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{Change, Content, Directory, Node, State, apply, lock};

/// What a crash leaves of unsynced changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// Nothing.
    Dropped,
    /// All of it: the process was killed, and the machine continues.
    Kept,
    /// Some of it: a part of the last writes of each file, and some of the names. The number is the seed of the choice.
    Some(u64),
}

/// Crashes the machine: every file and name keeps what it has on the disk, and some of the rest.
pub(super) fn crash(root: &Arc<Mutex<Directory>>, unsynced: Unsynced) {
    let seed = match unsynced {
        Unsynced::Kept => return,
        Unsynced::Dropped => None,
        Unsynced::Some(seed) => Some(seed),
    };
    // An odd number, since xorshift never leaves zero.
    let random = Random(seed.unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    Crash { keep_some: seed.is_some(), random, files: HashMap::new() }.directory(root);
}

struct Crash {
    /// Whether some of the unsynced changes survive.
    keep_some: bool,
    random: Random,
    /// Each file after the crash, by the file before it: one file can have several names.
    files: HashMap<*const Content, Arc<Content>>,
}

impl Crash {
    fn directory(&mut self, directory: &Mutex<Directory>) {
        let mut directory = lock(directory);
        let mut names = directory.durable.clone();
        if self.keep_some {
            let all: Vec<String> = directory.names.keys().chain(directory.durable.keys()).cloned().collect();
            for name in all {
                if self.random.below(2) == 0 {
                    match directory.names.get(&name) {
                        Some(node) => names.insert(name, node.clone()),
                        None => names.remove(&name),
                    };
                }
            }
        }
        for node in names.values_mut() {
            match node {
                Node::Directory(below) => self.directory(below),
                Node::File(file) => *node = Node::File(self.file(file)),
            }
        }
        directory.durable = names.clone();
        directory.names = names;
    }

    fn file(&mut self, file: &Arc<Content>) -> Arc<Content> {
        if let Some(survivor) = self.files.get(&Arc::as_ptr(file)) {
            return Arc::clone(survivor);
        }
        file.crashed.store(true, Ordering::Relaxed);
        let bytes = self.bytes(&lock(&file.state));
        let state = State { durable: bytes.clone(), bytes, pending: Vec::new() };
        let control = Arc::clone(&file.control);
        let survivor =
            Arc::new(Content { state: Mutex::new(state), control, crashed: AtomicBool::new(false) });
        self.files.insert(Arc::as_ptr(file), Arc::clone(&survivor));
        survivor
    }

    fn bytes(&mut self, state: &State) -> Vec<u8> {
        let mut bytes = state.durable.clone();
        if !self.keep_some {
            return bytes;
        }
        let kept = self.random.below(state.pending.len() + 1);
        for change in &state.pending[..kept] {
            apply(&mut bytes, change);
        }
        if let Some(Change::Write { position, bytes: next }) = state.pending.get(kept) {
            let part = next[..self.random.below(next.len() + 1)].to_vec();
            apply(&mut bytes, &Change::Write { position: *position, bytes: part });
        }
        bytes
    }
}

/// A small random generator (xorshift), so that a crash can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}
