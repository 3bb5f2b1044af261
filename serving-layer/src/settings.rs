//! The settings of the serving layer: the sections `[http]` and `[sql]`, with their defaults and rules. Must not know
//! where settings are written.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;
use wye_runtime::config::value::{byte_size, byte_size_or_none, number_or_none};
use wye_runtime::config::{Setting, Unworkable, is_address};

/// The sections of this layer with the default of every setting, for the reference of all settings.
pub const DEFAULTS: &str = include_str!("settings.toml");

/// The smallest memory in bytes in which a query can be planned and sorted.
const SMALLEST_QUERY_MEMORY: usize = 64 << 20;
/// The longest time that a request may be allowed to wait for a position.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

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
    #[serde(deserialize_with = "byte_size")]
    pub max_bodies: usize,
}

/// What SQL queries may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlSettings {
    /// Bytes of memory for all queries together, 64 MiB at least; `None` (written `"0B"`): a share of the machine's.
    #[serde(deserialize_with = "byte_size_or_none")]
    pub memory: Option<usize>,
    /// Bytes on disk for what does not fit into memory.
    #[serde(deserialize_with = "byte_size")]
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

impl Settings {
    /// All settings that cannot work.
    pub fn check(&self) -> Vec<Unworkable> {
        let second = Duration::from_secs(1);
        let too_little = self.sql.memory.filter(|memory| *memory < SMALLEST_QUERY_MEMORY).map(|memory| {
            format!("is {memory} bytes, so that no query would fit; at least 64MiB, or 0B for a share of the machine's")
        });
        let rules = [
            (!is_address(&self.http.listen))
                .then(|| listen(format!("is {:?}, which is not HOST:PORT", self.http.listen))),
            http("max_wait", "\"60s\"").at_most(self.http.max_wait, LONGEST_WAIT),
            http("max_connections", "4096").at_least_one(self.http.max_connections),
            http("idle_timeout", "\"60s\"").at_least(self.http.idle_timeout, second),
            http("stall_timeout", "\"30s\"").at_least(self.http.stall_timeout, second),
            too_little.map(|problem| sql("memory", "\"1GiB\"").cannot_work(problem)),
            sql("time", "\"10m\"").at_least(self.sql.time, Duration::from_millis(100)),
            sql("max_rows", "100000000").at_least_one(self.sql.max_rows),
            sql("long_queries", "4").at_least_one(self.sql.long_queries),
        ];
        rules.into_iter().flatten().collect()
    }
}

impl HttpSettings {
    /// What is wrong where one body may be larger (`max_body` bytes) than all bodies together; the layer that reads the
    /// bodies says how large one may be.
    pub fn check_max_body(&self, max_body: usize) -> Option<Unworkable> {
        (self.max_bodies < max_body).then(|| {
            http("max_bodies", "\"256MiB\"").cannot_work(format!(
                "is {} bytes, less than one body may have ([ingest] max_body is {max_body})",
                self.max_bodies
            ))
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

const fn http(key: &'static str, example: &'static str) -> Setting {
    Setting { section: "http", key, example }
}

const fn sql(key: &'static str, example: &'static str) -> Setting {
    Setting { section: "sql", key, example }
}

fn listen(problem: String) -> Unworkable {
    http("listen", "\"127.0.0.1:8080\" or \"localhost:8080\"").cannot_work(problem)
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
