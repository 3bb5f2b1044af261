//! **LOSS-1** on the real program: servers and loads are killed (`kill -9`) and stopped (SIGSTOP) at random times during loads
//! and batch runs. At the end every window is what the independent oracle computes from the source files, before a batch run
//! and after it, and the master dataset has every reading.
//!
//! Four scenarios: one server on the embedded broker, one on a real Apache Kafka, two on one Kafka that are killed, two that
//! are killed and stopped. The source files are generated, so that they need no data set.
//!
//! The times come from a seed, which is printed. `WYE_TEST_SEED` repeats them, as far as the timing of the machine allows;
//! `WYE_TEST_KILLS` sets the number of kills.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wye_tests::api::Api;
use wye_tests::datasets::{self, say};
use wye_tests::generated;
use wye_tests::kafka::Kafka;
use wye_tests::oracle::{Expectation, Oracle};
use wye_tests::process::{Process, Signal};
use wye_tests::setting;
use wye_tests::site::{Server, Site};
use wye_tests::wait;

const KILLS: usize = 20;
/// A start on a real Kafka takes longer: topics are created, and requests are not local.
const KILLS_ON_KAFKA: usize = 8;
const STATIONS: usize = 2;
const HOURS: usize = 20_000;
const ROWS_PER_PIECE: usize = 1000;
/// The longest time between two kills.
const LONGEST_ROUND: Duration = Duration::from_millis(1500);
/// The longest time that a server is stopped.
const LONGEST_STOP: Duration = Duration::from_secs(3);
/// How often the commands are checked in between.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a command may run after its server was killed, before it is killed too.
const ORPHAN_WITHIN: Duration = Duration::from_secs(10);
const LOAD_WITHIN: Duration = Duration::from_secs(120);
const BATCH_WITHIN: Duration = Duration::from_secs(60);
const SETTLE_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn loss_1_kills_lose_nothing_and_count_nothing_twice() -> Result<()> {
    let site = Site::new()?;
    check(&site, vec![site.another("data")], Fault::Kill, KILLS)
}

#[test]
fn loss_1_on_apache_kafka() -> Result<()> {
    let mut site = Site::new()?;
    let tables = local_tables(&site);
    let Some(_kafka) = on_kafka(&mut site, &tables)? else { return Ok(()) };
    check(&site, vec![site.another("data")], Fault::Kill, KILLS_ON_KAFKA)
}

#[test]
fn loss_1_two_servers_on_one_kafka() -> Result<()> {
    let mut site = Site::new()?;
    let tables = local_tables(&site);
    let Some(_kafka) = on_kafka(&mut site, &tables)? else { return Ok(()) };
    check(&site, vec![site.another("first"), site.another("second")], Fault::Kill, KILLS_ON_KAFKA)
}

#[test]
fn loss_1_two_servers_that_are_stopped() -> Result<()> {
    let mut site = Site::new()?;
    let tables = local_tables(&site);
    let Some(_kafka) = on_kafka(&mut site, &tables)? else { return Ok(()) };
    check(&site, vec![site.another("first"), site.another("second")], Fault::KillOrStop, KILLS_ON_KAFKA)
}

/// The faults of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    /// Killed, or stopped for a while.
    KillOrStop,
}

/// Configures the site for a new Kafka; `tables` is the section of tables that all servers share.
pub(super) fn on_kafka(site: &mut Site, tables: &str) -> Result<Option<Kafka>> {
    let Some(kafka) = Kafka::start(site.directory().join("kafka"))? else { return Ok(None) };
    let servers = kafka.bootstrap_servers()?;
    site.configure(&format!("[log]\nbootstrap_servers = \"{servers}\"\nkafka_partitions = 3\n{tables}"))?;
    Ok(Some(kafka))
}

/// The section of tables in a directory.
fn local_tables(site: &Site) -> String {
    format!("[tables]\nroot = \"{}\"\n", site.directory().join("tables").display())
}

/// Loads readings while servers have faults, and checks that nothing is lost or counted twice.
pub(super) fn check(site: &Site, servers: Vec<Site>, fault: Fault, kills: usize) -> Result<()> {
    let kills = setting::number("WYE_TEST_KILLS")?.map_or(kills, |kills| kills as usize);
    let seed = setting::number("WYE_TEST_SEED")?.unwrap_or_else(rand::random);
    let outcome = Scenario::prepare(site, servers, fault, seed).and_then(|scenario| scenario.run(kills));
    if let Err(error) = outcome {
        panic!("with WYE_TEST_SEED={seed}, outputs in {}: {error:#}", site.keep().display());
    }
    Ok(())
}

struct Scenario {
    sites: Vec<Site>,
    stations: Vec<PathBuf>,
    /// The same readings in many small files, so that there is something new to load in each round.
    pieces: Vec<PathBuf>,
    mapping: PathBuf,
    oracle: Oracle,
    expected: Expectation,
    random: StdRng,
    fault: Fault,
    /// The running servers, by their site.
    servers: Vec<Option<Server>>,
    /// A `wye load` whose server was killed, and the server's site.
    orphan: Option<(usize, Process)>,
}

impl Scenario {
    fn prepare(site: &Site, sites: Vec<Site>, fault: Fault, seed: u64) -> Result<Self> {
        let stations = generated::stations(STATIONS, HOURS, site.directory())?;
        let mut pieces = Vec::new();
        for station in &stations {
            pieces.extend(datasets::cut(station, ROWS_PER_PIECE, site.directory())?);
        }
        let oracle = Oracle::new("beijing", stations.clone())?;
        let expected = oracle.expectation()?;
        let (readings, files) = (expected.readings, pieces.len());
        say(&format!("LOSS-1: seed {seed}, {} servers, {readings} readings in {files} files", sites.len()));
        let mapping = datasets::mapping("beijing-multisite");
        let random = StdRng::seed_from_u64(seed);
        let servers = sites.iter().map(|_| None).collect();
        Ok(Self { sites, stations, pieces, mapping, oracle, expected, random, fault, servers, orphan: None })
    }

    fn run(mut self, kills: usize) -> Result<()> {
        for round in 0..kills {
            let files = self.pieces.len() * (round + 1) / kills;
            self.round(files).with_context(|| format!("round {round} of {kills}"))?;
        }
        let api = self.all_ready()?;
        if let Some((_, orphan)) = &mut self.orphan {
            orphan.ended_within(LOAD_WITHIN)?.context("a load does not end after its server was killed")?;
        }
        self.sites[0].load(&self.mapping, &self.pieces)?.succeed(LOAD_WITHIN).context("the last load")?;
        self.settle(&api)?;
        self.compare(&api, "before the batch run")?;
        self.sites[0].batch_run()?.succeed(BATCH_WITHIN)?;
        self.compare(&api, "after the batch run")?;
        self.check_archive(&api)?;

        self.stop_all()?;
        let api = self.all_ready()?;
        self.settle(&api)?;
        self.compare(&api, "after a clean restart")?;

        // The same readings again, in other files: all of them are duplicates.
        self.sites[0].load(&self.mapping, &self.stations)?.succeed(LOAD_WITHIN)?;
        self.sites[0].batch_run()?.succeed(BATCH_WITHIN)?;
        self.settle(&api)?;
        self.compare(&api, "after loading all of it again")?;
        self.stop_all()
    }

    /// Starts the servers that do not run, and waits until all are ready. Returns the API of the first.
    fn all_ready(&mut self) -> Result<Api> {
        for site in 0..self.sites.len() {
            self.up(site)?;
        }
        let mut first = None;
        for server in self.servers.iter_mut().flatten() {
            let api = server.ready()?;
            first.get_or_insert(api);
        }
        first.context("no server")
    }

    fn up(&mut self, site: usize) -> Result<()> {
        if self.servers[site].is_none() {
            self.servers[site] = Some(self.sites[site].up()?);
        }
        Ok(())
    }

    fn server(&mut self, site: usize) -> Result<&mut Server> {
        self.servers[site].as_mut().context("the server runs")
    }

    fn stop_all(&mut self) -> Result<()> {
        for server in &mut self.servers {
            if let Some(server) = server.take() {
                server.stop()?;
            }
        }
        Ok(())
    }

    /// Starts the servers and gives one of them work. Then kills or stops one of them at a random time.
    fn round(&mut self, files: usize) -> Result<()> {
        for site in 0..self.sites.len() {
            self.up(site)?;
        }
        let victim = self.random.random_range(0..self.sites.len());
        if self.random.random_bool(0.15) {
            // Killed while it recovers from the last kill.
            let delay = self.random.random_range(Duration::ZERO..Duration::from_millis(400));
            let ended = self.server(victim)?.process.ended_within(delay)?;
            ensure!(ended.is_none(), "the server ended by itself");
            return self.kill(victim);
        }
        let worker = self.random.random_range(0..self.sites.len());
        self.server(worker)?.ready()?;
        let orphan = match self.orphan.take() {
            Some((site, mut orphan)) => orphan.ended()?.is_none().then_some((site, orphan)),
            None => None,
        };
        // A load whose server was killed may fail; one that starts in this round may not.
        let must_succeed = orphan.is_none();
        let (loaded, mut load) = match orphan {
            Some(orphan) => orphan,
            None => (worker, self.sites[worker].load(&self.mapping, &self.pieces[..files])?),
        };
        let mut batch = self.sites[worker].batch_run()?;
        let fault_time = Instant::now() + self.random.random_range(Duration::from_millis(5)..LONGEST_ROUND);
        while let Some(rest) = fault_time.checked_duration_since(Instant::now()) {
            let server = self.server(victim)?;
            server.process.ended_within(rest.min(CHECK_INTERVAL))?;
            server.process.still_runs()?;
            if must_succeed {
                load.done()?;
            }
            if batch.done()? {
                batch = self.sites[worker].batch_run()?;
            }
        }
        if self.fault == Fault::KillOrStop && self.random.random_bool(0.5) {
            let stop = self.random.random_range(Duration::from_millis(100)..LONGEST_STOP);
            let server = self.server(victim)?;
            server.process.signal(Signal::Stop)?;
            std::thread::sleep(stop);
            server.process.signal(Signal::Resume)?;
        } else {
            self.kill(victim)?;
        }
        if batch.ended_within(ORPHAN_WITHIN)?.is_none() {
            batch.kill()?;
        }
        if self.random.random_bool(0.5) {
            load.kill()?;
        } else if load.ended()?.is_none() {
            self.orphan = Some((loaded, load));
        }
        Ok(())
    }

    fn kill(&mut self, site: usize) -> Result<()> {
        match self.servers[site].take() {
            Some(mut server) => server.process.kill(),
            None => Ok(()),
        }
    }

    /// Waits until the answers have all readings: acknowledged readings are visible a little later.
    fn settle(&self, api: &Api) -> Result<()> {
        let expected = self.expected.readings;
        let mut seen = 0;
        wait::until("complete answer", SETTLE_WITHIN, || {
            seen = api.sql("SELECT coalesce(sum(\"count\"), 0) FROM unified_series")?.value::<u64>()?;
            Ok((seen == expected).then_some(()))
        })
        .with_context(|| format!("{seen} of {expected} readings are counted"))
    }

    fn compare(&self, api: &Api, when: &str) -> Result<()> {
        let printed = self.oracle.compare(api.url()).with_context(|| when.to_owned())?;
        say(&format!("LOSS-1: {when}: {printed}"));
        Ok(())
    }

    /// Checks that the master dataset has every reading of the files, and each reading of the log once. A load that resumes
    /// writes no reading to the log again, at any server; only a server that was stopped may write what another has written.
    fn check_archive(&self, api: &Api) -> Result<()> {
        let (expected, distinct) = (self.expected.rows, self.expected.readings);
        let mut seen = 0;
        wait::until("complete master dataset", SETTLE_WITHIN, || {
            seen = api.sql("SELECT count(*) FROM readings")?.value::<u64>()?;
            Ok((seen >= expected).then_some(()))
        })
        .with_context(|| format!("{seen} of {expected} readings are in the master dataset"))?;
        let different = count_distinct(api, "device_id, metric, event_time")?;
        ensure!(different == distinct, "{different} different readings are archived, not {distinct}");
        let places = count_distinct(api, "kafka_partition, kafka_offset, kafka_index")?;
        ensure!(places == seen, "the master dataset has {seen} rows of {places} readings in the log");
        ensure!(
            self.fault == Fault::KillOrStop || seen == expected,
            "{seen} rows in the master dataset for {expected} readings"
        );
        say(&format!(
            "LOSS-1: {expected} readings are archived in {seen} rows, each reading of the log once"
        ));
        Ok(())
    }
}

/// The number of distinct values of some columns of the master dataset.
fn count_distinct(api: &Api, columns: &str) -> Result<u64> {
    api.sql(&format!("SELECT count(*) FROM (SELECT DISTINCT {columns} FROM readings)"))?.value()
}
