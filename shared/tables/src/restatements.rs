//! The restatements: settled numbers that a later batch run has changed. Must not know when a number is settled.
//!
//! A run writes the file of its restatements before it commits its views, and names it in its [`RunRecord`]. Whoever finds the
//! committed views adds the file to the table, once: so there are restatements of exactly the runs that were committed.
//!
//! Stability contract: the Delta table `restatements` has the columns of [`restatement_schema`]; its application transaction
//! `wye-restatements` is the version of the newest views whose restatements it has.
//!
//! [`RunRecord`]: crate::run_record::RunRecord

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use deltalake::kernel::{Action, Add, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use serde::{Deserialize, Serialize};

use crate::append::open_append_only;
use crate::columns::restatement_schema;
use crate::delta::cleaning::Cleaned;
use crate::delta::hold::Hold;
use crate::delta::{AfterOthers, Commit, DeltaLog};
use crate::error::TablesError;
use crate::file_writer::{FileFormat, FileWriter};
use crate::parquet_properties::letter_properties;
use crate::real_time;
use crate::store::{TableName, TableRoot};
use crate::views::ViewVersion;

const TABLE: TableName = TableName::Restatements;
const THROUGH: &str = "wye-restatements";
/// How often a file is added after conflicts with other processes.
const ATTEMPTS: usize = 5;

/// The restatements. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Restatements {
    log: DeltaLog,
}

/// A file of restatements that is not in the table yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestatementFile {
    /// The version of the views that the run commits.
    version: ViewVersion,
    add: Add,
}

/// Writes the file of one run. A writer that is dropped leaves at most a file that [`Restatements::vacuum`] removes.
pub struct RestatementWriter {
    log: DeltaLog,
    version: ViewVersion,
    open: Option<FileWriter>,
    hold: Arc<Hold>,
}

impl Restatements {
    /// Opens the table, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`TablesError::Store`], [`TablesError::Commit`] or [`TablesError::ReadLog`] when the store cannot be used.
    pub async fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: open_append_only(root, TABLE, restatement_schema(), &[]).await? })
    }

    /// A writer for the run that is to commit a version of the views.
    #[must_use]
    pub fn writer(&self, version: ViewVersion) -> RestatementWriter {
        RestatementWriter { log: self.log.clone(), version, open: None, hold: self.log.hold() }
    }

    /// Adds the file of a run that has committed its views; nothing where the table has it.
    ///
    /// # Errors
    /// When the table cannot be read or written; the file stays.
    pub async fn add(&self, file: &RestatementFile) -> Result<(), TablesError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.try_add(file).await {
                // Another process has added this file at the same time, or another one.
                Err(TablesError::Conflict { .. }) if attempts < ATTEMPTS => {}
                ended => return ended,
            }
        }
    }

    async fn try_add(&self, file: &RestatementFile) -> Result<(), TablesError> {
        let base = self.log.existing().await?;
        let through = i64::try_from(file.version.0).unwrap_or(i64::MAX);
        if base.transactions.get(THROUGH).is_some_and(|known| *known >= through) {
            return Ok(());
        }
        let now = real_time::now().millis();
        let commit = Commit {
            base: &base,
            actions: vec![Action::Add(file.add.clone())],
            transactions: vec![Transaction::new_with_last_update(THROUGH.to_owned(), through, Some(now))],
            operation: DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None },
            info: serde_json::Map::new(),
            after_others: AfterOthers::Rebase,
        };
        self.log.commit_kept(commit).await.map(drop)
    }

    /// The newest version as an SQL table.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.log.existing().await?.delta_table(&self.log);
        table.table_provider().await.map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    /// Removes files of runs that were not committed, more than `keep` ago.
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.log.clean(keep).await
    }
}

impl RestatementWriter {
    /// Writes rows with the columns of [`restatement_schema`].
    ///
    /// # Errors
    /// When the file cannot be stored; it has no rows then.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), TablesError> {
        let file = match self.open.take() {
            Some(file) => file,
            None => {
                let (schema, properties) = (restatement_schema(), letter_properties());
                FileWriter::new(self.log.clone(), FileFormat { schema, properties, table_partition: None })?
            }
        };
        self.open = Some(file.write(rows).await?);
        Ok(())
    }

    /// Completes the file; `None` where nothing was written.
    ///
    /// # Errors
    /// When the file cannot be stored.
    pub async fn finish(self) -> Result<Option<RestatementFile>, TablesError> {
        let Some(file) = self.open else { return Ok(None) };
        let add = file.finish(HashMap::new()).await?;
        drop(self.hold);
        Ok(Some(RestatementFile { version: self.version, add }))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray};

    use super::*;
    use crate::foreign_tests::optimize;
    use crate::testing::number;

    fn row(run: &str) -> RecordBatch {
        let schema = restatement_schema();
        let columns = schema.fields().iter().map(|field| match field.data_type() {
            arrow::datatypes::DataType::Timestamp(..) => {
                Arc::new(TimestampMicrosecondArray::from(vec![7]).with_timezone("UTC")) as ArrayRef
            }
            _ => Arc::new(StringArray::from(vec![run])),
        });
        RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_file_of_a_run_is_added_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(directory.path()).unwrap();
        let table = Restatements::open(&root).await.unwrap();
        assert_eq!(table.writer(ViewVersion(1)).finish().await.unwrap(), None);
        let rows = async || {
            let sql = "select count(*) from restatements where run_id = 'a'";
            number("restatements", table.provider().await.unwrap(), sql).await
        };
        for version in 1..3 {
            let mut writer = table.writer(ViewVersion(version));
            writer.write(&row("a")).await.unwrap();
            writer.write(&row("a")).await.unwrap();
            let file = writer.finish().await.unwrap().unwrap();
            // As it comes from the record of a run.
            let file: RestatementFile = serde_json::from_str(&serde_json::to_string(&file).unwrap()).unwrap();
            let other = Restatements::open(&root).await.unwrap();
            let both = tokio::join!(table.add(&file), other.add(&file));
            both.0.unwrap();
            both.1.unwrap();
            assert_eq!(rows().await, 2 * version as i64);
            if version == 2 {
                // Another engine has put the rows into another file.
                optimize(&root, TABLE).await;
            }
            table.add(&file).await.unwrap();
            assert_eq!(rows().await, 2 * version as i64);
        }
    }
}
