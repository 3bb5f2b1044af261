//! How many readings a series should get: the registry's devices and intervals, run through the definitions.
//!
//! Each (device, reading name) pair that the registry lists becomes a plain reading without tags; the definition's
//! `where` and `by` say which series it belongs to. That is known where both look only at the device, the reading name
//! and attributes that the registry gives for this device. A definition that looks at anything else of a reading (its
//! value, unit or event time, say) expects nothing, since the registry cannot say how many readings it wants; nor does a
//! device whose series depends on a tag. A family by device alone needs no list of names: each of the device's series is
//! expected at the device's interval.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::definition::FAMILY;
use crate::expectation::{Expectation, ExpectedDevice};
use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::physical_expr::utils::collect_columns;
use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::reading::{self, Reading, ReadingBatchBuilder};
use wye_domain::registry::{DeviceNumber, Registry};
use wye_domain::schedule::Schedule;
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::time::Micros;

use super::{MetricPlan, MetricPlans};

/// What series should get.
#[derive(Debug, Default)]
pub struct Expectations {
    by_series: HashMap<SeriesKey, Arc<Expectation>>,
    by_device: HashMap<String, Arc<Expectation>>,
}

/// A reading name that a device is expected to report.
struct Pair<'a> {
    device_id: &'a str,
    number: DeviceNumber,
    schedule: &'a Arc<Schedule>,
}

impl Expectations {
    /// Computes them once for a set of plans.
    ///
    /// # Errors
    /// When an expression cannot be evaluated at all.
    pub fn new(plans: &MetricPlans) -> Result<Self, DataFusionError> {
        let registry = plans.registry();
        let by_device = if plans.find(FAMILY).is_some_and(is_by_device_alone) {
            expected_devices(registry)
        } else {
            HashMap::new()
        };
        let mut pairs = Vec::new();
        let mut builder = ReadingBatchBuilder::default();
        for (device_id, device) in registry.devices() {
            let Some(schedule) = &device.schedule else { continue };
            for metric in &device.metrics {
                builder.append(&Reading {
                    device_id,
                    metric,
                    value: 1.0,
                    event_time: Micros::EPOCH,
                    sequence: None,
                    unit: registry.limits(metric).and_then(|limits| limits.unit.as_deref()),
                    tags: None,
                });
                pairs.push(Pair { device_id, number: device.number, schedule });
            }
        }
        if pairs.is_empty() {
            return Ok(Self { by_series: HashMap::new(), by_device });
        }
        let batch = builder.finish();
        let ingest_time =
            reading::column::<TimestampMicrosecondArray>(&batch, "event_time").map_err(external)?;
        let batch = with_ingest_time(&batch, Arc::new(ingest_time.clone()))?;
        let mut series = SeriesTable::default();
        let mut found: HashMap<SeriesKey, BTreeMap<DeviceNumber, ExpectedDevice>> = HashMap::new();
        for (plan, contributions) in plans.plans().iter().zip(plans.contributions(&batch, &mut series)?) {
            let Some(attributes) = plan.attributes_of_series() else { continue };
            contributions.for_each(|contribution| {
                let Pair { device_id, number, schedule } = pairs[contribution.row];
                if attributes.iter().any(|name| registry.attribute(device_id, name).is_none()) {
                    return;
                }
                let key = series.key(contribution.series).as_ref().clone();
                let new = || ExpectedDevice { device: number, schedule: Arc::clone(schedule), metrics: 0 };
                found.entry(key).or_default().entry(number).or_insert_with(new).metrics += 1;
            });
        }
        let by_series = found.into_iter().filter_map(|(key, devices)| {
            Some((key, Arc::new(Expectation::new(devices.into_values().collect())?)))
        });
        Ok(Self { by_series: by_series.collect(), by_device })
    }

    /// Whether nothing is expected of any series.
    pub fn is_empty(&self) -> bool {
        self.by_series.is_empty() && self.by_device.is_empty()
    }

    /// What a series should get; `None` where unknown.
    pub fn of(&self, key: &SeriesKey) -> Option<&Arc<Expectation>> {
        if let Some(expectation) = self.by_series.get(key) {
            return Some(expectation);
        }
        match &*key.group {
            [Some(device_id)] if &*key.definition == FAMILY => self.by_device.get(&**device_id),
            _ => None,
        }
    }
}

impl MetricPlan {
    /// The attributes that decide, with device and reading name, which series a reading is in; `None` where anything else
    /// of a reading decides too.
    pub(super) fn attributes_of_series(&self) -> Option<Vec<String>> {
        let mut attributes = Vec::new();
        for expression in self.filter.iter().chain(&self.dimensions) {
            for column in collect_columns(expression) {
                match column.name() {
                    "device_id" | "metric" => {}
                    name if is_attribute(name) => attributes.push(name.to_owned()),
                    _ => return None,
                }
            }
        }
        Some(attributes)
    }
}

fn is_attribute(column: &str) -> bool {
    column != "ingest_time" && reading::schema().field_with_name(column).is_err()
}

fn is_by_device_alone(plan: &MetricPlan) -> bool {
    let definition = plan.definition();
    definition.filter.is_none()
        && matches!(definition.dimensions.as_slice(), [only] if only.expression == "device_id")
}

fn expected_devices(registry: &Registry) -> HashMap<String, Arc<Expectation>> {
    let devices = registry.devices().into_iter();
    let expected = devices.filter_map(|(device_id, device)| {
        let schedule = Arc::clone(device.schedule.as_ref()?);
        let device = ExpectedDevice { device: device.number, schedule, metrics: 1 };
        Some((device_id.to_owned(), Arc::new(Expectation::new(vec![device])?)))
    });
    expected.collect()
}

/// A batch of readings with ingest times, as plans evaluate it.
pub(crate) fn with_ingest_time(
    batch: &RecordBatch,
    ingest_time: ArrayRef,
) -> Result<RecordBatch, DataFusionError> {
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("ingest_time", reading::time_type(), false)));
    let mut columns = batch.columns().to_vec();
    columns.push(ingest_time);
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}
