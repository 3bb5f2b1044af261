//! What can go wrong in a job over files, and what the caller can do about it.

use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;
use wye_domain::ErrorKind;

use super::messages;

/// What can go wrong in a job over files.
#[derive(Debug, thiserror::Error)]
pub enum FileJobError {
    /// The job cannot work as it is written: its arguments, a recipe or the SQL.
    #[error("{0}")]
    Arguments(String),
    /// A file or folder cannot be used.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content of a file, or a step of the job, is wrong.
    #[error("cannot {what}: {problem}")]
    Failed {
        /// The operation, with the name of the file where there is one.
        what: String,
        /// Why.
        problem: String,
    },
    /// The query failed while it was executed.
    #[error("the query failed: {0}")]
    Query(String),
    /// The reader of the rows is closed.
    #[error("the reader of the rows is closed")]
    Closed,
    /// The job was stopped.
    #[error("the job was stopped; no output was written")]
    Stopped,
}

impl FileJobError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Arguments(_) => ErrorKind::Invalid,
            Self::Failed { .. } | Self::Query(_) => ErrorKind::Corrupt,
            Self::File { .. } | Self::Closed | Self::Stopped => ErrorKind::Unavailable,
        }
    }

    /// For `map_err`: a failed operation on a file.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path: path.clone(), source }
    }

    /// For `map_err`: a step that failed.
    pub(crate) fn step(what: impl Into<String>) -> impl Fn(DataFusionError) -> Self {
        let what = what.into();
        move |error| Self::Failed { what: what.clone(), problem: messages::of(&error) }
    }
}
