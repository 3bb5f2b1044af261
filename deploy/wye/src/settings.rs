//! All settings of the program: its own sections (`settings.toml`), and those of the layers, which define and check their
//! settings themselves.

use std::path::Path;

use serde::Deserialize;
use wye_batch::settings::{ArchiveSettings, BatchSettings};
use wye_metrics::definition::MetricConfig;
use wye_runtime::config::{self, ConfigError, Unworkable};
use wye_serving::settings::{HttpSettings, SqlSettings};
use wye_speed::settings::{IngestSettings, SpeedSettings};

mod log;
mod secret;
mod tables;

pub(crate) use log::{EmbeddedPort, LogSection};
pub(crate) use tables::TablesSection;

/// The program's own sections with their defaults.
const OWN_DEFAULTS: &str = include_str!("settings.toml");

/// All settings. The `settings.toml` beside each type has units, defaults and reasons.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) log: LogSection,
    pub(crate) tables: TablesSection,
    pub(crate) registry: RegistrySection,
    pub(crate) ingest: IngestSettings,
    pub(crate) speed: SpeedSettings,
    pub(crate) archive: ArchiveSettings,
    pub(crate) batch: BatchSettings,
    pub(crate) http: HttpSettings,
    pub(crate) sql: SqlSettings,
    /// The metric definitions, as written.
    #[serde(default)]
    pub(crate) metric: Vec<MetricConfig>,
}

/// `[registry]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegistrySection {
    pub(crate) file: String,
}

/// Every setting with its default, as TOML: the reference for users.
pub(crate) fn defaults() -> String {
    use {wye_batch::settings as batch, wye_serving::settings as serving, wye_speed::settings as speed};
    [OWN_DEFAULTS, serving::DEFAULTS, speed::DEFAULTS, batch::DEFAULTS].map(str::trim_end).join("\n\n") + "\n"
}

impl Settings {
    /// Reads the settings from the file, if one is given, and from the environment.
    ///
    /// # Errors
    /// All problems, each with its place and what to write instead.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        config::load(&defaults(), file, environment)
    }

    /// The settings of ingest and the speed layer.
    pub(crate) fn speed_layer(&self) -> wye_speed::settings::Settings {
        wye_speed::settings::Settings { ingest: self.ingest.clone(), speed: self.speed.clone() }
    }

    /// The settings of the batch layer.
    pub(crate) fn batch_layer(&self) -> wye_batch::settings::Settings {
        wye_batch::settings::Settings { archive: self.archive, batch: self.batch.clone() }
    }

    /// The settings of the serving layer.
    pub(crate) fn serving_layer(&self) -> wye_serving::settings::Settings {
        wye_serving::settings::Settings { http: self.http.clone(), sql: self.sql }
    }
}

impl config::Settings for Settings {
    const SECRET: &'static [&'static str] = &["client", "sasl_password", "s3_secret_access_key"];

    fn check(&self) -> Vec<Unworkable> {
        let mut unworkable = self.log.check();
        unworkable.extend(self.tables.check());
        unworkable.extend(self.speed_layer().check());
        unworkable.extend(self.batch_layer().check());
        unworkable.extend(self.serving_layer().check());
        unworkable.extend(self.http.check_max_body(self.ingest.max_body));
        unworkable
    }
}

#[cfg(test)]
mod tests;
