//! The loader with the settings of some other program.

use super::*;

/// Settings of another program.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    pump: Pump,
    #[serde(default)]
    metric: Vec<MetricConfig>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Pump {
    #[serde(deserialize_with = "value::byte_size")]
    buffer: usize,
    count: usize,
    key: String,
}

const DEFAULTS: &str = "[pump]\nbuffer = \"1KiB\"\ncount = 2\nkey = \"\"\n";

impl Settings for Written {
    const SECRET: &'static [&'static str] = &["key"];

    fn check(&self) -> Vec<Unworkable> {
        let count = Setting { section: "pump", key: "count", example: "2" };
        count.at_least_one(self.pump.count).into_iter().collect()
    }
}

fn read(text: &str, environment: &[(&str, &str)]) -> Result<Written, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(DEFAULTS, Some(file.path()), environment)
}

#[test]
fn the_environment_is_above_the_file_and_the_file_above_the_defaults() {
    let written = read("[pump]\nbuffer = \"2KiB\"\ncount = 3\n", &[("WYE_PUMP__COUNT", "4"), ("PATH", "x")]);
    let Written { pump, metric } = written.unwrap();
    assert_eq!((pump.buffer, pump.count, pump.key.as_str()), (2 << 10, 4, ""));
    assert!(metric.is_empty());
}

#[test]
fn all_problems_come_at_once_each_with_its_place_and_what_to_write() {
    let text = "[pump]\nbuffer = \"some\"\ncolour = 1\n\n[pmp]\n[[metric]]\nname = 7\n";
    let message = read(text, &[("WYE_PUMP__COUNT", "0")]).unwrap_err().to_string();
    assert!(message.starts_with("5 settings cannot be used:\n"), "{message}");
    for words in [
        "line 2: `buffer` in [pump] cannot be \"some\"",
        "write for example buffer = \"1KiB\"",
        "line 3: there is no setting `colour` in [pump]; there are buffer, count, key",
        "line 5: there is no section [pmp]; there are [pump] and [[metric]]",
        "line 7: ",
        "environment variable WYE_PUMP__COUNT: `count` in [pump] is 0, and must be at least 1; write for example count = 2",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn what_may_be_secret_is_not_in_an_error() {
    let message = read("[pump]\nkey = [\"s3cret\"]\n", &[]).unwrap_err().to_string();
    assert!(message.contains("`key`") && !message.contains("s3cret"), "{message}");
}
