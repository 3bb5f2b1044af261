//! Readings that a definition selects but cannot compute: how many, and one of each definition as an example. Must not know
//! why an expression fails.
//!
//! Such a reading adds nothing to the metric; all others are computed. Stability contract: [`Failures`] is stored as JSON in
//! the record of a batch run; fields are only ever added.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use wye_domain::DomainError;
use wye_domain::reading::{Reading, ReadingColumns};
use wye_domain::time::Micros;

/// A row of a batch that an expression fails on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRow {
    /// The row.
    pub row: usize,
    /// The error of the expression.
    pub message: Arc<str>,
}

/// One reading that a definition cannot compute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedReading {
    /// The error of the expression.
    pub message: String,
    /// The device.
    pub device_id: String,
    /// The reading name.
    pub metric: String,
    /// The reading's value.
    pub value: f64,
    /// Its event time.
    pub event_time: Micros,
    /// Its tags, as canonical JSON.
    pub tags: Option<String>,
}

/// The readings that one definition cannot compute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// How many there are.
    pub readings: u64,
    /// The earliest by event time, device and metric, so that the choice does not depend on the order of batches.
    pub example: FailedReading,
}

/// By definition: the readings that it cannot compute; definitions without any are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failures(BTreeMap<String, Failure>);

impl Failures {
    /// Adds the failed rows of a batch for which `counts` holds.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when the batch lacks a column of a reading.
    pub fn add(
        &mut self,
        definition: &str,
        failed: &[FailedRow],
        batch: &RecordBatch,
        counts: impl Fn(usize) -> bool,
    ) -> Result<(), DomainError> {
        if failed.is_empty() {
            return Ok(());
        }
        let mut readings = 0;
        let columns = ReadingColumns::of(batch)?;
        let mut earliest: Option<(Reading<'_>, &str)> = None;
        for FailedRow { row, message } in failed.iter().filter(|failed| counts(failed.row)) {
            readings += 1;
            let reading = columns.reading(*row);
            if earliest.as_ref().is_none_or(|(known, _)| order(&reading) < order(known)) {
                earliest = Some((reading, message));
            }
        }
        let Some((reading, message)) = earliest else { return Ok(()) };
        let example = FailedReading {
            message: message.to_owned(),
            device_id: reading.device_id.to_owned(),
            metric: reading.metric.to_owned(),
            value: reading.value,
            event_time: reading.event_time,
            tags: reading.tags.map(str::to_owned),
        };
        self.add_failure(definition, &Failure { readings, example });
        Ok(())
    }

    /// Adds the failures of other readings.
    pub fn merge(&mut self, other: &Self) {
        for (definition, failure) in &other.0 {
            self.add_failure(definition, failure);
        }
    }

    /// Those of one definition; `None` when there are none.
    pub fn of(&self, definition: &str) -> Option<&Failure> {
        self.0.get(definition)
    }

    /// All of them, by definition.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Failure)> {
        self.0.iter().map(|(definition, failure)| (definition.as_str(), failure))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add_failure(&mut self, definition: &str, failure: &Failure) {
        let Some(known) = self.0.get_mut(definition) else {
            self.0.insert(definition.to_owned(), failure.clone());
            return;
        };
        known.readings += failure.readings;
        if failure.example.order() < known.example.order() {
            known.example = failure.example.clone();
        }
    }
}

impl FailedReading {
    fn order(&self) -> (Micros, &str, &str) {
        (self.event_time, &self.device_id, &self.metric)
    }
}

fn order<'a>(reading: &Reading<'a>) -> (Micros, &'a str, &'a str) {
    (reading.event_time, reading.device_id, reading.metric)
}
