//! The settings of the program as users write them.

use std::time::Duration;

use super::*;

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn message(text: &str) -> String {
    let file = file(text);
    let config = match Settings::load(Some(file.path()), []) {
        Err(error) => return error.to_string(),
        Ok(config) => config,
    };
    config::definitions(&config.metric, Some(file.path())).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_complete() {
    let config = Settings::load(None, []).unwrap();
    assert_eq!(config.ingest.max_body, 64 << 20);
    assert_eq!(config.speed.flush_interval, Duration::from_millis(100));
    assert_eq!((config.sql.memory, config.sql.spill), (None, 10 << 30));
    assert!(config.metric.is_empty());
}

#[test]
fn the_file_and_the_environment_override() {
    let file = file("[log]\nkafka_partitions = 2\n[speed]\nflush_interval = \"1s\"\n");
    let environment =
        [("WYE_SPEED__FLUSH_INTERVAL".to_owned(), "2s".to_owned()), ("PATH".to_owned(), "x".to_owned())];
    let config = Settings::load(Some(file.path()), environment).unwrap();
    assert_eq!((config.log.kafka_partitions, config.speed.flush_interval), (2, Duration::from_secs(2)));
}

#[test]
fn a_password_comes_from_one_place_and_is_never_shown() {
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
        let config = Settings::load(Some(&path), environment.into_iter().flatten()).unwrap();
        let properties = config.log.client_properties(Some(&path)).unwrap();
        assert_eq!(properties["sasl.password"], "s3cret");
        assert_eq!(properties["sasl.username"], "wye");
        assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
    }
    std::fs::write(&path, "[log]\nsasl_password_file = \"password\"\n").unwrap();
    let twice = Settings::load(Some(&path), variable).unwrap();
    let error = twice.log.client_properties(Some(&path)).unwrap_err().to_string();
    assert!(error.contains("more than once") && !error.contains("s3cret"), "{error}");
}

#[test]
fn the_secret_for_s3_comes_from_one_place_and_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "s3cret\n").unwrap();
    let path = folder.path().join("wye.toml");
    let variable = ("WYE_TABLES__S3_SECRET_ACCESS_KEY".to_owned(), "s3cret".to_owned());
    let options = |text: &str, environment: Option<&(String, String)>| {
        std::fs::write(&path, format!("[tables]\n{text}")).unwrap();
        let config = Settings::load(Some(&path), environment.cloned()).unwrap();
        let options = config.tables.s3_options(Some(&path));
        assert!(!format!("{config:?} {options:?}").contains("s3cret"), "{config:?} {options:?}");
        options
    };
    let (id, file) = ("s3_access_key_id = \"wye\"\n", "s3_secret_access_key_file = \"secret\"\n");
    for (text, environment) in [
        (format!("{id}s3_secret_access_key = \"s3cret\"\n"), None),
        (format!("{id}{file}"), None),
        (id.to_owned(), Some(&variable)),
    ] {
        let keys = options(&text, environment).unwrap().keys.unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("wye", "s3cret"));
    }
    assert_eq!(options("", None).unwrap().keys, None);
    for (text, environment, word) in [
        (format!("{id}{file}"), Some(&variable), "written twice"),
        (id.to_owned(), None, "has no secret"),
        (file.to_owned(), None, "has no s3_access_key_id"),
    ] {
        let error = options(&text, environment).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    std::fs::write(&path, "[tables]\ns3_secret_access_key = 57123\n").unwrap();
    let error = Settings::load(Some(&path), []).unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains("57123"), "{error}");
}

fn port(written: &str) -> Result<EmbeddedPort, ConfigError> {
    let variable = ("WYE_LOG__EMBEDDED_PORT".to_owned(), written.to_owned());
    Settings::load(None, [variable]).map(|config| config.log.embedded_port)
}

#[test]
fn the_embedded_port_is_a_number_or_the_default() {
    assert_eq!(Settings::load(None, []).unwrap().log.embedded_port, EmbeddedPort::Default);
    assert_eq!(port("9094").unwrap(), EmbeddedPort::Only(9094));
    assert!(port("70000").unwrap_err().to_string().contains("65535"));
    let file = file("[log]\nembedded_port = 0\n");
    assert_eq!(Settings::load(Some(file.path()), []).unwrap().log.embedded_port, EmbeddedPort::Only(0));
}

#[test]
fn mistakes_are_reported_with_their_line() {
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
    assert!(Settings::load(None, bad).unwrap_err().to_string().contains("WYE_LOG__KAFKA_PARTITIONS"));
}

#[test]
fn settings_that_cannot_work_are_rejected_with_an_example() {
    for (text, words) in [
        ("[ingest]\nmax_body = \"0\"\n", ["line 2", "max_body = \"64MiB\""]),
        ("[speed]\nflush_interval = \"0s\"\n", ["line 2", "flush_interval = \"100ms\""]),
        ("[speed]\nepoch_interval = \"50ms\"\n", ["flush_interval (100ms)", "epoch_interval = \"10s\""]),
        ("[log]\nkafka_partitions = 0\n", ["line 2", "kafka_partitions = 4"]),
        ("[log]\nbootstrap_servers = \"kafka\"\n", ["\"kafka\"", "kafka-1:9092"]),
        ("[http]\nlisten = \"8080\"\n", ["line 2", "localhost:8080"]),
        ("[tables]\ns3_endpoint = \"http://minio:9000\"\n", ["line 2", "s3_allow_http = true"]),
        ("[tables]\ns3_endpoint = \"minio:9000\"\n", ["line 2", "https://"]),
        ("[tables]\ns3_request_timeout = \"0s\"\n", ["line 2", "s3_request_timeout = \"30s\""]),
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
    assert!(Settings::load(Some(file("[batch]\ninterval = \"0s\"\n").path()), []).is_ok());
}

#[test]
fn all_problems_are_reported_at_once_each_with_its_place() {
    let file = file(
        "[ingest]\nmax_body = \"0\"\n\n[speed]\nflush_interval = \"soon\"\nepoch = 1\n[[metric]]\nname = 7\n",
    );
    let environment = [
        ("WYE_LOG__KAFKA_PARTITIONS".to_owned(), "0".to_owned()),
        ("WYE_HTTP__ALLOW_REMOTE".to_owned(), "true".to_owned()),
    ];
    let message = Settings::load(Some(file.path()), environment).unwrap_err().to_string();
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
    let config = Settings::load(None, environment).unwrap();
    assert!(config.http.allow_remote && config.log.client.contains_key("client.id"));
    assert_eq!(config.speed.duplicate_entries, 7);
}
