//! Replacing files by others with the same rows: the commit of every compaction. Must not know what the rows mean.
//!
//! Invariant: a replacement changes no row, so it says `dataChange = false`. Two at once exclude each other by an
//! application transaction of their own, because delta-rs does not see a conflict between removals that change no data.

use deltalake::kernel::{Action, Remove, Transaction};
use deltalake::protocol::DeltaOperation;

use crate::delta::{AfterOthers, Commit, DataFile, DeltaLog, EncodedFile, LogSnapshot};
use crate::error::TablesError;

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Files before.
    pub files_before: usize,
    /// Files after.
    pub files_after: usize,
    /// Rows rewritten.
    pub rows: u64,
}

impl std::ops::AddAssign for Compacted {
    fn add_assign(&mut self, other: Self) {
        self.files_before += other.files_before;
        self.files_after += other.files_after;
        self.rows += other.rows;
    }
}

impl DeltaLog {
    /// Puts `encoded` in the place of `files`, whose rows it holds, in one commit on top of `base`. `turns` names the
    /// application transaction that counts the replacements of this table.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another replacement came first; nothing is lost then.
    pub(crate) async fn replace(
        &self,
        base: &LogSnapshot,
        turns: &str,
        files: &[DataFile],
        encoded: Vec<EncodedFile>,
    ) -> Result<Compacted, TablesError> {
        let stale = |file: &&DataFile| !base.files.iter().any(|known| known.add.path == file.add.path);
        if let Some(file) = files.iter().find(stale) {
            let reason = format!("file {} has been replaced by somebody else", file.add.path);
            return Err(TablesError::Conflict { table: self.table(), reason });
        }
        let adds = self.put(encoded).await?;
        let now = chrono::Utc::now().timestamp_millis();
        let removals = files.iter().map(|file| {
            Action::Remove(Remove {
                path: file.add.path.clone(),
                data_change: false,
                deletion_timestamp: Some(now),
                extended_file_metadata: Some(true),
                partition_values: Some(file.add.partition_values.clone()),
                size: Some(file.add.size),
                ..Remove::default()
            })
        });
        let additions = adds.iter().cloned().map(|mut add| {
            add.data_change = false;
            Action::Add(add)
        });
        let turn = base.transactions.get(turns).copied().unwrap_or_default() + 1;
        let commit = Commit {
            base,
            actions: removals.chain(additions).collect(),
            transactions: vec![Transaction::new_with_last_update(turns, turn, Some(now))],
            operation: DeltaOperation::Optimize { predicate: None, target_size: 0 },
            info: serde_json::Map::new(),
            after_others: AfterOthers::Rebase,
        };
        let committed = self.commit(commit).await;
        if let Err(TablesError::Conflict { .. }) = &committed {
            self.discard(&adds).await;
        }
        committed.map(|_| Compacted {
            files_before: files.len(),
            files_after: adds.len(),
            rows: files.iter().map(|file| file.stats.num_records).sum(),
        })
    }
}
