//! What can go wrong in the batch layer, by operation, and what the caller can do about it.

use std::error::Error;
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::object_store;
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};
use wye_log::LogError;
use wye_metrics::definition::DefinitionError;
use wye_tables::TablesError;

/// What can go wrong in the batch layer.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The threads that compute cannot be started.
    #[error("cannot start the threads of the batch layer: {0}")]
    Threads(std::io::Error),
    /// The log cannot be read or written.
    #[error("batch layer: cannot {what}: {source}")]
    Log {
        /// The operation.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<LogError>,
    },
    /// A table cannot be read or written.
    #[error("batch layer: cannot {what}: {source}")]
    Tables {
        /// The operation.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<TablesError>,
    },
    /// A metric cannot be computed from the readings.
    #[error("cannot compute the metrics: {0}")]
    Compute(#[source] DataFusionError),
    /// An amendment cannot be applied.
    #[error("an amendment cannot be applied; `wye amend revoke` takes it back: {0}")]
    Amendment(#[source] DefinitionError),
    /// Another batch run committed while this one was computing.
    #[error("another batch run committed first; its views are served, and nothing is lost")]
    AnotherRunFirst(#[source] Box<TablesError>),
    /// The archiver makes no progress.
    #[error("nothing was archived for {} s; the warnings say why", waited.as_secs())]
    NotArchived {
        /// For so long.
        waited: Duration,
    },
    /// The master dataset has readings of a log that is not there any more.
    #[error(
        "Kafka partition {kafka_partition} is archived up to offset {archived}, but its log ends at {end}: was the log \
         deleted or replaced? restore it, or use it with empty tables"
    )]
    OtherLog {
        /// Of which Kafka partition.
        kafka_partition: KafkaPartition,
        /// The next offset to archive.
        archived: Offset,
        /// The end of its log.
        end: Offset,
    },
    /// The layer is stopping.
    #[error("the batch layer is stopping")]
    Stopping,
}

impl BatchError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Log { source, .. } => source.kind(),
            Self::Tables { source, .. } => source.kind(),
            Self::AnotherRunFirst(_) => ErrorKind::Conflict,
            Self::Compute(source) if is_of_store(source) => ErrorKind::Unavailable,
            Self::Compute(_) | Self::Amendment(_) | Self::OtherLog { .. } => ErrorKind::Invalid,
            Self::Threads(_) | Self::NotArchived { .. } | Self::Stopping => ErrorKind::Unavailable,
        }
    }

    /// For `map_err`: a failed operation on a table.
    pub(crate) fn tables(what: &'static str) -> impl Fn(TablesError) -> Self {
        move |source| Self::Tables { what, source: Box::new(source) }
    }

    /// For `map_err`: a failed operation on the log.
    pub(crate) fn log(what: &'static str) -> impl Fn(LogError) -> Self {
        move |source| Self::Log { what, source: Box::new(source) }
    }
}

/// Whether files could not be read: the store is away, or slow.
fn is_of_store(error: &DataFusionError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<object_store::Error>() || error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_may_come_back() {
        let away = || object_store::Error::Generic { store: "S3", source: "no answer".into() };
        let of_parquet = datafusion::parquet::errors::ParquetError::External(Box::new(away()));
        let read = [
            DataFusionError::ObjectStore(Box::new(away())),
            DataFusionError::ParquetError(Box::new(of_parquet)),
            DataFusionError::External(Box::new(away())).context("scan"),
        ];
        let kinds = read.map(|source| BatchError::Compute(source).kind());
        assert_eq!(kinds, [ErrorKind::Unavailable; 3]);
        let wrong = DataFusionError::Plan("no column x".to_owned());
        assert_eq!(BatchError::Compute(wrong).kind(), ErrorKind::Invalid);
    }
}
