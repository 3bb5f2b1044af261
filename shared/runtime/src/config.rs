//! Configuration: what was written, read strictly, with the place of every mistake, all of them at once.
//!
//! Order: defaults (`default.toml`, the reference) < file < environment. Flags are applied by the program. Durations
//! are written `"30s"`, sizes `"64MiB"`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use wye_domain::registry::{Registry, RegistryConfig};
use wye_domain::time::Micros;
use wye_metrics::definition::{Definition, MetricConfig};

/// The embedded reference of all settings.
pub const DEFAULTS: &str = include_str!("default.toml");

mod rules;
mod written;

use written::Written;

/// The prefix of environment variables; the section and the key follow, parted by two underscores.
pub const ENVIRONMENT_PREFIX: &str = "WYE_";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}; check the path and its permissions")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or variable holds something else than settings, or a setting that cannot work.
    #[error("{place}: {problem}")]
    Parse {
        /// The file with the line, or the environment variable.
        place: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// Several of them.
    #[error("{} settings cannot be used:{}", .0.len(), listed(.0))]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// All problems as one error; `Ok` where there is none.
    ///
    /// # Errors
    /// The problem, or all of them.
    pub fn all(mut problems: Vec<Self>) -> Result<(), Self> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(Self::Several(problems)),
        }
    }
}

/// One problem a line.
fn listed(problems: &[ConfigError]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// All settings; see `default.toml` for units, defaults and reasons.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Kafka.
    pub log: LogSection,
    /// The API's address.
    pub http: HttpSection,
    /// Delta tables.
    pub tables: TablesSection,
    /// Device registry.
    pub registry: RegistrySection,
    /// Accepting readings.
    pub ingest: IngestSection,
    /// Speed layer.
    pub speed: SpeedSection,
    /// Archiver.
    pub archive: ArchiveSection,
    /// Batch layer.
    pub batch: BatchSection,
    /// Queries.
    pub sql: SqlSection,
    /// Metric definitions as written.
    #[serde(default)]
    pub metric: Vec<MetricConfig>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct LogSection {
    pub bootstrap_servers: String,
    pub kafka_partitions: i32,
    pub replication_factor: i32,
    #[serde(deserialize_with = "embedded_port")]
    pub embedded_port: EmbeddedPort,
    pub embedded_connections: usize,
    #[serde(with = "humantime_serde")]
    pub embedded_idle: Duration,
    #[serde(deserialize_with = "byte_size")]
    pub embedded_memory: usize,
    #[serde(deserialize_with = "byte_size")]
    pub embedded_max_batch: usize,
    pub client: BTreeMap<String, Secret>,
    pub sasl_password: Secret,
    pub sasl_password_file: String,
}

/// A setting that may be secret: nothing shows it but [`Self::reveal`].
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What it is.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() { "\"\"" } else { "\"(not shown)\"" })
    }
}

impl LogSection {
    /// The properties of the Kafka client, with the password from where it was written; a password file is relative to
    /// the configuration file's folder.
    ///
    /// # Errors
    /// [`ConfigError`] when the password file cannot be read, or there are two passwords.
    pub fn client_properties(&self, file: Option<&Path>) -> Result<BTreeMap<String, String>, ConfigError> {
        const PASSWORD: &str = "sasl.password";
        let client = self.client.iter();
        let mut properties: BTreeMap<String, String> =
            client.map(|(property, value)| (property.clone(), value.0.clone())).collect();
        let mut passwords: Vec<String> = properties.remove(PASSWORD).into_iter().collect();
        passwords.extend((!self.sasl_password.0.is_empty()).then(|| self.sasl_password.0.clone()));
        if !self.sasl_password_file.is_empty() {
            let base = file.and_then(Path::parent).unwrap_or(Path::new(""));
            let path = base.join(&self.sasl_password_file);
            let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path, source })?;
            passwords.push(text.trim_end_matches(['\r', '\n']).to_owned());
        }
        if passwords.len() > 1 {
            let problem = "the password for Kafka is written more than once; keep one of sasl_password, \
                           sasl_password_file and client.\"sasl.password\"";
            return Err(ConfigError::Parse { place: "[log]".to_owned(), problem: problem.to_owned() });
        }
        properties.extend(passwords.pop().map(|password| (PASSWORD.to_owned(), password)));
        Ok(properties)
    }
}

/// The port of the embedded broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddedPort {
    /// Kafka's own, or a free one if that is taken.
    Default,
    /// This one, or Wye does not start; 0 is a free one.
    Only(u16),
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct HttpSection {
    pub listen: String,
    pub allow_remote: bool,
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    pub max_connections: usize,
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    #[serde(deserialize_with = "byte_size")]
    pub max_bodies: usize,
}

/// `[tables]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct TablesSection {
    pub root: String,
}

/// `[registry]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct RegistrySection {
    pub file: String,
}

/// `[ingest]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct IngestSection {
    #[serde(deserialize_with = "byte_size")]
    pub max_body: usize,
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    #[serde(deserialize_with = "event_time")]
    pub earliest_event_time: Micros,
    #[serde(with = "humantime_serde")]
    pub max_future: Duration,
}

/// `[speed]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct SpeedSection {
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
    #[serde(with = "humantime_serde")]
    pub epoch_interval: Duration,
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Duration,
    pub duplicate_entries: usize,
    #[serde(with = "humantime_serde")]
    pub answer_patience: Duration,
}

/// `[archive]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct ArchiveSection {
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    pub max_rows: usize,
    #[serde(with = "humantime_serde")]
    pub keep_dead_letters: Duration,
}

/// `[batch]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct BatchSection {
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    #[serde(with = "humantime_serde")]
    pub keep_versions: Duration,
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

/// `[sql]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every setting")]
pub struct SqlSection {
    #[serde(deserialize_with = "byte_size")]
    pub memory: usize,
    #[serde(deserialize_with = "byte_size")]
    pub spill: usize,
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    pub max_rows: usize,
    pub threads: usize,
    pub long_queries: usize,
    pub waiting: usize,
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

impl Config {
    /// Reads the defaults, the file if one is given, and the environment's variables (all of them; others than
    /// Wye's are passed over), and checks that every setting can work.
    ///
    /// # Errors
    /// [`ConfigError`] naming file and line or variable, and what to write instead, for all problems at once.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut written = Written::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            written.take_file(path, &text)?;
        }
        for (variable, value) in environment {
            written.take_variable(&variable, value);
        }
        let (settings, mut problems) = written.finish();
        let config = Self::deserialize(settings).map_err(|error| ConfigError::Parse {
            place: "the settings".to_owned(),
            problem: error.to_string().trim().replace('\n', " "),
        });
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                problems.errors.push(error);
                return Err(ConfigError::Several(problems.errors));
            }
        };
        for unworkable in rules::check(&config) {
            problems.refuse(&unworkable);
        }
        ConfigError::all(problems.errors)?;
        Ok(config)
    }

    /// Checks the metric definitions; `file` is where they were written.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line, key, problem and what to write instead.
    pub fn definitions(&self, file: Option<&Path>) -> Result<Vec<Definition>, ConfigError> {
        let (mut definitions, mut problems): (Vec<Definition>, Vec<ConfigError>) = Default::default();
        for (index, metric) in self.metric.iter().enumerate() {
            match Definition::check(metric) {
                Ok(definition) => definitions.push(definition),
                Err(error) => {
                    let text = error.to_string();
                    let key = text.split("key \"").nth(1).and_then(|rest| rest.split('"').next());
                    problems.push(definition_error(file, index, key.unwrap_or("name"), &text));
                }
            }
        }
        for (index, metric) in self.metric.iter().enumerate() {
            if let Some(problem) = view_taken(&self.metric, &metric.name) {
                problems.push(definition_error(file, index, "name", &problem));
            }
        }
        ConfigError::all(problems)?;
        Ok(definitions)
    }

    /// Reads the device registry that the settings name; relative to the configuration file's folder.
    ///
    /// # Errors
    /// [`ConfigError`] naming the registry file, the entry and what to write instead.
    pub fn registry(&self, file: Option<&Path>) -> Result<Registry, ConfigError> {
        if self.registry.file.is_empty() {
            return Ok(Registry::default());
        }
        let base = file.and_then(Path::parent).unwrap_or(Path::new(""));
        let path = base.join(&self.registry.file);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let place = path.display().to_string();
        let written: RegistryConfig =
            toml::from_str(&text).map_err(|error| parse_error(&place, &text, &error))?;
        Registry::check(written).map_err(|error| ConfigError::Parse { place, problem: error.to_string() })
    }
}

/// What is wrong where a metric's name is the name of another one's view of a rollup.
fn view_taken(others: &[MetricConfig], name: &str) -> Option<String> {
    others.iter().find_map(|other| {
        let view = other
            .rollups
            .iter()
            .map(|rollup| format!("{}_{rollup}", other.name))
            .find(|view| view == name)?;
        Some(format!(
            "{view:?} is the view of a rollup of the metric {:?}; give this one another name",
            other.name
        ))
    })
}

/// An error in the n-th `[[metric]]` of a file, with the line of the key.
pub fn definition_error(file: Option<&Path>, index: usize, key: &str, problem: &str) -> ConfigError {
    let text = file.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let name = file.map_or_else(|| "metric definitions".to_owned(), |path| path.display().to_string());
    let place = match line_of_definition(&text, index, key) {
        Some(line) => format!("{name}, line {line}"),
        None => name,
    };
    ConfigError::Parse { place, problem: problem.to_owned() }
}

/// The 1-based line of a key in the n-th `[[metric]]`, or of its header where the key is absent.
fn line_of_definition(text: &str, index: usize, key: &str) -> Option<usize> {
    let mut headers =
        text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[metric]]"));
    let (start, _) = headers.nth(index)?;
    let own =
        text.lines().enumerate().skip(start + 1).take_while(|(_, line)| !line.trim_start().starts_with('['));
    let key_line = own.into_iter().find(|(_, line)| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    Some(key_line.map_or(start, |(line, _)| line) + 1)
}

fn parse_error(place: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map_or_else(|| place.to_owned(), |line| format!("{place}, line {line}"));
    ConfigError::Parse { place, problem: error.message().replace('\n', " ") }
}

/// Reads a size such as `"64MiB"`, for settings in bytes.
///
/// # Errors
/// When the text is no size.
pub fn byte_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let unit = match text[digits.len()..].trim() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" | "B" => 1,
        _ => {
            return Err(serde::de::Error::custom(format!(
                "{text:?} is no size; write for example \"64MiB\""
            )));
        }
    };
    let count: usize = digits
        .parse()
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no size; write for example \"64MiB\"")))?;
    count
        .checked_mul(unit)
        .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is more than this machine can count")))
}

fn embedded_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EmbeddedPort, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(i64),
        Text(String),
    }
    let written = match Written::deserialize(deserializer)? {
        Written::Text(text) if text == "default" => return Ok(EmbeddedPort::Default),
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    };
    written.parse().map(EmbeddedPort::Only).map_err(|_| {
        serde::de::Error::custom(format!(
            "{written:?} is no port; write a number from 0 to 65535, or \"default\" for 9092 or a free one"
        ))
    })
}

fn event_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
    let text = String::deserialize(deserializer)?;
    wye_domain::time::parse_rfc3339(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn message(text: &str) -> String {
        let file = file(text);
        let config = match Config::load(Some(file.path()), []) {
            Err(error) => return error.to_string(),
            Ok(config) => config,
        };
        config.definitions(Some(file.path())).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_complete() {
        let config = Config::load(None, []).unwrap();
        assert_eq!(config.ingest.max_body, 64 << 20);
        assert_eq!(config.speed.flush_interval, Duration::from_millis(100));
        assert_eq!((config.sql.memory, config.sql.spill), (0, 10 << 30));
        assert!(config.definitions(None).unwrap().is_empty());
    }

    #[test]
    fn the_file_and_the_environment_override() {
        let file = file("[log]\nkafka_partitions = 2\n[speed]\nflush_interval = \"1s\"\n");
        let environment =
            [("WYE_SPEED__FLUSH_INTERVAL".to_owned(), "2s".to_owned()), ("PATH".to_owned(), "x".to_owned())];
        let config = Config::load(Some(file.path()), environment).unwrap();
        assert_eq!((config.log.kafka_partitions, config.speed.flush_interval), (2, Duration::from_secs(2)));
    }

    #[test]
    fn a_password_comes_from_one_place_and_is_shown_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "s3cret\n").unwrap();
        let path = folder.path().join("wye.toml");
        let variable = [("WYE_LOG__SASL_PASSWORD".to_owned(), "s3cret".to_owned())];
        for (text, environment) in [
            ("[log]\nclient = { \"sasl.password\" = \"s3cret\", \"sasl.username\" = \"wye\" }\n", None),
            ("[log]\nsasl_password_file = \"password\"\nclient = { \"sasl.username\" = \"wye\" }\n", None),
            ("[log]\nclient = { \"sasl.username\" = \"wye\" }\n", Some(variable.clone())),
        ] {
            std::fs::write(&path, text).unwrap();
            let config = Config::load(Some(&path), environment.into_iter().flatten()).unwrap();
            let properties = config.log.client_properties(Some(&path)).unwrap();
            assert_eq!(properties["sasl.password"], "s3cret");
            assert_eq!(properties["sasl.username"], "wye");
            assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
        }
        std::fs::write(&path, "[log]\nsasl_password_file = \"password\"\n").unwrap();
        let twice = Config::load(Some(&path), variable).unwrap();
        let error = twice.log.client_properties(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("more than once") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_embedded_port_is_a_number_or_the_default() {
        let port = |written: &str| {
            let variable = ("WYE_LOG__EMBEDDED_PORT".to_owned(), written.to_owned());
            Config::load(None, [variable]).map(|config| config.log.embedded_port)
        };
        assert_eq!(Config::load(None, []).unwrap().log.embedded_port, EmbeddedPort::Default);
        assert_eq!(port("9094").unwrap(), EmbeddedPort::Only(9094));
        assert!(port("70000").unwrap_err().to_string().contains("65535"));
        let file = file("[log]\nembedded_port = 0\n");
        assert_eq!(Config::load(Some(file.path()), []).unwrap().log.embedded_port, EmbeddedPort::Only(0));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, words) in [
            ("[log\n", vec!["line 1"]),
            ("\n[log]\nkafka_partition = 2\n", vec!["line 3", "`kafka_partition`", "kafka_partitions"]),
            ("[sped]\n", vec!["line 1", "[speed]"]),
            ("[speed]\nflush_interval = 5\n", vec!["line 2", "flush_interval = \"100ms\""]),
            (
                "[[metric]]\nname = \"a\"\n[[metric]]\nname = \"b\"\nwindow = \"soon\"\n",
                vec!["line 5", "write for example"],
            ),
            ("[[metric]]\nname = \"a b\"\n", vec!["line 2", "letters"]),
            ("[[metric]]\nname = \"a\"\n[[metric]]\nname = \"b\"\nwhen = \"x\"\n", vec!["line 5", "`when`"]),
        ] {
            let message = message(text);
            for word in words {
                assert!(message.contains(word), "{message}");
            }
        }
        let bad = [("WYE_LOG__KAFKA_PARTITIONS".to_owned(), "many".to_owned())];
        assert!(Config::load(None, bad).unwrap_err().to_string().contains("WYE_LOG__KAFKA_PARTITIONS"));
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_one_that_can() {
        for (text, words) in [
            ("[ingest]\nmax_body = \"0\"\n", ["line 2", "max_body = \"64MiB\""]),
            ("[speed]\nflush_interval = \"0s\"\n", ["line 2", "flush_interval = \"100ms\""]),
            ("[speed]\nepoch_interval = \"50ms\"\n", ["flush_interval (100ms)", "epoch_interval = \"10s\""]),
            ("[log]\nkafka_partitions = 0\n", ["line 2", "kafka_partitions = 4"]),
            ("[log]\nbootstrap_servers = \"kafka\"\n", ["\"kafka\"", "kafka-1:9092"]),
            ("[http]\nlisten = \"8080\"\n", ["line 2", "localhost:8080"]),
            ("[archive]\nmax_rows = 0\n", ["line 2", "max_rows = 1000000"]),
            ("[archive]\ninterval = \"0s\"\n", ["line 2", "interval = \"2s\""]),
            ("[batch]\nkeep_versions = \"0s\"\n", ["line 2", "keep_versions = \"15m\""]),
            ("[ingest]\nmax_body = \"99999999999GiB\"\n", ["line 2", "64MiB"]),
        ] {
            let message = message(text);
            for word in words {
                assert!(message.contains(word), "{message}");
            }
        }
        assert!(Config::load(Some(file("[batch]\ninterval = \"0s\"\n").path()), []).is_ok());
    }

    #[test]
    fn all_problems_come_at_once_each_with_its_place() {
        let file = file(
            "[ingest]\nmax_body = \"0\"\n\n[speed]\nflush_interval = \"soon\"\nepoch = 1\n[[metric]]\nname = 7\n",
        );
        let environment = [
            ("WYE_LOG__KAFKA_PARTITIONS".to_owned(), "0".to_owned()),
            ("WYE_HTTP__ALLOW_REMOTE".to_owned(), "true".to_owned()),
        ];
        let message = Config::load(Some(file.path()), environment).unwrap_err().to_string();
        assert!(message.starts_with("5 settings cannot be used:\n"), "{message}");
        for word in ["line 2: ", "line 5: ", "line 6: ", "line 8: ", "variable WYE_LOG__KAFKA_PARTITIONS: "] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn every_kind_of_setting_can_come_from_the_environment() {
        let environment = [
            ("WYE_HTTP__ALLOW_REMOTE", "true"),
            ("WYE_LOG__CLIENT", "{ \"client.id\" = \"x\" }"),
            ("WYE_SPEED__DUPLICATE_ENTRIES", "7"),
        ]
        .map(|(variable, value)| (variable.to_owned(), value.to_owned()));
        let config = Config::load(None, environment).unwrap();
        assert!(config.http.allow_remote && config.log.client.contains_key("client.id"));
        assert_eq!(config.speed.duplicate_entries, 7);
    }
}
