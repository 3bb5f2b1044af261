//! One Kafka partition on disk: an append-only log of record batches, in segments.
//!
//! # Stability contract
//! A partition is a directory. `NNNNNNNNNNNNNNNNNNNN.log` holds record batches (magic 2) as they are sent over the wire,
//! starting at the offset of its name, without gaps to the next file. `NNNNNNNNNNNNNNNNNNNN.producers` (JSON) holds the
//! state of the producers at the start of that file. `low` holds the low watermark in decimal. Both are small files as in
//! [`crate::storage`]. `NNNNNNNNNNNNNNNNNNNN.cut-at-POSITION` is a copy of bytes that were cut off a file. Later versions
//! read a data directory of earlier ones.
//!
//! # What is durable when
//! A write can be read, and is acknowledged, once it is synced to the disk: without replicas, the end of the synced part
//! is Kafka's high watermark. Writes that wait for a sync at the same time share one.
//!
//! After an error of the disk it is unknown what the disk has. So the partition accepts no more writes until it is opened
//! again; reads continue. A full disk is different: what was not acknowledged is cut off, and writes are accepted again
//! once there is space.
//!
//! # Locks
//! `writer`, then `syncing`, then `view`. The first two are held during input and output, so no async thread may take
//! them: [`PartitionLog::range`] and [`PartitionLog::trouble`] take only `view`, which is never held during that.
//!
//! It must not know the network, nor the Kafka protocol beyond the batch header.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::error;
use wye_domain::place::Offset;

use crate::OffsetRange;
use crate::disk::is_shortage;
use crate::locks;
use crate::recovery::{self, ActiveSegment, ClosedSegment, Recovered};
use crate::sequences::Sequences;
use crate::storage::Storage;

pub(crate) use reads::{Found, ReadError};
use writes::Writer;
pub(crate) use writes::{AppendError, Written};

mod reads;
mod writes;

/// A Kafka partition. Shared by all connections.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    storage: Arc<Storage>,
    directory: PathBuf,
    /// The size in bytes at which a segment is closed.
    segment_bytes: u64,
    /// Held while something is written, closed or deleted.
    writer: Mutex<Writer>,
    /// Held by the thread that syncs for all that wait.
    syncing: Mutex<()>,
    /// The log as it is now.
    view: Mutex<View>,
}

#[derive(Debug)]
struct View {
    /// The low watermark.
    low: Offset,
    /// The end of the synced part, which can be read.
    high: Offset,
    /// The end of the written part.
    end: Offset,
    /// How often the written part was cut back to the synced part.
    cuts: u64,
    /// Closed segments, oldest first.
    closed: VecDeque<Arc<ClosedSegment>>,
    active: ActiveSegment,
    condition: Condition,
    /// Damage that a read has found.
    damage: Option<String>,
}

/// Whether writes are accepted.
#[derive(Clone, Debug)]
enum Condition {
    Writable,
    /// A sync has failed because the disk is full: the unsynced part must be cut off before the next write.
    CutBack,
    /// No writes until the log is opened again, for this reason.
    Stopped(String),
}

impl PartitionLog {
    /// Creates an empty Kafka partition in a new directory. Segments are closed at `segment_bytes`. The caller must sync
    /// the parent directory.
    pub(crate) fn create(storage: &Arc<Storage>, directory: PathBuf, segment_bytes: u64) -> io::Result<Self> {
        storage.disk().create_directory(&directory)?;
        let (low, high) = (Offset::START, Offset::START);
        let active = ActiveSegment::create(storage, &directory, high)?;
        let empty = Recovered { low, high, closed: VecDeque::new(), active, sequences: Sequences::default() };
        Ok(Self::new(storage, directory, segment_bytes, empty))
    }

    /// Opens the Kafka partition in `directory`. Fails with [`crate::storage::Damage`] where acknowledged records are not
    /// as they were written.
    pub(crate) fn open(storage: &Arc<Storage>, directory: PathBuf, segment_bytes: u64) -> io::Result<Self> {
        let recovered = recovery::open(storage, &directory)?;
        Ok(Self::new(storage, directory, segment_bytes, recovered))
    }

    fn new(storage: &Arc<Storage>, directory: PathBuf, segment_bytes: u64, recovered: Recovered) -> Self {
        let Recovered { low, high, closed, active, sequences } = recovered;
        let (condition, damage) = (Condition::Writable, None);
        let view = View { low, high, end: high, cuts: 0, closed, active, condition, damage };
        Self {
            storage: Arc::clone(storage),
            directory,
            segment_bytes,
            writer: Mutex::new(Writer::new(sequences)),
            syncing: Mutex::default(),
            view: Mutex::new(view),
        }
    }

    /// The offsets that can be read now. Never waits for the disk.
    pub(crate) fn range(&self) -> OffsetRange {
        self.view().range()
    }

    /// The problem of this log, if there is any. Never waits for the disk.
    pub(crate) fn trouble(&self) -> Option<String> {
        let view = self.view();
        match &view.condition {
            Condition::Stopped(reason) => Some(format!("no more writes until a restart: {reason}")),
            Condition::Writable | Condition::CutBack => view.damage.clone(),
        }
    }

    /// Makes `before` the low watermark and deletes the segments below it, on a full disk too. Returns the low watermark,
    /// or `None` if `before` is past the end.
    pub(crate) fn delete_before(&self, before: Offset) -> io::Result<Option<Offset>> {
        let mut writer = self.writer();
        let OffsetRange { low, high } = self.range();
        if before > high {
            return Ok(None);
        }
        if before <= low {
            return Ok(Some(low));
        }
        match self.storage.free_space(|| self.trim(&mut writer, before)) {
            Ok(()) => Ok(Some(before)),
            Err(error) => {
                if !is_shortage(&error) {
                    self.stop("delete records", &error);
                }
                Err(error)
            }
        }
    }

    fn trim(&self, writer: &mut Writer, before: Offset) -> io::Result<()> {
        // First: a segment that a crash brings back is below the watermark, and is removed when the log is opened.
        recovery::write_low(&self.storage, &self.directory, before)?;
        let empty = {
            let mut view = self.view();
            view.low = before;
            before == view.end && view.active.length > 0 && matches!(view.condition, Condition::Writable)
        };
        if empty {
            // Nothing is left to read, so the disk space of the active segment is freed too.
            self.roll(writer).map_err(|refusal| match refusal {
                AppendError::Full(cause) => cause,
                refusal => io::Error::other(refusal),
            })?;
        }
        loop {
            let oldest =
                self.view().closed.front().filter(|oldest| oldest.end_offset <= before).map(Arc::clone);
            let Some(oldest) = oldest else { return Ok(()) };
            recovery::remove_segment(&self.storage, &self.directory, oldest.base_offset)?;
            self.view().closed.pop_front();
        }
    }

    /// Accepts no more writes, for this reason, and waits for the current one.
    pub(crate) fn close(&self, reason: &str) {
        self.view().condition = Condition::Stopped(reason.to_owned());
        drop(self.writer());
    }

    /// Accepts no more writes until the log is opened again. `what` is the operation that failed, after "cannot".
    fn stop(&self, what: &str, cause: &io::Error) -> AppendError {
        let reason = format!("cannot {what}: {cause}");
        let mut view = self.view();
        if let Condition::Stopped(first) = &view.condition {
            return AppendError::Stopped(first.clone());
        }
        view.condition = Condition::Stopped(reason.clone());
        drop(view);
        error!(
            directory = %self.directory.display(), reason,
            "embedded broker: a Kafka partition accepts no more writes; check the disk, then restart the broker"
        );
        AppendError::Stopped(reason)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        locks::lock(&self.writer)
    }

    fn syncing(&self) -> MutexGuard<'_, ()> {
        locks::lock(&self.syncing)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        locks::lock(&self.view)
    }
}

impl View {
    fn range(&self) -> OffsetRange {
        OffsetRange { low: self.low, high: self.high }
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
pub(crate) mod tests;
