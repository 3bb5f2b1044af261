//! The names and locations of the tables. Must not know what a table contains.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore, logstore_for};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use url::Url;

use crate::delta::hold::{self, Holds};
use crate::error::TablesError;
use crate::s3::probe::{ConditionalPuts, conditional_puts};
use crate::s3::{self, S3Options};

/// The advice where a store cannot be used and nothing says with which account.
const NO_ACCESS_KEY: &str = "; no access key is given, so the role of this machine was asked for one: set s3_access_key_id in \
                             [tables], or AWS_ACCESS_KEY_ID in the environment";

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
    /// Settled numbers that batch runs have changed.
    Restatements,
}

impl TableName {
    /// The table's directory below the root. Stability contract: existing tables have this name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::BatchViews => "batch_metrics",
            Self::DeadLetters => "dead_letters",
            Self::Amendments => "amendments",
            Self::Restatements => "restatements",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The location of all tables of one installation: a directory, or a prefix in a bucket.
#[derive(Clone, Debug)]
pub struct TableRoot {
    /// Always ends with a slash.
    url: Url,
    /// The part of the URL that DataFusion uses to find the store.
    object_store_url: ObjectStoreUrl,
    /// The bucket; `None`: a local directory. All tables share its connections.
    bucket: Option<Arc<dyn ObjectStore>>,
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
        Ok(Self { url, object_store_url, bucket: None, holds: Holds::default() })
    }

    /// A directory path, or a URL such as `file:///data` or `s3://bucket/prefix`. Checks once that a bucket can be used, and
    /// refuses to replace an object where that is asked for: two processes could else commit the same version of a table.
    ///
    /// # Errors
    /// [`TablesError::Location`] when the text is not a URL, or names a store that cannot hold tables;
    /// [`TablesError::Root`] when the store cannot be reached.
    pub async fn open(location: &str, options: &S3Options) -> Result<Self, TablesError> {
        let root = Self::parse(location, options)?;
        root.check(options).await?;
        Ok(root)
    }

    /// A location that is not checked yet.
    fn parse(location: &str, options: &S3Options) -> Result<Self, TablesError> {
        if !location.contains("://") {
            return Self::directory(Path::new(location));
        }
        let mut url = Url::parse(location).map_err(|error| unusable(&location, error))?;
        if url.scheme() == "file" {
            let path = url.to_file_path().map_err(|()| unusable(&location, "the URL names no local path"))?;
            return Self::directory(&path);
        }
        if !matches!(url.scheme(), "s3" | "s3a") {
            let reason = format!(
                "Wye has no support for {}:// stores; use a directory, or s3://BUCKET/PREFIX",
                url.scheme()
            );
            return Err(unusable(&location, reason));
        }
        let name = url.host_str().unwrap_or_default().to_owned();
        let has_more = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
        if name.is_empty() || url.port().is_some() || has_more {
            // It may contain a password.
            let reason = "write s3://BUCKET/PREFIX, and everything else as settings of [tables]";
            return Err(unusable(&format!("{}://..", url.scheme()), reason));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let object_store_url = ObjectStoreUrl::parse(format!("{}://{name}", url.scheme()))
            .map_err(|error| unusable(&location, error))?;
        let bucket = s3::open(&name, options).map_err(|error| unusable(&location, error))?;
        Ok(Self { url, object_store_url, bucket: Some(bucket), holds: Holds::default() })
    }

    /// Checks that the bucket can be used.
    async fn check(&self, options: &S3Options) -> Result<(), TablesError> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let root = ObjectPath::from_url_path(self.url.path()).map_err(|error| unusable(self, error))?;
        let reason = match conditional_puts(bucket.as_ref(), &root.join(hold::DIRECTORY)).await {
            Ok(ConditionalPuts::Work) => return Ok(()),
            Ok(ConditionalPuts::Ignored) => {
                "the store replaces an object although the request says not to (If-None-Match: *), so two processes could \
                 both commit the same version of a table, and readings would be lost; use a store with conditional writes"
                    .to_owned()
            }
            Ok(ConditionalPuts::Rejected(error)) => format!(
                "the store has no conditional writes (If-None-Match: *), with which two processes do not commit the same \
                 version of a table: {error}"
            ),
            Err(error @ object_store::Error::NotFound { .. }) => {
                format!("the store has no such bucket, or no such access key: {error}")
            }
            Err(
                error @ (object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }),
            ) => {
                format!("the store rejects the access key, or it may not write there: {error}")
            }
            Err(error) => {
                let advice = if s3::has_credentials(options) { "" } else { NO_ACCESS_KEY };
                return Err(TablesError::Root { location: self.to_string(), error: error.into(), advice });
            }
        };
        Err(unusable(self, reason))
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
    /// None so far: the store was opened with the root.
    pub fn register(&self, runtime: &RuntimeEnv) -> Result<(), TablesError> {
        if let Some(bucket) = &self.bucket {
            runtime.register_object_store(self.object_store_url.as_ref(), Arc::clone(bucket));
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
        if let Some(bucket) = &self.bucket {
            let in_table: Arc<dyn ObjectStore> =
                Arc::new(PrefixStore::new(Arc::clone(bucket), self.table_path(table)?));
            return Ok(default_logstore(in_table, Arc::clone(bucket), &url, &StorageConfig::default()));
        }
        if let Some(directory) = self.local_directory(table) {
            std::fs::create_dir_all(directory).map_err(|error| unusable(&url, error))?;
        }
        logstore_for(&url, StorageConfig::default()).map_err(|error| unusable(&url, error))
    }

    /// The directory of a table, where the tables are local.
    fn local_directory(&self, table: TableName) -> Option<PathBuf> {
        self.bucket.is_none().then(|| self.table_url(table).to_file_path().ok())?
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
    fn locations_are_directories_or_prefixes_in_buckets() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(&directory.path().join("a b")).unwrap();
        let parsed = |location: &str| TableRoot::parse(location, &S3Options::default());
        assert_eq!(parsed(root.url().as_str()).unwrap(), root);
        assert!(root.table_url(TableName::Readings).as_str().ends_with("/a%20b/readings/"));
        let bucket = parsed("s3://bucket/some/prefix").unwrap();
        assert_eq!(bucket.table_path(TableName::Readings).unwrap().as_ref(), "some/prefix/readings");
        assert_eq!(bucket.to_string(), "s3://bucket/some/prefix/");
        assert_eq!(parsed("s3a://bucket").unwrap().table_url(TableName::Readings).path(), "/readings/");
        for (location, word) in [
            ("gs://bucket/prefix", "no support for gs://"),
            ("memory:///x", "no support for memory://"),
            ("s3:///prefix", "s3://BUCKET/PREFIX"),
            ("s3://wye:s3cret@bucket/prefix", "s3://BUCKET/PREFIX"),
            ("s3://bucket/prefix?secret=s3cret", "s3://BUCKET/PREFIX"),
        ] {
            let refused = parsed(location).unwrap_err().to_string();
            assert!(refused.contains(word) && !refused.contains("s3cret"), "{location}: {refused}");
        }
    }
}
