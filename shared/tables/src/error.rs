//! The errors of stored tables, by operation, and what the caller can do about each. Must not know what the tables contain.

use deltalake::DeltaTableError;
use deltalake::kernel::transaction::TransactionError;
use parquet::errors::ParquetError;
use wye_domain::ErrorKind;

use crate::store::TableName;

/// A source error whose type the caller does not need.
pub(crate) type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What can go wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The location of the tables cannot be used.
    #[error("cannot store tables at {location:?}: {reason}")]
    Location {
        /// What was given.
        location: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The store at the location of the tables does not answer as it should.
    #[error("cannot use the store of the tables at {location}: {error}{advice}")]
    Root {
        /// What was given.
        location: String,
        /// Why; its text has that of its sources.
        error: Box<object_store::Error>,
        /// What to do next, where that is known; follows the error.
        advice: &'static str,
    },
    /// A batch, column or file does not fit its table.
    #[error("table {table}: {reason}")]
    Shape {
        /// Which table.
        table: TableName,
        /// What does not fit.
        reason: String,
    },
    /// Another writer committed first.
    #[error("table {table}: {reason}")]
    Conflict {
        /// Which table.
        table: TableName,
        /// What the other writer did.
        reason: String,
    },
    /// Stored bytes are damaged.
    #[error("table {table} is damaged: {reason}")]
    Corrupt {
        /// Which table.
        table: TableName,
        /// What was found.
        reason: String,
    },
    /// The transaction log cannot be read.
    #[error("cannot read the log of table {table}")]
    ReadLog {
        /// Which table.
        table: TableName,
        /// Why.
        #[source]
        source: DeltaTableError,
    },
    /// The transaction log cannot be written.
    #[error("cannot commit to table {table}")]
    Commit {
        /// Which table.
        table: TableName,
        /// Why.
        #[source]
        source: DeltaTableError,
    },
    /// Rows cannot be written to a file.
    #[error("cannot write rows of table {table}")]
    Encode {
        /// Which table.
        table: TableName,
        /// Why.
        #[source]
        source: Source,
    },
    /// A file cannot be listed or removed.
    #[error("cannot reach the files of table {table}")]
    Store {
        /// Which table.
        table: TableName,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// Rows cannot be read back.
    #[error("cannot scan table {table}")]
    Scan {
        /// Which table.
        table: TableName,
        /// Why.
        #[source]
        source: datafusion::error::DataFusionError,
    },
}

impl TablesError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Location { .. } | Self::Shape { .. } => ErrorKind::Invalid,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::ReadLog { source, .. } | Self::Commit { source, .. } => delta_kind(source),
            Self::Root { error, .. } => store_kind(error),
            Self::Store { source, .. } => store_kind(source),
            Self::Encode { source, .. } => write_kind(source.as_ref()),
            Self::Scan { source, .. } => match source.find_root() {
                datafusion::error::DataFusionError::ObjectStore(source) => store_kind(source),
                datafusion::error::DataFusionError::ParquetError(source) => read_kind(source),
                _ => ErrorKind::Internal,
            },
        }
    }

    /// A failed commit: when another writer committed first it becomes [`TablesError::Conflict`].
    pub(crate) fn commit(table: TableName, source: DeltaTableError) -> Self {
        match &source {
            DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction {
                source:
                    TransactionError::VersionAlreadyExists(_)
                    | TransactionError::CommitConflict(_)
                    | TransactionError::MaxCommitAttempts(_),
            } => Self::Conflict { table, reason: format!("another writer committed first: {source}") },
            _ => Self::Commit { table, source },
        }
    }
}

fn delta_kind(error: &DeltaTableError) -> ErrorKind {
    match error {
        DeltaTableError::NotATable(_) | DeltaTableError::InvalidVersion(_) => ErrorKind::NotFound,
        DeltaTableError::ObjectStore { source }
        | DeltaTableError::Transaction { source: TransactionError::ObjectStore { source } } => {
            store_kind(source)
        }
        DeltaTableError::Io { .. } => ErrorKind::Unavailable,
        DeltaTableError::InvalidJsonLog { .. }
        | DeltaTableError::InvalidStatsJson { .. }
        | DeltaTableError::Parquet { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    }
}

/// The kind of an error while a file is written. An error of the store is the source of an I/O error.
fn write_kind(error: &(dyn std::error::Error + 'static)) -> ErrorKind {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let store = error.get_ref().and_then(|inner| inner.downcast_ref());
            return store.map_or(ErrorKind::Unavailable, store_kind);
        }
        next = error.source();
    }
    ErrorKind::Internal
}

/// The kind of an error while a file is read.
fn read_kind(error: &ParquetError) -> ErrorKind {
    match error {
        // DataFusion makes a text of each error while it reads a footer, also of an error of the store.
        ParquetError::General(_) => ErrorKind::Internal,
        ParquetError::External(source) => {
            let mut next: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
            while let Some(error) = next {
                if let Some(error) = error.downcast_ref() {
                    return store_kind(error);
                }
                next = error.source();
            }
            // An I/O error without an error of the store: compressed bytes cannot be decompressed.
            ErrorKind::Corrupt
        }
        _ => ErrorKind::Corrupt,
    }
}

fn store_kind(error: &object_store::Error) -> ErrorKind {
    match error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            ErrorKind::Conflict
        }
        object_store::Error::InvalidPath { .. } | object_store::Error::NotSupported { .. } => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::error::DataFusionError;

    use super::*;

    fn kind(error: ParquetError) -> ErrorKind {
        let source = DataFusionError::ParquetError(Box::new(error)).context("reading");
        TablesError::Scan { table: TableName::Readings, source }.kind()
    }

    #[test]
    fn only_bytes_that_do_not_decode_are_damaged() {
        let store = object_store::Error::Generic { store: "test", source: "no answer".into() };
        assert_eq!(kind(ParquetError::External(Box::new(store))), ErrorKind::Unavailable);
        let missing = object_store::Error::NotFound { path: "part".to_owned(), source: "no file".into() };
        let wrapped = DataFusionError::from(missing).context("fetching");
        assert_eq!(kind(ParquetError::External(Box::new(wrapped))), ErrorKind::NotFound);
        let footer = ParquetError::General("Failed to fetch metadata for file part: no answer".to_owned());
        assert_eq!(kind(footer), ErrorKind::Internal);
        let codec = std::io::Error::other("unknown frame descriptor");
        assert_eq!(kind(ParquetError::External(Box::new(codec))), ErrorKind::Corrupt);
        assert_eq!(kind(ParquetError::EOF("too short".to_owned())), ErrorKind::Corrupt);
    }
}
