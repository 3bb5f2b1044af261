//! Merging the windows of a question where the rows of the batch view are in files. This is computation, for the query
//! threads. It does not know HTTP.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, col};
use futures::TryStreamExt;
use wye_metrics::view_rows::ViewColumn;
use wye_metrics::view_rows::reader::row_columns;
use wye_tables::columns::time_literal;

use crate::ServingError;
use crate::directory::Directory;
use crate::hub::{Capture, Facts};
use crate::sql::table::equals;
use crate::windows::{Question, SeriesAnswers, WindowMerge};

/// The most windows that one answer holds.
const MOST_WINDOWS: usize = 200_000;
/// Up to so many series are named to the batch view one by one.
const NAMED_SERIES: usize = 32;

/// The windows of a question; series without any in the range are left out.
pub(super) async fn answer(
    question: Question,
    capture: Capture,
    directory: Arc<Directory>,
    context: Arc<TaskContext>,
) -> Result<Vec<SeriesAnswers>, ServingError> {
    let filters = filters(&question);
    let mut merge = WindowMerge::new(question);
    if let Some(snapshot) = &capture.snapshot
        && let Some(plan) = snapshot.scan(&row_columns(), &filters)?
    {
        let rows = datafusion::physical_plan::execute_stream(plan, context);
        let mut rows = rows.map_err(ServingError::run)?;
        while let Some(batch) = rows.try_next().await.map_err(ServingError::run)? {
            merge.add_view(&batch, &directory)?;
            check_size(merge.len())?;
        }
    }
    merge.add_epochs(&capture.epochs);
    check_size(merge.len())?;
    let facts = Facts::of(capture.snapshot.as_deref(), &capture.coverage);
    merge.finish(&capture, facts.judge(capture.coverage.now), check_size)
}

fn check_size(windows: usize) -> Result<(), ServingError> {
    if windows <= MOST_WINDOWS {
        return Ok(());
    }
    Err(ServingError::Limit {
        message: format!(
            "the answer has more than {MOST_WINDOWS} windows; use a longer step, a shorter range, or POST /v1/sql"
        ),
    })
}

/// The conditions on the rows of the batch view.
fn filters(question: &Question) -> Vec<Expr> {
    let Question { infos, windows, .. } = question;
    let mut filters = vec![
        col(ViewColumn::WindowStart.name()).gt_eq(time_literal(windows.start)),
        col(ViewColumn::WindowStart.name()).lt(time_literal(windows.end)),
    ];
    if let Some(first) = infos.first() {
        filters.push(equals(ViewColumn::Definition.name(), &first.key.definition));
        filters.push(equals(ViewColumn::Metric.name(), &first.key.metric));
    }
    if infos.len() <= NAMED_SERIES {
        let named = infos.iter().map(|info| equals(ViewColumn::Series.name(), &info.key.encode()));
        filters.extend(named.reduce(Expr::or));
    }
    filters
}
