//! The names and locations of the tables. Must not know what a table contains.

use std::fmt;
use std::path::{Path, PathBuf};

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use deltalake::logstore::{LogStoreRef, StorageConfig, logstore_for, object_store_factories};
use object_store::path::Path as ObjectPath;
use url::Url;

use crate::delta::hold::Holds;
use crate::error::TablesError;

/// The tables that this crate stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableName {
    /// The master dataset.
    Readings,
    /// What the batch layer computes.
    BatchViews,
    /// Rejected items.
    DeadLetters,
    /// Changes to how readings are computed.
    Amendments,
}

impl TableName {
    /// The table's directory below the root. Stability contract: existing tables have this name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::BatchViews => "batch_views",
            Self::DeadLetters => "dead_letters",
            Self::Amendments => "amendments",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The location of all tables of one installation: a directory, or a URL that this build supports.
#[derive(Clone, Debug)]
pub struct TableRoot {
    /// Always ends with a slash.
    url: Url,
    /// The part of the URL that DataFusion uses to find the store.
    object_store_url: ObjectStoreUrl,
    /// Which files this process holds; shared by all clones.
    holds: Holds,
}

impl PartialEq for TableRoot {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

/// The path of a local directory, else the URL.
impl fmt::Display for TableRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.url.to_file_path() {
            Ok(path) => write!(f, "{}", path.display()),
            Err(()) => write!(f, "{}", self.url),
        }
    }
}

impl TableRoot {
    /// A local directory, created if absent.
    ///
    /// # Errors
    /// [`TablesError::Location`] when it cannot be created or is not valid Unicode.
    pub fn directory(path: &Path) -> Result<Self, TablesError> {
        let location = path.display();
        std::fs::create_dir_all(path).map_err(|error| unusable(&location, error))?;
        let path = path.canonicalize().map_err(|error| unusable(&location, error))?;
        let url =
            Url::from_directory_path(&path).map_err(|()| unusable(&location, "the path is not absolute"))?;
        let object_store_url = ObjectStoreUrl::local_filesystem();
        Ok(Self { url, object_store_url, holds: Holds::default() })
    }

    /// A directory path, or a URL such as `file:///data` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// [`TablesError::Location`] when the text is not a URL, or names a store that this build does not support.
    pub fn parse(location: &str) -> Result<Self, TablesError> {
        if !location.contains("://") {
            return Self::directory(Path::new(location));
        }
        let mut url = Url::parse(location).map_err(|error| unusable(&location, error))?;
        if url.scheme() == "file" {
            let path = url.to_file_path().map_err(|()| unusable(&location, "the URL names no local path"))?;
            return Self::directory(&path);
        }
        let scheme =
            Url::parse(&format!("{}://", url.scheme())).map_err(|error| unusable(&location, error))?;
        // Each table opens its own store, and in-memory stores are not shared.
        if url.scheme() == "memory" || !object_store_factories().contains_key(&scheme) {
            let reason =
                format!("this build of Wye has no support for {}:// stores; use a directory", url.scheme());
            return Err(unusable(&location, reason));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let host = url.host_str().unwrap_or_default();
        let object_store_url = ObjectStoreUrl::parse(format!("{}://{host}", url.scheme()))
            .map_err(|error| unusable(&location, error))?;
        Ok(Self { url, object_store_url, holds: Holds::default() })
    }

    /// The same location, where holds get a lease at once.
    #[cfg(test)]
    pub(crate) fn leased_at_once(self) -> Self {
        Self { holds: Holds::leased_at_once(), ..self }
    }

    pub(crate) fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The root as a URL; ends with a slash.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The URL that DataFusion uses to find the store of these tables.
    pub fn object_store_url(&self) -> ObjectStoreUrl {
        self.object_store_url.clone()
    }

    /// Registers the store of these tables with a DataFusion runtime, which scans need. Local directories are registered in
    /// every runtime.
    ///
    /// # Errors
    /// [`TablesError::Location`] when the store cannot be opened.
    pub fn register(&self, runtime: &RuntimeEnv) -> Result<(), TablesError> {
        if self.url.scheme() != "file" {
            let store = self.log_store(TableName::Readings)?.root_object_store(None);
            runtime.register_object_store(self.object_store_url.as_ref(), store);
        }
        Ok(())
    }

    /// The URL of a table; ends with a slash.
    pub(crate) fn table_url(&self, table: TableName) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{table}/", self.url.path()));
        url
    }

    /// The path of a table's directory in the store that [`TableRoot::object_store_url`] names.
    pub(crate) fn table_path(&self, table: TableName) -> Result<ObjectPath, TablesError> {
        let url = self.table_url(table);
        ObjectPath::from_url_path(url.path()).map_err(|error| unusable(&url, error))
    }

    /// The log store of a table. Creates the table's directory: for delta-rs an absent directory is an error, and an empty
    /// one is a table that does not exist yet.
    pub(crate) fn log_store(&self, table: TableName) -> Result<LogStoreRef, TablesError> {
        let url = self.table_url(table);
        if let Some(directory) = self.local_directory(table) {
            std::fs::create_dir_all(directory).map_err(|error| unusable(&url, error))?;
        }
        logstore_for(&url, StorageConfig::default()).map_err(|error| unusable(&url, error))
    }

    /// The directory of a table, where the tables are local.
    fn local_directory(&self, table: TableName) -> Option<PathBuf> {
        (self.url.scheme() == "file").then(|| self.table_url(table).to_file_path().ok())?
    }

    /// Syncs files of a table to the disk; `files` are relative to its directory. An object store answers a put when it is
    /// durable, but a local file system answers before that, and Kafka records are deleted once they are archived.
    pub(crate) async fn sync(&self, table: TableName, files: Vec<String>) -> Result<(), TablesError> {
        let synced = self.in_directory(table, move |directory| {
            for file in &files {
                let path = directory.join(file);
                std::fs::File::open(&path)?.sync_all()?;
                if let Some(parent) = path.parent() {
                    std::fs::File::open(parent)?.sync_all()?;
                }
            }
            Ok(())
        });
        synced.await.map(Option::unwrap_or_default)
    }

    /// Does file work in the directory of a table, on a blocking thread; `None` where the tables are not local.
    pub(crate) async fn in_directory<T: Send + 'static>(
        &self,
        table: TableName,
        work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, TablesError> {
        let Some(directory) = self.local_directory(table) else { return Ok(None) };
        let done = tokio::task::spawn_blocking(move || work(&directory)).await;
        let done = done.map_err(std::io::Error::other).flatten();
        done.map(Some).map_err(|source| TablesError::Store {
            table,
            source: object_store::Error::Generic { store: "local directory", source: Box::new(source) },
        })
    }
}

/// The error of a location that cannot be used.
fn unusable(location: &impl fmt::Display, reason: impl fmt::Display) -> TablesError {
    TablesError::Location { location: location.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_directories_or_urls_that_the_build_supports() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(&directory.path().join("a b")).unwrap();
        assert_eq!(TableRoot::parse(root.url().as_str()).unwrap(), root);
        assert!(root.table_url(TableName::Readings).as_str().ends_with("/a%20b/readings/"));
        let refused = TableRoot::parse("s3://bucket/prefix").unwrap_err();
        assert!(refused.to_string().contains("no support for s3://"), "{refused}");
        assert!(TableRoot::parse("memory:///x").is_err());
    }
}
