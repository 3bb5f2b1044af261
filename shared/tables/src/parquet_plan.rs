//! DataFusion plans over chosen files of a table. Must not know why these files were chosen.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::projection::ProjectionExec;
use object_store::path::Path;

use crate::delta::DataFile;
use crate::error::TablesError;
use crate::store::{TableName, TableRoot};

/// Columns by their places in a schema.
pub(crate) type Places = Vec<usize>;

/// Files of one table, and what to read of them.
pub(crate) struct FilePlan<'a> {
    pub(crate) root: &'a TableRoot,
    /// The columns of the files; text may be asked for as dictionaries.
    pub(crate) file_schema: SchemaRef,
    /// The files, group by group; each group is a plan partition and is read in this order. No plan partition takes a
    /// file of another one, however idle it is: who reads the plan may rest on it.
    pub(crate) groups: Vec<Vec<PartitionedFile>>,
    /// What each group is sorted by; no promise when empty.
    pub(crate) sorted_by: &'a [&'a str],
    /// Only rows for which this holds over `file_schema`; also skips row groups and pages.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// The columns wanted, by name.
    pub(crate) columns: &'a [&'a str],
    /// Rows in a batch; the session's own when absent.
    pub(crate) batch_size: Option<usize>,
}

impl FilePlan<'_> {
    /// The plan: a scan, and a filter over it where one is wanted.
    pub(crate) fn build(self) -> Result<Arc<dyn ExecutionPlan>> {
        let wanted = places(&self.file_schema, self.columns)?;
        let mut read = wanted.clone();
        if let Some(filter) = &self.filter {
            for column in datafusion::physical_expr::utils::collect_columns(filter) {
                if !read.contains(&column.index()) {
                    read.push(column.index());
                }
            }
        }
        let mut source = ParquetSource::new(&self.file_schema);
        if let Some(filter) = &self.filter {
            source = source.with_predicate(Arc::clone(filter));
        }
        let ordering = ordering(&self.file_schema, self.sorted_by)?;
        let config = FileScanConfigBuilder::new(self.root.object_store_url(), Arc::new(source))
            .with_file_groups(self.groups.into_iter().map(FileGroup::new).collect())
            .with_output_ordering(ordering.into_iter().collect())
            .with_projection_indices(Some(read.clone()))?
            .with_batch_size(self.batch_size)
            .with_preserve_order(true)
            .build();
        let scan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        let Some(filter) = self.filter else { return Ok(scan) };
        let filter = datafusion::physical_expr::utils::reassign_expr_columns(filter, &scan.schema())?;
        let kept: Places = (0..wanted.len()).collect();
        let mut builder = FilterExecBuilder::new(filter, scan).apply_projection(Some(kept))?;
        if let Some(rows) = self.batch_size {
            builder = builder.with_batch_size(rows);
        }
        Ok(Arc::new(builder.build()?))
    }
}

/// A file as DataFusion wants to know it.
pub(crate) fn partitioned_file(
    root: &TableRoot,
    table: TableName,
    file: &DataFile,
    file_schema: &SchemaRef,
) -> std::result::Result<PartitionedFile, TablesError> {
    let mut location = root.table_path(table)?;
    for part in Path::from(file.add.path.as_str()).parts() {
        location = location.join(part);
    }
    let meta = object_store::ObjectMeta {
        location,
        last_modified: chrono::DateTime::from_timestamp_millis(file.add.modification_time)
            .unwrap_or_default(),
        size: u64::try_from(file.add.size).unwrap_or_default(),
        e_tag: None,
        version: None,
    };
    // The files do not say that text is wanted as dictionaries, so it is said here.
    Ok(PartitionedFile::new_from_meta(meta).with_arrow_schema(Arc::clone(file_schema)))
}

/// The places of named columns.
pub(crate) fn places(schema: &Schema, columns: &[&str]) -> Result<Places> {
    columns.iter().map(|name| Ok(schema.index_of(name)?)).collect()
}

/// Ascending, nulls first, by named columns; `None` when there are none.
pub(crate) fn ordering(schema: &Schema, columns: &[&str]) -> Result<Option<LexOrdering>> {
    let options = arrow::compute::SortOptions { descending: false, nulls_first: true };
    let by = |name: &&str| -> Result<PhysicalSortExpr> {
        Ok(PhysicalSortExpr::new(Arc::new(Column::new_with_schema(name, schema)?), options))
    };
    Ok(LexOrdering::new(columns.iter().map(by).collect::<Result<Vec<_>>>()?))
}

/// Keeps only named columns of a plan, in this order.
pub(crate) fn project(plan: Arc<dyn ExecutionPlan>, columns: &[&str]) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    if schema.fields().iter().map(|field| field.name().as_str()).eq(columns.iter().copied()) {
        return Ok(plan);
    }
    let kept = columns.iter().map(|name| -> Result<(Arc<dyn PhysicalExpr>, String)> {
        Ok((Arc::new(Column::new_with_schema(name, &schema)?), (*name).to_owned()))
    });
    Ok(Arc::new(ProjectionExec::try_new(kept.collect::<Result<Vec<_>>>()?, plan)?))
}

/// A word as a literal of the type of text columns.
pub(crate) fn word(text: &str) -> ScalarValue {
    let int32 = Box::new(arrow::datatypes::DataType::Int32);
    ScalarValue::Dictionary(int32, Box::new(ScalarValue::Utf8(Some(text.to_owned()))))
}
