//! Where a new owner of a Kafka partition resumes: a pure decision from what the control and realtime-views topics say up to
//! its claim. Must not know how the topics are read.
//!
//! The claim is in both topics, and readers ignore what older owners write after it. So what is read up to it is final.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::control::ControlView;
use wye_domain::epoch::{Fence, Found, Recovery, resolve};
use wye_domain::place::{Generation, Offset};
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::series::SeriesKey;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;

/// What is stored about a Kafka partition, up to the claim of a new owner.
#[derive(Debug)]
pub struct Claimed {
    /// The new owner.
    pub generation: Generation,
    /// What the control topic says.
    pub control: ControlView,
    /// What the realtime-views topic says.
    pub views: ViewsState,
    /// The oldest readings offset that is still in the log.
    pub log_start: Offset,
}

/// A Kafka partition that was taken over.
#[derive(Debug)]
pub struct TakenOver {
    /// The new owner.
    pub generation: Generation,
    /// Where to resume.
    pub recovery: Recovery,
    /// What the control topic says, with the epoch starts that the realtime views have.
    pub control: ControlView,
    /// The rows of the open epoch; none for a rebuild.
    pub rows: Vec<StoredRow>,
    /// The readings offset that these rows reach to, past the position after an incomplete flush; `None` without rows. No
    /// epoch may start before it: the rows of the open one hold the readings up to there.
    pub rows_through: Option<Offset>,
    /// The first record of each epoch in the realtime-views topic.
    pub first_record: BTreeMap<Offset, Offset>,
}

/// A row of the open epoch.
#[derive(Clone, Debug)]
pub struct StoredRow {
    /// Its series.
    pub series: SeriesKey,
    /// The start of its window.
    pub window_start: Micros,
    /// Its summary.
    pub summary: Summary,
    /// All readings of the epoch below this offset are in the row.
    pub through: Offset,
}

/// Decides where a new owner resumes. `definitions` is the fingerprint of what is computed now.
pub fn decide(claimed: Claimed, definitions: u64) -> TakenOver {
    let Claimed { generation, mut control, mut views, log_start } = claimed;
    // An epoch may have rows before it is announced, so its beginning is a start too.
    let begun: BTreeSet<Offset> = views.first_record.keys().copied().collect();
    for epoch in &begun {
        control.expect_start(*epoch, None);
    }
    let rows_through = views.rows.values().map(|(_, through)| *through).max();
    let rows = views.take_rows();
    let found = Found {
        checkpoint: views.checkpoint,
        open_epoch: views.epoch,
        begun,
        rows_through,
        damaged_from: views.damaged_from,
        same_definitions: views.definitions == Some(definitions),
        log_start,
    };
    let recovery = resolve(&control, &found);
    let (rows, rows_through) = match recovery {
        Recovery::Resume { epoch, .. } if views.epoch == Some(epoch) => (rows, rows_through),
        _ => (Vec::new(), None),
    };
    TakenOver { generation, recovery, control, rows, rows_through, first_record: views.first_record }
}

/// What the records of one Kafka partition of the realtime-views topic add up to.
#[derive(Debug, Default)]
pub struct ViewsState {
    fence: Fence,
    epoch: Option<Offset>,
    /// By series (as stored) and window start: the summary, and the offset that it reaches to.
    rows: HashMap<(String, Micros), (Summary, Offset)>,
    checkpoint: Option<Offset>,
    definitions: Option<u64>,
    first_record: BTreeMap<Offset, Offset>,
    damaged_from: Option<Offset>,
    /// The offset after the last record.
    next: Option<Offset>,
}

impl ViewsState {
    /// Takes in the record at an offset, in order.
    ///
    /// # Errors
    /// When the record does not decode. It is skipped, and the epochs that may lack it are marked as damaged.
    pub fn apply(&mut self, offset: Offset, payload: &[u8]) -> Result<(), DomainError> {
        // A gap in the offsets is records that no reader can decode.
        if self.next.is_some_and(|next| next < offset) {
            self.mark_damage();
        }
        self.next = Some(offset.next());
        let applied = self.try_apply(offset, payload);
        if applied.is_err() {
            self.mark_damage();
        }
        applied
    }

    /// A record cannot be read. It may have been the reset of any epoch that is stored.
    fn mark_damage(&mut self) {
        let first = self.first_record.keys().next().copied().unwrap_or(Offset::START);
        self.damaged_from = Some(self.damaged_from.map_or(first, |damaged| damaged.min(first)));
    }

    fn try_apply(&mut self, offset: Offset, payload: &[u8]) -> Result<(), DomainError> {
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
                        let series = rows.series.text(row).unwrap_or_default().to_owned();
                        let key = (series, rows.window_start(row));
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

    fn open(&mut self, epoch: Offset) {
        if self.epoch.is_none_or(|open| epoch > open) {
            self.rows.clear();
            self.epoch = Some(epoch);
        }
    }

    /// The rows, in an order that depends on nothing but them.
    fn take_rows(&mut self) -> Vec<StoredRow> {
        let mut stored: Vec<_> = std::mem::take(&mut self.rows).into_iter().collect();
        stored.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut rows = Vec::with_capacity(stored.len());
        for ((series, window_start), (summary, through)) in stored {
            match SeriesKey::decode(&series) {
                Ok(series) => rows.push(StoredRow { series, window_start, summary, through }),
                Err(_) => self.mark_damage(),
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::control::ControlRecord;
    use wye_domain::realtime_row::RowsBuilder;

    use super::*;

    const DEFINITIONS: u64 = 1;

    /// The owner whose claim has this offset.
    fn claimed_at(offset: i64) -> Generation {
        Generation(Offset(offset))
    }

    fn begin(generation: i64, epoch: i64) -> Vec<u8> {
        let (generation, epoch) = (claimed_at(generation), Offset(epoch));
        let header = Header::Begin { generation, epoch, definitions: DEFINITIONS, reset: false };
        realtime_row::encode(&header, None)
    }

    fn reset(generation: i64, epoch: i64) -> Vec<u8> {
        let (generation, epoch) = (claimed_at(generation), Offset(epoch));
        let header = Header::Begin { generation, epoch, definitions: DEFINITIONS, reset: true };
        realtime_row::encode(&header, None)
    }

    /// A row with `count` readings: the last record of a flush.
    fn checkpoint(generation: i64, epoch: i64, through: i64, count: u64) -> Vec<u8> {
        let (generation, epoch, through) = (claimed_at(generation), Offset(epoch), Offset(through));
        rows(&Header::Rows { generation, epoch, through, complete: true, newest_event_time: None }, count)
    }

    /// The same, of a flush that was interrupted.
    fn partial(generation: i64, epoch: i64, through: i64, count: u64) -> Vec<u8> {
        let (generation, epoch, through) = (claimed_at(generation), Offset(epoch), Offset(through));
        rows(&Header::Rows { generation, epoch, through, complete: false, newest_event_time: None }, count)
    }

    fn rows(header: &Header, count: u64) -> Vec<u8> {
        let mut builder = RowsBuilder::default();
        builder.append(r#"["*","m",["d"]]"#, Micros::EPOCH, &Summary { count, ..Summary::EMPTY });
        realtime_row::encode(header, Some(&builder.finish()))
    }

    fn resume(position: i64, epoch: i64) -> Recovery {
        Recovery::Resume { position: Offset(position), epoch: Offset(epoch) }
    }

    fn rebuild(from: i64) -> Recovery {
        Recovery::Rebuild { from: Offset(from) }
    }

    /// Takes in records from an offset on.
    fn apply(views: &mut ViewsState, from: i64, records: &[Vec<u8>]) {
        for (offset, record) in (from..).zip(records) {
            views.apply(Offset(offset), record).unwrap();
        }
    }

    fn taken_from(control: ControlView, views: ViewsState) -> TakenOver {
        decide(Claimed { generation: claimed_at(9), control, views, log_start: Offset::START }, DEFINITIONS)
    }

    fn taken(records: &[Vec<u8>]) -> TakenOver {
        let mut views = ViewsState::default();
        apply(&mut views, 0, records);
        taken_from(ControlView::default(), views)
    }

    #[test]
    fn an_incomplete_flush_is_taken_over_row_by_row() {
        let taken = taken(&[reset(1, 0), checkpoint(1, 0, 10, 3), partial(1, 0, 20, 5)]);
        assert_eq!(taken.recovery, resume(10, 0));
        assert_eq!((taken.rows[0].through, taken.rows_through), (Offset(20), Some(Offset(20))));
        assert_eq!(taken.rows[0].summary.count, 5);
    }

    #[test]
    fn records_of_a_fenced_owner_change_nothing() {
        let taken = taken(&[
            reset(1, 0),
            checkpoint(1, 0, 10, 3),
            begin(4, 0),
            checkpoint(1, 0, 30, 9),
            begin(1, 30),
        ]);
        assert_eq!(taken.recovery, resume(10, 0));
        assert_eq!(taken.rows[0].summary.count, 3);
    }

    #[test]
    fn a_rebuild_voids_the_rows_before_it() {
        let taken = taken(&[
            reset(1, 0),
            checkpoint(1, 0, 10, 3),
            begin(1, 10),
            checkpoint(1, 10, 15, 1),
            reset(4, 10),
        ]);
        assert_eq!(taken.recovery, resume(10, 10));
        assert!(taken.rows.is_empty());
        let first_record: Vec<_> = taken.first_record.into_iter().collect();
        assert_eq!(first_record, [(Offset(0), Offset(0)), (Offset(10), Offset(4))]);
    }

    #[test]
    fn a_record_that_does_not_decode_blocks_nothing_and_costs_a_rebuild_from_the_horizon() {
        let mut views = ViewsState::default();
        apply(&mut views, 0, &[reset(1, 0), checkpoint(1, 0, 10, 3), begin(1, 10), checkpoint(1, 10, 15, 1)]);
        // It may have been a reset of the first epoch.
        views.apply(Offset(4), b"WYR\x02 of a later version").unwrap_err();
        apply(&mut views, 5, &[begin(1, 20), checkpoint(1, 20, 25, 1)]);
        let mut control = ControlView::default();
        control.apply(Offset(0), &ControlRecord::Horizon { offset: Offset(10), version: 1 });
        let taken = taken_from(control, views);
        assert_eq!(taken.recovery, rebuild(10));
        assert!(taken.rows.is_empty());
    }

    #[test]
    fn a_rebuild_repairs_the_epochs_from_its_start_on() {
        for (start, recovery) in [
            // The epochs below the rebuild may still lack rows.
            (10, rebuild(0)),
            (0, resume(15, 0)),
        ] {
            let mut views = ViewsState::default();
            views.apply(Offset(0), b"garbage").unwrap_err();
            apply(&mut views, 1, &[reset(1, start), checkpoint(1, start, 15, 1)]);
            assert_eq!(taken_from(ControlView::default(), views).recovery, recovery);
        }
    }

    #[test]
    fn a_gap_in_the_offsets_is_a_record_that_does_not_decode() {
        let mut views = ViewsState::default();
        apply(&mut views, 0, &[reset(1, 0), checkpoint(1, 0, 10, 3)]);
        apply(&mut views, 3, &[checkpoint(1, 0, 20, 5)]);
        assert_eq!(taken_from(ControlView::default(), views).recovery, rebuild(0));
    }

    #[test]
    fn an_epoch_that_has_begun_and_is_not_announced_is_a_start() {
        let taken = taken(&[reset(1, 0), checkpoint(1, 0, 10, 3), begin(1, 10)]);
        assert_eq!(taken.recovery, resume(10, 10));
        assert_eq!(taken.control.starts.keys().copied().collect::<Vec<_>>(), [Offset(0), Offset(10)]);
    }
}
