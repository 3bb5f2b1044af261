//! What clients may take of this process: connections, time, memory.
//!
//! This file does not know the Kafka protocol.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds on what all clients together may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. Further ones are closed at once.
    pub connections: usize,
    /// A connection on which nothing was asked for so long is closed.
    pub idle: Duration,
    /// Bytes of the largest request. Only a produce request may be larger than 4 MiB.
    pub request_bytes: usize,
    /// Bytes of all requests in work, and as many of all answers under way.
    pub memory: usize,
    /// Bytes that the records of one batch may unpack to: every reader has to hold them.
    pub unpacked_batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 400,
            idle: Duration::from_secs(600),
            request_bytes: 64 * 1024 * 1024,
            memory: 256 * 1024 * 1024,
            unpacked_batch_bytes: 64 * 1024 * 1024,
        }
    }
}

/// Memory that is shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pages: Arc<Semaphore>,
    most: usize,
}

/// Memory in use, given back when this goes.
pub(crate) type Room = Option<OwnedSemaphorePermit>;

/// What memory is counted in, in bytes.
const PAGE: usize = 4096;

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        let most = (bytes / PAGE).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { pages: Arc::new(Semaphore::new(most)), most }
    }

    /// Adds room for `bytes` more to `room`; waits until it is there. What is more than all there is counts as all.
    pub(crate) async fn grow(&self, room: &mut Room, bytes: usize) -> io::Result<()> {
        let pages = self.pages_for(room, bytes);
        let more = Arc::clone(&self.pages).acquire_many_owned(pages).await.map_err(io::Error::other)?;
        add(room, more);
        Ok(())
    }

    /// Adds room for `bytes` more to `room`, if it is there.
    pub(crate) fn try_grow(&self, room: &mut Room, bytes: usize) -> bool {
        let pages = self.pages_for(room, bytes);
        let Ok(more) = Arc::clone(&self.pages).try_acquire_many_owned(pages) else { return false };
        add(room, more);
        true
    }

    fn pages_for(&self, room: &Room, bytes: usize) -> u32 {
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let pages = bytes.div_ceil(PAGE).min(self.most.saturating_sub(held));
        u32::try_from(pages).unwrap_or(u32::MAX)
    }
}

/// Gives back what `room` holds beyond `bytes`.
pub(crate) fn shrink(room: &mut Room, bytes: usize) {
    if let Some(held) = room {
        let spare = held.num_permits().saturating_sub(bytes.div_ceil(PAGE));
        drop(held.split(spare));
    }
}

fn add(room: &mut Room, more: OwnedSemaphorePermit) {
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
}
