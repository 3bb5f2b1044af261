//! Bounds on what clients may use of this process: connections, time, memory.
//!
//! It must not know the Kafka protocol.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds on all clients together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. Further ones are closed at once.
    pub connections: usize,
    /// A connection without a request for this long is closed.
    pub idle: Duration,
    /// Bytes of the largest request. Only a produce request may be larger than 4 MiB.
    pub request_bytes: usize,
    /// Bytes of all requests that are being processed, and as many of all responses that are being sent.
    pub memory: usize,
    /// Bytes of the records of one batch after decompression: every reader must have memory for them.
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

/// A budget of memory that all connections share.
#[derive(Clone, Debug)]
pub(crate) struct MemoryPool {
    pages: Arc<Semaphore>,
    /// All pages of the pool.
    total: usize,
}

/// Memory taken from a [`MemoryPool`], returned when it is dropped; `None` while nothing is taken.
pub(crate) type Reservation = Option<OwnedSemaphorePermit>;

/// The unit in which memory is counted, in bytes.
const PAGE: usize = 4096;

impl MemoryPool {
    pub(crate) fn new(bytes: usize) -> Self {
        let total = (bytes / PAGE).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { pages: Arc::new(Semaphore::new(total)), total }
    }

    /// Adds `bytes` to a reservation, and waits until they are free. No reservation grows beyond the whole pool.
    pub(crate) async fn grow(&self, reservation: &mut Reservation, bytes: usize) -> io::Result<()> {
        let pages = self.pages_for(reservation, bytes);
        let more = Arc::clone(&self.pages).acquire_many_owned(pages).await.map_err(io::Error::other)?;
        add(reservation, more);
        Ok(())
    }

    /// Adds `bytes` to a reservation, if they are free now; whether they are.
    pub(crate) fn try_grow(&self, reservation: &mut Reservation, bytes: usize) -> bool {
        let pages = self.pages_for(reservation, bytes);
        let Ok(more) = Arc::clone(&self.pages).try_acquire_many_owned(pages) else { return false };
        add(reservation, more);
        true
    }

    fn pages_for(&self, reservation: &Reservation, bytes: usize) -> u32 {
        let held = reservation.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let pages = bytes.div_ceil(PAGE).min(self.total.saturating_sub(held));
        u32::try_from(pages).unwrap_or(u32::MAX)
    }
}

/// Returns what a reservation has beyond `bytes`.
pub(crate) fn shrink(reservation: &mut Reservation, bytes: usize) {
    if let Some(held) = reservation {
        let spare = held.num_permits().saturating_sub(bytes.div_ceil(PAGE));
        drop(held.split(spare));
    }
}

fn add(reservation: &mut Reservation, more: OwnedSemaphorePermit) {
    match reservation {
        Some(held) => held.merge(more),
        None => *reservation = Some(more),
    }
}
