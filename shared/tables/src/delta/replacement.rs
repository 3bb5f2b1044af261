//! Replaces files by others with the same rows: the commit of every compaction. Must not know what the rows mean.
//!
//! Invariant: a replacement changes no row, so it has `dataChange = false`. delta-rs detects no conflict between two
//! removals of a file that change no data (two engines that optimize at once). So a replacement is committed only as the
//! next version after one that has all of its files.

use std::collections::HashSet;

use deltalake::kernel::{Action, Add, Remove, Transaction};
use deltalake::protocol::DeltaOperation;

use crate::delta::{AfterOthers, Commit, DataFile, DeltaLog};
use crate::error::TablesError;
use crate::real_time;

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

/// How often a replacement is tried while others commit.
const TRIES: u32 = 16;

impl DeltaLog {
    /// Replaces `files` by the files of `adds`, which have the same rows, in one commit. `counter` is the name of the
    /// application transaction that counts the replacements of this table.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another replacement came first, of this engine or another; nothing is lost then.
    pub(crate) async fn replace(
        &self,
        counter: &str,
        files: &[DataFile],
        adds: Vec<Add>,
    ) -> Result<Compacted, TablesError> {
        let mut reason = format!("other writers committed before each of {TRIES} attempts");
        for _ in 0..TRIES {
            // Each attempt checks that the table still has the files.
            match self.try_replace(counter, files, &adds).await? {
                Replaced::Committed => {
                    return Ok(Compacted {
                        files_before: files.len(),
                        files_after: adds.len(),
                        rows: files.iter().map(|file| file.rows).sum(),
                    });
                }
                Replaced::Overtaken => {}
                Replaced::Gone(file) => {
                    reason = format!("another compaction has replaced file {file}");
                    break;
                }
            }
        }
        self.discard(&adds).await;
        Err(TablesError::Conflict { table: self.table(), reason })
    }

    async fn try_replace(
        &self,
        counter: &str,
        files: &[DataFile],
        adds: &[Add],
    ) -> Result<Replaced, TablesError> {
        let base = self.existing().await?;
        let known: HashSet<&str> = base.files.iter().map(|file| file.add.path.as_str()).collect();
        if let Some(gone) = files.iter().find(|file| !known.contains(file.add.path.as_str())) {
            return Ok(Replaced::Gone(gone.add.path.clone()));
        }
        let removals =
            files.iter().map(|file| Action::Remove(Remove { data_change: false, ..file.removal() }));
        let additions = adds.iter().cloned().map(|mut add| {
            add.data_change = false;
            Action::Add(add)
        });
        let now = real_time::now().millis();
        let count = base.transactions.get(counter).copied().unwrap_or_default() + 1;
        let commit = Commit {
            base: &base,
            actions: removals.chain(additions).collect(),
            transactions: vec![Transaction::new_with_last_update(counter, count, Some(now))],
            operation: DeltaOperation::Optimize { predicate: None, target_size: 0 },
            info: serde_json::Map::new(),
            after_others: AfterOthers::Refuse,
        };
        match self.commit(commit).await {
            Ok(_) => Ok(Replaced::Committed),
            Err(TablesError::Conflict { .. }) => Ok(Replaced::Overtaken),
            Err(error) => Err(error),
        }
    }
}

/// How an attempt to replace files ended.
enum Replaced {
    Committed,
    /// Another writer has committed since the newest version was read.
    Overtaken,
    /// This file is no longer in the table.
    Gone(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::Readings;
    use crate::store::TableRoot;
    use crate::testing::{archive, row};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replacement_that_cannot_be_prepared_leaves_no_new_files() {
        let directory = tempfile::tempdir().unwrap();
        let readings = Readings::open(&TableRoot::directory(directory.path()).unwrap()).await.unwrap();
        readings.append(vec![archive(0, 0, 1, &[row("a", 0, 0, 0)])]).await.unwrap();
        let files = readings.snapshot().await.unwrap().snapshot.files;
        let table = directory.path().join("readings");
        let (copied, missing) = ("ingest_date=1970-01-01/part-a.parquet", "part-missing.parquet");
        std::fs::copy(table.join(&files[0].add.path), table.join(copied)).unwrap();
        let adds = [copied, missing].map(|path| Add { path: path.to_owned(), ..files[0].add.clone() });
        readings.log().replace("wye-compact/readings", &files, adds.to_vec()).await.unwrap_err();
        assert!(table.join(&files[0].add.path).exists() && !table.join(copied).exists());
    }
}
