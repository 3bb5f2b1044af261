//! One version of a table and its files. Must not know what the rows mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use deltalake::DeltaTable;
use deltalake::kernel::{Add, Metadata, Remove, StructType};
use deltalake::table::state::DeltaTableState;

use crate::delta::DeltaLog;
use crate::real_time;

/// The tag with the path of the file that the other tags are about. Stability contract: it is in the logs of all tables.
pub(crate) const FILE: &str = "wye.file";
/// The tag with the columns that a file is sorted by. Stability contract as above.
const ORDER: &str = "wye.order";

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
    /// How many rows it has.
    pub(crate) rows: u64,
}

impl LogSnapshot {
    /// `files` are in the order of the state's log data.
    pub(super) fn new(
        state: DeltaTableState,
        files: Vec<DataFile>,
        transactions: BTreeMap<String, i64>,
    ) -> Self {
        Self {
            version: state.version(),
            files: Arc::new(files),
            transactions: Arc::new(transactions),
            schema: state.snapshot().arrow_schema(),
            state,
        }
    }

    /// How many rows this version has.
    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// How many bytes the files of this version have.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes()).sum()
    }

    /// This version as delta-rs has it.
    pub(crate) fn delta_table(&self, log: &DeltaLog) -> DeltaTable {
        let mut table = DeltaTable::new(Arc::clone(log.log_store()));
        table.state = Some(self.state.clone());
        table
    }

    /// The table's metadata action.
    pub(crate) fn metadata(&self) -> &Metadata {
        self.state.metadata()
    }

    /// The table's schema in Delta's types.
    pub(crate) fn delta_schema(&self) -> Arc<StructType> {
        self.state.schema()
    }

    pub(crate) fn state(&self) -> &DeltaTableState {
        &self.state
    }
}

impl DataFile {
    /// The size of the file.
    pub(crate) fn bytes(&self) -> u64 {
        u64::try_from(self.add.size).unwrap_or_default()
    }

    /// A tag of the file, if [`crate::file_writer`] wrote it for this file: other engines may copy tags from the files that
    /// they merge.
    pub(crate) fn tag(&self, name: &str) -> Option<&str> {
        let tags = self.add.tags.as_ref()?;
        let is_its_own = tags.get(FILE)?.as_deref() == Some(self.add.path.as_str());
        if is_its_own { tags.get(name)?.as_deref() } else { None }
    }

    /// Whether the file's rows are known to be in ascending order of these columns, nulls first.
    pub(crate) fn is_sorted_by(&self, columns: &[&str]) -> bool {
        self.tag(ORDER).is_some_and(|order| order.split(',').eq(columns.iter().copied()))
    }

    /// The action that removes the file with its rows from the table now.
    pub(crate) fn removal(&self) -> Remove {
        Remove {
            path: self.add.path.clone(),
            data_change: true,
            deletion_timestamp: Some(real_time::now().millis()),
            extended_file_metadata: Some(true),
            partition_values: Some(self.add.partition_values.clone()),
            size: Some(self.add.size),
            ..Remove::default()
        }
    }
}

/// The tag of a file whose rows are in ascending order of these columns, nulls first.
pub(crate) fn order_tag(columns: &[&str]) -> (String, Option<String>) {
    (ORDER.to_owned(), Some(columns.join(",")))
}
