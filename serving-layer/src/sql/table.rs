//! The merged tables as DataFusion sees them: which rows of both layers a query needs, and the plan for them.
//!
//! A condition on the series or the window depends on a row's key only. It is applied to both layers before the merge, and
//! leaves out the same keys in both, so the merge stays exact. DataFusion applies it again after the merge.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType, col, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use wye_domain::summary_columns::SummaryColumn;
use wye_domain::time::{Micros, Span, WindowSize};
use wye_metrics::view_rows::ViewColumn;
use wye_tables::columns::time_literal;

use super::columns::{Column, MergedColumns};
use super::merged::MergePlan;
use super::messages::external;
use crate::directory::{Directory, SeriesInfo};
use crate::gaps::ExpectedSeries;
use crate::hub::{Capture, Facts};
use crate::realtime::{CapturedRows, Selection};

/// Which layers a table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layers {
    Both,
    Batch,
    Realtime,
}

/// What a table shows of a capture.
#[derive(Clone, Debug)]
pub(super) struct TableSpec {
    pub(super) layers: Layers,
    pub(super) columns: Vec<Column>,
    /// Only series of this definition, by its index in the plans.
    pub(super) definition: Option<usize>,
    /// Only series of this metric.
    pub(super) metric: Option<Arc<str>>,
    /// Longer windows than the definition's.
    pub(super) step: Option<WindowSize>,
}

/// A table over one capture.
#[derive(Debug)]
pub(super) struct MergedTable {
    capture: Arc<Capture>,
    now: Micros,
    spec: TableSpec,
    columns: MergedColumns,
}

impl MergedTable {
    pub(super) fn new(
        directory: Arc<Directory>,
        capture: Arc<Capture>,
        now: Micros,
        spec: TableSpec,
    ) -> Self {
        let columns = MergedColumns::new(directory, spec.columns.clone());
        Self { capture, now, spec, columns }
    }

    fn directory(&self) -> &Arc<Directory> {
        &self.columns.directory
    }

    /// The column of a name, if conditions on it may be applied before the merge.
    fn key_column(&self, name: &str) -> Option<Column> {
        let column = self.columns.by_name(name)?;
        // A longer window does not end where the windows in it end.
        let is_end_of_longer = self.spec.step.is_some() && column == Column::WindowEnd;
        (column.is_key() && !is_end_of_longer).then_some(column)
    }

    fn can_push(&self, filter: &Expr) -> bool {
        let columns = filter.column_refs();
        !filter.is_volatile()
            && filter.exists(|part| Ok(is_subquery(part))).is_ok_and(|has_subquery| !has_subquery)
            && columns.iter().all(|column| self.key_column(&column.name).is_some())
            && !columns.is_empty()
    }

    fn is_of_series(&self, filter: &Expr) -> bool {
        let mut columns = filter.column_refs().into_iter();
        columns.all(|column| self.key_column(&column.name).is_some_and(Column::is_of_series))
    }

    /// The starts of the definition's own windows that can be in the answer.
    fn window_starts(&self, filters: &[Expr]) -> WindowStarts {
        let WindowStarts { from, before } = WindowStarts::of(filters);
        let step = self.spec.step.map_or(Span::ZERO, WindowSize::span);
        WindowStarts { from, before: before.map(|before| before + step) }
    }

    /// Which series can be in the answer, by series number; `None`: all.
    fn wanted_series(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Vec<bool>>> {
        let filters: Vec<&Expr> = filters.iter().filter(|filter| self.is_of_series(filter)).collect();
        if filters.is_empty() && self.spec.definition.is_none() {
            return Ok(None);
        }
        let infos = self.directory().infos();
        let mut wanted: Vec<bool> = infos.iter().map(|info| self.shows(info)).collect();
        if filters.is_empty() {
            return Ok(Some(wanted));
        }
        let of_series = self.spec.columns.iter().copied().filter(|column| column.is_of_series());
        let columns = MergedColumns::new(Arc::clone(self.directory()), of_series.collect());
        let shown: Vec<&SeriesInfo> =
            infos.iter().map(AsRef::as_ref).filter(|info| wanted[info.id.0 as usize]).collect();
        let batch = columns.of_series(shown.iter().copied())?;
        let df_schema = DFSchema::try_from(batch.schema())?;
        for filter in filters {
            let expression = state.create_physical_expr(filter.clone(), &df_schema)?;
            let values = expression.evaluate(&batch)?.into_array(batch.num_rows())?;
            let Some(values) = values.as_boolean_opt() else { continue };
            for (row, info) in shown.iter().enumerate() {
                wanted[info.id.0 as usize] &= values.is_valid(row) && values.value(row);
            }
        }
        Ok(Some(wanted))
    }

    /// The series of which windows without readings are answered, by number. `wanted` as [`MergedTable::wanted_series`] has it.
    fn expected(&self, wanted: Option<&[bool]>) -> Vec<ExpectedSeries> {
        if self.spec.layers != Layers::Both || !self.directory().has_expectations() {
            return Vec::new();
        }
        let infos = self.directory().infos().into_iter().filter(|info| {
            wanted.is_none_or(|wanted| wanted.get(info.id.0 as usize).copied().unwrap_or(false))
        });
        self.capture.expected(infos, self.spec.step)
    }

    /// The starts of the windows that can be in the answer.
    fn answered_starts(&self, filters: &[Expr]) -> Range<Micros> {
        // A longer window has no row of its own: that it starts in the stretch is checked after the merge.
        WindowStarts::of(filters).range()
    }

    fn shows(&self, info: &SeriesInfo) -> bool {
        self.spec.definition.is_none_or(|definition| info.definition == definition)
            && self.spec.metric.as_ref().is_none_or(|metric| info.key.metric == *metric)
    }

    /// The conditions on the rows of the batch view.
    fn view_filters(&self, filters: &[Expr]) -> Vec<Expr> {
        let mut pushed: Vec<Expr> = Vec::new();
        if let Some(definition) = self.spec.definition {
            pushed.push(equals(ViewColumn::Definition.name(), &self.directory().definition(definition).name));
        }
        if let Some(metric) = &self.spec.metric {
            pushed.push(equals(ViewColumn::Metric.name(), metric));
        }
        if self.spec.step.is_none() {
            pushed.extend(filters.iter().cloned());
            return pushed;
        }
        pushed.extend(filters.iter().filter(|filter| self.is_of_series(filter)).cloned());
        let starts = self.window_starts(filters);
        pushed.extend(starts.from.map(|from| col(ViewColumn::WindowStart.name()).gt_eq(time_literal(from))));
        pushed
            .extend(starts.before.map(|before| col(ViewColumn::WindowStart.name()).lt(time_literal(before))));
        pushed
    }

    /// The columns of the batch view that are needed for the rows that it has.
    fn view_columns<'a>(&'a self, columns: &'a MergedColumns) -> Vec<&'a str> {
        let stored = columns.columns.iter().flat_map(|column| column.stored(self.directory()));
        let definition = columns.needs_definition().then_some(ViewColumn::Definition.name());
        stored.chain(definition).chain([SummaryColumn::Count.name()]).collect()
    }
}

/// The columns of the batch view that are needed to merge its rows with others.
fn merge_columns(columns: &MergedColumns) -> impl Iterator<Item = &str> {
    let merged = columns.columns.iter().flat_map(|column| column.merged_from());
    merged.map(|column| column.name()).chain([ViewColumn::Series.name(), ViewColumn::WindowStart.name()])
}

#[async_trait]
impl TableProvider for MergedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| match self.can_push(filter) {
                true => TableProviderFilterPushDown::Inexact,
                false => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(indices) => indices.iter().map(|index| self.spec.columns[*index]).collect(),
            None => self.spec.columns.clone(),
        };
        let columns = MergedColumns::new(Arc::clone(self.directory()), columns);
        let selection = Selection {
            series: self.wanted_series(state, filters)?,
            windows: self.window_starts(filters).range(),
            step: self.spec.step,
        };
        let rows = match self.spec.layers {
            Layers::Batch => CapturedRows::none(),
            Layers::Both | Layers::Realtime => CapturedRows::collect(&self.capture.epochs, &selection),
        };
        let expected = self.expected(selection.series.as_deref());
        let mut view_columns = self.view_columns(&columns);
        if !expected.is_empty() || !rows.is_empty() || self.spec.step.is_some() || columns.are_judged() {
            view_columns.extend(merge_columns(&columns));
        }
        view_columns.sort_unstable();
        view_columns.dedup();
        let view = match (&self.capture.snapshot, self.spec.layers) {
            (Some(snapshot), Layers::Both | Layers::Batch) => {
                snapshot.scan(&view_columns, &self.view_filters(filters)).map_err(external)?
            }
            _ => None,
        };
        let plan = MergePlan {
            columns,
            rows,
            step: self.spec.step,
            has_whole_windows: self.spec.step.is_some_and(|step| {
                self.capture.snapshot.as_ref().is_some_and(|snapshot| snapshot.has_whole(step))
            }),
            facts: match self.spec.layers {
                Layers::Batch => Facts::of_batch(self.capture.snapshot.as_deref(), &self.capture.coverage),
                Layers::Both | Layers::Realtime => {
                    Facts::of(self.capture.snapshot.as_deref(), &self.capture.coverage)
                }
            },
            now: self.now,
            expected,
            windows: self.answered_starts(filters),
        };
        Ok(plan.over(view, state.config().target_partitions()))
    }
}

/// `column = text` for a column of dictionary-encoded text.
pub(crate) fn equals(column: &str, text: &str) -> Expr {
    let word = ScalarValue::Utf8(Some(text.to_owned()));
    // Names with capitals must not be folded, so the column is not parsed.
    Expr::Column(datafusion::common::Column::new_unqualified(column))
        .eq(lit(ScalarValue::Dictionary(Box::new(DataType::Int32), Box::new(word))))
}

fn is_subquery(expression: &Expr) -> bool {
    matches!(expression, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_))
}

/// The starts of windows that can be in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WindowStarts {
    /// The first; `None`: no bound.
    from: Option<Micros>,
    /// The end, exclusive; `None`: no bound.
    before: Option<Micros>,
}

impl WindowStarts {
    /// What is left by conditions. Only comparisons of `window_start` with a literal are understood, as DataFusion's
    /// optimizer writes them: the column first, and BETWEEN as two comparisons. Other conditions leave everything.
    ///
    /// (`datafusion::physical_expr::analysis` would drop rows: it takes the inverse of an integer division and of a cast to
    /// coarser times for exact, so that `x / 60 = 5` leaves 300 only.)
    fn of(filters: &[Expr]) -> Self {
        let mut starts = Self::default();
        for condition in filters.iter().flat_map(split_conjunction) {
            if let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition
                && matches!(&**left, Expr::Column(column) if column.name == ViewColumn::WindowStart.name())
                && let Expr::Literal(ScalarValue::TimestampMicrosecond(Some(time), _), _) = &**right
            {
                starts.narrow(*op, Micros(*time));
            }
        }
        starts
    }

    /// Leaves only starts for which `start op time` holds.
    fn narrow(&mut self, op: Operator, time: Micros) {
        let next = time + Span(1);
        let (from, before) = match op {
            Operator::Eq => (Some(time), Some(next)),
            Operator::Gt => (Some(next), None),
            Operator::GtEq => (Some(time), None),
            Operator::Lt => (None, Some(time)),
            Operator::LtEq => (None, Some(next)),
            _ => return,
        };
        self.from = self.from.max(from);
        self.before = self.before.into_iter().chain(before).min();
    }

    fn range(self) -> Range<Micros> {
        self.from.unwrap_or(Micros::MIN)..self.before.unwrap_or(Micros::MAX)
    }
}
