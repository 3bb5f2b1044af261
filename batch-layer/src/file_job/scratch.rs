//! A folder for temporary files. It is removed with everything in it when it is dropped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use wye_runtime::unique;

use super::FileJobError;

/// A temporary folder.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
    files: AtomicUsize,
}

impl Scratch {
    /// A new folder in another one.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(crate) fn new(parent: &Path) -> Result<Self, FileJobError> {
        let parent = std::path::absolute(parent).map_err(FileJobError::file("find", parent))?;
        let folder = parent.join(format!("wye-job-{}", unique::name()));
        std::fs::create_dir(&folder).map_err(FileJobError::file("create the temporary folder", &folder))?;
        Ok(Self { folder, files: AtomicUsize::new(0) })
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a new file.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.parquet", self.files.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove a temporary folder");
        }
    }
}
