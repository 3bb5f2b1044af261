//! The settings of the serving layer: the sections `[http]` and `[sql]`, with their defaults and rules. Must not know
//! where settings are written.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// The sections of this layer with the default of every setting, for the reference of all settings.
pub const DEFAULTS: &str = include_str!("settings.toml");

/// The smallest memory in bytes in which a query can be planned and sorted.
const SMALLEST_QUERY_MEMORY: usize = 64 << 20;
/// The longest time that a request may be allowed to wait for a position.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// Two addresses as they are written.
const ADDRESS_EXAMPLE: &str = "\"127.0.0.1:8080\" or \"localhost:8080\"";

/// The settings of the serving layer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `[http]`
    pub http: HttpSettings,
    /// `[sql]`
    pub sql: SqlSettings,
}

/// The HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// The address of the API, `HOST:PORT`; see [`Self::address`].
    pub listen: String,
    /// Whether the address may be reachable from other machines.
    pub allow_remote: bool,
    /// The longest time that a request may wait until the answer covers its position; 1 hour at most.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// Connections at a time; 1 at least.
    pub max_connections: usize,
    /// How long a connection may be without a complete request; 1 s at least.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long a client may neither send nor receive a byte within a request or an answer; 1 s at least.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// Bytes of the bodies of all requests in progress; see [`Self::check_max_body`].
    #[serde(deserialize_with = "bytes")]
    pub max_bodies: usize,
}

/// What SQL queries may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlSettings {
    /// Bytes of memory for all queries together, 64 MiB at least; `None` (written `"0B"`): a share of the machine's.
    #[serde(deserialize_with = "bytes_or_none")]
    pub memory: Option<usize>,
    /// Bytes on disk for what does not fit into memory.
    #[serde(deserialize_with = "bytes")]
    pub spill: usize,
    /// The longest time of one query, including the time in the queue and the time to send its answer; 100 ms at least.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    /// Rows of one answer; 1 at least.
    pub max_rows: usize,
    /// Threads of one query; `None` (written `0`): by the number of processors.
    #[serde(deserialize_with = "number_or_none")]
    pub threads: Option<NonZeroUsize>,
    /// Queries that run at a time and take longer than a moment; 1 at least.
    pub long_queries: usize,
    /// Queries in the queue.
    pub waiting: usize,
    /// The longest time in the queue.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

/// A setting that can be read and cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unworkable {
    /// The section that it is in.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// What is wrong; follows the name of the setting.
    pub problem: String,
    /// A value that can work, as it is written.
    pub example: &'static str,
}

impl Settings {
    /// All settings that cannot work.
    pub fn check(&self) -> Vec<Unworkable> {
        let (http, sql, second) = (&self.http, &self.sql, Duration::from_secs(1));
        let rules = [
            (!is_address(&http.listen)).then(|| listen(format!("is {:?}, which is not HOST:PORT", http.listen))),
            at_most(("http", "max_wait"), http.max_wait, LONGEST_WAIT, "\"60s\""),
            at_least_one(("http", "max_connections"), http.max_connections, "4096"),
            at_least(("http", "idle_timeout"), http.idle_timeout, second, "\"60s\""),
            at_least(("http", "stall_timeout"), http.stall_timeout, second, "\"30s\""),
            sql.memory.filter(|memory| *memory < SMALLEST_QUERY_MEMORY).map(|memory| Unworkable {
                section: "sql",
                key: "memory",
                problem: format!(
                    "is {memory} bytes, so that no query would fit; at least 64MiB, or 0B for a share of the machine's"
                ),
                example: "\"1GiB\"",
            }),
            at_least(("sql", "time"), sql.time, Duration::from_millis(100), "\"10m\""),
            at_least_one(("sql", "max_rows"), sql.max_rows, "100000000"),
            at_least_one(("sql", "long_queries"), sql.long_queries, "4"),
        ];
        rules.into_iter().flatten().collect()
    }
}

impl HttpSettings {
    /// What is wrong where one body may be larger (`max_body` bytes) than all bodies together; the layer that reads the
    /// bodies says how large one may be.
    pub fn check_max_body(&self, max_body: usize) -> Option<Unworkable> {
        (self.max_bodies < max_body).then(|| Unworkable {
            section: "http",
            key: "max_bodies",
            problem: format!(
                "is {} bytes, less than one body may have ([ingest] max_body is {max_body})",
                self.max_bodies
            ),
            example: "\"256MiB\"",
        })
    }

    /// Looks up the address of the API; where a name such as `localhost` has several, an IPv4 one.
    ///
    /// # Errors
    /// When there is no such address, or other machines can reach it and `allow_remote` is false.
    pub fn address(&self) -> Result<SocketAddr, Unworkable> {
        let text = &self.listen;
        if !is_address(text) {
            return Err(listen(format!("is {text:?}, which is not HOST:PORT")));
        }
        let found = text.to_socket_addrs().map_err(|error| {
            listen(format!("is {text:?}, which is not an address to listen on ({error})"))
        })?;
        let address = found
            .min_by_key(SocketAddr::is_ipv6)
            .ok_or_else(|| listen(format!("is {text:?}, and that name has no address")))?;
        if !address.ip().is_loopback() && !self.allow_remote {
            return Err(listen(format!(
                "is {address}, which other machines can reach, and Wye has no authentication; listen on 127.0.0.1, or set \
                 allow_remote = true in [http] if a proxy in front of it authenticates"
            )));
        }
        Ok(address)
    }
}

/// Whether a text is `HOST:PORT`; the host is not looked up.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// A section and a key in it.
type Name = (&'static str, &'static str);

fn listen(problem: String) -> Unworkable {
    unworkable(("http", "listen"), problem, ADDRESS_EXAMPLE)
}

fn at_least(name: Name, value: Duration, least: Duration, example: &'static str) -> Option<Unworkable> {
    (value < least)
        .then(|| unworkable(name, format!("is {value:?}, and must be {least:?} at least"), example))
}

fn at_most(name: Name, value: Duration, most: Duration, example: &'static str) -> Option<Unworkable> {
    (value > most).then(|| unworkable(name, format!("is {value:?}, and must be {most:?} at most"), example))
}

fn at_least_one(name: Name, value: usize, example: &'static str) -> Option<Unworkable> {
    (value == 0).then(|| unworkable(name, "is 0, and must be 1 at least".to_owned(), example))
}

fn unworkable((section, key): Name, problem: String, example: &'static str) -> Unworkable {
    Unworkable { section, key, problem, example }
}

/// Reads a size such as `"64MiB"`.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let unit = match text[digits.len()..].trim() {
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "" | "B" => Some(1_usize),
        _ => None,
    };
    let (Some(unit), Ok(count)) = (unit, digits.parse::<usize>()) else {
        return Err(serde::de::Error::custom(format!("{text:?} is not a size; write for example \"64MiB\"")));
    };
    count
        .checked_mul(unit)
        .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is more than this machine can count")))
}

/// The same; `None` for no bytes.
fn bytes_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(Some(bytes(deserializer)?).filter(|bytes| *bytes > 0))
}

/// Reads a number; `None` for 0.
fn number_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroUsize>, D::Error> {
    Ok(NonZeroUsize::new(usize::deserialize(deserializer)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Settings {
        toml::from_str(DEFAULTS).unwrap()
    }

    #[test]
    fn the_defaults_work() {
        let defaults = defaults();
        assert_eq!(defaults.check(), []);
        assert_eq!((defaults.sql.memory, defaults.sql.threads), (None, None));
        assert_eq!((defaults.sql.spill, defaults.http.max_bodies), (10 << 30, 256 << 20));
        assert_eq!(defaults.http.check_max_body(64 << 20), None);
        assert_eq!(defaults.http.address().unwrap().to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn each_setting_that_cannot_work_is_named_with_one_that_can() {
        let settings = Settings {
            http: HttpSettings {
                listen: "8080".to_owned(),
                allow_remote: false,
                max_wait: Duration::from_secs(3_601),
                max_connections: 0,
                idle_timeout: Duration::ZERO,
                stall_timeout: Duration::ZERO,
                max_bodies: 0,
            },
            sql: SqlSettings {
                memory: Some(1),
                spill: 0,
                time: Duration::ZERO,
                max_rows: 0,
                threads: None,
                long_queries: 0,
                waiting: 0,
                patience: Duration::ZERO,
            },
        };
        let mut wrong = settings.check();
        wrong.extend(settings.http.check_max_body(1));
        let keys: Vec<&str> = wrong.iter().map(|wrong| wrong.key).collect();
        let expected = ["listen", "max_wait", "max_connections", "idle_timeout", "stall_timeout"];
        assert_eq!(keys[..5], expected);
        assert_eq!(keys[5..], ["memory", "time", "max_rows", "long_queries", "max_bodies"]);
        for wrong in wrong.iter().filter(|wrong| wrong.key != "listen") {
            let section = format!("[{}]\n{} = {}\n", wrong.section, wrong.key, wrong.example);
            assert!(toml::from_str::<toml::Table>(&section).is_ok(), "{section}");
        }
    }

    #[test]
    fn other_machines_reach_the_api_only_where_that_is_allowed() {
        let mut http = defaults().http;
        for (text, word) in
            [("nowhere", "HOST:PORT"), ("0.0.0.0:0", "allow_remote"), ("[::]:0", "allow_remote")]
        {
            http.listen = text.to_owned();
            let refused = http.address().unwrap_err();
            assert!(refused.problem.contains(word), "{refused:?}");
        }
        http.allow_remote = true;
        assert!(http.address().is_ok());
        http.listen = "localhost:8080".to_owned();
        assert!(http.address().is_ok_and(|address| address.ip().is_loopback() && address.is_ipv4()));
    }

    #[test]
    fn unknown_settings_and_sizes_that_are_none_are_refused() {
        assert!(toml::from_str::<Settings>(&format!("{DEFAULTS}\nunknown = 1\n")).is_err());
        for size in ["64", "MiB", "1TiB", "-1MiB", "99999999999GiB"] {
            let settings = DEFAULTS.replace("\"256MiB\"", &format!("\"{size}\""));
            assert_eq!(toml::from_str::<Settings>(&settings).is_ok(), size == "64", "{size}");
        }
    }
}
