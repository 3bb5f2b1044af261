//! Settings that may be secret. Must not know what they are for.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use wye_runtime::config::{ConfigError, beside};

/// A setting that may be secret: only [`Self::reveal`] returns its value.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// The value.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// The value, if there is one.
    pub(super) fn given(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() { "\"\"" } else { "\"(not shown)\"" })
    }
}

/// The secret in a file, which is relative to the folder of the configuration file; `None` where no file is named.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read.
pub(super) fn read_file(name: &str, config: Option<&Path>) -> Result<Option<String>, ConfigError> {
    if name.is_empty() {
        return Ok(None);
    }
    let path = beside(config, name);
    let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path, source })?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}
