//! Taking a Kafka partition over: claim it, read what stands in the control and realtime-views topics, and decide
//! where to go on.
//!
//! The claim is written to both topics first. Its place there fences older owners: whatever they write after it is
//! void for everybody, so the state below is read once and is final.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use tokio::runtime::Handle;
use tracing::info;
use wye_domain::control::{Announcement, ControlRecord, ControlView};
use wye_domain::epoch::{Fence, Found, Recovery, resolve};
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::summary::Summary;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};

use crate::SpeedError;

/// A row of the open epoch.
#[derive(Clone, Debug)]
pub struct StoredRow {
    /// The stored form of its series.
    pub series: String,
    /// Window start in µs.
    pub window_start: i64,
    /// Its summary.
    pub summary: Summary,
    /// All readings of the epoch below this offset are in it.
    pub through: i64,
}

/// A Kafka partition that was taken over.
#[derive(Debug)]
pub struct TakenOver {
    /// The number of this ownership.
    pub generation: i64,
    /// Where to go on.
    pub recovery: Recovery,
    /// What the control topic says, with the epoch starts that stand in the realtime views.
    pub control: ControlView,
    /// The rows of the open epoch; none for a rebuild.
    pub rows: Vec<StoredRow>,
    /// The readings offset that these rows reach to, past the position after an incomplete flush. No epoch may start
    /// before it: the rows of the open one hold the readings up to there.
    pub rows_through: i64,
    /// The first record of each epoch in the realtime-views topic.
    pub first_record: BTreeMap<i64, i64>,
}

/// What the records of one Kafka partition of the realtime-views topic add up to.
#[derive(Debug, Default)]
pub struct ViewsState {
    fence: Fence,
    epoch: Option<i64>,
    rows: HashMap<(String, i64), (Summary, i64)>,
    checkpoint: Option<i64>,
    definitions: Option<u64>,
    first_record: BTreeMap<i64, i64>,
}

impl ViewsState {
    /// Takes in the record at an offset, in order.
    ///
    /// # Errors
    /// When the record does not decode.
    pub fn apply(&mut self, offset: i64, payload: &[u8]) -> Result<(), wye_domain::DomainError> {
        let record = realtime_row::decode(payload)?;
        if !self.fence.admit(record.header.generation()) {
            return Ok(());
        }
        match record.header {
            Header::Claim { .. } => {}
            Header::Begin { epoch, definitions, reset, .. } => {
                self.definitions = Some(definitions);
                if reset {
                    self.first_record.split_off(&epoch);
                    self.rows.clear();
                    self.epoch = Some(epoch);
                    self.checkpoint = Some(epoch);
                } else if self.epoch.is_none_or(|open| epoch > open) {
                    self.rows.clear();
                    self.epoch = Some(epoch);
                }
                self.first_record.entry(epoch).or_insert(offset);
            }
            Header::Rows { epoch, through, complete, .. } => {
                if self.epoch.is_none_or(|open| epoch > open) {
                    self.rows.clear();
                    self.epoch = Some(epoch);
                }
                if self.epoch == Some(epoch)
                    && let Some(batch) = &record.rows
                {
                    let rows = Rows::of(batch)?;
                    for row in 0..batch.num_rows() {
                        let key =
                            (rows.series.text(row).unwrap_or_default().to_owned(), rows.window_start[row]);
                        self.rows.insert(key, (rows.summaries.summary(row)?, through));
                    }
                }
                if complete {
                    self.checkpoint = Some(through);
                }
            }
        }
        Ok(())
    }
}

/// Takes the Kafka partition over. Blocks; `handle` runs the writes.
///
/// # Errors
/// When the log cannot be read or written, or stored records do not decode.
pub fn take_over(
    log: &Log,
    producer: &Producer,
    handle: &Handle,
    kafka_partition: i32,
    definitions: u64,
) -> Result<TakenOver, SpeedError> {
    let write = |topic: &str, payload: &[u8]| {
        handle.block_on(producer.send(Outgoing { topic, kafka_partition, key: None, payload, headers: &[] }))
    };
    let claim = ControlRecord::Claim { owner: format!("pid {}", std::process::id()) };
    let generation = write(CONTROL, &claim.encode())?;
    let marker = write(REALTIME_VIEWS, &realtime_row::encode(&Header::Claim { generation }, None))?;

    let mut control = ControlView::default();
    read_through(log, (CONTROL, kafka_partition), generation, |offset, payload| {
        // A record of a later version is passed over.
        if let Ok(record) = ControlRecord::decode(payload)
            && offset <= generation
        {
            control.apply(offset, &record);
        }
        Ok(())
    })?;
    let mut state = ViewsState::default();
    read_through(log, (REALTIME_VIEWS, kafka_partition), marker, |offset, payload| {
        if offset > marker {
            return Ok(());
        }
        state.apply(offset, payload).map_err(|source| SpeedError::Stored {
            topic: REALTIME_VIEWS,
            kafka_partition,
            source,
        })
    })?;

    let log_start = log.offsets_blocking(READINGS, kafka_partition)?.low;
    let taken = decide(generation, control, state, definitions, log_start);
    info!(kafka_partition, generation, recovery = ?taken.recovery, rows = taken.rows.len(), "kafka partition taken over");
    Ok(taken)
}

/// Decides where a new owner goes on, from what stands in both topics up to its claim. `log_start` is the oldest
/// readings offset that is still in the log.
pub fn decide(
    generation: i64,
    mut control: ControlView,
    state: ViewsState,
    definitions: u64,
    log_start: i64,
) -> TakenOver {
    // A beginning that was not announced any more is a start all the same: rows may stand behind it.
    for epoch in state.first_record.keys() {
        let here = Announcement { announced_at: 0, readable_from: generation };
        control.starts.entry(*epoch).or_insert(here);
    }
    let same_definitions = state.definitions == Some(definitions);
    let rows_through = state.rows.values().map(|(_, through)| *through).max().unwrap_or(0);
    let recovery = resolve(
        &control,
        Found {
            checkpoint: state.checkpoint,
            open_epoch: state.epoch,
            rows_through,
            same_definitions,
            log_start,
        },
    );
    let rows: Vec<StoredRow> = match recovery {
        Recovery::Resume { epoch, .. } if state.epoch == Some(epoch) => state
            .rows
            .into_iter()
            .map(|((series, window_start), (summary, through))| StoredRow {
                series,
                window_start,
                summary,
                through,
            })
            .collect(),
        _ => Vec::new(),
    };
    let rows_through = if rows.is_empty() { 0 } else { rows_through };
    TakenOver { generation, recovery, control, rows, rows_through, first_record: state.first_record }
}

/// Reads a topic from its start until the record at `last`, which this process has just written, was seen.
fn read_through(
    log: &Log,
    place: (&'static str, i32),
    last: i64,
    mut on: impl FnMut(i64, &[u8]) -> Result<(), SpeedError>,
) -> Result<(), SpeedError> {
    let mut from = None;
    loop {
        let mut failed = None;
        let end = read_all(log, place, from, |message| {
            if failed.is_none() {
                failed = on(message.offset, message.payload).err();
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if end > last {
            return Ok(());
        }
        // The broker has acknowledged the record and will show it in a moment.
        from = Some(end);
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::realtime_row::RowsBuilder;

    use super::*;

    fn begin(generation: i64, epoch: i64, reset: bool) -> Vec<u8> {
        realtime_row::encode(&Header::Begin { generation, epoch, definitions: 1, reset }, None)
    }

    fn rows(generation: i64, epoch: i64, through: i64, complete: bool, count: u64) -> Vec<u8> {
        let mut builder = RowsBuilder::default();
        let summary = Summary { count, ..Summary::EMPTY };
        builder.append(r#"["*","m",["d"]]"#, 0, &summary);
        let header = Header::Rows { generation, epoch, through, complete, newest_event_time: 0 };
        realtime_row::encode(&header, Some(&builder.finish()))
    }

    fn taken(records: &[Vec<u8>]) -> TakenOver {
        let mut state = ViewsState::default();
        for (offset, record) in (0..).zip(records) {
            state.apply(offset, record).unwrap();
        }
        decide(9, ControlView::default(), state, 1, 0)
    }

    #[test]
    fn an_incomplete_flush_is_taken_over_row_by_row() {
        let taken = taken(&[begin(1, 0, true), rows(1, 0, 10, true, 3), rows(1, 0, 20, false, 5)]);
        assert_eq!(taken.recovery, Recovery::Resume { position: 10, epoch: 0 });
        assert_eq!((taken.rows[0].through, taken.rows_through, taken.rows[0].summary.count), (20, 20, 5));
    }

    #[test]
    fn a_zombie_changes_nothing() {
        let zombie = [
            begin(1, 0, true),
            rows(1, 0, 10, true, 3),
            begin(4, 0, false),
            rows(1, 0, 30, true, 9),
            begin(1, 30, false),
        ];
        let taken = taken(&zombie);
        assert_eq!(taken.recovery, Recovery::Resume { position: 10, epoch: 0 });
        assert_eq!(taken.rows[0].summary.count, 3);
    }

    #[test]
    fn a_rebuild_voids_what_stood_there() {
        let taken = taken(&[
            begin(1, 0, true),
            rows(1, 0, 10, true, 3),
            begin(1, 10, false),
            rows(1, 10, 15, true, 1),
            begin(4, 10, true),
        ]);
        assert_eq!(taken.recovery, Recovery::Resume { position: 10, epoch: 10 });
        assert!(taken.rows.is_empty());
        assert_eq!(taken.first_record.into_iter().collect::<Vec<_>>(), [(0, 0), (10, 4)]);
    }

    #[test]
    fn an_epoch_that_began_unannounced_is_a_start() {
        let taken = taken(&[begin(1, 0, true), rows(1, 0, 10, true, 3), begin(1, 10, false)]);
        assert_eq!(taken.recovery, Recovery::Resume { position: 10, epoch: 10 });
        assert_eq!(taken.control.starts.keys().copied().collect::<Vec<_>>(), [0, 10]);
    }
}
