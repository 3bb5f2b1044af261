//! Reading the master dataset in order, below a horizon. Must not know what is computed from it.
//!
//! Each file is sorted, except those of other engines, which the plan sorts. Files whose devices do not overlap are read one
//! after the other as one sorted *chain*; only chains that overlap are merged row by row. A batch run reads
//! [`cells`].

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::path::Path;
use wye_domain::horizon::Horizon;
use wye_domain::time::{Micros, Window};

use crate::columns::{DEVICE_ID, EVENT_TIME, READING_ORDER, stored_schema};
use crate::delta::{DataFile, stats};
use crate::error::TablesError;
use crate::parquet_plan::{FilePlan, column_indices, merged, ordering, partitioned_file, project, sorted};
use crate::readings::ReadingsSnapshot;
use crate::readings::file_tags::FileTags;
use crate::scan::devices::DeviceRange;
use crate::scan::filters::Conditions;
use crate::store::TableName;

pub mod cells;
pub mod contents;
mod devices;
mod filters;

const TABLE: TableName = TableName::Readings;

/// A merge holds a batch of each of its chains in memory. Where there are more chains than this, their batches are smaller.
const SMALL_MERGE: usize = 16;
/// They have at least so many rows.
const LEAST_ROWS: usize = 1_024;

/// What to read of the master dataset, and how.
#[derive(Clone, Debug)]
pub struct SortedScan<'a> {
    /// Only readings below this horizon; none of a Kafka partition that it does not name. All readings when absent.
    pub horizon: Option<&'a Horizon>,
    /// Only readings of this stretch of event time. All readings when absent.
    pub window: Option<Window>,
    /// Which columns of [`stored_schema`], in which order.
    pub columns: &'a [&'a str],
    /// Rows in a batch; the session's setting when absent.
    pub batch_size: Option<usize>,
}

/// A file to read.
#[derive(Clone, Debug)]
struct Input {
    file: PartitionedFile,
    rows: u64,
    /// The smallest and the largest device; `None` where they are unknown, so that the file may have any device.
    devices: Option<(String, String)>,
    /// About when its first reading was measured, and its last; `None` where that is unknown.
    event_times: Option<Window>,
    tags: Option<FileTags>,
    /// Whether some of its rows may be at or above the horizon.
    straddles: bool,
    /// Whether its rows are known to be in the order of the master dataset.
    sorted: bool,
}

/// Files that are read one after the other.
struct Chain<'a> {
    inputs: Vec<&'a Input>,
    /// Whether their rows are in order.
    sorted: bool,
}

impl ReadingsSnapshot {
    /// A plan of one plan partition, sorted by [`READING_ORDER`].
    ///
    /// Runs in any session whose runtime has the store, see [`crate::store::TableRoot::register`].
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a column does not exist.
    pub fn sorted_scan(&self, scan: &SortedScan<'_>) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        self.plan(|_| true, scan)
    }

    /// The same over the files for which `is_wanted` holds.
    pub(crate) fn plan(
        &self,
        is_wanted: impl Fn(&DataFile) -> bool,
        scan: &SortedScan<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let inputs = self.inputs(is_wanted, scan.horizon)?;
        let inputs: Vec<&Input> = inputs.iter().filter(|input| input.may_have(scan.window)).collect();
        self.plan_inputs(&inputs, scan).map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    /// The files to read: those with rows below the horizon.
    fn inputs(
        &self,
        is_wanted: impl Fn(&DataFile) -> bool,
        horizon: Option<&Horizon>,
    ) -> Result<Vec<Input>, TablesError> {
        let schema = stored_schema();
        // DataFusion needs the bounds of all sort columns to detect that files read one after the other are sorted.
        let statistics = stats::of_files(&self.snapshot, &schema, &READING_ORDER)
            .map_err(|source| TablesError::Scan { table: TABLE, source })?;
        let device = schema.index_of(DEVICE_ID).unwrap_or_default();
        let event_time = schema.index_of(EVENT_TIME).unwrap_or_default();
        let mut inputs = Vec::new();
        for (file, statistics) in self.snapshot.files.iter().zip(statistics) {
            let tags = FileTags::of(file);
            let position = Position::of(tags.as_ref(), horizon);
            if position == Position::Above || !is_wanted(file) {
                continue;
            }
            let bounds = &statistics.column_statistics[device];
            let times = &statistics.column_statistics[event_time];
            inputs.push(Input {
                devices: text(&bounds.min_value).zip(text(&bounds.max_value)),
                event_times: time(&times.min_value)
                    .zip(time(&times.max_value))
                    .map(|(first, last)| Window { start: first, end: Micros(last.0.saturating_add(1)) }),
                rows: file.rows,
                tags,
                straddles: position == Position::Straddles,
                sorted: file.is_sorted_by(&READING_ORDER),
                file: partitioned_file(self.log.root(), TABLE, file, &schema)?
                    .with_statistics(Arc::new(statistics)),
            });
        }
        Ok(inputs)
    }

    fn plan_inputs(&self, inputs: &[&Input], scan: &SortedScan<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(plan) = self.part(&DeviceRange::default(), inputs, scan)? {
            return Ok(plan);
        }
        let schema = stored_schema();
        let schema = schema.project(&column_indices(&schema, scan.columns)?)?;
        Ok(Arc::new(EmptyExec::new(Arc::new(schema))))
    }

    /// The plan for a range of devices; `None` where no file has any of them.
    fn part(
        &self,
        range: &DeviceRange,
        inputs: &[&Input],
        scan: &SortedScan<'_>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let chains = chains(inputs.iter().copied().filter(|input| range.overlaps(input.devices())))?;
        if chains.is_empty() {
            return Ok(None);
        }
        // Sorting and merging compare by all sort columns, so they need them.
        let mut columns = scan.columns.to_vec();
        if chains.len() > 1 || chains.iter().any(|chain| !chain.sorted) {
            columns.extend(READING_ORDER.iter().filter(|name| !scan.columns.contains(name)));
        }
        let batch_size = scan.batch_size.map(|rows| rows_of_each(rows, chains.len()));
        let scan_of_chain = SortedScan { columns: &columns, batch_size, ..scan.clone() };
        let mut plans = Vec::with_capacity(chains.len());
        for chain in chains {
            let plan = self.chain(range, &chain, &scan_of_chain)?;
            plans.push(if chain.sorted { plan } else { sorted(plan, &READING_ORDER)? });
        }
        project(merged(plans, &READING_ORDER)?, scan.columns).map(Some)
    }

    fn chain(
        &self,
        range: &DeviceRange,
        chain: &Chain<'_>,
        scan: &SortedScan<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = FilePlan {
            root: self.log.root(),
            filter: conditions(&chain.inputs, range, scan).expression(&stored_schema())?,
            file_schema: stored_schema(),
            groups: vec![chain.inputs.iter().map(|input| input.file.clone()).collect()],
            sorted_by: if chain.sorted { &READING_ORDER } else { &[] },
            columns: scan.columns,
            batch_size: scan.batch_size,
        };
        plan.build()
    }
}

/// What is left out of some files: what a file says of itself needs no condition.
fn conditions<'a>(inputs: &[&Input], range: &'a DeviceRange, scan: &SortedScan<'a>) -> Conditions<'a> {
    let reaches_out = inputs.iter().any(|input| !range.contains(input.devices()));
    let straddles = inputs.iter().any(|input| input.straddles);
    let window = scan.window.filter(|window| !inputs.iter().all(|input| input.is_within(*window)));
    Conditions {
        devices: Some(range).filter(|_| reaches_out),
        window,
        below: scan.horizon.filter(|_| straddles),
        since: None,
    }
}

/// The rows of a batch of each chain, where a batch of one chain has so many.
fn rows_of_each(rows: usize, chains: usize) -> usize {
    (rows.saturating_mul(SMALL_MERGE) / chains.max(1)).max(LEAST_ROWS).min(rows)
}

impl Input {
    fn devices(&self) -> Option<(&str, &str)> {
        self.devices.as_ref().map(|(min, max)| (min.as_str(), max.as_str()))
    }

    /// Whether it may have readings of a stretch of event time.
    fn may_have(&self, window: Option<Window>) -> bool {
        window.is_none_or(|window| self.within(window) > 0)
    }

    /// About how many readings of a stretch of event time it has; 0 only if it has none.
    fn within(&self, window: Window) -> u64 {
        let overlaps = |times: Window| times.start < window.end && window.start < times.end;
        if !self.event_times.is_none_or(overlaps) {
            return 0;
        }
        match self.tags.as_ref().and_then(|tags| tags.times.as_ref()) {
            Some(times) => times.within(window),
            None => self.rows,
        }
    }

    /// Whether all of its readings are known to be of a stretch of event time.
    fn is_within(&self, window: Window) -> bool {
        self.event_times.is_some_and(|times| window.start <= times.start && times.end <= window.end)
    }
}

/// The time of a bound, where it is known.
fn time(bound: &Precision<ScalarValue>) -> Option<Micros> {
    match bound.get_value()? {
        ScalarValue::TimestampMicrosecond(time, _) => time.map(Micros),
        _ => None,
    }
}

/// The text of a bound, where it is known.
fn text(bound: &Precision<ScalarValue>) -> Option<String> {
    Some(bound.get_value()?.try_as_str()??.to_owned())
}

/// Where the rows of a file are relative to the horizon.
#[derive(Clone, Copy, PartialEq)]
enum Position {
    Below,
    Above,
    /// On both sides, or unknown.
    Straddles,
}

impl Position {
    /// By the offsets of each Kafka partition. The bounds of the columns are over all Kafka partitions.
    fn of(tags: Option<&FileTags>, horizon: Option<&Horizon>) -> Self {
        let Some(horizon) = horizon else { return Self::Below };
        let Some(tags) = tags else { return Self::Straddles };
        let (mut below, mut above) = (false, false);
        for (kafka_partition, span) in &tags.offsets {
            let end = horizon.get(*kafka_partition);
            below |= end.is_some_and(|end| span.0 < end);
            above |= end.is_none_or(|end| span.1 >= end);
        }
        match (below, above) {
            (true, false) => Self::Below,
            (false, _) => Self::Above,
            (true, true) => Self::Straddles,
        }
    }
}

/// Groups files into as few chains as possible. Within a chain, the devices of each file come after those of the file before
/// it. Files that must be sorted are one chain, so that they are sorted together.
fn chains<'a>(inputs: impl Iterator<Item = &'a Input>) -> Result<Vec<Chain<'a>>> {
    let (sorted, unsorted): (Vec<&Input>, Vec<&Input>) = inputs.partition(|input| input.sorted);
    let (bounded, unbounded): (Vec<&Input>, Vec<&Input>) =
        sorted.into_iter().partition(|input| input.devices.is_some());
    let mut chains: Vec<Chain<'_>> =
        unbounded.into_iter().map(|input| Chain { inputs: vec![input], sorted: true }).collect();
    let by_location: HashMap<&Path, &Input> =
        bounded.iter().map(|input| (input.file.path(), *input)).collect();
    let files: FileGroup = bounded.iter().map(|input| input.file.clone()).collect();
    for group in without_overlap(&stored_schema(), files)? {
        let inputs = group.iter().filter_map(|file| by_location.get(file.path()).copied());
        chains.push(Chain { inputs: inputs.collect(), sorted: true });
    }
    if !unsorted.is_empty() {
        chains.push(Chain { inputs: unsorted, sorted: false });
    }
    Ok(chains)
}

/// Groups of files whose devices do not overlap.
fn without_overlap(schema: &SchemaRef, files: FileGroup) -> Result<Vec<FileGroup>> {
    match ordering(schema, &[DEVICE_ID])? {
        Some(order) => FileScanConfig::split_groups_by_statistics(schema, &[files], &order),
        None => Ok(vec![files]),
    }
}

#[cfg(test)]
mod tests;
