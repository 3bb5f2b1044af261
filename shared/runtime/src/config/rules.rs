//! Which settings cannot work, though they can be read. Pure: one rule a line, each with what can be written instead.

use std::time::Duration;

use super::Config;

/// A setting that cannot work.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unworkable {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    /// Follows the name of the setting.
    pub(super) problem: String,
    /// A value that can work, as it is written.
    pub(super) example: &'static str,
}

/// The smallest body in which a reading fits with its envelope.
const SMALLEST_BODY: usize = 1 << 10;
/// The smallest memory in which a query can be planned and sorted.
const SMALLEST_QUERY_MEMORY: usize = 64 << 20;
/// The most Kafka partitions that one topic of a cluster has in practice.
const MOST_PARTITIONS: i32 = 10_000;

/// The largest message of Wye's own topics, in bytes.
const LARGEST_MESSAGE: usize = 8 << 20;
/// Connections to the embedded broker that the layers may have at a time.
const OWN_CONNECTIONS: usize = 32;

/// All settings that cannot work.
pub(super) fn check(config: &Config) -> Vec<Unworkable> {
    let mut rules = Rules::default();
    log(config, &mut rules);
    intake(config, &mut rules);
    speed(config, &mut rules);
    batch(config, &mut rules);
    sql(config, &mut rules);
    rules.broken
}

fn log(config: &Config, rules: &mut Rules) {
    let log = &config.log;
    rules.refuse_if(!(1..=MOST_PARTITIONS).contains(&log.kafka_partitions), || Unworkable {
        section: "log",
        key: "kafka_partitions",
        problem: format!("is {}, and must be 1 to {MOST_PARTITIONS}", log.kafka_partitions),
        example: "4",
    });
    rules.refuse_if(!(1..=i32::from(i16::MAX)).contains(&log.replication_factor), || Unworkable {
        section: "log",
        key: "replication_factor",
        problem: format!("is {}, and each record must be on 1 broker at least", log.replication_factor),
        example: "3",
    });
    let servers = log.bootstrap_servers.split(',').map(str::trim);
    let wrong = servers.filter(|_| !log.bootstrap_servers.is_empty()).find(|server| !is_address(server));
    if let Some(wrong) = wrong {
        rules.broken.push(Unworkable {
            section: "log",
            key: "bootstrap_servers",
            problem: format!("names {wrong:?}, which is not HOST:PORT"),
            example: "\"kafka-1:9092,kafka-2:9092\"",
        });
    }
    rules.at_least(("log", "embedded_idle"), log.embedded_idle, Duration::from_secs(1), "\"10m\"");
    for (key, bytes, example) in [
        ("embedded_memory", log.embedded_memory, "\"256MiB\""),
        ("embedded_max_batch", log.embedded_max_batch, "\"64MiB\""),
    ] {
        rules.refuse_if(bytes < LARGEST_MESSAGE, || Unworkable {
            section: "log",
            key,
            problem: format!("is {bytes} bytes, and a message of Wye may have 8MiB"),
            example,
        });
    }
    rules.refuse_if(log.embedded_connections < OWN_CONNECTIONS, || Unworkable {
        section: "log",
        key: "embedded_connections",
        problem: format!(
            "is {}, and Wye itself needs up to {OWN_CONNECTIONS} of them",
            log.embedded_connections
        ),
        example: "400",
    });
    rules.refuse_if(!is_address(&config.http.listen), || Unworkable {
        section: "http",
        key: "listen",
        problem: format!("is {:?}, which is not HOST:PORT", config.http.listen),
        example: "\"127.0.0.1:8080\" or \"localhost:8080\"",
    });
}

fn intake(config: &Config, rules: &mut Rules) {
    rules.at_most(("http", "max_wait"), config.http.max_wait, Duration::from_secs(3_600), "\"60s\"");
    rules.refuse_if(config.ingest.max_body < SMALLEST_BODY, || Unworkable {
        section: "ingest",
        key: "max_body",
        problem: format!("is {} bytes, so that no reading would fit; at least 1KiB", config.ingest.max_body),
        example: "\"64MiB\"",
    });
    let (second, ack) = (Duration::from_secs(1), Duration::from_millis(100));
    rules.at_least_one(("http", "max_connections"), config.http.max_connections, "4096");
    rules.at_least(("http", "idle_timeout"), config.http.idle_timeout, second, "\"60s\"");
    rules.at_least(("http", "stall_timeout"), config.http.stall_timeout, second, "\"30s\"");
    rules.at_least(("ingest", "ack_timeout"), config.ingest.ack_timeout, ack, "\"5s\"");
    rules.refuse_if(config.http.max_bodies < config.ingest.max_body, || Unworkable {
        section: "http",
        key: "max_bodies",
        problem: format!(
            "is {} bytes, less than one body may have ([ingest] max_body is {})",
            config.http.max_bodies, config.ingest.max_body
        ),
        example: "\"256MiB\"",
    });
    rules.at_most(("ingest", "linger"), config.ingest.linger, Duration::from_secs(60), "\"5ms\"");
    rules.at_least(("archive", "interval"), config.archive.interval, Duration::from_millis(10), "\"2s\"");
    rules.at_least_one(("archive", "max_rows"), config.archive.max_rows, "1000000");
}

fn speed(config: &Config, rules: &mut Rules) {
    let speed = &config.speed;
    let millisecond = Duration::from_millis(1);
    rules.at_least(("speed", "flush_interval"), speed.flush_interval, millisecond, "\"100ms\"");
    rules.at_most(("speed", "flush_interval"), speed.flush_interval, Duration::from_secs(60), "\"100ms\"");
    rules.refuse_if(speed.epoch_interval < speed.flush_interval || speed.epoch_interval.is_zero(), || {
        Unworkable {
            section: "speed",
            key: "epoch_interval",
            problem: format!(
                "is {:?}, shorter than flush_interval ({:?}), and an epoch has one flush at least",
                speed.epoch_interval, speed.flush_interval
            ),
            example: "\"10s\"",
        }
    });
    rules.at_least_one(("speed", "duplicate_entries"), speed.duplicate_entries, "20000000");
    rules.at_least(("speed", "answer_patience"), speed.answer_patience, Duration::from_secs(1), "\"5s\"");
}

fn batch(config: &Config, rules: &mut Rules) {
    let second = Duration::from_secs(1);
    rules.at_least(("batch", "keep_versions"), config.batch.keep_versions, second, "\"15m\"");
    let day = Duration::from_secs(86_400);
    rules.at_most(("batch", "keep_versions"), config.batch.keep_versions, day, "\"15m\"");
    rules.at_least(("batch", "patience"), config.batch.patience, second, "\"5s\"");
    rules.refuse_if(!config.batch.interval.is_zero() && config.batch.interval < second, || Unworkable {
        section: "batch",
        key: "interval",
        problem: format!(
            "is {:?}, and a run takes longer; at least 1s, or 0s for runs by hand only",
            config.batch.interval
        ),
        example: "\"60s\"",
    });
}

fn sql(config: &Config, rules: &mut Rules) {
    let sql = &config.sql;
    rules.refuse_if(sql.memory != 0 && sql.memory < SMALLEST_QUERY_MEMORY, || Unworkable {
        section: "sql",
        key: "memory",
        problem: format!(
            "is {} bytes, so that no query would fit; at least 64MiB, or 0B for a share of the machine's",
            sql.memory
        ),
        example: "\"1GiB\"",
    });
    rules.at_least(("sql", "time"), sql.time, Duration::from_millis(100), "\"10m\"");
    rules.at_least_one(("sql", "max_rows"), sql.max_rows, "100000000");
    rules.at_least_one(("sql", "long_queries"), sql.long_queries, "4");
}

/// What is broken so far.
#[derive(Default)]
struct Rules {
    broken: Vec<Unworkable>,
}

impl Rules {
    fn refuse_if(&mut self, broken: bool, what: impl FnOnce() -> Unworkable) {
        if broken {
            self.broken.push(what());
        }
    }

    fn at_least(
        &mut self,
        (section, key): (&'static str, &'static str),
        value: Duration,
        least: Duration,
        example: &'static str,
    ) {
        self.refuse_if(value < least, || Unworkable {
            section,
            key,
            problem: format!("is {value:?}, and must be {least:?} at least"),
            example,
        });
    }

    fn at_most(
        &mut self,
        (section, key): (&'static str, &'static str),
        value: Duration,
        most: Duration,
        example: &'static str,
    ) {
        self.refuse_if(value > most, || Unworkable {
            section,
            key,
            problem: format!("is {value:?}, and must be {most:?} at most"),
            example,
        });
    }

    fn at_least_one(
        &mut self,
        (section, key): (&'static str, &'static str),
        value: usize,
        example: &'static str,
    ) {
        self.refuse_if(value == 0, || Unworkable {
            section,
            key,
            problem: "is 0, and must be 1 at least".to_owned(),
            example,
        });
    }
}

/// Whether a text is `HOST:PORT`; whether the host is there is not asked.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
