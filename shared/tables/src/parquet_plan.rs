//! DataFusion plans over chosen files of a table. Must not know why these files were chosen.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use object_store::path::Path;
use wye_domain::reading::text_type;

use crate::delta::DataFile;
use crate::error::TablesError;
use crate::store::{TableName, TableRoot};

/// Files of one table, and what to read of them.
pub(crate) struct FilePlan<'a> {
    pub(crate) root: &'a TableRoot,
    /// The columns of the files; text may be in dictionaries.
    pub(crate) file_schema: SchemaRef,
    /// The files in groups; each group is one plan partition and is read in this order. No plan partition reads a file of
    /// another one, even when it is idle: readers of the plan depend on this.
    pub(crate) groups: Vec<FileGroup>,
    /// The columns that each group is sorted by; empty where the order is unknown.
    pub(crate) sorted_by: &'a [&'a str],
    /// A condition on the rows, over `file_schema`; also skips files, row groups and pages.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// The columns to read, by name.
    pub(crate) columns: &'a [&'a str],
    /// Rows in a batch; the session's setting when absent.
    pub(crate) batch_size: Option<usize>,
}

/// All rows and columns of some files of a table, in the order of the files.
///
/// # Errors
/// [`TablesError::Scan`] when the files cannot be planned.
pub(crate) fn all_rows(
    root: &TableRoot,
    table: TableName,
    files: &[DataFile],
    schema: &SchemaRef,
) -> std::result::Result<Arc<dyn ExecutionPlan>, TablesError> {
    let files = files.iter().map(|file| partitioned_file(root, table, file, schema));
    let plan = FilePlan {
        root,
        file_schema: Arc::clone(schema),
        groups: vec![FileGroup::new(files.collect::<std::result::Result<_, _>>()?)],
        sorted_by: &[],
        filter: None,
        columns: &crate::columns::names(schema),
        batch_size: None,
    };
    plan.build().map_err(|source| TablesError::Scan { table, source })
}

impl FilePlan<'_> {
    /// The plan: a scan, and a filter over it where there is one.
    pub(crate) fn build(self) -> Result<Arc<dyn ExecutionPlan>> {
        let wanted = column_indices(&self.file_schema, self.columns)?;
        let mut read = wanted.clone();
        if let Some(filter) = &self.filter {
            for column in collect_columns(filter) {
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
        // Said aloud, so that no optimizer deals out parts of the files anew.
        let partitioning = Partitioning::UnknownPartitioning(self.groups.len());
        let config = FileScanConfigBuilder::new(self.root.object_store_url(), Arc::new(source))
            .with_file_groups(self.groups)
            .with_output_ordering(ordering.into_iter().collect())
            .with_projection_indices(Some(read))?
            .with_batch_size(self.batch_size)
            .with_preserve_order(true)
            .with_output_partitioning(Some(partitioning))
            .build();
        let scan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        let Some(filter) = self.filter else { return Ok(scan) };
        let filter = reassign_expr_columns(filter, &scan.schema())?;
        let mut builder =
            FilterExecBuilder::new(filter, scan).apply_projection(Some((0..wanted.len()).collect()))?;
        if let Some(rows) = self.batch_size {
            builder = builder.with_batch_size(rows);
        }
        Ok(Arc::new(builder.build()?))
    }
}

/// A file as DataFusion describes it.
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
        size: file.bytes(),
        e_tag: None,
        version: None,
    };
    // The files do not say that text is to be read as dictionaries.
    Ok(PartitionedFile::new_from_meta(meta).with_arrow_schema(Arc::clone(file_schema)))
}

/// The indices of named columns.
pub(crate) fn column_indices(schema: &Schema, columns: &[&str]) -> Result<Vec<usize>> {
    columns.iter().map(|name| Ok(schema.index_of(name)?)).collect()
}

/// Ascending, nulls first, by named columns; `None` when there are none.
pub(crate) fn ordering(schema: &Schema, columns: &[&str]) -> Result<Option<LexOrdering>> {
    let options = arrow::compute::SortOptions { descending: false, nulls_first: true };
    let mut order = Vec::with_capacity(columns.len());
    for name in columns {
        order.push(PhysicalSortExpr::new(Arc::new(Column::new_with_schema(name, schema)?), options));
    }
    Ok(LexOrdering::new(order))
}

/// All rows as one plan partition in the order of these columns.
pub(crate) fn sorted(plan: Arc<dyn ExecutionPlan>, by: &[&str]) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(match ordering(&plan.schema(), by)? {
        Some(order) => Arc::new(SortExec::new(order, plan)),
        None => plan,
    })
}

/// The rows of each plan partition in the order of these columns.
pub(crate) fn sorted_each(plan: Arc<dyn ExecutionPlan>, by: &[&str]) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(match ordering(&plan.schema(), by)? {
        Some(order) => Arc::new(SortExec::new(order, plan).with_preserve_partitioning(true)),
        None => plan,
    })
}

/// Plans of one plan partition each, sorted by these columns, merged into one.
pub(crate) fn merged(mut plans: Vec<Arc<dyn ExecutionPlan>>, by: &[&str]) -> Result<Arc<dyn ExecutionPlan>> {
    if plans.len() == 1 {
        return Ok(plans.remove(0));
    }
    let all = UnionExec::try_new(plans)?;
    Ok(match ordering(&all.schema(), by)? {
        Some(order) => Arc::new(SortPreservingMergeExec::new(order, all)),
        None => all,
    })
}

/// Only the named columns of a plan, in this order.
pub(crate) fn project(plan: Arc<dyn ExecutionPlan>, columns: &[&str]) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    if crate::columns::names(&schema) == columns {
        return Ok(plan);
    }
    let mut kept: Vec<(Arc<dyn PhysicalExpr>, String)> = Vec::with_capacity(columns.len());
    for name in columns {
        kept.push((Arc::new(Column::new_with_schema(name, &schema)?), (*name).to_owned()));
    }
    Ok(Arc::new(ProjectionExec::try_new(kept, plan)?))
}

/// A text as a literal of the type of text columns.
pub(crate) fn text_literal(text: &str) -> Result<ScalarValue> {
    ScalarValue::Utf8(Some(text.to_owned())).cast_to(&text_type())
}
