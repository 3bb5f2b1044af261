//! The batch views: what the last batch run computed, and the horizon up to which it read, both from one commit. Must not
//! know what the columns mean.
//!
//! Stability contract: the newest version of the Delta table `batch_metrics` has all rows below one horizon and no others. A
//! run may have left files of earlier runs as they are ([`Replaces`]). The
//! application transactions `wye-horizon/readings/<kafka_partition>` have its horizon (HOR-1, HOR-3), and the `commitInfo`
//! of the newest version that a run committed has its [`RunRecord`] under `wyeRun`. Versions after that one are commits of
//! other engines, which store the same rows in other files (`OPTIMIZE`); they are read in the same way.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use deltalake::kernel::{Action, MetadataExt, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use serde::{Deserialize, Serialize};
use wye_domain::horizon::Horizon;
use wye_domain::time::Micros;

use crate::append::PartitionTransactions;
use crate::columns::plain_text;
use crate::delta::cleaning::Cleaned;
use crate::delta::{AfterOthers, Commit, DataFile, DeltaLog, LogSnapshot, TableSpec};
use crate::error::TablesError;
use crate::run_record::{CommittedRun, RunRecord};
use crate::store::{TableName, TableRoot};

pub use cells::{CellRecord, Cells};
pub use snapshot::ViewSnapshot;
pub use writer::{ViewFile, ViewWriter};

mod cells;
mod entry;
mod snapshot;
mod writer;

const HORIZON: PartitionTransactions = PartitionTransactions("wye-horizon/readings/");
const TABLE: TableName = TableName::BatchViews;

/// A version of the batch views. It increases with each commit; the first run commits version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ViewVersion(pub u64);

impl ViewVersion {
    /// The view version of a table version; `None` for version 0, which creates the table and has no views.
    fn of_table(version: u64) -> Option<Self> {
        (version > 0).then_some(Self(version))
    }

    fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).and_then(Self::of_table)
    }
}

/// A version in a message.
fn shown(version: Option<ViewVersion>) -> String {
    version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"))
}

impl fmt::Display for ViewVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The content of one commit of views.
#[derive(Debug)]
pub struct ViewCommit {
    /// The columns of the views; text is plain or in dictionaries.
    pub schema: SchemaRef,
    /// The files that [`ViewWriter`]s have written.
    pub files: Vec<ViewFile>,
    /// Which files of the previous version they replace.
    pub replaces: Replaces,
    /// The horizon of the run.
    pub horizon: Horizon,
    /// The record of the run.
    pub run: RunRecord,
    /// The version that the run started from ([`ViewSnapshot::version`]); `None` when there were no views.
    pub expected_version: Option<ViewVersion>,
}

/// Files of a version that the next one does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaces {
    /// All of them.
    All,
    /// Those of the cells that start at these times. All files must say which cell they are of.
    Cells(BTreeSet<Micros>),
}

impl Replaces {
    fn has(&self, file: &DataFile) -> bool {
        match self {
            Self::All => true,
            Self::Cells(starts) => cells::of_file(file).is_none_or(|cell| starts.contains(&cell.start)),
        }
    }
}

/// The batch views. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BatchViews {
    log: DeltaLog,
}

impl BatchViews {
    /// A handle on the views, which need not exist yet.
    ///
    /// # Errors
    /// [`TablesError::Location`] when the store cannot be opened.
    pub fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: DeltaLog::new(root, TABLE)? })
    }

    /// The newest views; `None` before the first run. Cheap while there is no new commit.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn latest(&self) -> Result<Option<ViewSnapshot>, TablesError> {
        let hold = self.log.hold();
        let Some(snapshot) = self.log.newest().await? else { return Ok(None) };
        let Some(version) = ViewVersion::of_table(snapshot.version) else { return Ok(None) };
        let run = self.newest_run(version).await?;
        Ok(Some(ViewSnapshot::new(self.log.clone(), snapshot, version, run, hold)))
    }

    /// The record of the run that committed the rows of a version.
    async fn newest_run(&self, version: ViewVersion) -> Result<Option<RunRecord>, TablesError> {
        let mut next = Some(version);
        while let Some(version) = next {
            let Some(entry) = entry::read(&self.log, version).await? else { break };
            if entry.run.is_some() {
                return Ok(entry.run);
            }
            next = version.previous();
        }
        Ok(None)
    }

    /// The version of the newest views. Cheap while there is no new commit: two existence checks.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn latest_version(&self) -> Result<Option<ViewVersion>, TablesError> {
        Ok(self.log.newest().await?.and_then(|snapshot| ViewVersion::of_table(snapshot.version)))
    }

    /// A writer of files for the next commit. Any number of writers may write at once; no reader sees their files before
    /// [`BatchViews::commit`].
    ///
    /// # Errors
    /// [`TablesError::Shape`] when the columns cannot be stored.
    pub fn writer(&self, schema: &SchemaRef) -> Result<ViewWriter, TablesError> {
        self.check(schema)?;
        Ok(ViewWriter::new(self.log.clone(), Arc::clone(schema)))
    }

    /// Replaces the views or some of their cells, and sets the horizon, in one commit. Returns the new version.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another run has committed since `expected_version`; then nothing has changed
    /// and the written files are removed. [`TablesError::Shape`] when the horizon goes back.
    pub async fn commit(&self, commit: ViewCommit) -> Result<ViewVersion, TablesError> {
        let adds: Vec<_> = commit.files.iter().map(|file| file.add.clone()).collect();
        let committed = self.try_commit(commit).await;
        if let Err(TablesError::Conflict { .. }) = &committed {
            self.log.discard(&adds).await;
        }
        committed.map(ViewVersion)
    }

    async fn try_commit(&self, commit: ViewCommit) -> Result<u64, TablesError> {
        let base = self.base(&commit).await?;
        let schema = self.log.delta_schema(&plain_text(&commit.schema))?;
        let mut actions = Vec::new();
        let is_same = *base.delta_schema() == schema;
        if !is_same && commit.replaces != Replaces::All {
            let reason = "the columns have changed, so all rows must be replaced".to_owned();
            return Err(TablesError::Shape { table: TABLE, reason });
        }
        if !is_same {
            let metadata = base.metadata().clone().with_schema(&schema);
            actions.push(Action::Metadata(metadata.map_err(|error| self.log.unreadable(error.into()))?));
        }
        let replaced = base.files.iter().filter(|file| commit.replaces.has(file));
        actions.extend(replaced.map(|file| Action::Remove(file.removal())));
        actions.extend(commit.files.into_iter().map(|file| Action::Add(file.add)));
        let transactions: Vec<Transaction> = commit
            .horizon
            .iter()
            .map(|(kafka_partition, offset)| HORIZON.set(kafka_partition, offset))
            .collect();
        self.log
            .commit(Commit {
                base: &base,
                actions,
                transactions,
                operation: DeltaOperation::Write {
                    mode: SaveMode::Overwrite,
                    partition_by: None,
                    predicate: None,
                },
                info: entry::info(&commit.run)?,
                after_others: AfterOthers::Refuse,
            })
            .await
    }

    /// The version that a commit replaces.
    async fn base(&self, commit: &ViewCommit) -> Result<LogSnapshot, TablesError> {
        if self.log.newest().await?.is_none() {
            self.log
                .create(TableSpec {
                    schema: plain_text(&commit.schema),
                    partition_columns: &[],
                    properties: &[
                        ("delta.logRetentionDuration", "interval 2 days"),
                        ("delta.deletedFileRetentionDuration", "interval 1 days"),
                    ],
                })
                .await?;
        }
        let base = self.log.existing().await?;
        let found = ViewVersion::of_table(base.version);
        if found != commit.expected_version {
            let reason = format!(
                "the newest version is {}, but this run started from {}",
                shown(found),
                shown(commit.expected_version)
            );
            return Err(TablesError::Conflict { table: TABLE, reason });
        }
        let previous = HORIZON.read(&base);
        if !commit.horizon.follows(&previous) {
            let reason = format!(
                "a horizon must not go back, and must name every Kafka partition of the previous one: {previous:?} -> {:?}",
                commit.horizon
            );
            return Err(TablesError::Shape { table: TABLE, reason });
        }
        Ok(base)
    }

    /// The newest runs that the log still has (two days), newest first, at most `limit`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn history(&self, limit: usize) -> Result<Vec<CommittedRun>, TablesError> {
        let mut next = self.latest_version().await?;
        let mut runs = Vec::new();
        while let Some(version) = next.filter(|_| runs.len() < limit) {
            let Some(entry) = entry::read(&self.log, version).await? else { break };
            runs.extend(entry.committed_run(version));
            next = version.previous();
        }
        Ok(runs)
    }

    /// Removes the files of views that were replaced more than `keep` ago (at most 24 hours). Readers that still read
    /// those views then fail, so `keep` is the longest time that a reader may take.
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.log.clean(keep).await
    }

    fn check(&self, schema: &Schema) -> Result<(), TablesError> {
        self.log.delta_schema(&plain_text(schema))?;
        match schema.fields().iter().find(|field| field.name().contains(FORBIDDEN)) {
            Some(field) => Err(TablesError::Shape {
                table: TABLE,
                reason: format!(
                    "column name {:?} has a character that is not allowed in Delta tables",
                    field.name()
                ),
            }),
            None => Ok(()),
        }
    }
}

/// Characters that are not allowed in column names of a Delta table without column mapping, as in Parquet.
const FORBIDDEN: [char; 10] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

#[cfg(test)]
mod tests;
