//! The section `[tables]`: a folder, or a bucket of S3.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use wye_runtime::config::{ConfigError, Setting, Unworkable};
use wye_tables::s3::{AccessKeys, S3Options};

use super::secret::{self, Secret};

/// The shortest time limit of a request.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest time for which a request is sent again: signatures of requests are valid for 5 minutes at least.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// `[tables]`; see `settings.toml` for units and reasons.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TablesSection {
    pub(crate) root: String,
    pub(crate) s3_endpoint: String,
    pub(crate) s3_region: String,
    pub(crate) s3_access_key_id: String,
    pub(crate) s3_secret_access_key: Secret,
    pub(crate) s3_secret_access_key_file: String,
    pub(crate) s3_allow_http: bool,
    pub(crate) s3_retries: usize,
    #[serde(with = "humantime_serde")]
    pub(crate) s3_retry_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) s3_request_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) s3_connect_timeout: Duration,
}

impl TablesSection {
    /// How S3 is reached, with the secret, wherever it was written. Its file is relative to the folder of the configuration
    /// file.
    ///
    /// # Errors
    /// [`ConfigError`] when the secret's file cannot be read, there are two secrets, or a secret or its key is missing.
    pub(crate) fn s3_options(&self, file: Option<&Path>) -> Result<S3Options, ConfigError> {
        Ok(S3Options {
            endpoint: given(&self.s3_endpoint),
            region: given(&self.s3_region),
            keys: self.keys(file)?,
            allow_http: self.s3_allow_http,
            retries: self.s3_retries,
            retry_timeout: self.s3_retry_timeout,
            request_timeout: self.s3_request_timeout,
            connect_timeout: self.s3_connect_timeout,
        })
    }

    fn keys(&self, file: Option<&Path>) -> Result<Option<AccessKeys>, ConfigError> {
        let written = self.s3_secret_access_key.given().map(str::to_owned);
        let read = secret::read_file(&self.s3_secret_access_key_file, file)?;
        let problem = match (given(&self.s3_access_key_id), written, read) {
            (None, None, None) => return Ok(None),
            (Some(id), Some(secret), None) | (Some(id), None, Some(secret)) => {
                return Ok(Some(AccessKeys { id, secret }));
            }
            (_, Some(_), Some(_)) => {
                "the secret for S3 is written twice; keep one of s3_secret_access_key and s3_secret_access_key_file"
            }
            (Some(_), None, None) => {
                "s3_access_key_id has no secret; add s3_secret_access_key_file, or leave out both and set \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
            }
            (None, _, _) => "the secret for S3 has no s3_access_key_id; add it",
        };
        Err(ConfigError::Parse { place: "[tables]".to_owned(), problem: problem.to_owned() })
    }

    pub(super) fn check(&self) -> Vec<Unworkable> {
        [
            self.endpoint_problem()
                .map(|problem| named("s3_endpoint", "\"https://s3.example.org\"").cannot_work(problem)),
            named("s3_retry_timeout", "\"30s\"").at_most(self.s3_retry_timeout, LONGEST_RETRY),
            named("s3_request_timeout", "\"30s\"").at_least(self.s3_request_timeout, SHORTEST),
            named("s3_connect_timeout", "\"5s\"").at_least(self.s3_connect_timeout, SHORTEST),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn endpoint_problem(&self) -> Option<String> {
        let endpoint = self.s3_endpoint.as_str();
        if endpoint.is_empty() || endpoint.starts_with("https://") {
            return None;
        }
        if !endpoint.starts_with("http://") {
            return Some(format!("is {endpoint:?}, which is not a URL"));
        }
        (!self.s3_allow_http).then(|| {
            format!("is {endpoint:?}, which sends readings without encryption; set s3_allow_http = true to allow that")
        })
    }
}

/// A setting of this section.
fn named(key: &'static str, example: &'static str) -> Setting {
    Setting { section: "tables", key, example }
}

/// A text that is not empty.
fn given(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}
