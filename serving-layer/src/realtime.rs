//! What the realtime-views topic adds up to: per Kafka partition the epochs that count, and their rows.
//!
//! Pure: records come in by [`RealtimeStore::apply`] in the order of the topic, and out come epochs that a query can
//! hold on to: changing an epoch that is held copies it first. This file does not know where records come from, nor
//! what a batch view is beyond its horizon.

mod epoch_view;
mod newest;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashSet;
use wye_domain::epoch::Fence;
use wye_domain::realtime_row::Header;
use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;

pub use epoch_view::EpochView;
use newest::{Newest, Offer, Part};
pub use rows::{CapturedRows, Selection};

/// A row of a record with its series resolved.
#[derive(Clone, Debug)]
pub struct RealtimeRow {
    /// Which series.
    pub series: SeriesId,
    /// Window start in µs.
    pub window_start: i64,
    /// The summary of the epoch's readings.
    pub summary: Summary,
}

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

/// See the module.
#[derive(Debug, Default)]
pub struct RealtimeStore {
    definitions: u64,
    kafka_partitions: BTreeMap<i32, Epochs>,
    newest: Newest,
    changes: u64,
    /// Epochs that count whose rows were made with other definitions.
    others: usize,
}

/// The epochs of one Kafka partition.
#[derive(Debug, Default)]
struct Epochs {
    fence: Fence,
    /// Who writes now, as far as the topic was read.
    generation: Option<i64>,
    by_start: BTreeMap<i64, Epoch>,
    /// Epochs below this are of no interest any more.
    horizon: Option<i64>,
    /// The highest offset that a complete flush has ever reached, void ones too.
    reached: i64,
}

/// One epoch, with what is known of its extent. The extent stands beside the rows, so that it can change while a query
/// holds them.
#[derive(Debug)]
struct Epoch {
    view: Arc<EpochView>,
    /// Its rows hold all of its readings below this offset.
    through: i64,
    /// Some row holds readings up to here; past `through` after a flush that was cut off.
    reach: i64,
    /// Whether its rows are in answers. An epoch that begins inside of what an earlier one's rows hold was rebuilt at a
    /// newer horizon: the old rows count until the batch view of that horizon is there.
    counts: bool,
    /// Whether a record could not be read since it began, which may have been one of it.
    damaged: bool,
}

/// Up to where epochs hold everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The readings offset below which nothing is missing.
    pub covered: i64,
    /// What is wrong with what lies there or beyond.
    pub flaw: Option<Flaw>,
}

/// Why realtime rows are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// An epoch does not begin where the one before it ends.
    Gap,
    /// A record could not be read, so rows may be missing.
    Damaged,
    /// A new owner has not yet computed again what an earlier one had.
    Rebuilding,
}

/// Where the epochs of an answer begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the horizon of a batch view.
    Horizon(i64),
    /// With no batch view, at the oldest reading of the log or before it.
    LogStart(i64),
}

impl RealtimeStore {
    /// An empty store that takes rows made with the definitions of this fingerprint.
    pub fn new(definitions: u64) -> Self {
        Self { definitions, ..Self::default() }
    }

    /// Takes in the next record of a Kafka partition of the topic. The rows of one record may be given in several
    /// calls, each with the record's header. Epochs that are void now are put into `dropped`, because giving a large
    /// one back takes time.
    pub fn apply(
        &mut self,
        kafka_partition: i32,
        header: &Header,
        rows: &[RealtimeRow],
        dropped: &mut Vec<Arc<EpochView>>,
    ) -> Applied {
        let epochs = self.kafka_partitions.entry(kafka_partition).or_default();
        if !epochs.fence.admit(header.generation()) {
            return Applied::Fenced;
        }
        epochs.generation = Some(header.generation());
        match *header {
            Header::Claim { .. } => Applied::Taken,
            Header::Begin { epoch, definitions, reset, .. } => {
                self.changes += 1;
                if reset {
                    let void = epochs.by_start.split_off(&epoch);
                    self.forget(void.into_values().collect(), dropped);
                }
                self.begin(kafka_partition, epoch, definitions, dropped)
            }
            Header::Rows { epoch, through, complete, .. } => {
                if complete {
                    epochs.reached = epochs.reached.max(through);
                }
                let Some(held) = epochs.by_start.get_mut(&epoch) else { return Applied::NoEpoch };
                if held.view.definitions() != self.definitions {
                    return Applied::OtherDefinitions;
                }
                self.changes += 1;
                held.reach = held.reach.max(through);
                if complete {
                    held.through = held.through.max(through);
                }
                if rows.is_empty() {
                    return Applied::Taken;
                }
                let part = Part { kafka_partition, epoch };
                let (view, counts) = (Arc::make_mut(&mut held.view), held.counts);
                for RealtimeRow { series, window_start, summary } in rows {
                    view.upsert(*series, *window_start, summary);
                    let (series, window_start) = (*series, *window_start);
                    if counts {
                        self.newest.offer(Offer { series, window_start, part, filled: summary.count > 0 });
                    }
                }
                Applied::Taken
            }
        }
    }

    /// Forgets the epochs below the horizon, now and for ever, and returns them.
    pub fn trim(&mut self, horizon: &BTreeMap<i32, i64>) -> Vec<Arc<EpochView>> {
        let mut below = Vec::new();
        for (kafka_partition, offset) in horizon {
            let epochs = self.kafka_partitions.entry(*kafka_partition).or_default();
            epochs.horizon = epochs.horizon.max(Some(*offset));
            let live = epochs.by_start.split_off(offset);
            below.extend(std::mem::replace(&mut epochs.by_start, live).into_values());
        }
        let mut dropped = Vec::new();
        self.forget(below, &mut dropped);
        for kafka_partition in horizon.keys() {
            self.count_waiting(*kafka_partition);
        }
        dropped
    }

    /// Lets epochs count that no longer begin inside of what an earlier one's rows hold.
    fn count_waiting(&mut self, kafka_partition: i32) {
        let Some(epochs) = self.kafka_partitions.get_mut(&kafka_partition) else { return };
        let mut reach = i64::MIN;
        for (start, epoch) in &mut epochs.by_start {
            if *start < reach {
                return;
            }
            reach = epoch.reach;
            if !epoch.counts {
                epoch.counts = true;
                self.changes += 1;
                offer_all(&mut self.newest, &epoch.view, |_| true);
            }
        }
    }

    /// Forgets the rows of a Kafka partition, whose topic was replaced. Epochs below the horizon stay out for ever.
    pub fn clear(&mut self, kafka_partition: i32) -> Vec<Arc<EpochView>> {
        let mut dropped = Vec::new();
        if let Some(epochs) = self.kafka_partitions.get_mut(&kafka_partition) {
            self.changes += 1;
            let horizon = epochs.horizon;
            let void = std::mem::replace(epochs, Epochs { horizon, ..Epochs::default() });
            self.forget(void.by_start.into_values().collect(), &mut dropped);
        }
        dropped
    }

    /// Notes that a record of a Kafka partition could not be read: rows may be missing, and it may have been the reset
    /// of any epoch that is there.
    pub fn damage(&mut self, kafka_partition: i32) {
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
    pub fn reach(&self, kafka_partition: i32, start: Start) -> Reach {
        let (first, mut covered) = match start {
            Start::Horizon(horizon) => (horizon, horizon),
            Start::LogStart(low) => (i64::MIN, low),
        };
        let Some(epochs) = self.kafka_partitions.get(&kafka_partition) else {
            return Reach { covered, flaw: None };
        };
        let (mut flaw, mut held) = (None, i64::MIN);
        for (begin, epoch) in epochs.by_start.range(first..) {
            if *begin > covered {
                flaw = Some(Flaw::Gap);
                break;
            }
            if *begin < held {
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
            held = epoch.reach;
        }
        let rebuilding = covered < epochs.reached;
        Reach { covered, flaw: flaw.or(rebuilding.then_some(Flaw::Rebuilding)) }
    }

    /// The owner that writes a Kafka partition now; `None` before the first.
    pub fn generation(&self, kafka_partition: i32) -> Option<i64> {
        self.kafka_partitions.get(&kafka_partition)?.generation
    }

    /// Whether some epoch's rows were made with other definitions, and are missing therefore.
    pub fn has_other_definitions(&self) -> bool {
        self.others > 0
    }

    /// The newest window (start in µs) of a series that has readings.
    pub fn newest_window(&self, series: SeriesId) -> Option<i64> {
        self.newest.window(series)
    }

    /// The oldest window (start in µs) with readings that was ever seen of a series.
    pub fn oldest_window(&self, series: SeriesId) -> Option<i64> {
        self.newest.oldest(series)
    }

    /// The merged summary of a window that is not older than the series' newest; `None` when no epoch has a row.
    pub fn newest_summary(&self, series: SeriesId, window_start: i64) -> Option<Summary> {
        let mut merged: Option<Summary> = None;
        for part in self.newest.parts(series, window_start) {
            let epochs = self.kafka_partitions.get(&part.kafka_partition);
            if let Some(epoch) = epochs.and_then(|epochs| epochs.by_start.get(&part.epoch)) {
                epoch.view.merge_into(series, window_start, merged.get_or_insert(Summary::EMPTY));
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

    fn begin(
        &mut self,
        kafka_partition: i32,
        epoch: i64,
        definitions: u64,
        dropped: &mut Vec<Arc<EpochView>>,
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
            let void = epochs.by_start.insert(epoch, begun);
            self.others += usize::from(definitions != self.definitions);
            self.forget(void.into_iter().collect(), dropped);
        }
        if definitions == self.definitions { Applied::Taken } else { Applied::OtherDefinitions }
    }

    /// Repairs the index of newest windows after epochs were taken out.
    fn forget(&mut self, gone: Vec<Epoch>, dropped: &mut Vec<Arc<EpochView>>) {
        if gone.is_empty() {
            return;
        }
        let gone: Vec<Arc<EpochView>> = gone.into_iter().map(|epoch| epoch.view).collect();
        self.others -= gone.iter().filter(|view| view.definitions() != self.definitions).count();
        let orphans = self.newest.forget(&gone.iter().map(part_of).collect::<HashSet<_>>());
        dropped.extend(gone);
        if orphans.is_empty() {
            return;
        }
        let epochs = self.kafka_partitions.values().flat_map(|epochs| epochs.by_start.values());
        for epoch in epochs.filter(|epoch| epoch.counts) {
            offer_all(&mut self.newest, &epoch.view, |series| orphans.contains(&series));
        }
    }
}

/// Offers the rows of some series of an epoch to the index of newest windows.
fn offer_all(newest: &mut Newest, view: &Arc<EpochView>, wanted: impl Fn(SeriesId) -> bool) {
    let rows = u32::try_from(view.len()).expect("an epoch has fewer than 2^32 rows");
    for row in 0..rows {
        let (series, window_start) = view.key(row);
        if wanted(series) {
            let filled = view.summary(row).count > 0;
            newest.offer(Offer { series, window_start, part: part_of(view), filled });
        }
    }
}

/// The place of an epoch in the index of newest windows.
fn part_of(view: &Arc<EpochView>) -> Part {
    Part { kafka_partition: view.kafka_partition(), epoch: view.start() }
}
