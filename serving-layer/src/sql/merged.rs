//! The operator that merges: streams the rows of a batch view, merges each with the realtime rows of its window, and emits
//! the other realtime rows at the end, and then the windows that should have readings and have none.
//!
//! Rows of the view without realtime rows are computed column by column. Longer windows are complete when the next one
//! begins, where each plan partition of the view has whole ones. Otherwise they are collected, and merged when the last plan
//! partition ends.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Schema;
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use wye_domain::DomainError;
use wye_domain::series::SeriesId;
use wye_domain::time::{Micros, Window, WindowSize};
use wye_metrics::merge::{Judge, Rollup, Sides, merge, missing};
use wye_metrics::view_rows::reader::{ViewRows, count};

use super::columns::{MergedColumns, SeriesAnswer};
use super::messages::external;
use super::operator::{Operator, OperatorExec, Part};
use crate::directory::SeriesInfo;
use crate::gaps::{ExpectedSeries, Presence};
use crate::hub::Facts;
use crate::realtime::CapturedRows;
use crate::view_runs::runs;

/// Rows in a batch of merged answers.
const ANSWERS_PER_BATCH: usize = 8_192;

/// Windows without readings.
type Absent = Box<dyn Iterator<Item = (Arc<SeriesInfo>, Window)> + Send>;

/// A series and the start of one of its windows.
type WindowKey = (SeriesId, Micros);

/// What is merged, and into which columns.
#[derive(Debug)]
pub(super) struct MergePlan {
    pub(super) columns: MergedColumns,
    pub(super) rows: CapturedRows,
    /// Longer windows than the definition's.
    pub(super) step: Option<WindowSize>,
    /// Whether each plan partition of the view has all rows of a longer window, one after the other.
    pub(super) has_whole_windows: bool,
    pub(super) facts: Facts,
    pub(super) now: Micros,
    /// The series of which windows without readings are answered.
    pub(super) expected: Vec<ExpectedSeries>,
    /// The starts of the windows that are asked for.
    pub(super) windows: Range<Micros>,
}

/// The operator.
#[derive(Debug)]
struct Merge {
    plan: Arc<MergePlan>,
    /// Whether the input is a batch view. Otherwise it is empty, and each plan partition emits its share of the realtime
    /// rows.
    has_view: bool,
    /// The newest execution, with the plan partitions of it that have started.
    execution: Mutex<Option<(Arc<Execution>, HashSet<usize>)>>,
}

/// What the plan partitions of one execution share.
#[derive(Debug)]
struct Execution {
    /// The groups of realtime rows that were merged with a row of the view.
    merged: AtomicBits,
    unfinished_partitions: AtomicUsize,
    /// What plan partitions that have ended have found.
    found: Mutex<Found>,
}

/// What plan partitions have found.
#[derive(Debug, Default)]
struct Found {
    /// The longer windows so far, where they may have rows in several plan partitions.
    collected: HashMap<WindowKey, Rollup>,
    /// The windows with readings of the series of which others are answered too.
    present: Presence,
}

/// Bits that several threads set. Who reads them has to synchronize with who sets them.
#[derive(Debug)]
struct AtomicBits(Vec<AtomicU64>);

impl MergePlan {
    /// The plan node that merges a batch view, where there is one, with the realtime rows.
    pub(super) fn over(
        mut self,
        view: Option<Arc<dyn ExecutionPlan>>,
        target_partitions: usize,
    ) -> Arc<dyn ExecutionPlan> {
        let view = view.filter(|view| view.output_partitioning().partition_count() > 0);
        // An optimizer deals out the rows of fewer plan partitions, window or not.
        let partitions = view.as_ref().map_or(0, |view| view.output_partitioning().partition_count());
        self.has_whole_windows &= partitions >= target_partitions;
        let merge = Merge { plan: Arc::new(self), has_view: view.is_some(), execution: Mutex::default() };
        let input = view.unwrap_or_else(|| {
            Arc::new(EmptyExec::new(Arc::new(Schema::empty())).with_partitions(target_partitions.max(1)))
        });
        OperatorExec::over(input, merge)
    }

    fn judge(&self) -> Judge<'_> {
        self.facts.judge(self.now)
    }

    /// The length of the windows of a series.
    fn window_of(&self, info: &SeriesInfo) -> WindowSize {
        self.step.unwrap_or(info.window)
    }

    /// The expected series of a number.
    fn expected(&self, series: SeriesId) -> Option<&ExpectedSeries> {
        let place = self.expected.binary_search_by_key(&series, |expected| expected.info.id);
        place.ok().map(|place| &self.expected[place])
    }

    /// The windows without readings, once all that have some were found.
    fn absent(&self, execution: &Execution) -> Absent {
        let mut present = std::mem::take(&mut execution.found().present);
        let expected = self.expected.clone().into_iter();
        let (step, windows) = (self.step, self.windows.start..self.windows.end.min(self.judge().as_of));
        Box::new(expected.flat_map(move |series| {
            let (step, present) = (step.unwrap_or(series.info.window), present.take(series.info.id));
            series.absent(step, windows.clone(), present)
        }))
    }

    /// The windows with realtime rows of the expected series.
    fn present_in_realtime(&self) -> Presence {
        let mut present = Presence::default();
        for ExpectedSeries { info, .. } in &self.expected {
            let groups = self.rows.of_series(info.id).filter(|group| self.rows.has_readings(*group));
            let starts = groups.map(|group| self.rows.key(group).1);
            present.add(info.id, starts.map(|start| self.window_of(info).window_at(start)));
        }
        present
    }
}

impl Execution {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Merge {
    /// The execution that a plan partition belongs to. Where the plan partition was executed before, a new one begins.
    fn execution(&self, part: &Part) -> Arc<Execution> {
        let mut newest = self.execution.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((execution, started)) = newest.as_mut()
            && started.insert(part.plan_partition)
        {
            return Arc::clone(execution);
        }
        let execution = Arc::new(Execution {
            merged: AtomicBits::zeros(self.plan.rows.len()),
            unfinished_partitions: AtomicUsize::new(part.plan_partitions),
            found: Mutex::new(Found { present: self.plan.present_in_realtime(), ..Found::default() }),
        });
        *newest = Some((Arc::clone(&execution), HashSet::from([part.plan_partition])));
        execution
    }
}

impl Operator for Merge {
    const NAME: &'static str = "MergedExec";

    fn properties(&self, input: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties> {
        let plan_partitions = input.output_partitioning().partition_count();
        Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&self.plan.columns.schema)),
            Partitioning::UnknownPartitioning(plan_partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ))
    }

    fn maintains_input_order(&self) -> bool {
        false
    }

    fn fresh(&self) -> Self {
        Self { plan: Arc::clone(&self.plan), has_view: self.has_view, execution: Mutex::default() }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MergePlan { rows, expected, .. } = &*self.plan;
        write!(f, "realtime_windows={}, expected_series={}", rows.len(), expected.len())?;
        self.plan.step.map_or(Ok(()), |step| write!(f, ", step={step}"))
    }

    fn execute(&self, part: Part) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let execution = self.execution(&part);
        let merging = Merging {
            plan: Arc::clone(&self.plan),
            execution: Arc::clone(&execution),
            view: self.has_view.then_some(part.input),
            unmerged: match self.has_view {
                true => 0..0,
                false => share(self.plan.rows.len(), part.plan_partition, part.plan_partitions),
            },
            // Without a view, the first plan partition emits them.
            absent: (!self.has_view && part.plan_partition == 0).then(|| self.plan.absent(&execution)),
            open: None,
            found: Found::default(),
            ready: VecDeque::new(),
        };
        let batches = futures::stream::try_unfold(merging, |mut merging| async move {
            Ok(merging.next().await?.map(|batch| (batch, merging)))
        });
        Ok(batches.boxed())
    }
}

/// The n-th of `parts` about equal parts of so many groups.
fn share(groups: usize, part: usize, parts: usize) -> Range<usize> {
    groups * part / parts..groups * (part + 1) / parts
}

/// The merge of one plan partition.
struct Merging {
    plan: Arc<MergePlan>,
    execution: Arc<Execution>,
    /// The rows of the view, until they end.
    view: Option<SendableRecordBatchStream>,
    /// The groups of realtime rows that are still to be emitted here, unless they are merged.
    unmerged: Range<usize>,
    /// The longer window that the last row of the view is in.
    open: Option<(WindowKey, Rollup)>,
    /// What it has found.
    found: Found,
    /// The windows without readings that are still to be answered here, if they should have some.
    absent: Option<Absent>,
    ready: VecDeque<RecordBatch>,
}

impl Merging {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            if let Some(view) = &mut self.view {
                match view.try_next().await? {
                    Some(rows) => self.add_view(rows)?,
                    None => self.end_view()?,
                }
                continue;
            }
            if self.unmerged.is_empty() {
                let Some(absent) = &mut self.absent else { return Ok(None) };
                let judge = self.plan.judge();
                let (mut answers, mut looked_at) = (Vec::new(), 0);
                for (info, window) in absent.take(ANSWERS_PER_BATCH) {
                    looked_at += 1;
                    answers.extend(missing(info.facts(), window, judge).map(|answer| (info, answer)));
                }
                if looked_at < ANSWERS_PER_BATCH {
                    self.absent = None;
                }
                self.emit(&answers)?;
                // There may be years of windows without an answer.
                tokio::task::yield_now().await;
                continue;
            }
            let chunk = self.unmerged.start..self.unmerged.end.min(self.unmerged.start + ANSWERS_PER_BATCH);
            self.unmerged.start = chunk.end;
            let answers = self.realtime_only(chunk);
            self.emit(&answers)?;
        }
    }

    fn add_view(&mut self, rows: RecordBatch) -> Result<()> {
        let answers = match self.plan.step {
            Some(step) => self.roll_up(&rows, step).map_err(external)?,
            None => {
                let (answers, kept) = self.merge(&rows).map_err(external)?;
                let view_only = match kept {
                    Some(kept) => filter_record_batch(&rows, &BooleanArray::from(kept)).map_err(external)?,
                    None => rows,
                };
                if view_only.num_rows() > 0 {
                    self.ready.push_back(self.plan.columns.of_view(&view_only, self.plan.judge())?);
                }
                answers
            }
        };
        self.emit(&answers)
    }

    /// Merges rows of the view, in the windows of the definition, with their realtime rows. Returns the answers, and which
    /// rows are to be computed from the view only (`None`: all).
    fn merge(
        &mut self,
        rows: &RecordBatch,
    ) -> std::result::Result<(Vec<SeriesAnswer>, Option<Vec<bool>>), DomainError> {
        let plan = Arc::clone(&self.plan);
        let mut kept = with_readings(rows)?;
        let mut answers = Vec::new();
        let are_judged = plan.columns.are_judged();
        if plan.rows.is_empty() && !are_judged && plan.expected.is_empty() {
            return Ok((answers, kept));
        }
        let view = ViewRows::of(rows)?;
        for (range, id) in runs(&view.series, view.len(), &plan.columns.directory) {
            let Some(id) = id else { continue };
            if let Some(ExpectedSeries { info, .. }) = plan.expected(id) {
                let with_readings = range.clone().filter(|row| kept.as_ref().is_none_or(|kept| kept[*row]));
                let windows = with_readings.map(|row| info.window.window_at(view.window_start(row)));
                self.found.present.add(id, windows);
            }
            let groups = plan.rows.of_series(id);
            let windows =
                (!groups.is_empty()).then(|| plan.rows.key(groups.start).1..=plan.rows.key(groups.end - 1).1);
            if windows.is_none() && !are_judged {
                continue;
            }
            let info = plan.columns.directory.info(id);
            for row in range {
                let start = view.window_start(row);
                let group = windows.as_ref().filter(|windows| windows.contains(&start));
                let group = group.and_then(|_| plan.rows.find(groups.clone(), start));
                // Of an open window, less is expected than the view says.
                let is_open = are_judged && plan.judge().is_open(info.window.window_at(start));
                if group.is_none() && !is_open {
                    continue;
                }
                kept.get_or_insert_with(|| vec![true; rows.num_rows()])[row] = false;
                let batch = view.row(row)?;
                let realtime = group.map(|group| {
                    self.execution.merged.set(group);
                    plan.rows.summary(group)
                });
                let sides = Sides { batch: Some(&batch), realtime };
                if let Some(answer) = merge(info.facts(), start, sides, plan.judge()) {
                    answers.push((Arc::clone(&info), answer));
                }
            }
        }
        Ok((answers, kept))
    }

    /// Merges rows of the view into longer windows. Returns the answers of those that have ended.
    fn roll_up(
        &mut self,
        rows: &RecordBatch,
        step: WindowSize,
    ) -> std::result::Result<Vec<SeriesAnswer>, DomainError> {
        let plan = Arc::clone(&self.plan);
        let view = ViewRows::of(rows)?;
        let mut answers = Vec::new();
        for (range, id) in runs(&view.series, view.len(), &plan.columns.directory) {
            let Some(id) = id else { continue };
            for row in range {
                let key = (id, step.start_of(view.window_start(row)));
                if self.open.as_ref().is_none_or(|(open, _)| *open != key) {
                    let ended = self.open.replace((key, Rollup::default()));
                    answers.extend(ended.and_then(|(key, rollup)| self.end_window(key, rollup)));
                }
                if let Some((_, rollup)) = &mut self.open {
                    rollup.add_batch(&view.row(row)?);
                }
            }
        }
        Ok(answers)
    }

    /// Ends a run of rows of one longer window. Returns its answer if it has all of its rows.
    fn end_window(&mut self, key: WindowKey, rollup: Rollup) -> Option<SeriesAnswer> {
        if self.plan.has_whole_windows {
            return self.complete(key, rollup);
        }
        match self.found.collected.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().add(&rollup),
            Entry::Vacant(new) => drop(new.insert(rollup)),
        }
        None
    }

    /// The answer of a longer window that has all of its rows of the view.
    fn complete(&mut self, (id, start): WindowKey, mut rollup: Rollup) -> Option<SeriesAnswer> {
        let plan = Arc::clone(&self.plan);
        if let Some(group) = plan.rows.find(plan.rows.of_series(id), start) {
            self.execution.merged.set(group);
            rollup.add_realtime(&plan.rows.summary(group));
        }
        let info = plan.columns.directory.info(id);
        let window = plan.window_of(&info).window_at(start);
        let answer = rollup.finish(info.facts(), window, plan.judge())?;
        if plan.expected(id).is_some() {
            self.found.present.add(id, [window].into_iter());
        }
        Some((info, answer))
    }

    /// The last plan partition to end emits the windows that were collected, and then the realtime rows that were not merged.
    fn end_view(&mut self) -> Result<()> {
        self.view = None;
        let mut answers: Vec<SeriesAnswer> = Vec::new();
        if let Some((key, rollup)) = self.open.take() {
            answers.extend(self.end_window(key, rollup));
        }
        let is_last = {
            let mut all = self.execution.found();
            let Found { collected, present } = std::mem::take(&mut self.found);
            for (key, rollup) in collected {
                all.collected.entry(key).or_default().add(&rollup);
            }
            all.present.merge(present);
            self.execution.unfinished_partitions.fetch_sub(1, Ordering::AcqRel) == 1
        };
        if is_last {
            let all = std::mem::take(&mut self.execution.found().collected);
            answers.extend(all.into_iter().filter_map(|(key, rollup)| self.complete(key, rollup)));
            self.execution.found().present.merge(std::mem::take(&mut self.found.present));
            self.unmerged = 0..self.plan.rows.len();
            self.absent = Some(self.plan.absent(&self.execution));
        }
        self.emit(&answers)
    }

    /// The answers of groups of realtime rows, without those that were merged with the view.
    fn realtime_only(&self, groups: Range<usize>) -> Vec<SeriesAnswer> {
        let mut answers = Vec::with_capacity(groups.len());
        let mut last: Option<Arc<SeriesInfo>> = None;
        for group in groups.filter(|group| !self.execution.merged.has(*group)) {
            let (id, start) = self.plan.rows.key(group);
            let info = match last.take() {
                Some(info) if info.id == id => info,
                _ => self.plan.columns.directory.info(id),
            };
            let facts = info.facts();
            let summary = self.plan.rows.summary(group);
            let answer = match self.plan.step {
                None => {
                    let sides = Sides { batch: None, realtime: Some(summary) };
                    merge(facts, start, sides, self.plan.judge())
                }
                Some(step) => {
                    let mut rollup = Rollup::default();
                    rollup.add_realtime(&summary);
                    rollup.finish(facts, step.window_at(start), self.plan.judge())
                }
            };
            answers.extend(answer.map(|answer| (Arc::clone(&info), answer)));
            last = Some(info);
        }
        answers
    }

    fn emit(&mut self, answers: &[SeriesAnswer]) -> Result<()> {
        for chunk in answers.chunks(ANSWERS_PER_BATCH) {
            self.ready.push_back(self.plan.columns.of_answers(chunk)?);
        }
        Ok(())
    }
}

/// Which rows of a view have readings; `None` where all have.
fn with_readings(rows: &RecordBatch) -> std::result::Result<Option<Vec<bool>>, DomainError> {
    let counts = count(rows)?.values();
    let all = counts.iter().all(|count| *count > 0);
    Ok((!all).then(|| counts.iter().map(|count| *count > 0).collect()))
}

impl AtomicBits {
    fn zeros(bits: usize) -> Self {
        Self((0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn set(&self, bit: usize) {
        self.0[bit / 64].fetch_or(1 << (bit % 64), Ordering::Relaxed);
    }

    fn has(&self, bit: usize) -> bool {
        self.0[bit / 64].load(Ordering::Relaxed) & (1 << (bit % 64)) != 0
    }
}
