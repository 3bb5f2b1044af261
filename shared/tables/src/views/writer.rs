//! Writes batch views to files that nobody sees until they are committed. Must not know what the columns mean.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::kernel::Add;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::columns::VIEW_ORDER;
use crate::delta::hold::Hold;
use crate::delta::{DeltaLog, EncodedFile, order_tag};
use crate::encode::{Encoder, view_properties};
use crate::error::TablesError;
use crate::store::TableName;

const TABLE: TableName = TableName::BatchViews;

/// A file is closed and stored once it holds this many bytes, which bounds a writer's memory.
const BYTES_PER_FILE: usize = 64 << 20;

/// A stored file that no version has yet.
#[derive(Clone, Debug)]
pub struct ViewFile {
    pub(crate) add: Add,
    /// Until it is committed, nobody removes the file.
    _hold: Arc<Hold>,
}

/// Writes rows into files. Each thread has a writer of its own; rows keep their order within a writer's files. Rows with
/// the columns of [`VIEW_ORDER`] must come in this order: readers rest on it.
///
/// A writer that is dropped without [`ViewWriter::finish`] leaves at most files that [`super::BatchViews::vacuum`]
/// removes.
#[derive(Debug)]
pub struct ViewWriter {
    log: DeltaLog,
    schema: SchemaRef,
    open: Option<Encoder>,
    storing: JoinSet<Result<Vec<Add>, TablesError>>,
    runtime: Handle,
    hold: Arc<Hold>,
}

impl ViewWriter {
    pub(super) fn new(log: DeltaLog, schema: SchemaRef) -> Self {
        let hold = log.hold();
        Self { log, schema, open: None, storing: JoinSet::new(), runtime: Handle::current(), hold }
    }

    /// Encodes rows. This is computation, to be called where computing is allowed: on a blocking thread, or in a task
    /// that is known to compute. Full files are stored in the background.
    ///
    /// # Errors
    /// [`TablesError::Encode`] when the rows do not have the writer's columns.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), TablesError> {
        let mut encoder = match self.open.take() {
            Some(encoder) => encoder,
            None => Encoder::new(TABLE, Arc::clone(&self.schema), view_properties(&self.schema))?,
        };
        encoder.write(rows)?;
        if encoder.size() < BYTES_PER_FILE {
            self.open = Some(encoder);
            return Ok(());
        }
        self.store(encoder)
    }

    /// Stores what is left, waits for all files, and returns them for the commit.
    ///
    /// # Errors
    /// [`TablesError::Store`] when a file cannot be stored.
    pub async fn finish(mut self) -> Result<Vec<ViewFile>, TablesError> {
        if let Some(encoder) = self.open.take().filter(|encoder| encoder.rows() > 0) {
            self.store(encoder)?;
        }
        let mut files = Vec::new();
        while let Some(stored) = self.storing.join_next().await {
            let stored =
                stored.map_err(|error| TablesError::Encode { table: TABLE, source: error.into() })??;
            let hold = &self.hold;
            files.extend(stored.into_iter().map(|add| ViewFile { add, _hold: Arc::clone(hold) }));
        }
        Ok(files)
    }

    fn store(&mut self, encoder: Encoder) -> Result<(), TablesError> {
        let (bytes, stats) = encoder.finish()?;
        let is_ordered = VIEW_ORDER.iter().all(|name| self.schema.index_of(name).is_ok());
        let tags = is_ordered.then(|| order_tag(&VIEW_ORDER)).into_iter().collect();
        let file = EncodedFile { bytes, stats, partition: None, tags };
        let log = self.log.clone();
        self.storing.spawn_on(async move { log.put(vec![file]).await }, &self.runtime);
        Ok(())
    }
}
