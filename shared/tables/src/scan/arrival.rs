//! When the readings below a horizon have arrived: from the tags of files, and from the rows of files where the tags do not
//! say it.

use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::error::Result;
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::execute_stream;
use futures::TryStreamExt;
use wye_domain::horizon::Horizon;
use wye_metrics::confidence::Arrival;

use super::{Position, TABLE, filters};
use crate::columns::{EVENT_TIME, INGEST_TIME, stored_schema};
use crate::error::TablesError;
use crate::parquet_plan::{FilePlan, partitioned_file};
use crate::readings::ReadingsSnapshot;
use crate::readings::file_tags::{FileTags, arrival_of};

/// How many files are read at the same time.
const STREAMS: usize = 8;

impl ReadingsSnapshot {
    /// When the readings below a horizon have arrived. Duplicates and conflicts are among them.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a file cannot be read.
    pub async fn arrival(&self, horizon: &Horizon) -> std::result::Result<Arrival, TablesError> {
        let schema = stored_schema();
        let mut arrival = Arrival::default();
        let mut unknown = Vec::new();
        for file in self.snapshot.files.iter() {
            let tags = FileTags::of(file);
            let known = tags.as_ref().and_then(|tags| tags.arrival.as_ref());
            match (Position::of(tags.as_ref(), Some(horizon)), known) {
                (Position::Above, _) => {}
                (Position::Below, Some(known)) => arrival.merge(known),
                (Position::Below | Position::Straddles, _) => {
                    unknown.push(partitioned_file(self.log.root(), TABLE, file, &schema)?);
                }
            }
        }
        if !unknown.is_empty() {
            let read = self.read_arrival(unknown, horizon).await;
            arrival.merge(&read.map_err(|source| TablesError::Scan { table: TABLE, source })?);
        }
        Ok(arrival)
    }

    /// The same from the rows of files.
    async fn read_arrival(&self, files: Vec<PartitionedFile>, horizon: &Horizon) -> Result<Arrival> {
        let schema = stored_schema();
        let plan = FilePlan {
            root: self.log.root(),
            filter: filters::readings(None, Some(horizon), &schema)?,
            file_schema: schema,
            groups: FileGroup::new(files).split_files(STREAMS),
            sorted_by: &[],
            columns: &[EVENT_TIME, INGEST_TIME],
            batch_size: None,
        };
        let session = SessionContext::new();
        self.log.root().register(&session.runtime_env()).map_err(external)?;
        let mut rows = execute_stream(plan.build()?, session.task_ctx())?;
        let mut arrival = Arrival::default();
        while let Some(batch) = rows.try_next().await? {
            arrival_of(&batch).iter().for_each(|more| arrival.merge(more));
        }
        Ok(arrival)
    }
}

fn external(error: TablesError) -> datafusion::error::DataFusionError {
    datafusion::error::DataFusionError::External(Box::new(error))
}
