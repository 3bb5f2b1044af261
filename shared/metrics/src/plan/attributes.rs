//! Attribute columns: the tag of a name, else the registry's attribute of the device.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use wye_domain::DomainError;
use wye_domain::reading::{TextBuilder, TextColumn};
use wye_domain::tags;

use super::MetricPlans;

impl MetricPlans {
    /// The batch that expressions are evaluated on: the columns of a reading, `ingest_time`, the attributes.
    pub(super) fn with_attributes(&self, batch: &RecordBatch) -> Result<RecordBatch, DomainError> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        let given = self.schema.fields().len() - self.attributes.len();
        for field in &self.schema.fields()[..given] {
            let column = batch.column_by_name(field.name());
            let column = column.ok_or_else(|| unusable(format!("it has no column {:?}", field.name())))?;
            columns.push(Arc::clone(column));
        }
        for name in &self.attributes {
            columns.push(self.attribute(batch, name)?);
        }
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|error| unusable(error.to_string()))
    }

    fn attribute(&self, batch: &RecordBatch, name: &str) -> Result<ArrayRef, DomainError> {
        let device = TextColumn::of(batch, "device_id")?;
        let tag = TextColumn::of(batch, "tags")?;
        let by_device: Vec<Option<&str>> =
            device.words().iter().map(|word| self.registry.attribute(word?, name)).collect();
        let by_tag: Vec<Option<String>> = tag.words().iter().map(|text| tags::get(text?, name)).collect();
        let mut column = TextBuilder::default();
        for row in 0..batch.num_rows() {
            let tagged = tag.code(row).and_then(|code| by_tag[code].as_deref());
            column.append(tagged.or_else(|| device.code(row).and_then(|code| by_device[code])));
        }
        Ok(column.finish())
    }
}

fn unusable(reason: String) -> DomainError {
    DomainError::Decode { what: "batch of readings", reason }
}
