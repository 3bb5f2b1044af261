//! The log entry of a version of the batch views: its run and horizon. Must not know the rows.

use deltalake::kernel::{Action, CommitInfo};
use deltalake::logstore::get_actions;
use serde_json::{Map, Value};
use wye_domain::horizon::Horizon;
use wye_domain::place::Offset;
use wye_domain::time::Micros;

use super::{HORIZON, TABLE, ViewVersion};
use crate::delta::DeltaLog;
use crate::error::TablesError;
use crate::run_record::{CommittedRun, RunRecord};

/// The key of the run's record in `commitInfo`.
const RUN: &str = "wyeRun";

/// The run and the horizon of a log entry.
#[derive(Default)]
pub(super) struct Entry {
    committed: Option<Micros>,
    horizon: Horizon,
    /// `None` in entries of other engines.
    pub(super) run: Option<RunRecord>,
}

impl Entry {
    /// The run that committed this version; `None` when another engine did.
    pub(super) fn committed_run(self, version: ViewVersion) -> Option<CommittedRun> {
        let committed = self.committed?;
        self.run.map(|run| CommittedRun { version, committed, horizon: self.horizon, run })
    }
}

/// The `commitInfo` of a run's commit.
pub(super) fn info(run: &RunRecord) -> Result<Map<String, Value>, TablesError> {
    let record = serde_json::to_value(run)
        .map_err(|error| TablesError::Encode { table: TABLE, source: error.into() })?;
    Ok(Map::from_iter([(RUN.to_owned(), record)]))
}

/// Reads the log entry of a version; `None` when the log no longer has it.
pub(super) async fn read(log: &DeltaLog, version: ViewVersion) -> Result<Option<Entry>, TablesError> {
    let read = log.log_store().read_commit_entry(version.0).await;
    let Some(bytes) = read.map_err(|source| log.unreadable(source))? else { return Ok(None) };
    let mut entry = Entry::default();
    for action in get_actions(version.0, &bytes).map_err(|source| log.unreadable(source))? {
        match action {
            Action::CommitInfo(info) => {
                entry.committed = info.timestamp.map(Micros::from_millis);
                entry.run = run(&info, version)?;
            }
            Action::Txn(transaction) => {
                if let Some(kafka_partition) = HORIZON.kafka_partition(&transaction.app_id) {
                    entry.horizon.set(kafka_partition, Offset(transaction.version));
                }
            }
            _ => {}
        }
    }
    Ok(Some(entry))
}

fn run(info: &CommitInfo, version: ViewVersion) -> Result<Option<RunRecord>, TablesError> {
    let Some(record) = info.info.get(RUN) else { return Ok(None) };
    serde_json::from_value(record.clone()).map(Some).map_err(|error| TablesError::Corrupt {
        table: TABLE,
        reason: format!("record of the run of version {version}: {error}"),
    })
}
