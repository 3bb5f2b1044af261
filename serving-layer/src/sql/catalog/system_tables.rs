//! What the program says of itself as tables: the batch runs, and what answers cover of the log.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use datafusion::error::Result;
use wye_domain::place::{Generation, Offset};
use wye_domain::time::Micros;
use wye_metrics::amendment::{Amendment, Change, in_force};
use wye_tables::run_record::CommittedRun;

use super::external;
use crate::coverage::{Coverage, PartitionCoverage, Reason};

/// A row for each batch run.
pub(super) fn batch_runs(runs: &[CommittedRun]) -> Result<RecordBatch> {
    let durations = runs.iter().map(|run| (run.run.finished_at - run.run.started_at).millis());
    let horizons: Vec<String> = runs
        .iter()
        .map(|run| serde_json::to_string(&run.horizon))
        .collect::<std::result::Result<_, _>>()
        .map_err(external)?;
    let computed: Vec<String> = runs
        .iter()
        .map(|run| serde_json::to_string(&run.run.computed_cells))
        .collect::<std::result::Result<_, _>>()
        .map_err(external)?;
    let peaks = runs.iter().map(|run| run.run.peak_memory_bytes);
    let versions = runs.iter().map(|run| &run.run.code_version);
    let run_ids = runs.iter().map(|run| &run.run.run_id);
    Ok(RecordBatch::try_from_iter([
        ("run_id", Arc::new(StringArray::from_iter_values(run_ids)) as ArrayRef),
        ("version", counts(runs, |run| run.version.0)),
        ("started_at", times(runs, |run| run.run.started_at)),
        ("finished_at", times(runs, |run| run.run.finished_at)),
        ("committed_at", times(runs, |run| run.committed)),
        ("duration_ms", Arc::new(Int64Array::from_iter_values(durations))),
        ("readings", counts(runs, |run| run.run.readings)),
        ("duplicates", counts(runs, |run| run.run.duplicates)),
        ("conflicts", counts(runs, |run| run.run.conflicts)),
        ("dropped", counts(runs, |run| run.run.dropped)),
        ("windows", counts(runs, |run| run.run.windows)),
        ("series", counts(runs, |run| run.run.series)),
        ("cells", counts(runs, |run| run.run.cells)),
        ("computed_cells", Arc::new(StringArray::from(computed))),
        ("readings_read", counts(runs, |run| run.run.readings_read)),
        ("restated", counts(runs, |run| run.run.restated)),
        ("peak_memory_bytes", Arc::new(peaks.collect::<UInt64Array>())),
        // Each run is done by the process itself.
        ("engine", Arc::new(StringArray::from_iter_values(runs.iter().map(|_| "local")))),
        ("code_version", Arc::new(StringArray::from_iter_values(versions))),
        ("horizon", Arc::new(StringArray::from(horizons))),
    ])?)
}

/// A row for each amendment.
pub(super) fn amendments(all: &[Amendment]) -> Result<RecordBatch> {
    let in_force: BTreeSet<&str> = in_force(all).iter().map(|amendment| amendment.id.as_str()).collect();
    let change = all.iter().map(|amendment| match &amendment.change {
        Change::Drop => Ok(None),
        Change::Correct(sql) => Ok(Some(sql.clone())),
        Change::Retag(tags) => serde_json::to_string(tags).map(Some),
        Change::Revoke(id) => Ok(Some(id.clone())),
    });
    let change: StringArray = change.collect::<std::result::Result<Vec<_>, _>>().map_err(external)?.into();
    let in_force: BooleanArray = all.iter().map(|one| Some(in_force.contains(one.id.as_str()))).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", texts(all, |one| one.id.clone())),
        ("created_at", moments(all, |one| one.created_at)),
        ("author", texts(all, |one| one.author.clone())),
        ("reason", texts(all, |one| one.reason.clone())),
        ("action", texts(all, |one| one.change.name().to_owned())),
        ("devices", texts(all, |one| listed(&one.readings.devices))),
        ("metrics", texts(all, |one| listed(&one.readings.metrics))),
        ("from_time", moments(all, |one| one.readings.times.start)),
        ("until_time", moments(all, |one| one.readings.times.end)),
        ("change", Arc::new(change)),
        ("in_force", Arc::new(in_force)),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn texts(all: &[Amendment], text: impl Fn(&Amendment) -> String) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(all.iter().map(text)))
}

fn moments(all: &[Amendment], time: impl Fn(&Amendment) -> Micros) -> ArrayRef {
    let times = all.iter().map(|one| time(one).0);
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

/// A row for each Kafka partition of the readings.
pub(super) fn coverage(coverage: &Coverage) -> Result<RecordBatch> {
    let rows = &coverage.kafka_partitions;
    let numbers = Int32Array::from_iter_values(rows.iter().map(|row| row.kafka_partition.0));
    let since: TimestampMicrosecondArray = rows.iter().map(|row| Some(row.lacking_since?.0)).collect();
    let seconds = rows.iter().map(|row| row.lacking_for(coverage.now).as_secs_f64());
    let complete: BooleanArray = rows.iter().map(|row| Some(row.reason.is_none())).collect();
    let reasons: StringArray = rows.iter().map(|row| row.reason.map(Reason::name)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("kafka_partition", Arc::new(numbers)),
        ("horizon", offsets(rows, |row| row.horizon)),
        ("covered", offsets(rows, |row| Some(row.covered))),
        ("log_end", offsets(rows, |row| row.log_end)),
        ("lacking", records(rows, PartitionCoverage::lacking)),
        ("lacking_since", Arc::new(since.with_timezone("UTC"))),
        ("lacking_seconds", Arc::new(Float64Array::from_iter_values(seconds))),
        ("generation", offsets(rows, |row| row.generation.map(Generation::claim))),
        ("complete", Arc::new(complete)),
        ("reason", Arc::new(reasons)),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}

fn times(runs: &[CommittedRun], value: impl Fn(&CommittedRun) -> Micros) -> ArrayRef {
    let values = runs.iter().map(|run| value(run).0);
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

fn counts(runs: &[CommittedRun], value: impl Fn(&CommittedRun) -> u64) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(runs.iter().map(value)))
}

fn offsets(rows: &[PartitionCoverage], value: impl Fn(&PartitionCoverage) -> Option<Offset>) -> ArrayRef {
    Arc::new(rows.iter().map(|row| Some(value(row)?.0)).collect::<Int64Array>())
}

fn records(rows: &[PartitionCoverage], value: impl Fn(&PartitionCoverage) -> Option<u64>) -> ArrayRef {
    let counts = rows.iter().map(|row| i64::try_from(value(row)?).ok());
    Arc::new(counts.collect::<Int64Array>())
}
