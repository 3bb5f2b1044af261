//! The error of this crate, by operation, and what a caller can do about it.

use datafusion::error::DataFusionError;
use wye_domain::{DomainError, ErrorKind};
use wye_log::LogError;
use wye_tables::TablesError;

/// What can go wrong in the serving layer.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The system cannot start a thread.
    #[error("cannot start a thread of the serving layer")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
    /// The engine for queries cannot be set up, or the expectations of the registry cannot be computed.
    #[error("cannot set up the query engine")]
    Prepare {
        /// Why.
        source: Box<DataFusionError>,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A table cannot be read.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A batch view does not hold what a batch run writes.
    #[error("cannot use the batch view")]
    View {
        /// What does not fit.
        #[from]
        source: DomainError,
    },
    /// A query is wrong, or is refused.
    #[error("{message}")]
    Query {
        /// What is wrong, for the client.
        message: String,
    },
    /// A query needs more memory or time than it may have.
    #[error("{message}")]
    Limit {
        /// Which limit, and what to do.
        message: String,
    },
    /// Too many queries run and wait already.
    #[error("too many queries run already; ask again in a moment")]
    Busy,
    /// A task of a query ended without a result: it has panicked, and the server log shows where.
    #[error("a task of the query has failed")]
    Failed,
    /// The folder for what queries cannot keep in memory cannot be used.
    #[error("cannot use {folder} for what queries cannot keep in memory; check its permissions")]
    SpillFolder {
        /// Which folder.
        folder: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A valid query failed.
    #[error("cannot run the query")]
    Run {
        /// Why.
        source: Box<DataFusionError>,
    },
    /// A task ended before its result, because the process is stopping.
    #[error("the serving layer is stopping")]
    Stopping,
}

impl ServingError {
    /// Sorts DataFusion's error about a query into what the client can correct and what not.
    pub(crate) fn of_query(error: DataFusionError) -> Self {
        crate::sql::translate(error)
    }

    /// A plan of this crate's own failed.
    pub(crate) fn run(source: DataFusionError) -> Self {
        Self::Run { source: Box::new(source) }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Thread { .. } | Self::Busy | Self::Stopping => ErrorKind::Unavailable,
            Self::Prepare { .. } | Self::Failed | Self::SpillFolder { .. } => ErrorKind::Internal,
            Self::Log(error) => error.kind(),
            Self::Tables(error) => error.kind(),
            Self::View { source } => source.kind(),
            Self::Query { .. } | Self::Limit { .. } => ErrorKind::Invalid,
            Self::Run { source } => match source.find_root() {
                DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => ErrorKind::Unavailable,
                _ => ErrorKind::Internal,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::error_chain;

    use super::*;

    #[test]
    fn each_cause_is_named_once() {
        let root = std::io::Error::other("disk on fire");
        let source = Box::new(DataFusionError::IoError(root));
        assert_eq!(
            error_chain(&ServingError::Run { source }),
            "cannot run the query: IO error: disk on fire"
        );
        let source = DomainError::Shape { column: "count" };
        assert_eq!(
            error_chain(&ServingError::View { source }),
            "cannot use the batch view: record batch has no usable column \"count\""
        );
    }
}
