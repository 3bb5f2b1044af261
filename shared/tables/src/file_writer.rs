//! Writes record batches to one Parquet file of a table, directly into the store. Must not know commits.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::kernel::Add;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::delta::{DeltaLog, FILE, stats};
use crate::error::TablesError;
use crate::{real_time, unique};

/// What the files of a table have in common.
#[derive(Clone, Debug)]
pub(crate) struct FileFormat {
    /// The columns of the batches; text is plain or in dictionaries.
    pub(crate) schema: SchemaRef,
    pub(crate) properties: WriterProperties,
    /// The table partition that the file belongs to: its column and value.
    pub(crate) table_partition: Option<(&'static str, String)>,
}

/// A file that is being written. No version of the table has it until it is committed.
///
/// A writer that is dropped before [`Self::finish`] leaves no file. On stores with multipart uploads, uploaded parts remain
/// until the bucket's rule for incomplete uploads removes them. In a local directory, a process that is killed leaves a
/// partial file, which cleaning removes.
pub(crate) struct FileWriter {
    log: DeltaLog,
    format: FileFormat,
    /// Relative to the table's directory; unique.
    path: String,
    writer: AsyncArrowWriter<BufWriter>,
    rows: usize,
}

impl FileWriter {
    pub(crate) fn new(log: DeltaLog, format: FileFormat) -> Result<Self, TablesError> {
        let name = format!("part-{}.parquet", unique::name());
        let path = match &format.table_partition {
            Some((column, value)) => format!("{column}={value}/{name}"),
            None => name,
        };
        let sink = BufWriter::new(log.store(), Path::from(path.as_str()));
        // Readers take the types from Delta. With Arrow's own schema in the file, all of them would get dictionaries.
        let options = ArrowWriterOptions::new()
            .with_properties(format.properties.clone())
            .with_skip_arrow_metadata(true);
        let schema = SchemaRef::clone(&format.schema);
        let writer = AsyncArrowWriter::try_new_with_options(sink, schema, options)
            .map_err(|source| encode_error(&log, source))?;
        Ok(Self { log, format, path, writer, rows: 0 })
    }

    /// Encodes rows, which is CPU work, and stores completed parts. After an error there is no file.
    pub(crate) async fn write(mut self, rows: &RecordBatch) -> Result<Self, TablesError> {
        if let Err(source) = self.writer.write(rows).await {
            if let Err(error) = self.writer.into_inner().abort().await {
                tracing::warn!(table = %self.log.table(), file = %self.path, %error, "cannot abort an upload");
            }
            return Err(encode_error(&self.log, source));
        }
        self.rows += rows.num_rows();
        Ok(self)
    }

    /// Rows written so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes written so far; an estimate for the row group that is not complete.
    pub(crate) fn size(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Completes the file. `tags` is what scans need besides the statistics.
    pub(crate) async fn finish(
        mut self,
        mut tags: HashMap<String, Option<String>>,
    ) -> Result<Add, TablesError> {
        let metadata = self.writer.finish().await.map_err(|source| encode_error(&self.log, source))?;
        let stats = stats::of_footer(&metadata, &self.format.schema)
            .map_err(|source| TablesError::Encode { table: self.log.table(), source: source.into() })?;
        if !tags.is_empty() {
            tags.insert(FILE.to_owned(), Some(self.path.clone()));
        }
        let partition_values =
            self.format.table_partition.map(|(column, value)| (column.to_owned(), Some(value)));
        Ok(Add {
            path: self.path,
            partition_values: partition_values.into_iter().collect(),
            size: i64::try_from(self.writer.bytes_written()).unwrap_or(i64::MAX),
            modification_time: real_time::now().millis(),
            data_change: true,
            stats: Some(stats),
            tags: (!tags.is_empty()).then_some(tags),
            ..Add::default()
        })
    }
}

/// Runs a future with much CPU work on a blocking thread, so that it does not block the async threads. When the caller is
/// dropped, the future is dropped too, at the next time that it waits.
pub(crate) async fn on_blocking_thread<T: Send + 'static>(
    log: &DeltaLog,
    future: impl Future<Output = Result<T, TablesError>> + Send + 'static,
) -> Result<T, TablesError> {
    let (runtime, table) = (Handle::current(), log.table());
    let (_caller, caller_dropped) = oneshot::channel::<()>();
    let work = async move {
        tokio::select! {
            biased;
            _ = caller_dropped => Err(TablesError::Encode { table, source: "the work was cancelled".into() }),
            result = future => result,
        }
    };
    let finished = tokio::task::spawn_blocking(move || runtime.block_on(work)).await;
    finished.map_err(|error| TablesError::Encode { table, source: error.into() })?
}

fn encode_error(log: &DeltaLog, source: ParquetError) -> TablesError {
    TablesError::Encode { table: log.table(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{TableName, TableRoot};

    #[tokio::test(flavor = "multi_thread")]
    async fn work_ends_when_its_caller_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(directory.path()).unwrap();
        let log = DeltaLog::new(&root, TableName::Readings).unwrap();
        let (begin, begun) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let work = async move {
            begin.send(()).unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            end.send(()).unwrap();
            Ok(())
        };
        tokio::select! {
            result = on_blocking_thread(&log, work) => panic!("{result:?}"),
            begun = begun => begun.unwrap(),
        }
        assert!(ended.await.is_err(), "the work has gone on");
    }
}
