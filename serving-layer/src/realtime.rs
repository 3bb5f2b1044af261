//! What the realtime-views topic adds up to: per Kafka partition the epochs that count, and their rows.
//!
//! Pure: records come in by [`RealtimeStore::apply`] in the order of the topic, and out come epochs that a query can
//! keep: an epoch that a query holds is copied before it changes. This file does not know where records come from, nor
//! what a batch view is beyond its horizon.

mod epoch_view;
mod newest;
mod record;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashSet;
use wye_domain::epoch::Fence;
use wye_domain::horizon::Horizon;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::realtime_row::Header;
use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;

pub use epoch_view::EpochView;
use newest::{Newest, Offer, Part};
pub use record::{RealtimeRow, Record};
pub use rows::{CapturedRows, Selection};

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It counts.
    Taken,
    /// An owner that was replaced wrote it.
    Fenced,
    /// Its epoch is below the horizon, or never began.
    NoEpoch,
    /// Its rows were made with other definitions.
    OtherDefinitions,
}

/// Epochs that the store no longer holds. Freeing a large one takes time.
pub type Dropped = Vec<Arc<EpochView>>;

/// The epochs of all Kafka partitions.
#[derive(Debug, Default)]
pub struct RealtimeStore {
    definitions: u64,
    kafka_partitions: BTreeMap<KafkaPartition, Epochs>,
    newest: Newest,
    changes: u64,
    /// Epochs that were made with other definitions.
    others: usize,
}

/// The epochs of one Kafka partition.
#[derive(Debug, Default)]
struct Epochs {
    fence: Fence,
    /// Who writes now, as far as the topic was read.
    generation: Option<Generation>,
    by_start: BTreeMap<Offset, Epoch>,
    /// Epochs below it are left out.
    horizon: Option<Offset>,
    /// The highest offset that a complete flush has ever reached, void ones too.
    reached: Option<Offset>,
}

/// One epoch with its extent. The extent is beside the rows, so that it can change while a query holds them.
#[derive(Debug)]
struct Epoch {
    view: Arc<EpochView>,
    /// Its rows hold all of its readings below this offset.
    through: Offset,
    /// Some row holds readings up to here; past `through` after a flush that was cut off.
    reach: Offset,
    /// Whether its rows are in answers. An epoch that begins inside of what an earlier one's rows hold was rebuilt at a
    /// newer horizon: the old rows count until the batch view of that horizon is there.
    counts: bool,
    /// Whether a record did not decode since it began, which may have been one of it.
    damaged: bool,
}

/// Up to where epochs hold everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The readings offset below which nothing is missing.
    pub covered: Offset,
    /// What is wrong with the rows there or beyond.
    pub flaw: Option<Flaw>,
}

/// Why realtime rows are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// An epoch does not begin where the one before it ends.
    Gap,
    /// A record did not decode, so rows may be missing.
    Damaged,
    /// A new owner has not yet computed again what an earlier one had.
    Rebuilding,
}

/// Where the epochs of an answer begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the horizon of a batch view.
    Horizon(Offset),
    /// With no batch view, at the oldest reading of the log or before it.
    LogStart(Offset),
}

impl RealtimeStore {
    /// An empty store for rows that are made with the definitions of this fingerprint.
    pub fn new(definitions: u64) -> Self {
        Self { definitions, ..Self::default() }
    }

    /// Applies the next record of a Kafka partition of the topic. The rows of one record may be given in several
    /// calls, each with the record's header.
    pub fn apply(
        &mut self,
        kafka_partition: KafkaPartition,
        header: &Header,
        rows: &[RealtimeRow],
    ) -> (Applied, Dropped) {
        let epochs = self.kafka_partitions.entry(kafka_partition).or_default();
        if !epochs.fence.admit(header.generation()) {
            return (Applied::Fenced, Dropped::new());
        }
        epochs.generation = Some(header.generation());
        match *header {
            Header::Claim { .. } => (Applied::Taken, Dropped::new()),
            Header::Begin { epoch, definitions, reset, .. } => {
                self.changes += 1;
                let void = if reset { epochs.by_start.split_off(&epoch) } else { BTreeMap::new() };
                let mut gone: Vec<Epoch> = void.into_values().collect();
                let applied = self.begin(kafka_partition, epoch, definitions, &mut gone);
                (applied, self.forget(gone))
            }
            Header::Rows { epoch, through, complete, .. } => {
                if complete {
                    epochs.reached = epochs.reached.max(Some(through));
                }
                let Some(held) = epochs.by_start.get_mut(&epoch) else {
                    return (Applied::NoEpoch, Dropped::new());
                };
                if held.view.definitions() != self.definitions {
                    return (Applied::OtherDefinitions, Dropped::new());
                }
                self.changes += 1;
                held.reach = held.reach.max(through);
                if complete {
                    held.through = held.through.max(through);
                }
                if rows.is_empty() {
                    return (Applied::Taken, Dropped::new());
                }
                let part = Part { kafka_partition, epoch };
                let (view, counts) = (Arc::make_mut(&mut held.view), held.counts);
                for RealtimeRow { series, window_start, summary } in rows {
                    view.upsert(*series, *window_start, summary);
                    if counts {
                        let (series, window_start) = (*series, *window_start);
                        self.newest.offer(Offer { series, window_start, part, filled: summary.count > 0 });
                    }
                }
                (Applied::Taken, Dropped::new())
            }
        }
    }

    /// Removes the epochs below the horizon, now and whenever they come again.
    pub fn trim(&mut self, horizon: &Horizon) -> Dropped {
        let mut below = Vec::new();
        for (kafka_partition, offset) in horizon.iter() {
            let epochs = self.kafka_partitions.entry(kafka_partition).or_default();
            epochs.horizon = epochs.horizon.max(Some(offset));
            let live = epochs.by_start.split_off(&offset);
            below.extend(std::mem::replace(&mut epochs.by_start, live).into_values());
        }
        let dropped = self.forget(below);
        for (kafka_partition, _) in horizon.iter() {
            self.count_waiting(kafka_partition);
        }
        dropped
    }

    /// Lets epochs count that no longer begin inside of what an earlier one's rows hold.
    fn count_waiting(&mut self, kafka_partition: KafkaPartition) {
        let Some(epochs) = self.kafka_partitions.get_mut(&kafka_partition) else { return };
        let mut held = None;
        for (start, epoch) in &mut epochs.by_start {
            if Some(*start) < held {
                return;
            }
            held = Some(epoch.reach);
            if !epoch.counts {
                epoch.counts = true;
                self.changes += 1;
                offer_rows(&mut self.newest, &epoch.view, None);
            }
        }
    }

    /// Removes the rows of a Kafka partition, whose topic is read from its start again. Epochs below the horizon stay out.
    pub fn clear(&mut self, kafka_partition: KafkaPartition) -> Dropped {
        let Some(epochs) = self.kafka_partitions.get_mut(&kafka_partition) else { return Dropped::new() };
        self.changes += 1;
        let horizon = epochs.horizon;
        let void = std::mem::replace(epochs, Epochs { horizon, ..Epochs::default() });
        self.forget(void.by_start.into_values().collect())
    }

    /// A record of a Kafka partition did not decode: rows may be missing, and it may have been the reset of any epoch
    /// that is there.
    pub fn damage(&mut self, kafka_partition: KafkaPartition) {
        let epochs = self.kafka_partitions.entry(kafka_partition).or_default();
        for epoch in epochs.by_start.values_mut() {
            epoch.damaged = true;
        }
        self.changes += 1;
    }

    /// All epochs that count, as they are now, by Kafka partition and start.
    pub fn capture(&self) -> Vec<Arc<EpochView>> {
        self.epochs().filter(|epoch| epoch.counts).map(|epoch| Arc::clone(&epoch.view)).collect()
    }

    /// Up to where the epochs of a Kafka partition hold every reading from `start` on: each begins where the one
    /// before it ends (**HOR-2**).
    pub fn reach(&self, kafka_partition: KafkaPartition, start: Start) -> Reach {
        let (first, mut covered) = match start {
            Start::Horizon(horizon) => (Bound::Included(horizon), horizon),
            Start::LogStart(oldest) => (Bound::Unbounded, oldest),
        };
        let Some(epochs) = self.kafka_partitions.get(&kafka_partition) else {
            return Reach { covered, flaw: None };
        };
        let (mut flaw, mut held) = (None, None);
        for (begin, epoch) in epochs.by_start.range((first, Bound::Unbounded)) {
            if *begin > covered {
                flaw = Some(Flaw::Gap);
                break;
            }
            if Some(*begin) < held {
                // One that counts although an earlier one's rows reach into it should have been void: its reset is lost.
                if epoch.counts {
                    flaw = Some(Flaw::Damaged);
                }
                break;
            }
            if epoch.damaged {
                flaw = Some(Flaw::Damaged);
            }
            covered = covered.max(epoch.through);
            held = Some(epoch.reach);
        }
        let rebuilding = Some(covered) < epochs.reached;
        Reach { covered, flaw: flaw.or(rebuilding.then_some(Flaw::Rebuilding)) }
    }

    /// The owner that writes a Kafka partition now; `None` before the first.
    pub fn generation(&self, kafka_partition: KafkaPartition) -> Option<Generation> {
        self.kafka_partitions.get(&kafka_partition)?.generation
    }

    /// Whether some epoch's rows were made with other definitions, and are missing therefore.
    pub fn has_other_definitions(&self) -> bool {
        self.others > 0
    }

    /// The start of the newest window of a series that has readings.
    pub fn newest_window(&self, series: SeriesId) -> Option<Micros> {
        self.newest.window(series)
    }

    /// The start of the oldest window with readings that was ever seen of a series.
    pub fn oldest_window(&self, series: SeriesId) -> Option<Micros> {
        self.newest.oldest(series)
    }

    /// The merged summary of a window that is not older than the series' newest; `None` when no epoch has a row.
    pub fn newest_summary(&self, series: SeriesId, window_start: Micros) -> Option<Summary> {
        let mut merged: Option<Summary> = None;
        for part in self.newest.parts(series, window_start) {
            let epochs = self.kafka_partitions.get(&part.kafka_partition);
            if let Some(epoch) = epochs.and_then(|epochs| epochs.by_start.get(&part.epoch)) {
                epoch.view.merge_into(series, window_start, merged.get_or_insert(Summary::EMPTY));
            }
        }
        merged
    }

    /// The merged summary of a window in all epochs; `None` without a row.
    pub fn summary(&self, series: SeriesId, window_start: Micros) -> Option<Summary> {
        let mut merged: Option<Summary> = None;
        for epoch in self.capture() {
            if epoch.find(series, window_start).is_some() {
                epoch.merge_into(series, window_start, merged.get_or_insert(Summary::EMPTY));
            }
        }
        merged
    }

    /// A number that grows with every change.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many epochs and how many rows there are.
    pub fn size(&self) -> (usize, usize) {
        self.epochs().fold((0, 0), |(epochs, rows), epoch| (epochs + 1, rows + epoch.view.len()))
    }

    fn epochs(&self) -> impl Iterator<Item = &Epoch> {
        self.kafka_partitions.values().flat_map(|epochs| epochs.by_start.values())
    }

    /// Begins or resumes an epoch; one that it replaces is added to `gone`.
    fn begin(
        &mut self,
        kafka_partition: KafkaPartition,
        epoch: Offset,
        definitions: u64,
        gone: &mut Vec<Epoch>,
    ) -> Applied {
        let epochs = self.kafka_partitions.entry(kafka_partition).or_default();
        if epochs.horizon.is_some_and(|horizon| epoch < horizon) {
            return Applied::NoEpoch;
        }
        if let Some((_, last)) = epochs.by_start.range_mut(..epoch).next_back()
            && let Some(last) = Arc::get_mut(&mut last.view)
        {
            last.shrink();
        }
        let known = epochs.by_start.get(&epoch).map(|held| held.view.definitions());
        if known != Some(definitions) {
            let view = Arc::new(EpochView::new(kafka_partition, epoch, definitions));
            let mut earlier = epochs.by_start.range(..epoch);
            let counts = earlier.all(|(_, earlier)| earlier.counts && earlier.reach <= epoch);
            let begun = Epoch { view, through: epoch, reach: epoch, counts, damaged: false };
            gone.extend(epochs.by_start.insert(epoch, begun));
            self.others += usize::from(definitions != self.definitions);
        }
        if definitions == self.definitions { Applied::Taken } else { Applied::OtherDefinitions }
    }

    /// Repairs the index of newest windows after epochs were removed.
    fn forget(&mut self, gone: Vec<Epoch>) -> Dropped {
        if gone.is_empty() {
            return Dropped::new();
        }
        let gone: Dropped = gone.into_iter().map(|epoch| epoch.view).collect();
        self.others -= gone.iter().filter(|view| view.definitions() != self.definitions).count();
        let orphans = self.newest.forget(&gone.iter().map(part_of).collect::<HashSet<_>>());
        if !orphans.is_empty() {
            let epochs = self.kafka_partitions.values().flat_map(|epochs| epochs.by_start.values());
            for epoch in epochs.filter(|epoch| epoch.counts) {
                offer_rows(&mut self.newest, &epoch.view, Some(&orphans));
            }
        }
        gone
    }
}

/// Offers the rows of an epoch to the index of newest windows; only of some series, where these are given.
fn offer_rows(newest: &mut Newest, view: &Arc<EpochView>, only: Option<&HashSet<SeriesId>>) {
    let part = part_of(view);
    for (row, series, window_start) in view.keys() {
        if only.is_none_or(|only| only.contains(&series)) {
            newest.offer(Offer { series, window_start, part, filled: view.has_readings(row) });
        }
    }
}

/// The name of an epoch in the index of newest windows.
fn part_of(view: &Arc<EpochView>) -> Part {
    Part { kafka_partition: view.kafka_partition(), epoch: view.start() }
}
