//! The error of this crate, by operation, and what a caller can do about it.

use datafusion::error::DataFusionError;
use wye_domain::{DomainError, ErrorKind};
use wye_log::LogError;
use wye_tables::TablesError;

/// What can go wrong in the serving layer.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A thread cannot be had from the system.
    #[error("cannot start a thread of the serving layer: {source}")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
    /// The engine for queries cannot be set up, or the expectations of the registry cannot be worked out.
    #[error("cannot set up the query engine: {source}")]
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
    /// A batch view holds something else than this program wrote.
    #[error("cannot use the batch view: {source}")]
    View {
        /// What does not fit.
        #[from]
        source: DomainError,
    },
    /// A query is wrong, or is refused.
    #[error("{message}")]
    Query {
        /// What is wrong, for the one who asked.
        message: String,
    },
    /// A query ran out of its memory or time.
    #[error("{message}")]
    Limit {
        /// Which limit, and what to do.
        message: String,
    },
    /// Too many queries run and wait already.
    #[error("too many queries run already; ask again in a moment")]
    Busy,
    /// A query ended without saying why: something inside it panicked, which the log shows.
    #[error("a task of the query has failed")]
    Failed,
    /// The folder for what queries cannot keep in memory cannot be used.
    #[error("cannot use {folder} for what queries cannot keep in memory: {source}; check its permissions")]
    SpillFolder {
        /// Which folder.
        folder: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A query that is right failed.
    #[error("cannot run the query: {source}")]
    Run {
        /// Why.
        source: Box<DataFusionError>,
    },
    /// A task ended before it gave its answer: the process is stopping.
    #[error("the serving layer is stopping")]
    Stopping,
}

impl ServingError {
    /// Sorts what DataFusion says about a query into what the asker can mend and what not.
    pub(crate) fn of_query(error: DataFusionError) -> Self {
        crate::sql::translate(error)
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
