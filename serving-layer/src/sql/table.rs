//! The merged tables as DataFusion sees them: which rows a query wants of both sides, and the plan for them.
//!
//! A condition on the series or the window is a function of a row's key. Applied to both sides before the merge it
//! leaves out the same keys on both, so the merge stays exact; DataFusion applies it again to what comes out.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    Between, BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType, col, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use wye_domain::time::WindowSize;

use super::columns::{Builder, Column, schema};
use super::merged::{MergePlan, MergedExec};
use crate::ServingError;
use crate::directory::{Directory, SeriesInfo};
use crate::hub::{Capture, Facts};
use crate::realtime::{CapturedRows, Selection};
use crate::snapshot::time_literal;
use wye_metrics::merge::{Answer, Source};

/// Which layers a table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layers {
    Both,
    Batch,
    Realtime,
}

/// What a table shows of a capture.
#[derive(Clone, Debug)]
pub(crate) struct TableSpec {
    pub(crate) layers: Layers,
    pub(crate) columns: Vec<Column>,
    /// Only series of this definition, by its place.
    pub(crate) definition: Option<usize>,
    /// Only series of this metric.
    pub(crate) metric: Option<Arc<str>>,
    /// Longer windows than the definition's.
    pub(crate) step: Option<WindowSize>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MergedTable {
    directory: Arc<Directory>,
    capture: Arc<Capture>,
    now: i64,
    spec: TableSpec,
    schema: SchemaRef,
}

impl MergedTable {
    pub(crate) fn new(directory: Arc<Directory>, capture: Arc<Capture>, now: i64, spec: TableSpec) -> Self {
        let schema = schema(&spec.columns, &directory);
        Self { directory, capture, now, spec, schema }
    }

    /// The column of a name that conditions may be applied to before the merge.
    fn key_column(&self, name: &str) -> Option<Column> {
        let place = self.schema.index_of(name).ok()?;
        let column = self.spec.columns[place];
        let usable = column.is_key() && !(self.spec.step.is_some() && column == Column::WindowEnd);
        usable.then_some(column)
    }

    fn can_push(&self, filter: &Expr) -> bool {
        let alone =
            |part: &Expr| !matches!(part, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_));
        !filter.is_volatile()
            && filter.exists(|part| Ok(!alone(part))).is_ok_and(|others| !others)
            && filter.column_refs().iter().all(|column| self.key_column(&column.name).is_some())
            && !filter.column_refs().is_empty()
    }

    fn of_series(&self, filter: &Expr) -> bool {
        let mut columns = filter.column_refs().into_iter();
        columns.all(|column| self.key_column(&column.name).is_some_and(Column::is_of_series))
    }

    /// Which window starts of the definition's own windows can be in the answer.
    fn windows(&self, filters: &[Expr]) -> Range<i64> {
        let bounds = window_bounds(filters);
        let last = self.spec.step.map_or(0, WindowSize::micros);
        bounds.start..bounds.end.saturating_add(last)
    }

    /// Which series can be in the answer; `None` for all.
    fn series(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Vec<bool>>> {
        let filters: Vec<&Expr> = filters.iter().filter(|filter| self.of_series(filter)).collect();
        if filters.is_empty() && self.spec.definition.is_none() {
            return Ok(None);
        }
        let infos = self.directory.infos();
        let mut wanted: Vec<bool> = infos.iter().map(|info| self.shows(info)).collect();
        if filters.is_empty() {
            return Ok(Some(wanted));
        }
        let columns: Vec<Column> =
            self.spec.columns.iter().copied().filter(|column| column.is_of_series()).collect();
        let builder = Builder::new(Arc::clone(&self.directory), columns);
        let chosen: Vec<(usize, Arc<SeriesInfo>)> =
            infos.into_iter().enumerate().filter(|(place, _)| wanted[*place]).collect();
        let rows: Vec<(Arc<SeriesInfo>, Answer)> =
            chosen.iter().map(|(_, info)| (Arc::clone(info), key_only())).collect();
        let batch = builder.answers(&rows);
        let df_schema = DFSchema::try_from(batch.schema())?;
        for filter in filters {
            let expression = state.create_physical_expr(filter.clone(), &df_schema)?;
            let values = expression.evaluate(&batch)?.into_array(batch.num_rows())?;
            let Some(values) = values.as_boolean_opt() else { continue };
            for (row, (place, _)) in chosen.iter().enumerate() {
                wanted[*place] &= values.is_valid(row) && values.value(row);
            }
        }
        Ok(Some(wanted))
    }

    fn shows(&self, info: &SeriesInfo) -> bool {
        self.spec.definition.is_none_or(|definition| info.definition == definition)
            && self.spec.metric.as_ref().is_none_or(|metric| info.key.metric == *metric)
    }

    /// The conditions on the rows of the batch view.
    fn batch_filters(&self, filters: &[Expr]) -> Vec<Expr> {
        let mut pushed: Vec<Expr> = Vec::new();
        if let Some(definition) = self.spec.definition {
            pushed.push(equals("definition", &self.directory.definition(definition).name));
        }
        if let Some(metric) = &self.spec.metric {
            pushed.push(equals("metric", metric));
        }
        if self.spec.step.is_none() {
            pushed.extend(filters.iter().cloned());
            return pushed;
        }
        pushed.extend(filters.iter().filter(|filter| self.of_series(filter)).cloned());
        let windows = self.windows(filters);
        if windows.start > i64::MIN {
            pushed.push(col("window_start").gt_eq(time_literal(windows.start)));
        }
        if windows.end < i64::MAX {
            pushed.push(col("window_start").lt(time_literal(windows.end)));
        }
        pushed
    }

    /// The columns that are to be read of the batch view.
    fn batch_columns<'a>(&'a self, builder: &'a Builder, merging: bool) -> Vec<&'a str> {
        let mut wanted: Vec<&str> = vec!["count"];
        for column in &builder.columns {
            wanted.extend(column.stored(&self.directory));
            if merging {
                wanted.extend(column.merged_from());
            }
        }
        if merging {
            wanted.extend(["series", "window_start"]);
        }
        if self.spec.step.is_some() {
            wanted.push("state");
        }
        if builder.masks() {
            wanted.push("definition");
        }
        let mut columns = Vec::new();
        for name in wanted {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        columns
    }
}

#[async_trait]
impl TableProvider for MergedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let each = |filter: &&Expr| match self.can_push(filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(each).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(places) => places.iter().map(|place| self.spec.columns[*place]).collect(),
            None => self.spec.columns.clone(),
        };
        let builder = Builder::new(Arc::clone(&self.directory), columns);
        let selection = Selection {
            series: self.series(state, filters)?,
            windows: self.windows(filters),
            step: self.spec.step,
        };
        let rows = match self.spec.layers {
            Layers::Batch => CapturedRows::none(),
            Layers::Both | Layers::Realtime => CapturedRows::collect(&self.capture.epochs, &selection),
        };
        let merging = !rows.is_empty() || self.spec.step.is_some();
        let batch = match (&self.capture.snapshot, self.spec.layers) {
            (Some(snapshot), Layers::Both | Layers::Batch) => snapshot
                .scan(&self.batch_columns(&builder, merging), &self.batch_filters(filters))
                .map_err(external)?,
            _ => None,
        };
        let plan = MergePlan {
            builder,
            rows,
            step: self.spec.step,
            facts: Facts::of(self.capture.snapshot.as_deref()),
            now: self.now,
        };
        Ok(Arc::new(MergedExec::new(plan, batch, state.config().target_partitions())))
    }
}

/// An answer of which only the series is looked at.
fn key_only() -> Answer {
    Answer {
        window_start: 0,
        window_end: 0,
        summary: wye_domain::summary::Summary::EMPTY,
        source: Source::Batch,
        scored: wye_metrics::merge::Scored {
            confidence: wye_metrics::confidence::score(&wye_domain::summary::Summary::EMPTY, None, 0, 0.0),
            expected_source: wye_metrics::confidence::ExpectedSource::Unknown,
        },
        state: wye_metrics::confidence::State::Live,
    }
}

/// `column = text` for a column of dictionary-encoded text.
pub(crate) fn equals(column: &str, text: &str) -> Expr {
    let word = ScalarValue::Utf8(Some(text.to_owned()));
    // Names with capitals must not be folded, so the column is not parsed.
    Expr::Column(datafusion::common::Column::new_unqualified(column))
        .eq(lit(ScalarValue::Dictionary(Box::new(DataType::Int32), Box::new(word))))
}

fn external(error: ServingError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The window starts (µs) that conditions joined by AND leave.
fn window_bounds(filters: &[Expr]) -> Range<i64> {
    let mut bounds = i64::MIN..i64::MAX;
    for filter in filters {
        narrow(filter, &mut bounds);
    }
    bounds
}

fn narrow(filter: &Expr, bounds: &mut Range<i64>) {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            narrow(left, bounds);
            narrow(right, bounds);
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            match (is_window_start(left), is_window_start(right)) {
                (true, _) => compare(*op, right, bounds),
                (_, true) => {
                    if let Some(op) = op.swap() {
                        compare(op, left, bounds);
                    }
                }
                _ => {}
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) if is_window_start(expr) => {
            compare(Operator::GtEq, low, bounds);
            compare(Operator::LtEq, high, bounds);
        }
        _ => {}
    }
}

fn is_window_start(expression: &Expr) -> bool {
    matches!(expression, Expr::Column(column) if column.name == "window_start")
}

fn compare(op: Operator, literal: &Expr, bounds: &mut Range<i64>) {
    let Expr::Literal(ScalarValue::TimestampMicrosecond(Some(micros), _), _) = literal else { return };
    let next = micros.saturating_add(1);
    let (low, high) = match op {
        Operator::Eq => (*micros, next),
        Operator::Gt => (next, i64::MAX),
        Operator::GtEq => (*micros, i64::MAX),
        Operator::Lt => (i64::MIN, *micros),
        Operator::LtEq => (i64::MIN, next),
        _ => return,
    };
    *bounds = bounds.start.max(low)..bounds.end.min(high);
}
