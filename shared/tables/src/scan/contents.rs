//! What is below a horizon: when the readings have arrived, when they were measured, and which of them are new since another
//! horizon. From the tags of files, and from the rows of files where the tags do not say it.

use arrow::array::RecordBatch;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::error::Result;
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::execute_stream;
use futures::TryStreamExt;
use wye_domain::horizon::Horizon;
use wye_metrics::confidence::Arrival;

use super::filters::Conditions;
use super::{Position, TABLE};
use crate::columns::{EVENT_TIME, INGEST_TIME, stored_schema};
use crate::error::TablesError;
use crate::event_times::TableTimes;
use crate::parquet_plan::{FilePlan, partitioned_file};
use crate::readings::ReadingsSnapshot;
use crate::readings::file_tags::{FileTags, arrival_of, times_of};

/// How many files are read at the same time.
const STREAMS: usize = 8;

/// What is below a horizon. Duplicates and conflicts are among the readings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// When the readings have arrived.
    pub arrival: Arrival,
    /// When they were measured.
    pub times: TableTimes,
    /// When those were measured that are not below the other horizon.
    pub new: TableTimes,
}

impl ReadingsSnapshot {
    /// What is below the horizon `below`, and what of it is new since the horizon `since`.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a file cannot be read.
    pub async fn contents(
        &self,
        since: &Horizon,
        below: &Horizon,
    ) -> std::result::Result<Contents, TablesError> {
        let schema = stored_schema();
        let mut contents = Contents::default();
        let (mut unknown, mut partly_new) = (Vec::new(), Vec::new());
        for file in self.snapshot.files.iter() {
            let tags = FileTags::of(file);
            let position = Position::of(tags.as_ref(), Some(below));
            if position == Position::Above {
                continue;
            }
            let planned = || partitioned_file(self.log.root(), TABLE, file, &schema);
            let known = tags.as_ref().and_then(|tags| tags.arrival.as_ref().zip(tags.times.as_ref()));
            let Some((arrival, times)) = known.filter(|_| position == Position::Below) else {
                unknown.push(planned()?);
                continue;
            };
            contents.arrival.merge(arrival);
            contents.times.merge(times);
            match Position::of(tags.as_ref(), Some(since)) {
                Position::Below => {}
                Position::Above => contents.new.merge(times),
                Position::Straddles => partly_new.push(planned()?),
            }
        }
        let failed = |source| TablesError::Scan { table: TABLE, source };
        let all = Conditions { below: Some(below), ..Conditions::default() };
        let read = self.read(unknown.clone(), all, |batch| {
            arrival_of(batch).iter().for_each(|more| contents.arrival.merge(more));
            add_times(&mut contents.times, batch);
        });
        read.await.map_err(failed)?;
        if since.is_empty() {
            contents.new = contents.times.clone();
            return Ok(contents);
        }
        unknown.extend(partly_new);
        let new = Conditions { since: Some(since), ..all };
        let read = self.read(unknown, new, |batch| add_times(&mut contents.new, batch));
        read.await.map_err(failed)?;
        Ok(contents)
    }

    /// Reads the times of rows of some files.
    async fn read(
        &self,
        files: Vec<PartitionedFile>,
        conditions: Conditions<'_>,
        mut each: impl FnMut(&RecordBatch),
    ) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let schema = stored_schema();
        let plan = FilePlan {
            root: self.log.root(),
            filter: conditions.expression(&schema)?,
            file_schema: schema,
            groups: FileGroup::new(files).split_files(STREAMS),
            sorted_by: &[],
            columns: &[EVENT_TIME, INGEST_TIME],
            batch_size: None,
        };
        let session = SessionContext::new();
        self.log.root().register(&session.runtime_env()).map_err(external)?;
        let mut rows = execute_stream(plan.build()?, session.task_ctx())?;
        while let Some(batch) = rows.try_next().await? {
            each(&batch);
        }
        Ok(())
    }
}

fn add_times(times: &mut TableTimes, readings: &RecordBatch) {
    times.add(times_of(readings, EVENT_TIME).unwrap_or_default());
}

fn external(error: TablesError) -> datafusion::error::DataFusionError {
    datafusion::error::DataFusionError::External(Box::new(error))
}
