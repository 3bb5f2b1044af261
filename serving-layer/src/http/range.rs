//! The windows of some series over a range of time, merged from both layers. This is computation, for the query
//! threads. It does not know HTTP.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, col};
use futures::TryStreamExt;
use wye_domain::series::SeriesId;
use wye_domain::time::WindowSize;

use crate::ServingError;
use crate::directory::{Directory, SeriesInfo};
use crate::hub::{Capture, Facts};
use crate::realtime::{CapturedRows, Selection};
use crate::snapshot::time_literal;
use crate::sql::table::equals;
use crate::view_runs::runs;
use wye_metrics::merge::{Answer, Rollup};
use wye_metrics::view_rows::reader::{ROW_COLUMNS, ViewRows};

/// The most windows that one answer holds.
const WINDOWS: usize = 200_000;
/// Up to so many series are named to the batch view one by one.
const NAMED_SERIES: usize = 32;

/// What is asked for.
pub(super) struct Question {
    pub(super) infos: Vec<Arc<SeriesInfo>>,
    /// Starts of the wanted windows (µs); whole steps.
    pub(super) windows: Range<i64>,
    pub(super) step: WindowSize,
    pub(super) now: i64,
}

/// A series with its windows, oldest first.
pub(super) type SeriesAnswers = (Arc<SeriesInfo>, Vec<Answer>);

impl Question {
    /// Merges; series without readings in the range are left out.
    pub(super) async fn answer(
        self,
        capture: &Capture,
        directory: &Directory,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<SeriesAnswers>, ServingError> {
        let Some(first) = self.infos.first() else { return Ok(Vec::new()) };
        let highest = self.infos.iter().map(|info| info.id.0 as usize).max().unwrap_or_default();
        let mut wanted = vec![false; highest + 1];
        self.infos.iter().for_each(|info| wanted[info.id.0 as usize] = true);
        let mut windows: BTreeMap<(SeriesId, i64), Rollup> = BTreeMap::new();
        let too_many = || ServingError::Limit {
            message: format!(
                "the answer has more than {WINDOWS} windows; use a longer step, a shorter range, or POST /v1/sql"
            ),
        };
        if let Some(snapshot) = &capture.snapshot
            && let Some(plan) = snapshot.scan(&ROW_COLUMNS, &self.filters(first))?
        {
            let failed = |source| ServingError::Run { source: Box::new(source) };
            let mut rows =
                datafusion::physical_plan::execute_stream(plan, Arc::clone(context)).map_err(failed)?;
            while let Some(batch) = rows.try_next().await.map_err(failed)? {
                let view = ViewRows::of(&batch)?;
                for (range, id) in runs(&view.series, view.len(), directory) {
                    let Some(id) = id.filter(|id| wanted.get(id.0 as usize).copied().unwrap_or(false)) else {
                        continue;
                    };
                    for row in range {
                        let start = self.step.start_of(view.window_start.value(row));
                        windows.entry((id, start)).or_default().add_batch(&view.row(row)?);
                    }
                }
                if windows.len() > WINDOWS {
                    return Err(too_many());
                }
            }
        }
        let selection =
            Selection { series: Some(wanted), windows: self.windows.clone(), step: Some(self.step) };
        let realtime = CapturedRows::collect(&capture.epochs, &selection);
        for group in 0..realtime.len() {
            windows.entry(realtime.key(group)).or_default().add_realtime(&realtime.summary(group));
        }
        if windows.len() > WINDOWS {
            return Err(too_many());
        }
        let facts = Facts::of(capture.snapshot.as_deref());
        let judge = facts.judge(self.now);
        let mut answers = Vec::with_capacity(self.infos.len());
        for info in self.infos {
            let own = windows.range((info.id, i64::MIN)..=(info.id, i64::MAX));
            let own: Vec<Answer> = own
                .filter_map(|((_, start), rollup)| {
                    rollup.clone().finish(
                        info.facts(),
                        (*start, start.saturating_add(self.step.micros())),
                        judge,
                    )
                })
                .collect();
            if !own.is_empty() {
                answers.push((info, own));
            }
        }
        Ok(answers)
    }

    fn filters(&self, first: &SeriesInfo) -> Vec<Expr> {
        let mut filters = vec![
            equals("definition", &first.key.definition),
            equals("metric", &first.key.metric),
            col("window_start").gt_eq(time_literal(self.windows.start)),
            col("window_start").lt(time_literal(self.windows.end)),
        ];
        if self.infos.len() <= NAMED_SERIES {
            let named = self.infos.iter().map(|info| equals("series", &info.key.encode()));
            filters.extend(named.reduce(Expr::or));
        }
        filters
    }
}
