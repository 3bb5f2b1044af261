//! The batch views: what the last batch run computed, and the horizon up to which it read, always from one commit.
//! Must not know what the columns mean.
//!
//! Stability contract: the newest version of the Delta table `batch_views` holds one run's rows, all of them; the
//! application transactions `wye-horizon/readings/<kafka_partition>` hold its horizon (HOR-1, HOR-3), and the
//! `commitInfo` of the newest version that a run made holds its record under `wyeRun`. Versions after that one are
//! another engine's, which has put the rows into other files (`OPTIMIZE`): they are read like our own.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::DFSchema;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use deltalake::kernel::{Action, MetadataExt, Remove, Transaction};
use deltalake::logstore::get_actions;
use deltalake::protocol::{DeltaOperation, SaveMode};
use serde::{Deserialize, Serialize};
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::failures::Failures;

use crate::append::PartitionTransactions;
use crate::columns::{VIEW_ORDER, dictionary_text, plain_text};
use crate::delta::cleaning::Cleaned;
use crate::delta::hold::Hold;
use crate::delta::{AfterOthers, Commit, DataFile, DeltaLog, LogSnapshot, TableSpec};
use crate::error::TablesError;
use crate::parquet_plan::{FilePlan, ordering, partitioned_file, project};
use crate::store::{TableName, TableRoot};

pub use writer::{ViewFile, ViewWriter};

mod writer;

const HORIZON: PartitionTransactions = PartitionTransactions("wye-horizon/readings/");
const RUN: &str = "wyeRun";
const TABLE: TableName = TableName::BatchViews;

/// What a batch run says of itself. Times in µs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// Names the run.
    pub run_id: String,
    /// When it began.
    pub started_at: i64,
    /// When it had computed everything and went to commit.
    pub finished_at: i64,
    /// Readings below the horizon.
    pub readings: u64,
    /// Of these, copies of an earlier reading.
    pub duplicates: u64,
    /// Of these, copies with another value.
    pub conflicts: u64,
    /// Rows of the view: windows of all series.
    pub windows: u64,
    /// Series.
    pub series: u64,
    /// Fingerprint of the metric definitions that it computed.
    pub definitions: String,
    /// Everything that was ingested before this time is in the views.
    pub as_of: i64,
    /// How late readings have been.
    pub lateness: LatenessHistogram,
    /// What definitions could not compute.
    pub failures: Failures,
    /// The time at which the next window is settled, where one is not settled yet.
    pub settles_at: Option<i64>,
}

/// A run that was committed.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedRun {
    /// The version of the table that holds its views.
    pub version: u64,
    /// When it was committed, in µs.
    pub committed: i64,
    /// The horizon up to which it read.
    pub horizon: BTreeMap<i32, i64>,
    /// What it says of itself.
    pub run: RunRecord,
}

/// Everything that one commit of views consists of.
#[derive(Debug)]
pub struct ViewCommit {
    /// The columns of the views; text as dictionaries or plain.
    pub schema: SchemaRef,
    /// The files that [`ViewWriter`]s have written; they replace all files of the last version.
    pub files: Vec<ViewFile>,
    /// Per Kafka partition the offset below which the run has read.
    pub horizon: BTreeMap<i32, i64>,
    /// What the run says of itself.
    pub run: RunRecord,
    /// The version that the run started from ([`ViewSnapshot::version`]); `None` when there was no view.
    pub expected_version: Option<u64>,
}

/// The batch views. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BatchViews {
    log: DeltaLog,
}

/// The views of one run.
#[derive(Clone, Debug)]
pub struct ViewSnapshot {
    log: DeltaLog,
    snapshot: LogSnapshot,
    /// Per Kafka partition the offset below which readings are in the views.
    pub horizon: BTreeMap<i32, i64>,
    /// What the run says of itself; `None` when the log has forgotten it.
    pub run: Option<RunRecord>,
    /// While any clone of this is there, nobody removes the version's files.
    _hold: Arc<Hold>,
}

impl BatchViews {
    /// A handle on the views, which need not exist yet.
    ///
    /// # Errors
    /// [`TablesError::Location`] when the store cannot be opened.
    pub fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: DeltaLog::new(root, TABLE)? })
    }

    /// The newest views; `None` before the first run. Cheap while nothing was committed.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn latest(&self) -> Result<Option<ViewSnapshot>, TablesError> {
        let hold = self.log.hold();
        let Some(snapshot) = self.log.newest().await? else { return Ok(None) };
        if snapshot.version == 0 {
            // Version 0 makes the table; the first run is version 1.
            return Ok(None);
        }
        let run = self.newest_run(snapshot.version).await?;
        let (log, horizon) = (self.log.clone(), HORIZON.read(&snapshot));
        Ok(Some(ViewSnapshot { log, horizon, run, snapshot, _hold: hold }))
    }

    /// The record of the run that made the rows of a version.
    async fn newest_run(&self, mut version: u64) -> Result<Option<RunRecord>, TablesError> {
        while version > 0 {
            let Some(entry) = self.entry(version).await? else { break };
            if entry.run.is_some() {
                return Ok(entry.run);
            }
            version -= 1;
        }
        Ok(None)
    }

    /// The version of the newest views, to be asked often: two existence checks while nothing was committed.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn latest_version(&self) -> Result<Option<u64>, TablesError> {
        Ok(self.log.newest().await?.map(|snapshot| snapshot.version).filter(|version| *version > 0))
    }

    /// Starts a file, or several when they grow large, of the views to be committed. Any number of writers may write
    /// at once; what they write is seen by nobody before [`BatchViews::commit`].
    ///
    /// # Errors
    /// [`TablesError::Shape`] when the columns cannot be stored.
    ///
    /// # Panics
    /// When called outside of a tokio runtime.
    pub fn writer(&self, schema: &SchemaRef) -> Result<ViewWriter, TablesError> {
        self.check(schema)?;
        Ok(ViewWriter::new(self.log.clone(), Arc::clone(schema)))
    }

    /// Replaces the views, and sets the horizon, in one commit. Returns the new version.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another run has committed since `expected_version`; then nothing has changed
    /// and the written files are removed.
    pub async fn commit(&self, commit: ViewCommit) -> Result<u64, TablesError> {
        let adds: Vec<_> = commit.files.iter().map(|file| file.add.clone()).collect();
        let committed = self.try_commit(commit).await;
        if let Err(TablesError::Conflict { .. }) = &committed {
            self.log.discard(&adds).await;
        }
        committed
    }

    async fn try_commit(&self, commit: ViewCommit) -> Result<u64, TablesError> {
        let base = self.base(&commit).await?;
        let schema = self.log.delta_schema(&plain_text(&commit.schema))?;
        let now = chrono::Utc::now().timestamp_millis();
        let mut actions = Vec::new();
        if *base.delta_schema() != schema {
            let metadata = base.metadata().clone().with_schema(&schema);
            actions.push(Action::Metadata(metadata.map_err(|error| self.log.unreadable(error.into()))?));
        }
        actions.extend(base.files.iter().map(|file| {
            Action::Remove(Remove {
                path: file.add.path.clone(),
                data_change: true,
                deletion_timestamp: Some(now),
                extended_file_metadata: Some(true),
                partition_values: Some(file.add.partition_values.clone()),
                size: Some(file.add.size),
                ..Remove::default()
            })
        }));
        actions.extend(commit.files.into_iter().map(|file| Action::Add(file.add)));
        let transactions: Vec<Transaction> = commit
            .horizon
            .iter()
            .map(|(kafka_partition, offset)| HORIZON.set(*kafka_partition, *offset))
            .collect();
        let run = serde_json::to_value(&commit.run).expect("a run's record is plain values");
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
                info: serde_json::Map::from_iter([(RUN.to_owned(), run)]),
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
        let found = Some(base.version).filter(|version| *version > 0);
        if found != commit.expected_version {
            let reason = format!(
                "another run made version {found:?} while this one started from {:?}",
                commit.expected_version
            );
            return Err(TablesError::Conflict { table: TABLE, reason });
        }
        let forgotten = HORIZON.read(&base).into_keys().collect::<HashSet<_>>();
        if let Some(lost) =
            forgotten.iter().find(|kafka_partition| !commit.horizon.contains_key(kafka_partition))
        {
            let reason =
                format!("the new horizon says nothing of Kafka partition {lost}, which the last one had");
            return Err(TablesError::Shape { table: TABLE, reason });
        }
        Ok(base)
    }

    /// The newest runs, newest first, at most `limit`; as far back as the log goes (two days).
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn history(&self, limit: usize) -> Result<Vec<CommittedRun>, TablesError> {
        let Some(snapshot) = self.log.newest().await? else { return Ok(Vec::new()) };
        let mut runs = Vec::new();
        let mut version = snapshot.version;
        while version > 0 && runs.len() < limit {
            let Some(entry) = self.entry(version).await? else { break };
            if let Some(run) = entry.run {
                runs.push(CommittedRun { version, committed: entry.committed, horizon: entry.horizon, run });
            }
            version -= 1;
        }
        Ok(runs)
    }

    /// Removes the files of views that were replaced more than `keep` ago (at most 24 hours). Who still reads those
    /// views fails then, so `keep` is how long a reader may take.
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.log.clean(keep).await
    }

    async fn entry(&self, version: u64) -> Result<Option<Entry>, TablesError> {
        let read = self.log.log_store().read_commit_entry(version).await;
        let Some(bytes) = read.map_err(|source| self.log.unreadable(source))? else { return Ok(None) };
        let mut entry = Entry::default();
        for action in get_actions(version, &bytes).map_err(|source| self.log.unreadable(source))? {
            match action {
                Action::CommitInfo(info) => {
                    entry.committed = info.timestamp.unwrap_or_default() * 1000;
                    let Some(run) = info.info.get(RUN) else { continue };
                    let run = serde_json::from_value(run.clone()).map_err(|error| TablesError::Corrupt {
                        table: TABLE,
                        reason: format!("record of the run of version {version}: {error}"),
                    })?;
                    entry.run = Some(run);
                }
                Action::Txn(transaction) => {
                    if let Some(kafka_partition) = HORIZON.kafka_partition(&transaction.app_id) {
                        entry.horizon.insert(kafka_partition, transaction.version);
                    }
                }
                _ => {}
            }
        }
        Ok(Some(entry))
    }

    fn check(&self, schema: &Schema) -> Result<(), TablesError> {
        self.log.delta_schema(&plain_text(schema))?;
        // Delta without column mapping takes names as Parquet does.
        let unusable = |name: &str| name.contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=']);
        match schema.fields().iter().find(|field| unusable(field.name())) {
            Some(field) => Err(TablesError::Shape {
                table: TABLE,
                reason: format!(
                    "column name {:?} has a character that Delta tables do not allow",
                    field.name()
                ),
            }),
            None => Ok(()),
        }
    }
}

/// What a log entry says of its run.
#[derive(Default)]
struct Entry {
    committed: i64,
    horizon: BTreeMap<i32, i64>,
    run: Option<RunRecord>,
}

impl ViewSnapshot {
    /// The version of the table.
    pub fn version(&self) -> u64 {
        self.snapshot.version
    }

    /// The columns, text as dictionaries.
    pub fn schema(&self) -> SchemaRef {
        dictionary_text(&self.snapshot.schema)
    }

    /// How many rows the views have.
    pub fn rows(&self) -> u64 {
        self.snapshot.files.iter().map(|file| file.stats.num_records).sum()
    }

    /// How many bytes the files have.
    pub fn bytes(&self) -> u64 {
        self.snapshot.files.iter().map(|file| u64::try_from(file.add.size).unwrap_or_default()).sum()
    }

    /// Exactly these views as an SQL table, skipping files and row groups by their statistics.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when the table cannot be planned.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.snapshot.delta_table(&self.log);
        table.table_provider().await.map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    /// A plan over exactly these views: one plan partition per file, rows in the order of series and window
    /// ([`VIEW_ORDER`]), text as dictionaries.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a column does not exist or a filter cannot be evaluated over [`ViewSnapshot::schema`].
    pub fn scan(&self, columns: &[&str], filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let schema = self.schema();
        let failed = |source| TablesError::Scan { table: TABLE, source };
        let filter = match filters.iter().cloned().reduce(Expr::and) {
            Some(all) => {
                let columns = DFSchema::try_from(Arc::clone(&schema)).map_err(failed)?;
                Some(SessionContext::new().create_physical_expr(all, &columns).map_err(failed)?)
            }
            None => None,
        };
        let order: Vec<&str> = if VIEW_ORDER.iter().all(|name| schema.index_of(name).is_ok()) {
            VIEW_ORDER.into()
        } else {
            vec![]
        };
        let is_sorted = |file: &&DataFile| order.is_empty() || file.is_sorted_by(&order);
        let (sorted, unsorted): (Vec<&DataFile>, Vec<&DataFile>) =
            self.snapshot.files.iter().partition(is_sorted);
        let plan = |files: &[&DataFile], columns: &[&str]| -> Result<Arc<dyn ExecutionPlan>, TablesError> {
            let group = |file: &&DataFile| Ok(vec![partitioned_file(self.log.root(), TABLE, file, &schema)?]);
            let plan = FilePlan {
                root: self.log.root(),
                file_schema: Arc::clone(&schema),
                groups: files.iter().map(group).collect::<Result<_, TablesError>>()?,
                sorted_by: &[],
                filter: filter.clone(),
                columns,
                batch_size: None,
            };
            plan.build().map_err(failed)
        };
        if unsorted.is_empty() {
            return plan(&sorted, columns);
        }
        let mut wider = columns.to_vec();
        wider.extend(order.iter().filter(|name| !columns.contains(name)));
        let resorted = sort_each(plan(&unsorted, &wider)?, &order).and_then(|plan| project(plan, columns));
        let resorted = resorted.map_err(failed)?;
        if sorted.is_empty() {
            return Ok(resorted);
        }
        UnionExec::try_new(vec![plan(&sorted, columns)?, resorted]).map_err(failed)
    }
}

/// Sorts every plan partition for itself.
fn sort_each(
    plan: Arc<dyn ExecutionPlan>,
    order: &[&str],
) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
    let order = ordering(&plan.schema(), order)?.expect("the order has columns");
    Ok(Arc::new(SortExec::new(order, plan).with_preserve_partitioning(true)))
}

#[cfg(test)]
mod tests;
