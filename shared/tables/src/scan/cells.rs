//! Reading a cell of the master dataset: the readings of a stretch of event time, below a horizon, in the order of the master
//! dataset. Must not know what is computed from it.
//!
//! Readings are sorted in memory, whatever the order and the number of the files that have them: rows are distributed to
//! their series, which costs less than a merge of many files. Pieces that are too large for that are merged or sorted on
//! disk, by [`SortedScan`].

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execute_stream;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use wye_domain::horizon::Horizon;
use wye_domain::time::Window;

use super::devices::{self, DeviceRange};
use super::{Input, SortedScan, conditions};
use crate::columns::{names, stored_schema};
use crate::error::TablesError;
use crate::parquet_plan::FilePlan;
use crate::readings::ReadingsSnapshot;
use crate::sort::SortedRows;

/// The files of the master dataset that have readings below a horizon.
#[derive(Clone, Debug)]
pub struct FilesBelow {
    snapshot: ReadingsSnapshot,
    horizon: Horizon,
    inputs: Arc<Vec<Input>>,
}

/// A part of a cell that is read at once: some of its devices.
#[derive(Clone, Debug)]
pub struct Piece {
    window: Window,
    devices: DeviceRange,
    /// About how many readings it has.
    pub readings: u64,
}

/// How a piece is read.
#[derive(Clone, Copy, Debug)]
pub struct HowToRead {
    /// Rows in a batch.
    pub batch_rows: usize,
    /// A piece with more readings than this is not sorted in memory.
    pub most_in_memory: u64,
}

impl ReadingsSnapshot {
    /// The files with readings below a horizon.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when the statistics of the files cannot be read.
    pub fn below(&self, horizon: &Horizon) -> std::result::Result<FilesBelow, TablesError> {
        let inputs = Arc::new(self.inputs(|_| true, Some(horizon))?);
        Ok(FilesBelow { snapshot: self.clone(), horizon: horizon.clone(), inputs })
    }
}

impl FilesBelow {
    /// Splits a cell into pieces of about this many readings, in the order of their devices. A device is in one piece only.
    #[must_use]
    pub fn pieces(&self, window: Window, readings: u64) -> Vec<Piece> {
        let inputs: Vec<(&Input, u64)> = self.of(window).collect();
        let all: u64 = inputs.iter().map(|(_, rows)| rows).sum();
        let count = usize::try_from(all.div_ceil(readings.max(1))).unwrap_or(usize::MAX);
        let tags = inputs.iter().filter_map(|(input, rows)| Some((input.tags.as_ref()?, *rows)));
        let ranges = devices::ranges(tags, count);
        ranges.into_iter().map(|(devices, readings)| Piece { window, devices, readings }).collect()
    }

    /// The readings of a piece in the order of [`crate::columns::READING_ORDER`], with the columns of [`stored_schema`].
    ///
    /// Runs in any session whose runtime has the store, see [`crate::store::TableRoot::register`].
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn read(
        &self,
        piece: &Piece,
        how: HowToRead,
        context: Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let inputs: Vec<&Input> = self.of(piece.window).map(|(input, _)| input).collect();
        let inputs: Vec<&Input> =
            inputs.into_iter().filter(|input| piece.devices.overlaps(input.devices())).collect();
        let schema = stored_schema();
        let columns = names(&schema);
        let scan = SortedScan {
            horizon: Some(&self.horizon),
            window: Some(piece.window),
            columns: &columns,
            batch_size: Some(how.batch_rows),
        };
        if piece.readings > how.most_in_memory {
            return self.merged(piece, &inputs, &scan, context);
        }
        let mut rows = SortedRows::with_capacity(usize::try_from(piece.readings).unwrap_or_default());
        if !inputs.is_empty() {
            let plan = FilePlan {
                root: self.snapshot.log.root(),
                filter: conditions(&inputs, &piece.devices, &scan).expression(&schema)?,
                file_schema: Arc::clone(&schema),
                groups: vec![inputs.iter().map(|input| input.file.clone()).collect::<FileGroup>()],
                sorted_by: &[],
                columns: &columns,
                batch_size: Some(how.batch_rows),
            };
            let mut stream = execute_stream(plan.build()?, Arc::clone(&context))?;
            while let Some(batch) = stream.try_next().await? {
                rows.push(&batch).map_err(|error| DataFusionError::External(error.into()))?;
                // There were more than the files say.
                if rows.len() as u64 > how.most_in_memory {
                    drop(rows);
                    return self.merged(piece, &inputs, &scan, context);
                }
            }
        }
        Ok(futures::stream::iter(rows.sorted(how.batch_rows).map(Ok)).boxed())
    }

    /// A piece by a merge of its files, which takes less memory than sorting it.
    fn merged(
        &self,
        piece: &Piece,
        inputs: &[&Input],
        scan: &SortedScan<'_>,
        context: Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        Ok(match self.snapshot.part(&piece.devices, inputs, scan)? {
            Some(plan) => execute_stream(plan, context)?.boxed(),
            None => futures::stream::empty().boxed(),
        })
    }

    /// The files with readings of a stretch of event time, each with about how many.
    fn of(&self, window: Window) -> impl Iterator<Item = (&Input, u64)> {
        let inputs = self.inputs.iter().map(move |input| (input, input.within(window)));
        inputs.filter(|(_, rows)| *rows > 0)
    }
}
