//! Writes batch views to files that no reader sees until they are committed. Must not know what the columns mean.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::kernel::Add;

use crate::columns::VIEW_ORDER;
use crate::delta::hold::Hold;
use crate::delta::{DeltaLog, FILE, order_tag};
use crate::error::TablesError;
use crate::file_writer::{FileFormat, FileWriter};
use crate::parquet_properties::view_properties;
use crate::views::cells::{CELL, CellRecord, PART};

/// A file is completed when it has this many bytes: a scan reads each file in one plan partition.
const BYTES_PER_FILE: usize = 64 << 20;

/// A stored file that no version has yet.
#[derive(Clone, Debug)]
pub struct ViewFile {
    pub(crate) add: Add,
    /// Cleaning keeps the file until it is committed.
    _hold: Arc<Hold>,
}

impl ViewFile {
    /// Says that all rows of some files are of a cell, and what the cell is made of. The files come in the order of writing.
    ///
    /// # Errors
    /// [`TablesError::Encode`] when the record cannot be written as JSON.
    pub fn of_cell(files: Vec<Self>, cell: &CellRecord) -> Result<Vec<Self>, TablesError> {
        let record = serde_json::to_string(cell)
            .map_err(|error| TablesError::Encode { table: super::TABLE, source: error.into() })?;
        let files = files.into_iter().enumerate().map(|(part, mut file)| {
            let tags = file.add.tags.get_or_insert_default();
            tags.insert(FILE.to_owned(), Some(file.add.path.clone()));
            tags.insert(CELL.to_owned(), Some(record.clone()));
            tags.insert(PART.to_owned(), Some(part.to_string()));
            file
        });
        Ok(files.collect())
    }
}

/// Writes rows to files. Each thread has its own writer; rows keep their order within a writer's files. Rows with the columns
/// of [`VIEW_ORDER`] must come in this order: readers depend on it.
///
/// A writer that is dropped without [`ViewWriter::finish`] leaves at most files that [`super::BatchViews::vacuum`]
/// removes.
pub struct ViewWriter {
    log: DeltaLog,
    format: FileFormat,
    open: Option<FileWriter>,
    finished: Vec<ViewFile>,
    /// Whether rows are being written. It stays so when [`ViewWriter::write`] fails or is dropped before it ends.
    writing: bool,
    hold: Arc<Hold>,
}

impl ViewWriter {
    pub(super) fn new(log: DeltaLog, schema: SchemaRef) -> Self {
        let (hold, properties) = (log.hold(), view_properties(&schema));
        let format = FileFormat { schema, properties, table_partition: None };
        Self { log, format, open: None, finished: Vec::new(), writing: false, hold }
    }

    /// Encodes rows, and stores completed parts. This is mostly CPU work, so call it on a thread for computations.
    ///
    /// # Errors
    /// [`TablesError::Encode`] when the rows do not have the writer's columns, or a file cannot be stored. After an error,
    /// or when the returned future is dropped before it ends, rows are missing: all later calls fail.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), TablesError> {
        self.check_complete()?;
        self.writing = true;
        let file = match self.open.take() {
            Some(file) => file,
            None => FileWriter::new(self.log.clone(), self.format.clone())?,
        };
        let file = file.write(rows).await?;
        if file.size() < BYTES_PER_FILE {
            self.open = Some(file);
        } else {
            self.complete(file).await?;
        }
        self.writing = false;
        Ok(())
    }

    /// Completes the last file, and returns all files for the commit. Without a row, it is one file without a row.
    ///
    /// # Errors
    /// [`TablesError::Encode`] when the file cannot be stored, or rows are missing.
    pub async fn finish(mut self) -> Result<Vec<ViewFile>, TablesError> {
        self.check_complete()?;
        if self.open.is_none() && self.finished.is_empty() {
            self.open = Some(FileWriter::new(self.log.clone(), self.format.clone())?);
        }
        if let Some(file) = self.open.take() {
            self.complete(file).await?;
        }
        Ok(self.finished)
    }

    /// Whether the files have all rows so far.
    fn check_complete(&self) -> Result<(), TablesError> {
        if self.writing {
            let source = "rows are missing, since an earlier write has failed or was cancelled".into();
            return Err(TablesError::Encode { table: self.log.table(), source });
        }
        Ok(())
    }

    async fn complete(&mut self, file: FileWriter) -> Result<(), TablesError> {
        let is_ordered = VIEW_ORDER.iter().all(|name| self.format.schema.index_of(name).is_ok());
        let tags = if is_ordered { HashMap::from([order_tag(&VIEW_ORDER)]) } else { HashMap::new() };
        let add = file.finish(tags).await?;
        self.finished.push(ViewFile { add, _hold: Arc::clone(&self.hold) });
        Ok(())
    }
}
