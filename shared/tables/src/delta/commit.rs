//! Commits to a table, and keeps its log short. Must not know what the rows mean.

use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, PreparedCommit};
use deltalake::kernel::{Action, Add, Transaction};
use deltalake::logstore::commit_uri_from_version;
use deltalake::protocol::DeltaOperation;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tracing::warn;

use crate::delta::{DeltaLog, LogSnapshot};
use crate::error::TablesError;
use crate::unique;

/// How many versions there are from one checkpoint to the next. Opening a table reads the log entries after the newest.
const CHECKPOINT_INTERVAL: u64 = 20;

/// The key of a random name in `commitInfo`. With it no other commit has the same bytes, so a process whose put was refused
/// can tell its own log entry from that of another (`s3/confirmed.rs`).
const COMMIT_NAME: &str = "wyeCommit";

/// What one commit holds.
pub(crate) struct Commit<'a> {
    /// The version that the decision to commit was based on.
    pub(crate) base: &'a LogSnapshot,
    pub(crate) actions: Vec<Action>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) operation: DeltaOperation,
    /// Stored in the commit's `commitInfo`.
    pub(crate) info: serde_json::Map<String, serde_json::Value>,
    /// What to do when others have committed since `base`.
    pub(crate) after_others: AfterOthers,
}

/// Whether a commit may follow versions that its writer has not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterOthers {
    /// Yes, if those have neither changed the same application transactions nor removed the same files.
    Rebase,
    /// No.
    Refuse,
}

impl AfterOthers {
    /// How often delta-rs retries after another version.
    fn retries(self) -> usize {
        match self {
            Self::Rebase => 15,
            Self::Refuse => 0,
        }
    }
}

impl DeltaLog {
    /// Commits, and returns the new version. Where the commit cannot even be prepared, its files are removed.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another commit came first; nothing of this one is visible then.
    pub(crate) async fn commit(&self, commit: Commit<'_>) -> Result<u64, TablesError> {
        let added: Vec<Add> = commit.actions.iter().filter_map(added).cloned().collect();
        match self.prepare(commit, &added).await {
            Ok(prepared) => self.complete(prepared).await,
            Err(error) => {
                self.discard(&added).await;
                Err(error)
            }
        }
    }

    /// The same for files that stay if it fails, so that it can be tried again.
    pub(crate) async fn commit_kept(&self, commit: Commit<'_>) -> Result<u64, TablesError> {
        let added: Vec<Add> = commit.actions.iter().filter_map(added).cloned().collect();
        let prepared = self.prepare(commit, &added).await?;
        self.complete(prepared).await
    }

    async fn complete(&self, prepared: PreparedCommit<'_>) -> Result<u64, TablesError> {
        // The later steps of delta-rs are left out: a commit has succeeded even if the checkpoint after it fails.
        let version = prepared.await.map_err(|source| TablesError::commit(self.table(), source))?.version;
        let entry = commit_uri_from_version(Some(version)).to_string();
        self.root().sync(self.table(), vec![entry]).await?;
        if (version + 1).is_multiple_of(CHECKPOINT_INTERVAL)
            && let Err(error) = self.checkpoint().await
        {
            warn!(table = %self.table(), %error, "cannot write a checkpoint");
        }
        Ok(version)
    }

    /// What comes before the new version is written: nothing of the commit is visible.
    async fn prepare<'a>(
        &self,
        mut commit: Commit<'a>,
        added: &[Add],
    ) -> Result<PreparedCommit<'a>, TablesError> {
        commit.info.insert(COMMIT_NAME.to_owned(), unique::name().into());
        let files = added.iter().map(|add| add.path.clone()).collect();
        self.root().sync(self.table(), files).await?;
        let properties = CommitProperties::default()
            .with_metadata(commit.info)
            .with_application_transactions(commit.transactions)
            .with_max_retries(commit.after_others.retries());
        CommitBuilder::from(properties)
            .with_actions(commit.actions)
            .build(Some(commit.base.state()), self.log_store().clone(), commit.operation)
            .into_prepared_commit_future()
            .await
            .map_err(|source| TablesError::commit(self.table(), source))
    }

    /// Writes a checkpoint and drops log entries past the table's retention. The table is complete without it.
    async fn checkpoint(&self) -> Result<(), TablesError> {
        let table = self.existing().await?.delta_table(self);
        let created = deltalake::checkpoints::create_checkpoint(&table, None).await;
        created.map_err(|source| self.unreadable(source))?;
        deltalake::checkpoints::cleanup_metadata(&table, None)
            .await
            .map_err(|source| self.unreadable(source))?;
        Ok(())
    }

    /// Removes the stored files of a commit that failed. Where that fails too, cleaning removes them later.
    ///
    /// Files that the log names are kept: where the answer to a put is lost, the store rejects the retry, and a commit that
    /// has succeeded looks like one that failed.
    pub(crate) async fn discard(&self, adds: &[Add]) {
        let Ok(Some(newest)) = self.newest().await else { return };
        for add in adds {
            if newest.files.iter().any(|file| file.add.path == add.path) {
                continue;
            }
            if let Err(error) = self.store().delete(&Path::from(add.path.as_str())).await {
                warn!(table = %self.table(), file = %add.path, %error, "cannot remove a file of a failed commit");
            }
        }
    }
}

fn added(action: &Action) -> Option<&Add> {
    match action {
        Action::Add(add) => Some(add),
        _ => None,
    }
}
