//! The statistics of a file whose log entry does not say how many rows it has: its footer does. Must not know what
//! the rows mean.

use deltalake::kernel::Add;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::delta::DeltaLog;
use crate::delta::stats::{FileStats, of_parquet};
use crate::error::TablesError;

/// How much of a file's end is read first.
const TAIL: u64 = 64 * 1024;

impl DeltaLog {
    /// Reads the statistics of a file from its footer; `schema` is the table's.
    ///
    /// # Errors
    /// [`TablesError::Store`] when the file cannot be read, [`TablesError::Corrupt`] when it is no Parquet file.
    pub(super) async fn read_stats(
        &self,
        add: &Add,
        schema: &arrow::datatypes::Schema,
    ) -> Result<FileStats, TablesError> {
        let footer = self.read_footer(add).await?;
        Ok(of_parquet(&footer, schema))
    }

    async fn read_footer(&self, add: &Add) -> Result<ParquetMetaData, TablesError> {
        let unreachable = |source| TablesError::Store { table: self.table(), source };
        let corrupt = |error: ParquetError| TablesError::Corrupt {
            table: self.table(),
            reason: format!("footer of file {}: {error}", add.path),
        };
        let path = Path::from(add.path.as_str());
        let size = self.store().head(&path).await.map_err(unreachable)?.size;
        let mut wanted = TAIL;
        loop {
            let tail = self.store().get_range(&path, size.saturating_sub(wanted)..size).await;
            let tail = tail.map_err(unreachable)?;
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&tail, size) {
                Ok(()) => return reader.finish().map_err(corrupt),
                Err(ParquetError::NeedMoreData(needed)) if needed as u64 > wanted => wanted = needed as u64,
                Err(error) => return Err(corrupt(error)),
            }
        }
    }
}
