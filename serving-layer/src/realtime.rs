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
    by_start: BTreeMap<i64, Arc<EpochView>>,
    /// Epochs below this are of no interest any more.
    horizon: Option<i64>,
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
            Header::Rows { epoch, .. } => {
                let Some(view) = epochs.by_start.get_mut(&epoch) else { return Applied::NoEpoch };
                if view.definitions() != self.definitions {
                    return Applied::OtherDefinitions;
                }
                self.changes += 1;
                let part = Part { kafka_partition, epoch };
                let view = Arc::make_mut(view);
                for RealtimeRow { series, window_start, summary } in rows {
                    view.upsert(*series, *window_start, summary);
                    let (series, window_start) = (*series, *window_start);
                    self.newest.offer(Offer { series, window_start, part, filled: summary.count > 0 });
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
        dropped
    }

    /// Forgets everything of a Kafka partition, whose topic was replaced.
    pub fn clear(&mut self, kafka_partition: i32) -> Vec<Arc<EpochView>> {
        let mut dropped = Vec::new();
        if let Some(epochs) = self.kafka_partitions.remove(&kafka_partition) {
            self.changes += 1;
            self.forget(epochs.by_start.into_values().collect(), &mut dropped);
        }
        dropped
    }

    /// All epochs that count, as they are now, by Kafka partition and start.
    pub fn capture(&self) -> Vec<Arc<EpochView>> {
        self.epochs().cloned().collect()
    }

    /// The starts of the epochs of a Kafka partition, ascending.
    pub fn epoch_starts(&self, kafka_partition: i32) -> impl Iterator<Item = i64> {
        let epochs = self.kafka_partitions.get(&kafka_partition);
        epochs.into_iter().flat_map(|epochs| epochs.by_start.keys().copied())
    }

    /// Whether some epoch's rows were made with other definitions, and are missing therefore.
    pub fn has_other_definitions(&self) -> bool {
        self.others > 0
    }

    /// The newest window (start in µs) of a series that has readings.
    pub fn newest_window(&self, series: SeriesId) -> Option<i64> {
        self.newest.window(series)
    }

    /// The merged summary of a window that is not older than the series' newest; `None` when no epoch has a row.
    pub fn newest_summary(&self, series: SeriesId, window_start: i64) -> Option<Summary> {
        let mut merged: Option<Summary> = None;
        for part in self.newest.parts(series, window_start) {
            let epochs = self.kafka_partitions.get(&part.kafka_partition);
            if let Some(view) = epochs.and_then(|epochs| epochs.by_start.get(&part.epoch)) {
                view.merge_into(series, window_start, merged.get_or_insert(Summary::EMPTY));
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
        self.epochs().fold((0, 0), |(epochs, rows), view| (epochs + 1, rows + view.len()))
    }

    fn epochs(&self) -> impl Iterator<Item = &Arc<EpochView>> {
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
            && let Some(last) = Arc::get_mut(last)
        {
            last.shrink();
        }
        let known = epochs.by_start.get(&epoch).map(|view| view.definitions());
        if known != Some(definitions) {
            let view = Arc::new(EpochView::new(kafka_partition, epoch, definitions));
            let void = epochs.by_start.insert(epoch, view);
            self.others += usize::from(definitions != self.definitions);
            self.forget(void.into_iter().collect(), dropped);
        }
        if definitions == self.definitions { Applied::Taken } else { Applied::OtherDefinitions }
    }

    /// Repairs the index of newest windows after epochs were taken out.
    fn forget(&mut self, gone: Vec<Arc<EpochView>>, dropped: &mut Vec<Arc<EpochView>>) {
        if gone.is_empty() {
            return;
        }
        self.others -= gone.iter().filter(|view| view.definitions() != self.definitions).count();
        let part =
            |view: &Arc<EpochView>| Part { kafka_partition: view.kafka_partition(), epoch: view.start() };
        let orphans = self.newest.forget(&gone.iter().map(part).collect::<HashSet<_>>());
        dropped.extend(gone);
        if orphans.is_empty() {
            return;
        }
        for view in self.kafka_partitions.values().flat_map(|epochs| epochs.by_start.values()) {
            let rows = u32::try_from(view.len()).expect("an epoch has fewer than 2^32 rows");
            for row in 0..rows {
                let (series, window_start) = view.key(row);
                if orphans.contains(&series) {
                    let filled = view.summary(row).count > 0;
                    self.newest.offer(Offer { series, window_start, part: part(view), filled });
                }
            }
        }
    }
}
