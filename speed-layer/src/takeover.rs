//! Taking a Kafka partition over: claim it, read what is stored in the control and realtime-views topics, decide where
//! to resume, and rebuild the memory for duplicates. Must not know when a Kafka partition may be taken.
//!
//! The claim is written to both topics first. Its place there fences older owners: whatever they write after it is
//! ignored by everybody, so what is read below is final.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::{Fence, Found, Recovery, resolve};
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::series::SeriesKey;
use wye_domain::summary::Summary;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_runtime::telemetry::KafkaPartitionLabel;

use crate::SpeedError;
use crate::execute::{Executor, Shared};
use crate::owner::Owner;

/// A row of the open epoch.
#[derive(Clone, Debug)]
pub struct StoredRow {
    /// Its series.
    pub series: SeriesKey,
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
    /// Where to resume.
    pub recovery: Recovery,
    /// What the control topic says, with the epoch starts that the realtime views have.
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
    damaged_from: Option<i64>,
    /// The offset after the last record.
    next: Option<i64>,
}

impl ViewsState {
    /// Takes in the record at an offset, in order.
    ///
    /// # Errors
    /// When the record does not decode. It is skipped, and the epochs that may lack it are noted as damaged.
    pub fn apply(&mut self, offset: i64, payload: &[u8]) -> Result<(), wye_domain::DomainError> {
        // Where the log leaves offsets out, it had records there that nobody can read.
        if self.next.is_some_and(|next| next < offset) {
            self.skip();
        }
        self.next = Some(offset + 1);
        let applied = self.try_apply(offset, payload);
        if applied.is_err() {
            self.skip();
        }
        applied
    }

    /// A record is there that cannot be read.
    fn skip(&mut self) {
        // It may have been the reset of any epoch that is there.
        let first = self.first_record.keys().next().copied().unwrap_or(0);
        self.damaged_from = Some(self.damaged_from.map_or(first, |known| known.min(first)));
    }

    fn try_apply(&mut self, offset: i64, payload: &[u8]) -> Result<(), wye_domain::DomainError> {
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
                    self.damaged_from = self.damaged_from.filter(|damaged| *damaged < epoch);
                } else {
                    self.open(epoch);
                }
                self.first_record.entry(epoch).or_insert(offset);
            }
            Header::Rows { epoch, through, complete, .. } => {
                self.open(epoch);
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

    fn open(&mut self, epoch: i64) {
        if self.epoch.is_none_or(|open| epoch > open) {
            self.rows.clear();
            self.epoch = Some(epoch);
        }
    }
}

/// Takes the Kafka partition over, ready for the first [`Owner::step`]. Blocks.
///
/// # Errors
/// When the log cannot be read or written, or readings of the past cannot be evaluated; `Stopping` when `cancel` fires.
pub(crate) fn take_over(
    shared: &Shared,
    executor: &mut Executor,
    kafka_partition: i32,
    cancel: &CancellationToken,
) -> Result<Owner, SpeedError> {
    let log = &shared.log;
    let claim = ControlRecord::Claim { owner: shared.name() };
    let generation = executor.send(CONTROL, &claim.encode())?;
    let marker = executor.send(REALTIME_VIEWS, &realtime_row::encode(&Header::Claim { generation }, None))?;

    let mut control = ControlView::default();
    read_through(log, (CONTROL, kafka_partition), generation, |offset, payload| {
        // A record of a later version is skipped.
        if let Ok(record) = ControlRecord::decode(payload) {
            control.apply(offset, &record);
        }
    })?;
    let mut state = ViewsState::default();
    let mut undecodable = 0;
    read_through(log, (REALTIME_VIEWS, kafka_partition), marker, |offset, payload| {
        if let Err(error) = state.apply(offset, payload) {
            undecodable += 1;
            warn!(kafka_partition, offset, %error, "skipped a record of the realtime views; its epoch is rebuilt");
        }
    })?;
    let label = KafkaPartitionLabel { kafka_partition };
    shared.telemetry.undecodable.get_or_create(&label).inc_by(undecodable);
    if cancel.is_cancelled() {
        return Err(SpeedError::Stopping);
    }

    let log_start = log.offsets_blocking(READINGS, kafka_partition)?.low;
    let taken = decide(generation, control, state, shared.rules.plans.fingerprint(), log_start);
    info!(kafka_partition, generation, recovery = ?taken.recovery, rows = taken.rows.len(), "kafka partition taken over");
    let mut owner = Owner::new(&shared.rules, kafka_partition, taken);
    let begun = owner.start()?;
    executor.carry_out(&mut owner, begun)?;
    remember_past(log, &mut owner, kafka_partition)?;
    shared.telemetry.takeovers.get_or_create(&label).inc();
    Ok(owner)
}

/// Rebuilds the memory for duplicates from the log below the owner's position.
fn remember_past(log: &Log, owner: &mut Owner, kafka_partition: i32) -> Result<(), SpeedError> {
    let (from, position) = (owner.remembers_from(), owner.next());
    if from.unwrap_or(0) >= position {
        return Ok(());
    }
    let mut remembered = Ok(());
    read_all(log, (READINGS, kafka_partition), from, |message| {
        if message.offset < position && remembered.is_ok() {
            let ingest_time = message.timestamp_ms.saturating_mul(1_000);
            remembered = owner.remember(message.offset, ingest_time, message.payload);
        }
    })?;
    remembered.and_then(|()| owner.remember_taken())?;
    debug!(kafka_partition, from, position, remembered = owner.remembered(), "past readings remembered");
    Ok(())
}

/// Decides where a new owner resumes, from what both topics say up to its claim. `definitions` is the fingerprint of
/// what is computed now, `log_start` the oldest readings offset that is still in the log.
pub fn decide(
    generation: i64,
    mut control: ControlView,
    mut state: ViewsState,
    definitions: u64,
    log_start: i64,
) -> TakenOver {
    // A beginning that was not announced any more is a start all the same: its epoch may have rows.
    let begun: BTreeSet<i64> = state.first_record.keys().copied().collect();
    for epoch in &begun {
        control.expect_start(*epoch, 0);
    }
    let rows_through = state.rows.values().map(|(_, through)| *through).max().unwrap_or(0);
    let mut rows = Vec::with_capacity(state.rows.len());
    for ((series, window_start), (summary, through)) in std::mem::take(&mut state.rows) {
        match SeriesKey::decode(&series) {
            Ok(series) => rows.push(StoredRow { series, window_start, summary, through }),
            Err(_) => state.skip(),
        }
    }
    let found = Found {
        checkpoint: state.checkpoint,
        open_epoch: state.epoch,
        begun,
        rows_through,
        damaged_from: state.damaged_from,
        same_definitions: state.definitions == Some(definitions),
        log_start,
    };
    let recovery = resolve(&control, &found);
    let (rows, rows_through) = match recovery {
        Recovery::Resume { epoch, .. } if state.epoch == Some(epoch) => (rows, rows_through),
        _ => (Vec::new(), 0),
    };
    TakenOver { generation, recovery, control, rows, rows_through, first_record: state.first_record }
}

/// Reads a topic from its start up to the record at `last`, which this process has just written.
fn read_through(
    log: &Log,
    place: (&'static str, i32),
    last: i64,
    mut on: impl FnMut(i64, &[u8]),
) -> Result<(), LogError> {
    let mut from = None;
    loop {
        let end = read_all(log, place, from, |message| {
            if message.offset <= last {
                on(message.offset, message.payload);
            }
        })?;
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
    fn records_of_a_fenced_owner_change_nothing() {
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
    fn what_does_not_decode_blocks_nothing_and_costs_a_rebuild_from_the_horizon() {
        let mut state = ViewsState::default();
        let records =
            [begin(1, 0, true), rows(1, 0, 10, true, 3), begin(1, 10, false), rows(1, 10, 15, true, 1)];
        for (offset, record) in (0..).zip(&records) {
            state.apply(offset, record).unwrap();
        }
        // It may have been a reset of the first epoch.
        state.apply(4, b"WYR\x02 of a later version").unwrap_err();
        state.apply(5, &begin(1, 20, false)).unwrap();
        state.apply(6, &rows(1, 20, 25, true, 1)).unwrap();
        let mut control = ControlView::default();
        control.apply(0, &ControlRecord::Horizon { offset: 10, version: 1 });
        let taken = decide(9, control, state, 1, 0);
        assert_eq!(taken.recovery, Recovery::Rebuild { from: 10 });
        assert!(taken.rows.is_empty());
    }

    #[test]
    fn a_rebuild_heals_what_did_not_decode() {
        let mut state = ViewsState::default();
        state.apply(0, b"garbage").unwrap_err();
        state.apply(1, &begin(1, 10, true)).unwrap();
        state.apply(2, &rows(1, 10, 15, true, 1)).unwrap();
        // Of what lies below the rebuild nothing is known.
        let taken = decide(9, ControlView::default(), state, 1, 0);
        assert_eq!(taken.recovery, Recovery::Rebuild { from: 0 });
        let mut state = ViewsState::default();
        state.apply(0, b"garbage").unwrap_err();
        state.apply(1, &begin(1, 0, true)).unwrap();
        state.apply(2, &rows(1, 0, 15, true, 1)).unwrap();
        let taken = decide(9, ControlView::default(), state, 1, 0);
        assert_eq!(taken.recovery, Recovery::Resume { position: 15, epoch: 0 });
    }

    #[test]
    fn an_epoch_that_began_unannounced_is_a_start() {
        let taken = taken(&[begin(1, 0, true), rows(1, 0, 10, true, 3), begin(1, 10, false)]);
        assert_eq!(taken.recovery, Recovery::Resume { position: 10, epoch: 10 });
        assert_eq!(taken.control.starts.keys().copied().collect::<Vec<_>>(), [0, 10]);
    }
}
