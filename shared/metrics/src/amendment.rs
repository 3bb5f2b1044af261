//! Amendments: facts that change how stored readings are computed. The readings themselves are never changed, so an amendment
//! can be revoked. Must not know where amendments or readings are stored.
//!
//! An amendment names devices, metrics and a stretch of event time, and says what is done with their readings: they are left out, get
//! another value, or other tags. It holds for readings that arrive later too. Several amendments of a reading are applied in
//! the order in which they were made. Which readings are duplicates is decided before, by what was received.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, Int32Array, RecordBatch,
    StringArray,
};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type, Int32Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::PhysicalExpr;
use wye_domain::DomainError;
use wye_domain::reading::{ReadingColumns, TextColumn};
use wye_domain::tags;
use wye_domain::time::{Micros, Window};

use crate::definition::DefinitionError;
use crate::failures::FailedRow;
use crate::plan::{evaluation_columns, isolated, plan_value};

#[cfg(test)]
mod tests;

/// An amendment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amendment {
    /// Its name; unique.
    pub id: String,
    /// When it was made.
    pub created_at: Micros,
    /// Who made it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// Which readings it is about.
    pub readings: Selection,
    /// What is done with them.
    pub change: Change,
}

/// Which readings an amendment is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of these devices; of all where there is none.
    pub devices: BTreeSet<String>,
    /// With these metric names; with any where there is none.
    pub metrics: BTreeSet<String>,
    /// With event times in this stretch.
    pub times: Window,
}

/// What an amendment does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The readings count nowhere.
    Drop,
    /// They have the value of an SQL expression over the columns of a reading.
    Correct(String),
    /// They have these tags, besides others that they have; without a value, a tag is removed.
    Retag(BTreeMap<String, Option<String>>),
    /// The amendment of this ID is not applied any more.
    Revoke(String),
}

impl Change {
    /// The name in tables and answers.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Correct(_) => "correct",
            Self::Retag(_) => "retag",
            Self::Revoke(_) => "revoke",
        }
    }
}

/// The amendments that are not revoked, and revoke none, in the order in which they were made.
#[must_use]
pub fn in_force(all: &[Amendment]) -> Vec<&Amendment> {
    let mut revoked: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    // A revocation may be revoked by a later one.
    for amendment in all.iter().rev() {
        match &amendment.change {
            _ if revoked.contains(amendment.id.as_str()) => {}
            Change::Revoke(id) => drop(revoked.insert(id)),
            _ => found.push(amendment),
        }
    }
    found.reverse();
    found
}

/// Amendments that are ready to be applied.
#[derive(Clone, Debug, Default)]
pub struct Amending(Vec<Planned>);

#[derive(Clone, Debug)]
struct Planned {
    amendment: Amendment,
    /// The new value, of one that corrects.
    value: Option<Arc<dyn PhysicalExpr>>,
}

/// A batch after amendments.
#[derive(Clone, Debug)]
pub struct Amended {
    /// The readings, changed.
    pub batch: RecordBatch,
    /// By row: whether it is left out; `None` where none is.
    pub dropped: Option<Vec<bool>>,
    /// By the ID of an amendment: the rows whose new value cannot be computed; they are left out too.
    pub failed: Vec<(String, Vec<FailedRow>)>,
}

impl Amending {
    /// Plans those that are in force.
    ///
    /// # Errors
    /// [`DefinitionError`] when the expression of one cannot be planned.
    pub fn plan(all: &[Amendment]) -> std::result::Result<Self, DefinitionError> {
        let planned = in_force(all).into_iter().map(|amendment| {
            let value = match &amendment.change {
                Change::Correct(sql) => Some(plan_value(&amendment.id, sql)?),
                _ => None,
            };
            Ok(Planned { amendment: amendment.clone(), value })
        });
        planned.collect::<std::result::Result<_, _>>().map(Self)
    }

    /// Their IDs, in the order in which they are applied.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.0.iter().map(|planned| planned.amendment.id.clone()).collect()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those about readings of a stretch of event time.
    #[must_use]
    pub fn within(&self, window: Window) -> Self {
        let overlaps = |planned: &&Planned| {
            let times = planned.amendment.readings.times;
            times.start < window.end && window.start < times.end
        };
        Self(self.0.iter().filter(overlaps).cloned().collect())
    }

    /// Applies them to readings with the columns of a reading and `ingest_time`; other columns stay.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn apply(&self, batch: RecordBatch) -> Result<Amended> {
        let mut amended = Amended { batch, dropped: None, failed: Vec::new() };
        for planned in &self.0 {
            planned.apply(&mut amended)?;
        }
        Ok(amended)
    }
}

impl Amended {
    fn leave_out(&mut self, rows: impl Iterator<Item = usize>) {
        let all = self.batch.num_rows();
        let dropped = self.dropped.get_or_insert_with(|| vec![false; all]);
        rows.for_each(|row| dropped[row] = true);
    }

    fn replace(&mut self, name: &'static str, column: ArrayRef) -> Result<()> {
        let schema = self.batch.schema();
        let mut columns = self.batch.columns().to_vec();
        columns[schema.index_of(name)?] = column;
        self.batch = RecordBatch::try_new(schema, columns)?;
        Ok(())
    }
}

impl Planned {
    fn apply(&self, amended: &mut Amended) -> Result<()> {
        let mut rows = self.amendment.readings.rows(&amended.batch).map_err(external)?;
        rows.retain(|row| amended.dropped.as_ref().is_none_or(|dropped| !dropped[*row]));
        if rows.is_empty() {
            return Ok(());
        }
        match &self.amendment.change {
            Change::Drop => amended.leave_out(rows.into_iter()),
            Change::Correct(_) => self.correct(amended, &rows)?,
            Change::Retag(tags) => retag(amended, &rows, tags)?,
            Change::Revoke(_) => {}
        }
        Ok(())
    }

    fn correct(&self, amended: &mut Amended, rows: &[usize]) -> Result<()> {
        let Some(expression) = &self.value else { return Ok(()) };
        let mut is_about = vec![false; amended.batch.num_rows()];
        rows.iter().for_each(|row| is_about[*row] = true);
        let about = filter_record_batch(&amended.batch, &BooleanArray::from(is_about))?;
        let found = isolated(expression, &evaluation_columns(&about)?)?;
        let answers = cast(&found.answers, &DataType::Float64)?;
        let answers = answers.as_primitive::<Float64Type>();
        let mut messages: HashMap<usize, Arc<str>> =
            found.failed.into_iter().map(|failed| (failed.row, failed.message)).collect();
        let columns = ReadingColumns::of(&amended.batch).map_err(external)?;
        let mut values = columns.value.to_vec();
        let mut failed = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let answer = answers.is_valid(at).then(|| answers.value(at)).filter(|value| value.is_finite());
            match answer {
                Some(value) => values[*row] = value,
                None => {
                    let message = messages.remove(&at).unwrap_or_else(|| "the new value is no number".into());
                    failed.push(FailedRow { row: *row, message });
                }
            }
        }
        amended.replace("value", Arc::new(Float64Array::from(values)))?;
        if !failed.is_empty() {
            amended.leave_out(failed.iter().map(|failed| failed.row));
            amended.failed.push((self.amendment.id.clone(), failed));
        }
        Ok(())
    }
}

impl Selection {
    /// The rows that it is about.
    fn rows(&self, batch: &RecordBatch) -> std::result::Result<Vec<usize>, DomainError> {
        let columns = ReadingColumns::of(batch)?;
        let is_device = named(&columns.device_id, &self.devices);
        let is_metric = named(&columns.metric, &self.metrics);
        let times = self.times.start.0..self.times.end.0;
        let rows = (0..batch.num_rows()).filter(|row| {
            times.contains(&columns.event_time[*row])
                && has(&is_device, columns.device_id.code(*row))
                && has(&is_metric, columns.metric.code(*row))
        });
        Ok(rows.collect())
    }
}

/// By word: whether it is one of these names; `None` where any is.
fn named(column: &TextColumn<'_>, names: &BTreeSet<String>) -> Option<Vec<bool>> {
    let words = column.words();
    (!names.is_empty())
        .then(|| words.iter().map(|word| word.is_some_and(|word| names.contains(word))).collect())
}

fn has(named: &Option<Vec<bool>>, code: Option<usize>) -> bool {
    named.as_ref().is_none_or(|named| code.is_some_and(|code| named[code]))
}

/// Sets tags of some rows.
fn retag(amended: &mut Amended, rows: &[usize], changes: &BTreeMap<String, Option<String>>) -> Result<()> {
    let column = TextColumn::of(&amended.batch, "tags").map_err(external)?;
    let mut texts: Vec<Option<String>> =
        (0..amended.batch.num_rows()).map(|row| column.text(row).map(str::to_owned)).collect();
    // Many readings have the same tags.
    let mut known: HashMap<Option<String>, Option<String>> = HashMap::new();
    for row in rows {
        let before = texts[*row].take();
        let after = match known.get(&before) {
            Some(after) => after.clone(),
            None => {
                let after = tags::changed(before.as_deref(), changes);
                known.insert(before, after.clone());
                after
            }
        };
        texts[*row] = after;
    }
    amended.replace("tags", dictionary(&texts))
}

/// Texts as a column of the type of text columns.
fn dictionary(texts: &[Option<String>]) -> ArrayRef {
    let mut codes: HashMap<&str, i32> = HashMap::new();
    let mut words: Vec<&str> = Vec::new();
    let keys: Int32Array = texts
        .iter()
        .map(|text| {
            let text = text.as_deref()?;
            Some(*codes.entry(text).or_insert_with(|| {
                words.push(text);
                words.len() as i32 - 1
            }))
        })
        .collect();
    if words.is_empty() {
        words.push("");
    }
    Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(StringArray::from(words))))
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}
