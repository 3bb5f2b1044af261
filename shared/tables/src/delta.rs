//! The log of one Delta table: creates the table, and reads its newest version. Must not know what the rows mean.
//!
//! A handle caches the newest snapshot that it has read. Reading the newest version again costs two existence checks while
//! nothing has been committed, and reads only the new log entries otherwise.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::kernel::{Add, StructType};
use deltalake::logstore::{LogStoreRef, commit_uri_from_version};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableError};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::sync::Mutex;
use tracing::warn;

use crate::delta::hold::Hold;
use crate::error::TablesError;
use crate::store::{TableName, TableRoot};

pub(crate) use commit::{AfterOthers, Commit};
pub(crate) use snapshot::{DataFile, FILE, LogSnapshot, order_tag};

pub(crate) mod cleaning;
mod commit;
pub(crate) mod hold;
pub(crate) mod replacement;
mod snapshot;
pub(crate) mod stats;
mod transactions;

/// How much of a file's end is read first for its footer.
const FOOTER_HINT: usize = 64 * 1024;

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

/// What a new table is created with.
pub(crate) struct TableSpec {
    pub(crate) schema: SchemaRef,
    pub(crate) partition_columns: &'static [&'static str],
    pub(crate) properties: &'static [(&'static str, &'static str)],
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

    /// Keeps the files of the newest version and of all later versions from being removed by cleaning, until the hold is
    /// dropped. For readers, and for writers that prepare a commit.
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

    /// Creates the table as version 0, unless it exists.
    pub(crate) async fn create(&self, spec: TableSpec) -> Result<(), TablesError> {
        let schema = self.delta_schema(&spec.schema)?;
        let created = CreateBuilder::new()
            .with_log_store(Arc::clone(self.log_store()))
            .with_columns(schema.fields().cloned())
            .with_partition_columns(spec.partition_columns.iter().copied())
            .with_configuration(spec.properties.iter().map(|(key, value)| (*key, Some(*value))))
            .with_save_mode(SaveMode::Ignore)
            // A retry would create the table again, as version 1.
            .with_commit_properties(CommitProperties::default().with_max_retries(0))
            .await;
        match created.map_err(|source| TablesError::commit(self.table(), source)) {
            // A conflict means that another process has just created it.
            Ok(_) | Err(TablesError::Conflict { .. }) => Ok(()),
            // delta-rs may fail after it has created the table, for example when it reads the table back.
            Err(error) => match self.newest().await {
                Ok(Some(_)) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The Delta schema for an Arrow schema; dictionaries become their value type.
    pub(crate) fn delta_schema(&self, schema: &Schema) -> Result<StructType, TablesError> {
        schema.try_into_kernel().map_err(|error: arrow::error::ArrowError| TablesError::Shape {
            table: self.table(),
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
        match self.newest().await? {
            Some(newest) => Ok(newest),
            None => {
                let location = self.log_store().root_url();
                Err(self.unreadable(DeltaTableError::not_a_table(location.as_str())))
            }
        }
    }

    /// Whether the log has no later entry. Where the entry itself is missing, the log was trimmed in the meantime.
    async fn is_newest(&self, version: u64) -> Result<bool, TablesError> {
        Ok(!self.has_entry(version + 1).await? && self.has_entry(version).await?)
    }

    async fn has_entry(&self, version: u64) -> Result<bool, TablesError> {
        match self.store().head(&commit_uri_from_version(Some(version))).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.unreachable(source)),
        }
    }

    async fn load(&self, previous: Option<&LogSnapshot>) -> Result<Option<LogSnapshot>, TablesError> {
        if let Some(previous) = previous {
            let mut table = previous.delta_table(self);
            match table.update_state().await {
                Ok(()) => return self.describe(table, Some(previous)).await.map(Some),
                Err(error) => {
                    warn!(table = %self.table(), %error, "cannot read the new entries of the table's log; reading the whole log again");
                }
            }
        }
        let mut table = DeltaTable::new(Arc::clone(self.log_store()));
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
        let known = previous.map(|previous| (previous.version, previous.transactions.as_ref()));
        let transactions = transactions::through(self, state.version(), known).await?;
        let known: HashMap<&str, u64> = previous
            .iter()
            .flat_map(|previous| previous.files.iter())
            .map(|file| (file.add.path.as_str(), file.rows))
            .collect();
        // The library's iterator cannot be held over an await in a task.
        let views: Vec<_> = state.log_data().into_iter().collect();
        let mut files = Vec::with_capacity(views.len());
        for view in views {
            #[expect(deprecated, reason = "the only way to a file's tags")]
            let add = view.add_action();
            // Statistics may leave out the number of rows.
            let rows =
                match view.num_records().map(|rows| rows as u64).or(known.get(add.path.as_str()).copied()) {
                    Some(rows) => rows,
                    None => self.rows_by_footer(&add).await?,
                };
            files.push(DataFile { add, rows });
        }
        Ok(LogSnapshot::new(state, files, transactions))
    }

    async fn rows_by_footer(&self, add: &Add) -> Result<u64, TablesError> {
        let (store, location) = (self.store(), Path::from(add.path.as_str()));
        let found = store.head(&location).await.map_err(|source| self.unreachable(source))?;
        // A store below a prefix answers with the whole path.
        let found = ObjectMeta { location, ..found };
        let footer = DFParquetMetadata::new(&store, &found).with_metadata_size_hint(Some(FOOTER_HINT));
        let footer = footer.fetch_metadata().await;
        let footer = footer.map_err(|source| TablesError::Scan { table: self.table(), source })?;
        Ok(u64::try_from(footer.file_metadata().num_rows()).unwrap_or_default())
    }

    /// The error of a log that cannot be read.
    pub(crate) fn unreadable(&self, source: DeltaTableError) -> TablesError {
        TablesError::ReadLog { table: self.table(), source }
    }

    /// The error of a store that cannot be reached.
    pub(crate) fn unreachable(&self, source: object_store::Error) -> TablesError {
        TablesError::Store { table: self.table(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::{INGEST_DATE, readings_table_schema};
    use crate::testing::Place;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_creation_that_fails_succeeds_if_the_table_exists() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(directory.path()).unwrap();
        let log = DeltaLog::new(&root, TableName::Readings).unwrap();
        let valid: &[(&str, &str)] = &[];
        // delta-rs rejects this before it looks for the table.
        let invalid: &[(&str, &str)] = &[("delta.columnMapping.mode", "nonsense")];
        for (properties, succeeds) in [(invalid, false), (valid, true), (invalid, true)] {
            let (schema, partition_columns) = (readings_table_schema(), &[INGEST_DATE]);
            let created = log.create(TableSpec { schema, partition_columns, properties }).await;
            assert_eq!(created.is_ok(), succeeds, "{created:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_creations_of_a_table_all_succeed() {
        for place in Place::all() {
            let root = place.root().await;
            let logs = [0; 4].map(|_| DeltaLog::new(&root, TableName::Readings).unwrap());
            let creations = logs.iter().map(|log| {
                log.create(TableSpec {
                    schema: readings_table_schema(),
                    partition_columns: &[INGEST_DATE],
                    properties: &[("delta.appendOnly", "true")],
                })
            });
            let created = futures::future::join_all(creations).await;
            assert!(created.iter().all(Result::is_ok), "{created:?}");
            for log in &logs {
                let snapshot = log.existing().await.unwrap();
                let metadata = snapshot.metadata();
                assert_eq!(
                    (snapshot.version, metadata.id()),
                    (0, logs[0].existing().await.unwrap().metadata().id())
                );
                assert_eq!(metadata.partition_columns(), [INGEST_DATE]);
                assert_eq!(metadata.configuration()["delta.appendOnly"], "true");
                // Any engine can read and write it.
                let protocol = snapshot.state().protocol();
                assert_eq!((protocol.min_reader_version(), protocol.min_writer_version()), (1, 2));
            }
        }
    }
}
