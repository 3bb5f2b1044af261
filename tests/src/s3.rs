//! The S3 server of the tests (`scripts/s3.sh`), and settings for tables on it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::datasets;

/// A running S3 server with the bucket `wye`.
#[derive(Clone, Debug)]
pub struct S3 {
    /// The URL of the server, without a slash at the end.
    pub endpoint: String,
    access_key: String,
    /// The secret, which may not be in any output.
    pub secret_key: String,
}

impl S3 {
    /// The server whose directory `WYE_TEST_S3` names; `None`, with a message, where it names none.
    ///
    /// # Errors
    /// When its files cannot be read, or there is none in CI.
    pub fn find() -> Result<Option<Self>> {
        let Some(directory) = std::env::var_os("WYE_TEST_S3").map(PathBuf::from) else {
            return datasets::absent("WYE_TEST_S3 is not set (make test sets it)").map(|()| None);
        };
        let read = |name: &str| {
            let path = directory.join(name);
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            anyhow::Ok(text.trim().to_owned())
        };
        let [endpoint, access_key, secret_key] = ["endpoint", "access-key", "secret-key"].map(read);
        Ok(Some(Self { endpoint: endpoint?, access_key: access_key?, secret_key: secret_key? }))
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        self.endpoint.trim_start_matches("http://")
    }

    /// The same server behind another address, such as one that makes faults.
    #[must_use]
    pub fn behind(&self, address: &str) -> Self {
        Self { endpoint: format!("http://{address}"), ..self.clone() }
    }

    /// The section `[tables]` for tables below a prefix that no other test has.
    pub fn tables(&self, name: &str) -> String {
        let (unique, Self { endpoint, access_key, secret_key }) = (rand::random::<u64>(), self);
        format!(
            "[tables]\nroot = \"s3://wye/{name}-{unique:016x}\"\ns3_endpoint = \"{endpoint}\"\ns3_allow_http = true\n\
             s3_access_key_id = \"{access_key}\"\ns3_secret_access_key = \"{secret_key}\"\n"
        )
    }
}
