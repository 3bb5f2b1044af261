//! Reading the master dataset in order, below a horizon, in plan partitions that share no device. Must not know what
//! is computed from it.
//!
//! The files of a version are each sorted, but for those of other engines, which are sorted on the way. Files whose
//! devices do not overlap are read one after the other as one sorted *chain*; only chains that do overlap are merged,
//! row by row. The devices are dealt out in as many ranges as plan partitions are wanted, so that partitions need
//! nothing from each other.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use wye_domain::horizon::Horizon;

use crate::columns::{READING_ORDER, stored_schema};
use crate::delta::DataFile;
use crate::error::TablesError;
use crate::parquet_plan::{FilePlan, ordering, partitioned_file, project};
use crate::readings::ReadingsSnapshot;
use crate::scan::devices::DeviceRange;
use crate::store::TableName;

mod devices;
mod filters;
mod statistics;

const TABLE: TableName = TableName::Readings;

/// What to read of the master dataset, and how.
#[derive(Clone, Debug)]
pub struct SortedScan<'a> {
    /// Only readings with an offset below their Kafka partition's; none of a Kafka partition that is not named. All
    /// readings when absent.
    pub horizon: Option<&'a Horizon>,
    /// Which columns of [`stored_schema`], in which order.
    pub columns: &'a [&'a str],
    /// How many plan partitions; fewer come out when there are too few devices.
    pub plan_partitions: usize,
    /// Rows in a batch; the session's own when absent.
    pub batch_size: Option<usize>,
}

/// A file that is to be read, with what is known of it.
#[derive(Clone)]
struct Input<'a> {
    file: &'a DataFile,
    /// The smallest and the largest device; unknown bounds overlap everything.
    devices: Option<(&'a str, &'a str)>,
    /// Whether rows at or above the horizon are among its rows.
    straddles: bool,
    /// Whether its rows are known to be in the order of the master dataset.
    sorted: bool,
}

/// Files that are read one after the other.
struct Chain<'a, 'b> {
    inputs: Vec<&'b Input<'a>>,
    /// Whether their rows are in order then.
    sorted: bool,
}

impl ReadingsSnapshot {
    /// A plan that yields readings sorted by [`READING_ORDER`] in each plan partition; a device is in one plan
    /// partition only, and plan partitions follow each other in order.
    ///
    /// Runs in any session whose runtime knows the store, see [`crate::store::TableRoot::register`].
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a column does not exist.
    pub fn sorted_scan(&self, scan: &SortedScan<'_>) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        self.plan(self.snapshot.files.iter(), scan)
    }

    /// The same over some of the files.
    pub(crate) fn plan<'a>(
        &self,
        files: impl Iterator<Item = &'a DataFile>,
        scan: &SortedScan<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let inputs: Vec<Input<'_>> = files.filter_map(|file| input(file, scan.horizon)).collect();
        let failed = |source| TablesError::Scan { table: TABLE, source };
        let schema = stored_schema();
        let mut parts = Vec::new();
        for range in devices::ranges(&inputs, scan.plan_partitions) {
            let chains = chains(inputs.iter().filter(|input| range.overlaps(input.devices)));
            if !chains.is_empty() {
                parts.push(self.part(&range, chains, scan)?);
            }
        }
        if parts.len() > 1 {
            return UnionExec::try_new(parts).map_err(failed);
        }
        if let Some(part) = parts.pop() {
            return Ok(part);
        }
        let columns = crate::parquet_plan::places(&schema, scan.columns).map_err(failed)?;
        let schema = schema.project(&columns).map_err(|error| failed(error.into()))?;
        Ok(Arc::new(EmptyExec::new(Arc::new(schema))))
    }

    /// The plan for one range of devices: one plan partition.
    fn part(
        &self,
        range: &DeviceRange,
        chains: Vec<Chain<'_, '_>>,
        scan: &SortedScan<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let failed = |source| TablesError::Scan { table: TABLE, source };
        let schema = stored_schema();
        // Sorting and merging compare by all sort columns, so they have to see them.
        let mut columns = scan.columns.to_vec();
        if chains.len() > 1 || chains.iter().any(|chain| !chain.sorted) {
            columns.extend(READING_ORDER.iter().filter(|name| !scan.columns.contains(name)));
        }
        let mut plans = Vec::with_capacity(chains.len());
        for chain in chains {
            let scan = SortedScan { columns: &columns, ..scan.clone() };
            let plan = self.chain(range, &chain.inputs, &schema, &scan)?;
            plans.push(if chain.sorted { plan } else { sorted(plan).map_err(failed)? });
        }
        merged(plans).and_then(|plan| project(plan, scan.columns)).map_err(failed)
    }

    fn chain(
        &self,
        range: &DeviceRange,
        chain: &[&Input<'_>],
        schema: &SchemaRef,
        scan: &SortedScan<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let root = self.log.root();
        let mut files = Vec::with_capacity(chain.len());
        for input in chain {
            let file = partitioned_file(root, TABLE, input.file, schema)?;
            files.push(file.with_statistics(Arc::new(statistics::of(&input.file.stats, schema))));
        }
        let within = chain.iter().all(|input| range.contains(input.devices));
        let below = scan.horizon.filter(|_| chain.iter().any(|input| input.straddles));
        let failed = |source| TablesError::Scan { table: TABLE, source };
        let filter = filters::conjunction([
            if within { None } else { filters::devices_in(range, schema).map_err(failed)? },
            below.map(|horizon| filters::below(horizon, schema)).transpose().map_err(failed)?,
        ]);
        let plan = FilePlan {
            root,
            file_schema: Arc::clone(schema),
            groups: vec![files],
            sorted_by: if chain.iter().all(|input| input.sorted) { &READING_ORDER } else { &[] },
            filter,
            columns: scan.columns,
            batch_size: scan.batch_size,
        };
        plan.build().map_err(failed)
    }
}

/// What is to be read of a file; `None` when all of it is above the horizon.
fn input<'a>(file: &'a DataFile, horizon: Option<&Horizon>) -> Option<Input<'a>> {
    let devices = file.stats.text_bounds("device_id");
    let sorted = file.is_sorted_by(&READING_ORDER);
    let Some(horizon) = horizon else { return Some(Input { file, devices, straddles: false, sorted }) };
    let Some(tags) = crate::readings::file_tags::FileTags::of(file) else {
        return Some(Input { file, devices, straddles: true, sorted });
    };
    let below = |(kafka_partition, offset)| horizon.get(kafka_partition).is_some_and(|end| offset < end);
    if !tags.offsets.iter().any(|(kafka_partition, span)| below((*kafka_partition, span.0))) {
        return None;
    }
    let straddles = !tags.offsets.iter().all(|(kafka_partition, span)| below((*kafka_partition, span.1)));
    Some(Input { file, devices, straddles, sorted })
}

/// Rows in the order of the master dataset, whatever order they come in.
fn sorted(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let order = ordering(&plan.schema(), &READING_ORDER)?.expect("the order has columns");
    Ok(Arc::new(SortExec::new(order, plan)))
}

/// Brings sorted plans of one plan partition each together as one.
fn merged(mut plans: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    if plans.len() == 1 {
        return Ok(plans.remove(0));
    }
    let chains = UnionExec::try_new(plans)?;
    let order = ordering(&chains.schema(), &READING_ORDER)?.expect("the order has columns");
    Ok(Arc::new(SortPreservingMergeExec::new(order, chains)))
}

/// Puts files into as few chains as possible, such that within a chain each file's devices come after the last's. Files
/// that have to be sorted are one chain, so that they are sorted together.
fn chains<'a, 'b>(inputs: impl Iterator<Item = &'b Input<'a>>) -> Vec<Chain<'a, 'b>>
where
    'a: 'b,
{
    let (mut known, mut chains, mut unsorted) = (Vec::new(), Vec::new(), Vec::new());
    for input in inputs {
        match input.devices {
            _ if !input.sorted => unsorted.push(input),
            Some(devices) => known.push((devices, input)),
            None => chains.push(Chain { inputs: vec![input], sorted: true }),
        }
    }
    known.sort_by(|a, b| a.0.cmp(&b.0));
    let mut open: Vec<(&str, Vec<&Input<'a>>)> = Vec::new();
    for ((min, max), input) in known {
        match open.iter_mut().find(|(end, _)| *end < min) {
            Some((end, chain)) => {
                *end = max;
                chain.push(input);
            }
            None => open.push((max, vec![input])),
        }
    }
    chains.extend(open.into_iter().map(|(_, inputs)| Chain { inputs, sorted: true }));
    if !unsorted.is_empty() {
        chains.push(Chain { inputs: unsorted, sorted: false });
    }
    chains
}

#[cfg(test)]
mod tests;
