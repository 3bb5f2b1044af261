//! The units of metrics that a family makes of reading names. No definition gives them, so they are what the readings
//! say: looked up in the master dataset, once a metric.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use hashbrown::HashMap;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::ServingError;
use crate::directory::Directory;
use crate::sql::SqlEngine;

/// How often new metrics are looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon a metric whose archived readings carry no unit is looked at again; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Units {
    by_metric: RwLock<HashMap<Arc<str>, Looked>>,
}

/// What was found of a metric.
#[derive(Clone, Debug)]
enum Looked {
    Found(String),
    /// Nothing yet: when to look again, and how long to rest after that.
    None {
        due: Instant,
        pause: Duration,
    },
}

impl Units {
    /// The unit of a metric of a family; `None` where no reading says one, or nobody has looked yet.
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
        shutdown: CancellationToken,
    ) {
        let look = async {
            loop {
                for metric in self.due(&directory, Instant::now()) {
                    match look_up(&engine, &metric).await {
                        Ok(found) => self.note(metric, found, Instant::now()),
                        Err(error) => {
                            debug!(metric = &*metric, %error, "cannot look up the unit of a metric; trying again");
                        }
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

    /// The metrics of families without a unit of their own that are to be looked up now.
    fn due(&self, directory: &Directory, now: Instant) -> Vec<Arc<str>> {
        let plans = directory.plans().plans().iter().enumerate();
        let families =
            plans.filter(|(_, plan)| plan.definition().is_family() && plan.definition().unit.is_empty());
        let names = families.flat_map(|(place, _)| directory.metrics(place));
        let known = self.by_metric.read().unwrap_or_else(PoisonError::into_inner);
        let due = |metric: &Arc<str>| match known.get(metric) {
            Some(Looked::Found(_)) => false,
            Some(Looked::None { due, .. }) => *due <= now,
            None => true,
        };
        names.filter(due).collect()
    }

    fn note(&self, metric: Arc<str>, found: Option<String>, now: Instant) {
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
    use crate::fixture;

    #[test]
    fn a_metric_is_looked_up_until_its_unit_is_found() {
        let (units, directory, start) = (Units::default(), fixture::directory(), Instant::now());
        let due = |after: Duration| units.due(&directory, start + after).len();
        assert_eq!(due(Duration::ZERO), 0);
        directory.resolve([fixture::family("t", "a"), fixture::line("L1")].iter().map(String::as_str));
        // The named metric has a unit of its own.
        assert_eq!(units.due(&directory, start), vec![Arc::<str>::from("t")]);
        units.note("t".into(), None, start);
        assert_eq!((due(Duration::ZERO), due(FIRST_PAUSE)), (0, 1));
        units.note("t".into(), None, start + FIRST_PAUSE);
        assert_eq!((due(FIRST_PAUSE * 2), due(FIRST_PAUSE * 3)), (0, 1));
        units.note("t".into(), Some("Cel".to_owned()), start);
        assert_eq!((due(LONGEST_PAUSE), units.of("t").as_deref()), (0, Some("Cel")));
    }
}
