//! What is checked before anything is started: the settings, the metric definitions and the registry. Must not write
//! anything, nor open a connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use wye_domain::registry::Registry;
use wye_domain::wire::Acceptance;
use wye_metrics::definition::Definition;
use wye_metrics::plan::MetricPlans;
use wye_runtime::config::{self, ConfigError, definition_error};
use wye_tables::s3::S3Options;

use crate::client::Misused;
use crate::settings::Settings;

/// Settings that can work, and what was made of them.
pub(crate) struct Checked {
    pub(crate) settings: Settings,
    pub(crate) plans: Arc<MetricPlans>,
    pub(crate) listen: SocketAddr,
    pub(crate) acceptance: Acceptance,
    /// The properties of the Kafka client.
    pub(crate) properties: BTreeMap<String, String>,
    /// How tables on S3 are reached.
    pub(crate) s3: S3Options,
}

/// What the command line says of settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    /// `--data-dir`
    pub(crate) data_dir: &'a Path,
    /// `--config`
    pub(crate) config: Option<&'a Path>,
    /// `--http`
    pub(crate) http: Option<&'a str>,
}

/// Reads and checks everything that the user has written.
///
/// # Errors
/// All problems at once, each with its place.
pub(crate) fn check(given: Given<'_>) -> Result<Checked> {
    if given.data_dir.as_os_str().is_empty() {
        bail!(Misused("--data-dir is empty; write for example --data-dir wye-data".to_owned()));
    }
    let file = given.config;
    let mut settings = Settings::load(file, std::env::vars())?;
    let listen_place = if given.http.is_some() { "--http" } else { "`listen` in [http]" };
    if let Some(address) = given.http {
        address.clone_into(&mut settings.http.listen);
    }
    let mut problems = Vec::new();
    let registry = config::registry(&settings.registry.file, file).map_err(|error| problems.push(error));
    let definitions = config::definitions(&settings.metric, file).map_err(|error| problems.push(error));
    let plans = match (definitions, registry) {
        (Ok(definitions), Ok(registry)) => plan(definitions, registry, file, &mut problems),
        _ => None,
    };
    let listen = settings.http.address().map_err(|unworkable| {
        problems.push(ConfigError::Parse {
            place: listen_place.to_owned(),
            problem: format!("{}; write for example {}", unworkable.problem, unworkable.example),
        });
    });
    ConfigError::all(problems)?;
    let (Some(plans), Ok(listen)) = (plans, listen) else { bail!("the settings cannot be used") };
    let acceptance = settings.ingest.acceptance();
    let plans = Arc::new(plans.accepting(&acceptance));
    let properties = settings.log.client_properties(file)?;
    let s3 = settings.tables.s3_options(file)?;
    Ok(Checked { settings, plans, listen, acceptance, properties, s3 })
}

/// Plans the definitions. The problems of all of them are added to `problems`.
fn plan(
    definitions: Vec<Definition>,
    registry: Registry,
    file: Option<&Path>,
    problems: &mut Vec<ConfigError>,
) -> Option<MetricPlans> {
    let registry = Arc::new(registry);
    let problems_before = problems.len();
    for (index, definition) in definitions.iter().enumerate() {
        if let Err(error) = MetricPlans::new(vec![definition.clone()], Arc::clone(&registry)) {
            problems.push(definition_error(file, index, error.key, &error.to_string()));
        }
    }
    if problems.len() > problems_before {
        return None;
    }
    let names: Vec<String> = definitions.iter().map(|definition| definition.name.clone()).collect();
    let planned = MetricPlans::new(definitions, registry).map_err(|error| {
        let index = names.iter().rposition(|name| *name == error.metric).unwrap_or(0);
        problems.push(definition_error(file, index, error.key, &error.to_string()));
    });
    planned.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(config: &str, http: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config).unwrap();
        let given = Given { data_dir: Path::new("data"), config: Some(file.path()), http: Some(http) };
        check(given).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn all_definitions_that_cannot_be_planned_are_reported_at_once() {
        let config =
            "[[metric]]\nname = \"a\"\nwhere = \"value >\"\n[[metric]]\nname = \"b\"\nvalue = \"upper(\"\n";
        let message = rejected(config, "nowhere");
        for word in ["3 settings", "line 3", "line 6", "\"nowhere\"", "localhost:8080"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn views_of_two_metrics_cannot_have_one_name() {
        let config = "[[metric]]\nname = \"a\"\nrollups = [\"1h\"]\n[[metric]]\nname = \"b\"\n[[metric]]\nname = \"a_1h\"\n";
        let message = rejected(config, "127.0.0.1:0");
        assert!(message.contains("line 7") && message.contains("\"a\""), "{message}");
    }
}
