//! The windows of some series over a range of time, merged from the rows of a batch view and from realtime epochs. Pure:
//! it does not know where the rows of the view come from, nor who asks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::series::SeriesId;
use wye_domain::time::{Micros, WindowSize};
use wye_metrics::merge::{Answer, Judge, Rollup, missing};
use wye_metrics::view_rows::reader::ViewRows;

use crate::ServingError;
use crate::directory::{Directory, SeriesInfo};
use crate::gaps::ExpectedSeries;
use crate::hub::{Capture, Facts};
use crate::realtime::{CapturedRows, EpochView, Selection};
use crate::view_runs::runs;

/// Which windows are wanted.
#[derive(Clone, Debug)]
pub struct Question {
    /// The series; all of one definition.
    pub infos: Vec<Arc<SeriesInfo>>,
    /// The starts of the windows, whole steps.
    pub windows: Range<Micros>,
    /// The length of the windows: a multiple of the definition's.
    pub step: WindowSize,
}

/// A series with its windows, oldest first.
pub type SeriesAnswers = (Arc<SeriesInfo>, Vec<Answer>);

/// The windows of a question, of which the parts come in any order.
#[derive(Debug)]
pub struct WindowMerge {
    question: Question,
    /// By series number: whether it is wanted.
    wanted: Vec<bool>,
    windows: BTreeMap<(SeriesId, Micros), Rollup>,
}

impl WindowMerge {
    /// No window yet.
    pub fn new(question: Question) -> Self {
        let end = question.infos.iter().map(|info| info.id.0 as usize + 1).max();
        let mut wanted = vec![false; end.unwrap_or_default()];
        for info in &question.infos {
            wanted[info.id.0 as usize] = true;
        }
        Self { question, wanted, windows: BTreeMap::new() }
    }

    /// How many windows there are so far.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Adds rows of the batch view; those that are not wanted are left out.
    ///
    /// # Errors
    /// [`DomainError`] when the batch does not have the columns of a batch view.
    pub fn add_view(&mut self, batch: &RecordBatch, directory: &Directory) -> Result<(), DomainError> {
        let rows = ViewRows::of(batch)?;
        for (range, id) in runs(&rows.series, rows.len(), directory) {
            let Some(id) = id.filter(|id| self.wanted.get(id.0 as usize) == Some(&true)) else { continue };
            for row in range {
                let start = rows.window_start(row);
                if self.question.windows.contains(&start) {
                    let window = self.question.step.start_of(start);
                    self.windows.entry((id, window)).or_default().add_batch(&rows.row(row)?);
                }
            }
        }
        Ok(())
    }

    /// Adds the rows of realtime epochs.
    pub fn add_epochs(&mut self, epochs: &[Arc<EpochView>]) {
        let selection = Selection {
            series: Some(self.wanted.clone()),
            windows: self.question.windows.clone(),
            step: Some(self.question.step),
        };
        let rows = CapturedRows::collect(epochs, &selection);
        for group in 0..rows.len() {
            self.windows.entry(rows.key(group)).or_default().add_realtime(&rows.summary(group));
        }
    }

    /// The windows that have readings, and those that should have some; series without one are left out. Ends with an error of
    /// `check` when it does not like the number of windows.
    ///
    /// # Errors
    /// That of `check`.
    pub fn finish<E>(
        self,
        capture: &Capture,
        judge: Judge<'_>,
        check: impl Fn(usize) -> Result<(), E>,
    ) -> Result<Vec<SeriesAnswers>, E> {
        let Question { infos, windows: asked, step } = self.question;
        let expected = capture.expected(infos.iter().cloned(), Some(step));
        let mut expected: HashMap<SeriesId, ExpectedSeries> =
            expected.into_iter().map(|series| (series.info.id, series)).collect();
        let starts = asked.start..asked.end.min(judge.as_of);
        let mut all = Vec::with_capacity(infos.len());
        let mut count = 0;
        for info in infos {
            let own = self.windows.range((info.id, Micros::MIN)..=(info.id, Micros::MAX));
            let mut answers: Vec<Answer> = own
                .filter_map(|((_, start), rollup)| {
                    rollup.clone().finish(info.facts(), step.window_at(*start), judge)
                })
                .collect();
            count += answers.len();
            if let Some(expected) = expected.remove(&info.id) {
                let present = answers.iter().map(|answer| step.window_at(answer.window_start)).collect();
                let with_readings = answers.len();
                for (info, window) in expected.absent(step, starts.clone(), present) {
                    if let Some(answer) = missing(info.facts(), window, judge) {
                        answers.push(answer);
                        count += 1;
                        check(count)?;
                    }
                }
                if answers.len() > with_readings {
                    answers.sort_unstable_by_key(|answer| answer.window_start);
                }
            }
            if !answers.is_empty() {
                all.push((info, answers));
            }
        }
        Ok(all)
    }
}

impl Capture {
    /// The windows of a question from everything that the capture has in memory: the epochs, and the batch view where it
    /// is in memory ([`crate::snapshot::MemoryView`]).
    ///
    /// # Errors
    /// [`ServingError::View`] when the rows do not have the columns of a batch view.
    pub fn merged(
        &self,
        question: Question,
        directory: &Directory,
    ) -> Result<Vec<SeriesAnswers>, ServingError> {
        let mut merge = WindowMerge::new(question);
        for batch in self.snapshot.as_ref().and_then(|view| view.rows_in_memory()).unwrap_or_default() {
            merge.add_view(batch, directory)?;
        }
        merge.add_epochs(&self.epochs);
        let facts = Facts::of(self.snapshot.as_deref(), &self.coverage);
        merge.finish(self, facts.judge(self.coverage.now), |_| Ok(()))
    }
}
