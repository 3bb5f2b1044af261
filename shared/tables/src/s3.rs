//! Opens a bucket of Amazon S3 or of another store with its protocol. Must not know tables.
//!
//! Everything that the settings leave open comes from the usual places: the variables of the environment that begin with
//! `AWS_`, a web identity, a container's or a machine's role.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use confirmed::ConfirmedStore;

mod confirmed;
pub(crate) mod probe;

/// The longest pause between two attempts of a request.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The variables of which one is set where the environment has credentials.
const CREDENTIALS: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// How a bucket is reached.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The URL of the store; `None`: that of the environment, else Amazon's for the region.
    pub endpoint: Option<String>,
    /// `None`: that of the environment, else `us-east-1`.
    pub region: Option<String>,
    /// `None`: those of the environment, else those of the container or machine.
    pub keys: Option<AccessKeys>,
    /// Whether requests may be sent without encryption.
    pub allow_http: bool,
    /// How often a request is sent again.
    pub retries: usize,
    /// After this time a request is not sent again.
    pub retry_timeout: Duration,
    /// How long one request may take, with its body.
    pub request_timeout: Duration,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
}

impl Default for S3Options {
    /// For tests and tools; the program has its defaults in its settings.
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            keys: None,
            allow_http: false,
            retries: 10,
            retry_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// The name and the secret of an account. The secret is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKeys {
    /// The access key's ID.
    pub id: String,
    /// The secret access key.
    pub secret: String,
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKeys").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether the settings or the environment say with which account the store is used, other than the role of the machine.
pub(crate) fn has_credentials(options: &S3Options) -> bool {
    options.keys.is_some() || CREDENTIALS.iter().any(|variable| std::env::var_os(variable).is_some())
}

/// The store of a bucket. Sends nothing yet.
///
/// # Errors
/// When the options or the variables of the environment cannot work.
pub(crate) fn open(bucket: &str, options: &S3Options) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = from_environment(options.keys.is_some())
        .with_bucket_name(bucket)
        .with_config(client(ClientConfigKey::Timeout), millis(options.request_timeout))
        .with_config(client(ClientConfigKey::ConnectTimeout), millis(options.connect_timeout))
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: LONGEST_PAUSE, ..BackoffConfig::default() },
            max_retries: options.retries,
            retry_timeout: options.retry_timeout,
        });
    if options.allow_http {
        builder = builder.with_config(client(ClientConfigKey::AllowHttp), "true");
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(keys) = &options.keys {
        builder = builder.with_access_key_id(&keys.id).with_secret_access_key(&keys.secret);
    }
    Ok(Arc::new(ConfirmedStore::new(Arc::new(builder.build()?), options.retry_timeout)))
}

fn client(key: ClientConfigKey) -> AmazonS3ConfigKey {
    AmazonS3ConfigKey::Client(key)
}

/// A duration as the client reads it.
fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// What the variables `AWS_..` say; `has_keys`: their credentials are ignored, so that a session's token is not sent with
/// keys of the settings.
fn from_environment(has_keys: bool) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new();
    for (variable, value) in std::env::vars_os() {
        let (Some(variable), Some(value)) = (variable.to_str(), value.to_str()) else { continue };
        if !variable.starts_with("AWS_") {
            continue;
        }
        // Other programs have variables of their own.
        let Ok(key) = variable.to_ascii_lowercase().parse() else { continue };
        let is_credential = matches!(
            key,
            AmazonS3ConfigKey::AccessKeyId | AmazonS3ConfigKey::SecretAccessKey | AmazonS3ConfigKey::Token
        );
        if !(has_keys && is_credential) {
            builder = builder.with_config(key, value);
        }
    }
    builder
}
