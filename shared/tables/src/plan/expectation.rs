//! How many readings a series should get: the registry's devices and intervals, run through the definitions.
//!
//! Each (device, reading name) pair that the registry lists becomes a reading of the value 0; the definition's
//! `where` and `by` say which series it belongs to. A family by
//! device alone needs no list of names: each of the device's series is expected at the device's interval.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use hashbrown::HashMap;
use wye_domain::definition::FAMILY;
use wye_domain::reading::{self, Reading, ReadingBatchBuilder};
use wye_domain::series::{SeriesKey, SeriesTable};

use super::MetricPlans;

/// Expected readings per microsecond, by series.
#[derive(Debug, Default)]
pub struct Expectations {
    rates: HashMap<SeriesKey, f64>,
    by_device: HashMap<String, f64>,
}

impl Expectations {
    /// Works them out once for a set of plans.
    ///
    /// # Errors
    /// When an expression fails on the registry's entries.
    pub fn new(plans: &MetricPlans) -> Result<Self, DataFusionError> {
        let mut expectations = Self::default();
        let simple = plans.find(FAMILY).is_some_and(|plan| {
            let definition = plan.definition();
            definition.filter.is_none()
                && matches!(definition.dimensions.as_slice(), [only] if only.expression == "device_id")
        });
        let mut pairs = Vec::new();
        let mut builder = ReadingBatchBuilder::default();
        for (device_id, device) in plans.registry().devices() {
            let Some(interval) = device.interval else { continue };
            let rate = 1.0 / interval as f64;
            if simple {
                expectations.by_device.insert(device_id.to_owned(), rate);
            }
            for metric in &device.metrics {
                let unit = plans.registry().limits(metric).and_then(|limits| limits.unit.as_deref());
                builder.append(&Reading {
                    device_id,
                    metric,
                    value: 0.0,
                    event_time: 0,
                    sequence: None,
                    unit,
                    tags: None,
                });
                pairs.push(rate);
            }
        }
        if pairs.is_empty() {
            return Ok(expectations);
        }
        let batch = with_ingest_time(&builder.finish());
        let mut series = SeriesTable::default();
        for contributions in plans.contributions(&batch, &mut series)? {
            contributions.for_each(|contribution| {
                let key = series.key(contribution.series).as_ref().clone();
                *expectations.rates.entry(key).or_default() += pairs[contribution.row];
            });
        }
        Ok(expectations)
    }

    /// Expected readings per microsecond of a series; `None` where nothing says.
    pub fn rate(&self, key: &SeriesKey) -> Option<f64> {
        if let Some(rate) = self.rates.get(key) {
            return Some(*rate);
        }
        match &*key.group {
            [Some(device_id)] if &*key.definition == FAMILY => self.by_device.get(&**device_id).copied(),
            _ => None,
        }
    }
}

fn with_ingest_time(batch: &RecordBatch) -> RecordBatch {
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(arrow::datatypes::Field::new("ingest_time", reading::time_type(), false)));
    let mut columns = batch.columns().to_vec();
    columns.push(batch.column(3).clone());
    RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns)
        .expect("one column of the same length was added")
}
