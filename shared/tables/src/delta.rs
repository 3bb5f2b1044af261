//! One Delta table's log: reading its newest version, committing to it, keeping it short. Must not know what the rows
//! mean.
//!
//! A handle caches the newest snapshot that it has seen. Asking again costs two existence checks while nothing has
//! been committed, and reads only the new log entries otherwise.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitData, CommitProperties, TransactionError};
use deltalake::kernel::{Action, Add, Remove, StructType, Transaction, new_metadata};
use deltalake::logstore::{CommitOrBytes, LogStoreRef, commit_uri_from_version};
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::Mutex;
use tracing::warn;

use crate::delta::hold::Hold;
use crate::delta::stats::FileStats;
use crate::error::TablesError;
use crate::store::{TableName, TableRoot};

pub(crate) mod cleaning;
mod footer;
pub(crate) mod hold;
pub(crate) mod replacement;
pub(crate) mod stats;
mod transactions;

/// The tag that names the file that the other tags speak of. Stability contract: it is in the log of every table.
const FILE: &str = "wye.file";
/// The tag that names the columns that a file is sorted by. Stability contract as above.
const ORDER: &str = "wye.order";

/// A checkpoint is written every so many versions, so that opening a table reads few log entries.
const CHECKPOINT_INTERVAL: u64 = 20;

/// One table. Cheap to clone; clones share the cached snapshot.
#[derive(Clone, Debug)]
pub(crate) struct DeltaLog {
    shared: Arc<Shared>,
}

struct Shared {
    root: TableRoot,
    table: TableName,
    log_store: LogStoreRef,
    newest: Mutex<Option<LogSnapshot>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("root", &self.root).field("table", &self.table).finish_non_exhaustive()
    }
}

/// What a new table is made with.
pub(crate) struct TableSpec {
    pub(crate) schema: SchemaRef,
    pub(crate) partition_columns: &'static [&'static str],
    pub(crate) properties: &'static [(&'static str, &'static str)],
}

/// One version of a table.
#[derive(Clone, Debug)]
pub(crate) struct LogSnapshot {
    /// The version.
    pub(crate) version: u64,
    /// The files of this version.
    pub(crate) files: Arc<Vec<DataFile>>,
    /// The last version of each application transaction.
    pub(crate) transactions: Arc<BTreeMap<String, i64>>,
    /// The columns, partition columns included.
    pub(crate) schema: SchemaRef,
    state: DeltaTableState,
}

/// A file of a version.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    pub(crate) add: Add,
    pub(crate) stats: FileStats,
}

/// A file that has been encoded and is not stored yet.
#[derive(Debug)]
pub(crate) struct EncodedFile {
    pub(crate) bytes: Bytes,
    /// Statistics as Delta writes them, JSON.
    pub(crate) stats: String,
    /// The partition column and its value.
    pub(crate) partition: Option<(&'static str, String)>,
    /// What scans need to know beyond the statistics.
    pub(crate) tags: HashMap<String, Option<String>>,
}

impl DataFile {
    /// A tag of the file, if it was put there by [`DeltaLog::put`] for this very file: other engines may copy tags from
    /// the files that they merge.
    pub(crate) fn tag(&self, name: &str) -> Option<&str> {
        let tags = self.add.tags.as_ref()?;
        let tag = |name: &str| tags.get(name)?.as_deref();
        tag(FILE).filter(|path| *path == self.add.path).and_then(|_| tag(name))
    }

    /// Whether the file's rows are known to be in ascending order of these columns, nulls first.
    pub(crate) fn is_sorted_by(&self, columns: &[&str]) -> bool {
        self.tag(ORDER).is_some_and(|order| order.split(',').eq(columns.iter().copied()))
    }
}

impl DataFile {
    /// The action that takes the file, and its rows, out of the table now.
    pub(crate) fn removal(&self) -> Remove {
        Remove {
            path: self.add.path.clone(),
            data_change: true,
            deletion_timestamp: Some(chrono::Utc::now().timestamp_millis()),
            extended_file_metadata: Some(true),
            partition_values: Some(self.add.partition_values.clone()),
            size: Some(self.add.size),
            ..Remove::default()
        }
    }
}

/// The tag that says that a file's rows are in ascending order of these columns, nulls first.
pub(crate) fn order_tag(columns: &[&str]) -> (String, Option<String>) {
    (ORDER.to_owned(), Some(columns.join(",")))
}

/// What one commit holds.
pub(crate) struct Commit<'a> {
    /// The version that the decision to commit was based on.
    pub(crate) base: &'a LogSnapshot,
    pub(crate) actions: Vec<Action>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) operation: DeltaOperation,
    /// Goes into the commit's `commitInfo`.
    pub(crate) info: serde_json::Map<String, serde_json::Value>,
    /// What to do when others have committed since `base`.
    pub(crate) after_others: AfterOthers,
}

/// Whether a commit may stand on versions that it has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterOthers {
    /// Only if they touched neither the same application transactions nor the files that it removes.
    Rebase,
    /// Never.
    Refuse,
}

impl DeltaLog {
    /// A handle on a table that need not exist yet.
    pub(crate) fn new(root: &TableRoot, table: TableName) -> Result<Self, TablesError> {
        let log_store = root.log_store(table)?;
        let shared = Shared { root: root.clone(), table, log_store, newest: Mutex::new(None) };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn root(&self) -> &TableRoot {
        &self.shared.root
    }

    /// Says that somebody works with what is the newest version from now on, or prepares files for a later one: until
    /// the hold is dropped nobody removes these files.
    pub(crate) fn hold(&self) -> Arc<Hold> {
        Arc::new(self.shared.root.holds().take(self.shared.table, self.store()))
    }

    pub(crate) fn table(&self) -> TableName {
        self.shared.table
    }

    pub(crate) fn log_store(&self) -> &LogStoreRef {
        &self.shared.log_store
    }

    /// The store rooted at the table's directory.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.shared.log_store.object_store(None)
    }

    /// Makes the table as version 0 unless somebody has.
    pub(crate) async fn create(&self, spec: TableSpec) -> Result<(), TablesError> {
        let schema = self.delta_schema(&spec.schema)?;
        let metadata = new_metadata(&schema, spec.partition_columns, spec.properties.iter().copied())
            .map_err(|source| self.failed_commit(DeltaTableError::from(source)))?;
        let protocol: Action = serde_json::from_value(serde_json::json!({
            "protocol": {"minReaderVersion": 1, "minWriterVersion": 2}
        }))
        .expect("the protocol action is written in full");
        let Action::Protocol(version) = &protocol else { unreachable!("a protocol action was written") };
        let operation = DeltaOperation::Create {
            mode: SaveMode::Ignore,
            location: self.shared.log_store.root_url().clone(),
            protocol: version.clone(),
            metadata: metadata.clone(),
        };
        let data =
            CommitData::new(vec![protocol, Action::Metadata(metadata)], operation, HashMap::new(), vec![]);
        let entry = data.get_bytes().map_err(|source| self.failed_commit(source.into()))?;
        let written =
            self.shared.log_store.write_commit_entry(0, CommitOrBytes::LogBytes(entry), Default::default());
        match written.await {
            Ok(()) | Err(TransactionError::VersionAlreadyExists(_)) => Ok(()),
            Err(source) => Err(self.failed_commit(source.into())),
        }
    }

    /// The Delta schema for an Arrow schema; dictionaries become what they hold.
    pub(crate) fn delta_schema(&self, schema: &Schema) -> Result<StructType, TablesError> {
        schema.try_into_kernel().map_err(|error: arrow::error::ArrowError| TablesError::Shape {
            table: self.shared.table,
            reason: format!("the columns cannot be stored: {error}"),
        })
    }

    /// The newest version; `None` while the table does not exist.
    pub(crate) async fn newest(&self) -> Result<Option<LogSnapshot>, TablesError> {
        let mut newest = self.shared.newest.lock().await;
        if let Some(snapshot) = newest.as_ref()
            && self.is_newest(snapshot.version).await?
        {
            return Ok(Some(snapshot.clone()));
        }
        let loaded = self.load(newest.as_ref()).await?;
        newest.clone_from(&loaded);
        Ok(loaded)
    }

    /// The newest version of a table that exists.
    pub(crate) async fn existing(&self) -> Result<LogSnapshot, TablesError> {
        let table = self.shared.table;
        self.newest().await?.ok_or_else(|| TablesError::ReadLog {
            table,
            source: DeltaTableError::not_a_table(self.shared.log_store.root_url().as_str()),
        })
    }

    /// Whether no later entry is in the log. An entry that has vanished says that the log was trimmed meanwhile.
    async fn is_newest(&self, version: u64) -> Result<bool, TablesError> {
        Ok(!self.has_entry(version + 1).await? && self.has_entry(version).await?)
    }

    async fn has_entry(&self, version: u64) -> Result<bool, TablesError> {
        match self.store().head(&commit_uri_from_version(Some(version))).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(TablesError::Store { table: self.shared.table, source }),
        }
    }

    async fn load(&self, previous: Option<&LogSnapshot>) -> Result<Option<LogSnapshot>, TablesError> {
        if let Some(previous) = previous {
            let mut table = DeltaTable::new(self.shared.log_store.clone());
            table.state = Some(previous.state.clone());
            match table.update_state().await {
                Ok(()) => return self.describe(table, Some(previous)).await.map(Some),
                Err(error) => {
                    warn!(table = %self.shared.table, %error, "cannot follow the table's log, reading all of it again");
                }
            }
        }
        let mut table = DeltaTable::new(self.shared.log_store.clone());
        match table.load().await {
            Ok(()) => self.describe(table, None).await.map(Some),
            Err(DeltaTableError::NotATable(_)) => Ok(None),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    async fn describe(
        &self,
        table: DeltaTable,
        previous: Option<&LogSnapshot>,
    ) -> Result<LogSnapshot, TablesError> {
        let state = table.state.ok_or_else(|| self.unreadable(DeltaTableError::NotInitialized))?;
        let version = state.version();
        let known = previous.map(|previous| (previous.version, previous.transactions.as_ref()));
        let transactions = transactions::through(self, version, known).await?;
        let schema = state.snapshot().arrow_schema();
        let mut files = Vec::new();
        for add in adds(&state) {
            let stats = match FileStats::parse(add.stats.as_deref()) {
                Some(stats) => stats,
                None => self.missing_stats(&add, &schema, previous).await?,
            };
            files.push(DataFile { add, stats });
        }
        Ok(LogSnapshot {
            version,
            files: Arc::new(files),
            transactions: Arc::new(transactions),
            schema,
            state,
        })
    }

    /// The statistics of a file whose log entry has none: those of an earlier version, or its footer's.
    async fn missing_stats(
        &self,
        add: &Add,
        schema: &Schema,
        previous: Option<&LogSnapshot>,
    ) -> Result<FileStats, TablesError> {
        let known = previous.iter().flat_map(|previous| previous.files.iter());
        match known.into_iter().find(|file| file.add.path == add.path) {
            Some(file) => Ok(file.stats.clone()),
            None => self.read_stats(add, schema).await,
        }
    }

    /// Stores encoded files under names of their own. They belong to no version until they are committed.
    pub(crate) async fn put(&self, files: Vec<EncodedFile>) -> Result<Vec<Add>, TablesError> {
        let mut adds = Vec::with_capacity(files.len());
        for file in files {
            let name = format!("part-{:032x}.parquet", rand::random::<u128>());
            let path = match &file.partition {
                Some((column, value)) => format!("{column}={value}/{name}"),
                None => name,
            };
            let size = i64::try_from(file.bytes.len()).expect("a file in memory is smaller than 2^63 bytes");
            let location = object_store::path::Path::from(path.as_str());
            self.store()
                .put(&location, file.bytes.into())
                .await
                .map_err(|source| TablesError::Store { table: self.shared.table, source })?;
            let partition_values =
                file.partition.map(|(column, value)| (column.to_owned(), Some(value))).into_iter().collect();
            let mut tags = file.tags;
            if !tags.is_empty() {
                tags.insert(FILE.to_owned(), Some(path.clone()));
            }
            adds.push(Add {
                path,
                partition_values,
                size,
                modification_time: chrono::Utc::now().timestamp_millis(),
                data_change: true,
                stats: Some(file.stats),
                tags: (!tags.is_empty()).then_some(tags),
                ..Add::default()
            });
        }
        Ok(adds)
    }

    /// Removes stored files whose commit was lost. Failing does no harm: cleaning finds them later.
    ///
    /// A store may refuse the repetition of a put whose first answer got lost, so that a commit looks lost though it
    /// stands; what the log names is therefore left alone.
    pub(crate) async fn discard(&self, adds: &[Add]) {
        let Ok(Some(newest)) = self.newest().await else { return };
        let is_named = |add: &Add| newest.files.iter().any(|file| file.add.path == add.path);
        for add in adds.iter().filter(|add| !is_named(add)) {
            let location = object_store::path::Path::from(add.path.as_str());
            if let Err(error) = self.store().delete(&location).await {
                warn!(table = %self.shared.table, file = %add.path, %error, "cannot remove a file that lost its commit");
            }
        }
    }

    /// Commits, and returns the new version.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when the commit lost against another; nothing of it is visible then.
    pub(crate) async fn commit(&self, commit: Commit<'_>) -> Result<u64, TablesError> {
        let stored: Vec<String> = commit
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::Add(add) => Some(add.path.clone()),
                _ => None,
            })
            .collect();
        self.shared.root.sync(self.shared.table, stored).await?;
        let retries = match commit.after_others {
            AfterOthers::Rebase => 15,
            AfterOthers::Refuse => 0,
        };
        let properties = CommitProperties::default()
            .with_metadata(commit.info)
            .with_application_transactions(commit.transactions)
            .with_max_retries(retries);
        let prepared = CommitBuilder::from(properties)
            .with_actions(commit.actions)
            .build(Some(&commit.base.state), self.shared.log_store.clone(), commit.operation)
            .into_prepared_commit_future()
            .await
            .map_err(|source| self.failed_commit(source))?;
        // What follows a commit in delta-rs is left out: a failing checkpoint must not make a commit look failed.
        let version = prepared.await.map_err(|source| self.failed_commit(source))?.version;
        let entry = commit_uri_from_version(Some(version)).to_string();
        self.shared.root.sync(self.shared.table, vec![entry]).await?;
        if (version + 1).is_multiple_of(CHECKPOINT_INTERVAL) {
            self.checkpoint().await;
        }
        Ok(version)
    }

    /// Writes a checkpoint and drops log entries past the table's retention. The table is whole without it.
    async fn checkpoint(&self) {
        let table = self.shared.table;
        let done = async {
            let snapshot = self.existing().await?;
            let delta_table = snapshot.delta_table(self);
            deltalake::checkpoints::create_checkpoint(&delta_table, None)
                .await
                .map_err(|s| self.unreadable(s))?;
            deltalake::checkpoints::cleanup_metadata(&delta_table, None).await.map_err(|s| self.unreadable(s))
        };
        if let Err(error) = done.await {
            warn!(%table, %error, "cannot write a checkpoint");
        }
    }

    pub(crate) fn unreadable(&self, source: DeltaTableError) -> TablesError {
        TablesError::ReadLog { table: self.shared.table, source }
    }

    fn failed_commit(&self, source: DeltaTableError) -> TablesError {
        TablesError::commit(self.shared.table, source)
    }
}

/// The files of a version, with their tags.
fn adds(state: &DeltaTableState) -> Vec<Add> {
    let mut adds = Vec::new();
    for view in state.log_data() {
        #[expect(deprecated, reason = "the only way to a file's tags")]
        adds.push(view.add_action());
    }
    adds
}

impl LogSnapshot {
    /// This version as delta-rs knows it.
    pub(crate) fn delta_table(&self, log: &DeltaLog) -> DeltaTable {
        let mut table = DeltaTable::new(log.shared.log_store.clone());
        table.state = Some(self.state.clone());
        table
    }

    /// The table's metadata action.
    pub(crate) fn metadata(&self) -> &deltalake::kernel::Metadata {
        self.state.metadata()
    }

    /// The table's schema as Delta knows it.
    pub(crate) fn delta_schema(&self) -> Arc<StructType> {
        self.state.schema()
    }

    pub(crate) fn state(&self) -> &DeltaTableState {
        &self.state
    }
}
