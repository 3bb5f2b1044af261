//! The plan node that merges: streams the rows of a batch view, merges those that realtime rows belong to, and emits the
//! other realtime rows at the end.
//!
//! Rows of the view that stand alone are computed column by column. A plan partition of the view is a file, sorted by
//! series and window. With longer windows, the first and the last window of each file may go on in another one; they
//! are put together when the last plan partition ends.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::TryStreamExt;
use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::series::SeriesId;
use wye_domain::time::WindowSize;

use super::columns::{Builder, filled, without};
use crate::directory::SeriesInfo;
use crate::hub::Facts;
use crate::realtime::CapturedRows;
use crate::view_runs::runs;
use wye_metrics::merge::{Answer, Judge, Rollup, Sides, merge};
use wye_metrics::view_rows::reader::ViewRows;

/// Rows in a batch of merged answers.
const ANSWERS_PER_BATCH: usize = 8_192;

/// What is merged, and into what.
#[derive(Debug)]
pub(super) struct MergePlan {
    pub(super) builder: Builder,
    pub(super) rows: CapturedRows,
    pub(super) step: Option<WindowSize>,
    pub(super) facts: Facts,
    pub(super) now: i64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct MergedExec {
    plan: Arc<MergePlan>,
    batch: Option<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
    run: Mutex<Option<(Arc<Run>, HashSet<usize>)>>,
}

/// What the plan partitions of one execution share.
#[derive(Debug)]
struct Run {
    /// A bit for each group of realtime rows that was merged with a row of the view.
    matched: Vec<AtomicU64>,
    unfinished: AtomicUsize,
    edges: Mutex<HashMap<(SeriesId, i64), Rollup>>,
}

type Answers = Vec<(Arc<SeriesInfo>, Answer)>;

impl MergedExec {
    pub(super) fn new(
        plan: MergePlan,
        batch: Option<Arc<dyn ExecutionPlan>>,
        target_partitions: usize,
    ) -> Self {
        let of_batch = |batch: &Arc<dyn ExecutionPlan>| batch.properties().partitioning.partition_count();
        let batch = batch.filter(|batch| of_batch(batch) > 0);
        let partitions = batch.as_ref().map_or(target_partitions.max(1), of_batch);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&plan.builder.schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { plan: Arc::new(plan), batch, properties: Arc::new(properties), run: Mutex::default() }
    }

    fn partitions(&self) -> usize {
        self.properties.partitioning.partition_count()
    }

    /// The shared state of the execution that a plan partition belongs to; executing it again begins another.
    fn run(&self, plan_partition: usize) -> Arc<Run> {
        let mut guard = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((run, begun)) = guard.as_mut()
            && begun.insert(plan_partition)
        {
            return Arc::clone(run);
        }
        let run = Arc::new(Run {
            matched: (0..self.plan.rows.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            unfinished: AtomicUsize::new(self.partitions()),
            edges: Mutex::default(),
        });
        *guard = Some((Arc::clone(&run), HashSet::from([plan_partition])));
        run
    }
}

impl DisplayAs for MergedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MergedExec: realtime_windows={}", self.plan.rows.len())?;
        self.plan.step.map_or(Ok(()), |step| write!(f, ", step={step}"))
    }
}

impl ExecutionPlan for MergedExec {
    fn name(&self) -> &str {
        "MergedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.batch.iter().collect()
    }

    /// The order of a file's rows matters, and the realtime rows are dealt with once.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; self.children().len()]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = children.into_iter().next();
        let partitions = batch
            .as_ref()
            .map_or(self.partitions(), |batch| batch.properties().partitioning.partition_count());
        let properties = self.properties.as_ref().clone();
        let properties = properties.with_partitioning(Partitioning::UnknownPartitioning(partitions));
        Ok(Arc::new(Self {
            plan: Arc::clone(&self.plan),
            batch,
            properties: Arc::new(properties),
            run: Mutex::default(),
        }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = self.run(partition);
        let (input, groups) = match &self.batch {
            Some(batch) => (Some(batch.execute(partition, context)?), None),
            None => {
                let (groups, partitions) = (self.plan.rows.len(), self.partitions());
                (None, Some(groups * partition / partitions..groups * (partition + 1) / partitions))
            }
        };
        let pump = Pump {
            plan: Arc::clone(&self.plan),
            run,
            input,
            groups,
            open: None,
            first_is_out: false,
            queue: VecDeque::new(),
        };
        let stream = futures::stream::try_unfold(pump, |mut pump| async move {
            Ok(pump.next().await?.map(|batch| (batch, pump)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.plan.builder.schema), stream)))
    }
}

/// The stream of one plan partition.
struct Pump {
    plan: Arc<MergePlan>,
    run: Arc<Run>,
    /// The rows of the view, until they end.
    input: Option<SendableRecordBatchStream>,
    /// The groups of realtime rows that are still to be emitted here.
    groups: Option<Range<usize>>,
    /// The longer window that the last row of the view was in.
    open: Option<((SeriesId, i64), Rollup)>,
    /// Whether the first longer window of the file has been put with the edges.
    first_is_out: bool,
    queue: VecDeque<RecordBatch>,
}

impl Pump {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.queue.pop_front() {
                return Ok(Some(batch));
            }
            if let Some(input) = &mut self.input {
                match input.try_next().await? {
                    Some(rows) if self.plan.step.is_some() => self.roll_up(&rows).map_err(external)?,
                    Some(rows) => self.merge(rows).map_err(external)?,
                    None => self.end_of_view(),
                }
                continue;
            }
            let Some(groups) = &mut self.groups else { return Ok(None) };
            if groups.start >= groups.end {
                return Ok(None);
            }
            let chunk = groups.start..groups.end.min(groups.start + ANSWERS_PER_BATCH);
            groups.start = chunk.end;
            let answers = self.alone(chunk);
            self.emit(&answers);
        }
    }

    /// Rows of the view in the windows of the definition.
    fn merge(&mut self, rows: RecordBatch) -> std::result::Result<(), DomainError> {
        let plan = &self.plan;
        let mut left_out: Option<Vec<bool>> =
            filled(&rows)?.map(|filled| filled.values().iter().map(|filled| !filled).collect());
        let mut answers = Answers::new();
        if !plan.rows.is_empty() {
            let view = ViewRows::of(&rows)?;
            for (range, id) in runs(&view.series, view.len(), &plan.builder.directory) {
                let Some((id, groups)) = id.map(|id| (id, plan.rows.of_series(id))) else { continue };
                if groups.is_empty() {
                    continue;
                }
                let windows = plan.rows.key(groups.start).1..=plan.rows.key(groups.end - 1).1;
                let info = plan.builder.directory.info(id);
                for row in range {
                    let window_start = view.window_start.value(row);
                    if !windows.contains(&window_start) {
                        continue;
                    }
                    let Some(group) = plan.rows.find(groups.clone(), window_start) else { continue };
                    self.run.matched[group / 64].fetch_or(1 << (group % 64), Ordering::Relaxed);
                    left_out.get_or_insert_with(|| vec![false; rows.num_rows()])[row] = true;
                    let batch = view.row(row)?;
                    let sides = Sides { batch: Some(&batch), realtime: Some(plan.rows.summary(group)) };
                    if let Some(answer) = merge(info.facts(), window_start, sides, plan.judge()) {
                        answers.push((Arc::clone(&info), answer));
                    }
                }
            }
        }
        let alone = match left_out {
            Some(left_out) => without(&rows, &left_out),
            None => rows,
        };
        if alone.num_rows() > 0 {
            self.queue.push_back(plan.builder.view(&alone)?);
        }
        self.emit(&answers);
        Ok(())
    }

    /// Rows of the view into longer windows.
    fn roll_up(&mut self, rows: &RecordBatch) -> std::result::Result<(), DomainError> {
        let Some(step) = self.plan.step else { return Ok(()) };
        let view = ViewRows::of(rows)?;
        let mut answers = Answers::new();
        for (range, id) in runs(&view.series, view.len(), &self.plan.builder.directory) {
            let Some(id) = id else { continue };
            for row in range {
                let key = (id, step.start_of(view.window_start.value(row)));
                if self.open.as_ref().is_none_or(|(open, _)| *open != key) {
                    let ended = self.open.replace((key, Rollup::default()));
                    self.close(ended, &mut answers);
                }
                if let Some((_, rollup)) = &mut self.open {
                    rollup.add_batch(&view.row(row)?);
                }
            }
        }
        self.emit(&answers);
        Ok(())
    }

    fn close(&mut self, ended: Option<((SeriesId, i64), Rollup)>, answers: &mut Answers) {
        let Some((key, rollup)) = ended else { return };
        if self.first_is_out {
            answers.extend(self.complete(key, rollup));
        } else {
            self.first_is_out = true;
            self.put_aside(key, &rollup);
        }
    }

    fn put_aside(&self, key: (SeriesId, i64), rollup: &Rollup) {
        let mut edges = self.run.edges.lock().unwrap_or_else(PoisonError::into_inner);
        edges.entry(key).or_default().add(rollup);
    }

    /// Adds the realtime rows of a longer window of which all rows of the view are in.
    fn complete(
        &self,
        (id, start): (SeriesId, i64),
        mut rollup: Rollup,
    ) -> Option<(Arc<SeriesInfo>, Answer)> {
        let plan = &self.plan;
        if let Some(group) = plan.rows.find(plan.rows.of_series(id), start) {
            self.run.matched[group / 64].fetch_or(1 << (group % 64), Ordering::Relaxed);
            rollup.add_realtime(&plan.rows.summary(group));
        }
        let info = plan.builder.directory.info(id);
        let end = start.saturating_add(plan.step.unwrap_or(info.window).micros());
        let answer = rollup.finish(info.facts(), (start, end), plan.judge())?;
        Some((info, answer))
    }

    /// The last plan partition to end emits what is left.
    fn end_of_view(&mut self) {
        self.input = None;
        if let Some((key, rollup)) = self.open.take() {
            self.put_aside(key, &rollup);
        }
        if self.run.unfinished.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let edges = std::mem::take(&mut *self.run.edges.lock().unwrap_or_else(PoisonError::into_inner));
        let answers: Answers =
            edges.into_iter().filter_map(|(key, rollup)| self.complete(key, rollup)).collect();
        self.emit(&answers);
        self.groups = Some(0..self.plan.rows.len());
    }

    /// Groups of realtime rows without those that were merged already.
    fn alone(&self, groups: Range<usize>) -> Answers {
        let plan = &self.plan;
        let mut answers = Answers::with_capacity(groups.len());
        let mut last: Option<Arc<SeriesInfo>> = None;
        for group in groups {
            if self.run.matched[group / 64].load(Ordering::Acquire) & (1 << (group % 64)) != 0 {
                continue;
            }
            let (id, start) = plan.rows.key(group);
            let info = match last.take() {
                Some(info) if info.id == id => info,
                _ => plan.builder.directory.info(id),
            };
            let answer = match plan.step {
                None => {
                    let sides = Sides { batch: None, realtime: Some(plan.rows.summary(group)) };
                    merge(info.facts(), start, sides, plan.judge())
                }
                Some(step) => {
                    let mut rollup = Rollup::default();
                    rollup.add_realtime(&plan.rows.summary(group));
                    rollup.finish(info.facts(), (start, start.saturating_add(step.micros())), plan.judge())
                }
            };
            if let Some(answer) = answer {
                answers.push((Arc::clone(&info), answer));
            }
            last = Some(info);
        }
        answers
    }

    fn emit(&mut self, answers: &[(Arc<SeriesInfo>, Answer)]) {
        for chunk in answers.chunks(ANSWERS_PER_BATCH) {
            self.queue.push_back(self.plan.builder.answers(chunk));
        }
    }
}

impl MergePlan {
    fn judge(&self) -> Judge<'_> {
        self.facts.judge(self.now)
    }
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
