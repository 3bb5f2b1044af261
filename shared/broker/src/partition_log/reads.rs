//! Reading a Kafka partition: by offset, and by timestamp.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tracing::error;
use wye_domain::place::Offset;

use super::PartitionLog;
use crate::OffsetRange;
use crate::clock::Timestamp;
use crate::disk::{Open, is_shortage};
use crate::record_batch::RecordBatch;
use crate::recovery::ClosedSegment;
use crate::segment::{self, Mark, ReadFailure};
use crate::storage::Damage;

/// Bytes that are read at a time while a timestamp is searched.
const SEARCH_CHUNK: usize = 1024 * 1024;

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The offset is not in the log.
    #[error("the offset is not in the log")]
    OutOfRange,
    /// The records are not as they were written.
    #[error("{0}")]
    Damaged(Damage),
    /// The file cannot be read.
    #[error("the log cannot be read from the disk: {0}")]
    Io(io::Error),
}

/// Batches that were read, and the bounds of the log at that moment.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) records: Bytes,
    pub(crate) range: OffsetRange,
}

/// The result of a search by timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) offset: Offset,
    /// The latest timestamp of the batch, or that of the record; `None` where the search was not by timestamp.
    pub(crate) timestamp: Option<Timestamp>,
}

impl PartitionLog {
    /// Reads complete batches of one segment, starting with the one that holds `offset`: as many as fit into `max_bytes`,
    /// but at least one; nothing at the end of the log. Their checksums are right.
    pub(crate) fn read(&self, offset: Offset, max_bytes: usize) -> Result<Fetched, ReadError> {
        let view = self.view();
        let range = view.range();
        if offset < range.low || offset > range.high {
            return Err(ReadError::OutOfRange);
        }
        if offset == range.high {
            return Ok(Fetched { records: Bytes::new(), range });
        }
        let after = view.closed.partition_point(|closed| closed.base_offset <= offset);
        let (base_offset, records) = if offset >= view.active.base_offset {
            let active = &view.active;
            let (file, base_offset, length) =
                (Arc::clone(&active.file), active.base_offset, active.synced_length);
            let from = active.index.before(offset).unwrap_or(Mark::start(base_offset));
            drop(view);
            (base_offset, segment::read(&*file, (from, length), offset, max_bytes))
        } else {
            let closed = after.checked_sub(1).and_then(|at| view.closed.get(at)).map(Arc::clone);
            drop(view);
            let closed = closed.ok_or(ReadError::OutOfRange)?;
            (closed.base_offset, self.read_closed(&closed, offset, max_bytes))
        };
        match records {
            Ok(records) => Ok(Fetched { records, range }),
            // It was deleted during the read.
            Err(_) if offset < self.range().low => Err(ReadError::OutOfRange),
            Err(ReadFailure::Io(cause)) => {
                if !is_shortage(&cause) {
                    self.note_damage(format!("offset {offset} cannot be read: {cause}"));
                }
                Err(ReadError::Io(cause))
            }
            Err(ReadFailure::Damaged(at, fault)) => {
                let file = segment::path_of(&self.directory, base_offset, "log");
                let damage = Damage { file, at: Some(at), what: fault.to_owned() };
                self.note_damage(damage.to_string());
                Err(ReadError::Damaged(damage))
            }
        }
    }

    fn read_closed(
        &self,
        closed: &ClosedSegment,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Bytes, ReadFailure> {
        let path = segment::path_of(&self.directory, closed.base_offset, "log");
        let file = self.storage.disk().open(&path, Open::Read)?;
        let from = closed.index.before(offset).unwrap_or(Mark::start(closed.base_offset));
        segment::read(&*file, (from, closed.length), offset, max_bytes)
    }

    /// The first batch that may hold a record with this timestamp or a later one: its offset and its latest timestamp.
    /// `None` if there is none. Reads every batch from the low watermark on.
    pub(crate) fn find_time(&self, timestamp: Timestamp) -> Result<Option<Found>, ReadError> {
        let mut offset = self.range().low;
        loop {
            let fetched = match self.read(offset, SEARCH_CHUNK) {
                Ok(fetched) => fetched,
                Err(ReadError::OutOfRange) if offset < self.range().low => {
                    offset = self.range().low;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if fetched.records.is_empty() {
                return Ok(None);
            }
            let mut at = 0;
            while let Ok(batch) = RecordBatch::read_header(&fetched.records[at..]) {
                if batch.max_timestamp >= timestamp {
                    let offset = batch.base_offset.max(offset);
                    return Ok(Some(Found { offset, timestamp: Some(batch.max_timestamp) }));
                }
                offset = batch.end_offset();
                at += batch.size;
            }
        }
    }

    fn note_damage(&self, damage: String) {
        let mut view = self.view();
        if view.damage.as_ref() != Some(&damage) {
            view.damage = Some(damage.clone());
            drop(view);
            error!(directory = %self.directory.display(), damage, "embedded broker: acknowledged records cannot be read");
        }
    }
}
