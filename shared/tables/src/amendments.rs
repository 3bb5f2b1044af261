//! The amendments: facts about stored readings, appended and never changed. Must not know how they are applied.
//!
//! Stability contract: the Delta table `amendments` has the columns of [`amendment_schema`].

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::collect;
use deltalake::kernel::Action;
use deltalake::protocol::{DeltaOperation, SaveMode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use wye_domain::batch;
use wye_domain::time::{Micros, Window};
use wye_metrics::amendment::{Amendment, Change, Selection};

use crate::append::open_append_only;
use crate::columns::amendment_schema;
use crate::delta::{AfterOthers, Commit, DeltaLog};
use crate::error::TablesError;
use crate::file_writer::{FileFormat, FileWriter, on_blocking_thread};
use crate::parquet_plan::all_rows;
use crate::parquet_properties::letter_properties;
use crate::store::{TableName, TableRoot};

const TABLE: TableName = TableName::Amendments;

/// The amendments. Cheap to clone; clones share what was read last.
#[derive(Clone, Debug)]
pub struct Amendments {
    log: DeltaLog,
    /// Those of a version of the table.
    read: Arc<Mutex<Option<Read>>>,
}

/// What was read of the table.
#[derive(Debug)]
struct Read {
    version: u64,
    amendments: Arc<Vec<Amendment>>,
}

impl Amendments {
    /// A handle on the table, which need not exist yet.
    ///
    /// # Errors
    /// [`TablesError::Location`] when the store cannot be opened.
    pub fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: DeltaLog::new(root, TABLE)?, read: Arc::default() })
    }

    /// All of them, in the order in which they were made; none where the table does not exist. Cheap while there is no new
    /// one.
    ///
    /// # Errors
    /// When the table cannot be read, [`TablesError::Corrupt`] where a row is no amendment.
    pub async fn all(&self) -> Result<Arc<Vec<Amendment>>, TablesError> {
        let Some(snapshot) = self.log.newest().await? else { return Ok(Arc::default()) };
        let mut read = self.read.lock().await;
        if let Some(read) = read.as_ref().filter(|read| read.version == snapshot.version) {
            return Ok(Arc::clone(&read.amendments));
        }
        let _hold = self.log.hold();
        let mut amendments = Vec::new();
        if !snapshot.files.is_empty() {
            let plan = all_rows(self.log.root(), TABLE, &snapshot.files, &amendment_schema())?;
            let session = SessionContext::new();
            self.log.root().register(&session.runtime_env())?;
            let batches = collect(plan, session.task_ctx()).await;
            for batch in batches.map_err(scan_error)? {
                let rows = Rows::of(&batch)?;
                for row in 0..batch.num_rows() {
                    amendments.push(rows.amendment(row)?);
                }
            }
        }
        amendments.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        let amendments = Arc::new(amendments);
        *read = Some(Read { version: snapshot.version, amendments: Arc::clone(&amendments) });
        Ok(amendments)
    }

    /// Appends an amendment; creates the table if it does not exist.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub async fn append(&self, amendment: &Amendment) -> Result<(), TablesError> {
        open_append_only(self.log.root(), TABLE, amendment_schema(), &[]).await?;
        let base = self.log.existing().await?;
        let (log, row) = (self.log.clone(), row(amendment)?);
        let writing = async move {
            let format = FileFormat {
                schema: amendment_schema(),
                properties: letter_properties(),
                table_partition: None,
            };
            FileWriter::new(log, format)?.write(&row).await?.finish(HashMap::new()).await
        };
        let add = on_blocking_thread(&self.log, writing).await?;
        let commit = Commit {
            base: &base,
            actions: vec![Action::Add(add)],
            transactions: Vec::new(),
            operation: DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None },
            info: serde_json::Map::new(),
            after_others: AfterOthers::Rebase,
        };
        self.log.commit(commit).await.map(drop)
    }
}

/// One row of the table.
fn row(amendment: &Amendment) -> Result<RecordBatch, TablesError> {
    let Amendment { id, created_at, author, reason, readings, change } = amendment;
    let (mut value, mut tags, mut revokes) = (None, None, None);
    match change {
        Change::Drop => {}
        Change::Correct(sql) => value = Some(sql.clone()),
        Change::Retag(changes) => tags = Some(json(changes)?),
        Change::Revoke(id) => revokes = Some(id.clone()),
    }
    let columns: Vec<ArrayRef> = vec![
        text(Some(id)),
        time(*created_at),
        text(Some(author)),
        text(Some(reason)),
        text(Some(change.name())),
        text(Some(&json(&readings.devices)?)),
        text(Some(&json(&readings.metrics)?)),
        time(readings.times.start),
        time(readings.times.end),
        text(value.as_deref()),
        text(tags.as_deref()),
        text(revokes.as_deref()),
    ];
    Ok(batch::of_columns(amendment_schema(), columns))
}

fn text(text: Option<&str>) -> ArrayRef {
    Arc::new(StringArray::from(vec![text]))
}

fn time(time: Micros) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(vec![time.0]).with_timezone("UTC"))
}

fn json(value: &impl Serialize) -> Result<String, TablesError> {
    serde_json::to_string(value).map_err(|error| TablesError::Encode { table: TABLE, source: error.into() })
}

/// The columns of a batch, by their names.
struct Rows {
    texts: HashMap<&'static str, ArrayRef>,
    times: HashMap<&'static str, ArrayRef>,
}

impl Rows {
    fn of(batch: &RecordBatch) -> Result<Self, TablesError> {
        let mut rows = Self { texts: HashMap::new(), times: HashMap::new() };
        for name in ["id", "author", "reason", "action", "devices", "metrics", "value", "tags", "revokes"] {
            let column = batch.column_by_name(name).ok_or_else(|| corrupt(format!("no column {name}")))?;
            let column = cast(column, &DataType::Utf8).map_err(|error| corrupt(error.to_string()))?;
            rows.texts.insert(name, column);
        }
        for name in ["created_at", "from_time", "until_time"] {
            let column = batch.column_by_name(name).ok_or_else(|| corrupt(format!("no column {name}")))?;
            if column.as_primitive_opt::<TimestampMicrosecondType>().is_none() {
                return Err(corrupt(format!("{name} is no time")));
            }
            rows.times.insert(name, Arc::clone(column));
        }
        Ok(rows)
    }

    fn text(&self, name: &str, row: usize) -> Option<&str> {
        let column = self.texts.get(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| column.value(row))
    }

    fn needed(&self, name: &'static str, row: usize) -> Result<&str, TablesError> {
        self.text(name, row).ok_or_else(|| corrupt(format!("an amendment without {name}")))
    }

    fn json<T: DeserializeOwned>(&self, name: &'static str, row: usize) -> Result<T, TablesError> {
        serde_json::from_str(self.needed(name, row)?).map_err(|error| corrupt(format!("{name}: {error}")))
    }

    fn time(&self, name: &'static str, row: usize) -> Result<Micros, TablesError> {
        let column =
            self.times.get(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        let column = column.filter(|column| column.is_valid(row));
        column
            .map(|column| Micros(column.value(row)))
            .ok_or_else(|| corrupt(format!("an amendment without {name}")))
    }

    fn amendment(&self, row: usize) -> Result<Amendment, TablesError> {
        let change = match self.needed("action", row)? {
            "drop" => Change::Drop,
            "correct" => Change::Correct(self.needed("value", row)?.to_owned()),
            "retag" => Change::Retag(self.json("tags", row)?),
            "revoke" => Change::Revoke(self.needed("revokes", row)?.to_owned()),
            other => {
                return Err(corrupt(format!(
                    "{other:?} is no action of an amendment that this version knows"
                )));
            }
        };
        Ok(Amendment {
            id: self.needed("id", row)?.to_owned(),
            created_at: self.time("created_at", row)?,
            author: self.needed("author", row)?.to_owned(),
            reason: self.needed("reason", row)?.to_owned(),
            readings: Selection {
                devices: self.json("devices", row)?,
                metrics: self.json("metrics", row)?,
                times: Window { start: self.time("from_time", row)?, end: self.time("until_time", row)? },
            },
            change,
        })
    }
}

fn corrupt(reason: String) -> TablesError {
    TablesError::Corrupt { table: TABLE, reason }
}

fn scan_error(source: datafusion::error::DataFusionError) -> TablesError {
    TablesError::Scan { table: TABLE, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amendment(id: &str, seconds: i64, change: Change) -> Amendment {
        Amendment {
            id: id.to_owned(),
            created_at: Micros::from_secs(seconds),
            author: "ann".to_owned(),
            reason: "the sensor was in the sun".to_owned(),
            readings: Selection {
                devices: ["a".to_owned(), "b\"c".to_owned()].into(),
                metrics: ["t".to_owned()].into(),
                times: Window { start: Micros(-5), end: Micros::from_secs(60) },
            },
            change,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_appended_is_read_by_all_in_the_order_of_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(directory.path()).unwrap();
        let (mine, theirs) = (Amendments::open(&root).unwrap(), Amendments::open(&root).unwrap());
        assert!(mine.all().await.unwrap().is_empty());
        let tags = [("line".to_owned(), Some("9".to_owned())), ("shift".to_owned(), None)];
        let expected = [
            amendment("1", 10, Change::Drop),
            amendment("2", 20, Change::Correct("value / 10".to_owned())),
            amendment("3", 30, Change::Retag(tags.into())),
            amendment("4", 40, Change::Revoke("1".to_owned())),
        ];
        for (at, each) in [3, 1, 0, 2].into_iter().enumerate() {
            let by = if at % 2 == 0 { &mine } else { &theirs };
            by.append(&expected[each]).await.unwrap();
        }
        for handle in [&mine, &theirs] {
            assert_eq!(*handle.all().await.unwrap(), expected);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_appends_at_once_are_both_there() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(directory.path()).unwrap();
        let (mine, theirs) = (Amendments::open(&root).unwrap(), Amendments::open(&root).unwrap());
        let (one, two) = (amendment("1", 10, Change::Drop), amendment("2", 20, Change::Drop));
        let (first, second) = tokio::join!(mine.append(&one), theirs.append(&two));
        first.unwrap();
        second.unwrap();
        assert_eq!(*mine.all().await.unwrap(), [one, two]);
    }
}
