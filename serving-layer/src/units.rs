//! The units of metrics that a family makes of reading names. No definition gives them, so they come from the readings:
//! looked up in the master dataset, once for each metric.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arrow::array::AsArray;
use hashbrown::HashMap;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::ServingError;
use crate::directory::Directory;
use crate::error::chain;
use crate::sql::SqlEngine;
use wye_runtime::clock::Clock;

/// How often the directory is checked for new metrics.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon a metric whose archived readings carry no unit is looked up again; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The units that were found, by metric.
#[derive(Debug, Default)]
pub(crate) struct Units {
    by_metric: RwLock<HashMap<Arc<str>, Looked>>,
}

/// What was found of a metric.
#[derive(Clone, Debug)]
enum Looked {
    Found(String),
    /// Nothing yet: when (on the monotonic clock) to look again, and how long to wait after that.
    None {
        due: Duration,
        pause: Duration,
    },
}

impl Units {
    /// The unit of a metric of a family; `None` where no reading has one, or it was not looked up yet.
    pub(crate) fn of(&self, metric: &str) -> Option<String> {
        match self.by_metric.read().unwrap_or_else(PoisonError::into_inner).get(metric)? {
            Looked::Found(unit) => Some(unit.clone()),
            Looked::None { .. } => None,
        }
    }

    /// Looks metrics up as they come, until `shutdown`.
    pub(crate) async fn run(
        self: Arc<Self>,
        directory: Arc<Directory>,
        engine: SqlEngine,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) {
        let look = async {
            loop {
                for metric in self.due(&directory, clock.monotonic()) {
                    match look_up(&engine, &metric).await {
                        Ok(found) => self.note(metric, found, clock.monotonic()),
                        Err(error) => debug!(
                            metric = &*metric,
                            error = chain(&error),
                            "cannot look up the unit of a metric; trying again"
                        ),
                    }
                }
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = look => {}
        }
    }

    /// The metrics of families without a unit of their own that are to be looked up at `now` (monotonic).
    fn due(&self, directory: &Directory, now: Duration) -> Vec<Arc<str>> {
        let known = self.by_metric.read().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        for (place, plan) in directory.plans().plans().iter().enumerate() {
            let definition = plan.definition();
            if !definition.is_family() || !definition.unit.is_empty() {
                continue;
            }
            due.extend(directory.metrics(place).into_iter().filter(|metric| match known.get(metric) {
                Some(Looked::Found(_)) => false,
                Some(Looked::None { due, .. }) => *due <= now,
                None => true,
            }));
        }
        due
    }

    fn note(&self, metric: Arc<str>, found: Option<String>, now: Duration) {
        let mut known = self.by_metric.write().unwrap_or_else(PoisonError::into_inner);
        let looked = match (found, known.get(&metric)) {
            (Some(unit), _) => Looked::Found(unit),
            (None, Some(Looked::None { pause, .. })) => {
                let pause = (*pause * 2).min(LONGEST_PAUSE);
                Looked::None { due: now + pause, pause }
            }
            (None, _) => Looked::None { due: now + FIRST_PAUSE, pause: FIRST_PAUSE },
        };
        known.insert(metric, looked);
    }
}

async fn look_up(engine: &SqlEngine, metric: &str) -> Result<Option<String>, ServingError> {
    let sql = format!(
        "SELECT CAST(unit AS VARCHAR) AS unit FROM readings WHERE metric = '{}' AND unit IS NOT NULL LIMIT 1",
        metric.replace('\'', "''")
    );
    let mut rows = engine.query(&sql).await?;
    while let Some(batch) = rows.next().await {
        let units = arrow::compute::cast(batch?.column(0), &arrow::datatypes::DataType::Utf8);
        if let Ok(units) = units
            && let Some(unit) = units.as_string::<i32>().iter().flatten().next()
        {
            return Ok(Some(unit.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_metric_is_looked_up_until_its_unit_is_found() {
        let (units, directory) = (Units::default(), testing::directory());
        assert_eq!(units.due(&directory, Duration::ZERO), []);
        directory.resolve([testing::family("t", "a"), testing::line("L1")].iter().map(String::as_str));
        // The named metric has a unit of its own.
        let t = vec![Arc::<str>::from("t")];
        assert_eq!(units.due(&directory, Duration::ZERO), t);
        units.note("t".into(), None, Duration::ZERO);
        assert_eq!(units.due(&directory, Duration::ZERO), []);
        assert_eq!(units.due(&directory, FIRST_PAUSE), t);
        units.note("t".into(), None, FIRST_PAUSE);
        assert_eq!(units.due(&directory, FIRST_PAUSE * 2), []);
        assert_eq!(units.due(&directory, FIRST_PAUSE * 3), t);
        units.note("t".into(), Some("Cel".to_owned()), Duration::ZERO);
        assert_eq!(units.due(&directory, LONGEST_PAUSE), []);
        assert_eq!(units.of("t").as_deref(), Some("Cel"));
    }
}
