//! **LOSS-1** on the real program: servers and loaders are killed (`kill -9`) and stopped (SIGSTOP) at random moments while
//! loading and batching; in the end every window is what the independent oracle computes from the source files, before a
//! batch run and after it, and the master dataset holds every reading.
//!
//! Four stories: one server on the embedded broker, one on a real Apache Kafka, two on one Kafka that are killed, two that
//! are killed and stopped. The source files are generated, so that the stories are told wherever the project is.
//!
//! Every moment comes from one seed, which is printed. `WYE_TEST_SEED` repeats a history as far as the machine's own
//! timing allows, `WYE_TEST_KILLS` asks for more than the usual number of kills.

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
/// A life on a real Kafka takes longer: its topics are made, its producer numbers fetched, its fetches are not local.
const KILLS_ON_KAFKA: usize = 8;
const STATIONS: usize = 2;
const HOURS: usize = 20_000;
const ROWS_PER_PIECE: usize = 1000;
/// The longest life between two kills.
const LONGEST_LIFE: Duration = Duration::from_millis(1500);
/// The longest time that a stopped server stands still.
const LONGEST_STOP: Duration = Duration::from_secs(3);
/// How often the commands are looked at in between.
const GLANCE: Duration = Duration::from_millis(20);
/// How long a command may run on after its server was killed, before it is killed too.
const ORPHAN_WITHIN: Duration = Duration::from_secs(10);
const LOAD_WITHIN: Duration = Duration::from_secs(120);
const BATCH_WITHIN: Duration = Duration::from_secs(60);
const SETTLE_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn loss_1_kills_lose_nothing_and_count_nothing_twice() -> Result<()> {
    let site = Site::new()?;
    tell(&site, vec![site.another("data")], Fate::Kill, KILLS)
}

#[test]
fn loss_1_on_apache_kafka() -> Result<()> {
    let mut site = Site::new()?;
    let Some(_kafka) = on_kafka(&mut site)? else { return Ok(()) };
    tell(&site, vec![site.another("data")], Fate::Kill, KILLS_ON_KAFKA)
}

#[test]
fn loss_1_two_servers_on_one_kafka() -> Result<()> {
    let mut site = Site::new()?;
    let Some(_kafka) = on_kafka(&mut site)? else { return Ok(()) };
    tell(&site, vec![site.another("first"), site.another("second")], Fate::Kill, KILLS_ON_KAFKA)
}

#[test]
fn loss_1_two_servers_that_stand_still() -> Result<()> {
    let mut site = Site::new()?;
    let Some(_kafka) = on_kafka(&mut site)? else { return Ok(()) };
    tell(&site, vec![site.another("first"), site.another("second")], Fate::KillOrStop, KILLS_ON_KAFKA)
}

/// How the lives of a server end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kill,
    /// Killed, or stopped for a while.
    KillOrStop,
}

/// Configures the site for a Kafka of its own, with tables that all its servers share.
fn on_kafka(site: &mut Site) -> Result<Option<Kafka>> {
    let Some(kafka) = Kafka::start(site.directory().join("kafka"))? else { return Ok(None) };
    let (servers, tables) = (kafka.bootstrap_servers()?, site.directory().join("tables"));
    site.configure(&format!(
        "[log]\nbootstrap_servers = \"{servers}\"\nkafka_partitions = 3\n[tables]\nroot = \"{}\"\n",
        tables.display()
    ))?;
    Ok(Some(kafka))
}

fn tell(site: &Site, servers: Vec<Site>, fate: Fate, kills: usize) -> Result<()> {
    let kills = setting::number("WYE_TEST_KILLS")?.map_or(kills, |kills| kills as usize);
    let seed = setting::number("WYE_TEST_SEED")?.unwrap_or_else(rand::random);
    let outcome = Story::prepare(site, servers, fate, seed).and_then(|story| story.tell(kills));
    if let Err(error) = outcome {
        panic!("with WYE_TEST_SEED={seed}, outputs in {}: {error:#}", site.keep().display());
    }
    Ok(())
}

struct Story {
    sites: Vec<Site>,
    stations: Vec<PathBuf>,
    /// The same readings in many small files, so that every life of a server has something new to load.
    pieces: Vec<PathBuf>,
    mapping: PathBuf,
    oracle: Oracle,
    expected: Expectation,
    random: StdRng,
    fate: Fate,
    /// The running servers, by their site.
    servers: Vec<Option<Server>>,
    /// A `wye load` that was not killed together with its server, and the server's site.
    orphan: Option<(usize, Process)>,
}

impl Story {
    fn prepare(site: &Site, sites: Vec<Site>, fate: Fate, seed: u64) -> Result<Self> {
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
        Ok(Self { sites, stations, pieces, mapping, oracle, expected, random, fate, servers, orphan: None })
    }

    fn tell(mut self, kills: usize) -> Result<()> {
        for life in 0..kills {
            let files = self.pieces.len() * (life + 1) / kills;
            self.live_and_die(files).with_context(|| format!("life {life} of {kills}"))?;
        }
        let api = self.all_ready()?;
        if let Some((_, orphan)) = &mut self.orphan {
            orphan.ended_within(LOAD_WITHIN)?.context("a load does not end after its server was killed")?;
        }
        self.sites[0].load(&self.mapping, &self.pieces)?.succeed(LOAD_WITHIN).context("the last load")?;
        self.settle(&api)?;
        self.agree(&api, "before the batch run")?;
        self.sites[0].batch_run()?.succeed(BATCH_WITHIN)?;
        self.agree(&api, "after the batch run")?;
        self.holds_every_reading(&api)?;

        self.stop_all()?;
        let api = self.all_ready()?;
        self.settle(&api)?;
        self.agree(&api, "after a clean restart")?;

        // The same readings once more, in other files: duplicates, every one.
        self.sites[0].load(&self.mapping, &self.stations)?.succeed(LOAD_WITHIN)?;
        self.sites[0].batch_run()?.succeed(BATCH_WITHIN)?;
        self.settle(&api)?;
        self.agree(&api, "after loading all of it again")?;
        self.stop_all()
    }

    /// All servers up and ready; the API of the first.
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

    /// One life: every server runs, one of them is given work and is killed, or stopped for a while, at a random moment.
    fn live_and_die(&mut self, files: usize) -> Result<()> {
        for site in 0..self.sites.len() {
            self.up(site)?;
        }
        let victim = self.random.random_range(0..self.sites.len());
        if self.random.random_bool(0.15) {
            // Killed while it recovers from the last kill.
            let life = self.random.random_range(Duration::ZERO..Duration::from_millis(400));
            let ended = self.server(victim)?.process.ended_within(life)?;
            ensure!(ended.is_none(), "the server ended by itself");
            return self.kill(victim);
        }
        let worker = self.random.random_range(0..self.sites.len());
        self.server(worker)?.ready()?;
        let orphan = match self.orphan.take() {
            Some((site, mut orphan)) => orphan.ended()?.is_none().then_some((site, orphan)),
            None => None,
        };
        // A load whose server was killed may end as it likes, one that begins in this life may not.
        let must_succeed = orphan.is_none();
        let (loaded, mut load) = match orphan {
            Some(orphan) => orphan,
            None => (worker, self.sites[worker].load(&self.mapping, &self.pieces[..files])?),
        };
        let mut batch = self.sites[worker].batch_run()?;
        let death = Instant::now() + self.random.random_range(Duration::from_millis(5)..LONGEST_LIFE);
        while let Some(rest) = death.checked_duration_since(Instant::now()) {
            let server = self.server(victim)?;
            server.process.ended_within(rest.min(GLANCE))?;
            server.process.still_runs()?;
            if must_succeed {
                load.done()?;
            }
            if batch.done()? {
                batch = self.sites[worker].batch_run()?;
            }
        }
        if self.fate == Fate::KillOrStop && self.random.random_bool(0.5) {
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

    /// Waits until the answers hold as many readings as there are: what is acknowledged is not at once visible.
    fn settle(&self, api: &Api) -> Result<()> {
        let expected = self.expected.readings;
        let mut seen = 0;
        wait::until("complete answer", SETTLE_WITHIN, || {
            seen = api.sql("SELECT coalesce(sum(\"count\"), 0) FROM unified_series")?.value::<u64>()?;
            Ok((seen == expected).then_some(()))
        })
        .with_context(|| format!("{seen} of {expected} readings are counted"))
    }

    fn agree(&self, api: &Api, when: &str) -> Result<()> {
        let printed = self.oracle.compare(api.url()).with_context(|| when.to_owned())?;
        say(&format!("LOSS-1: {when}: {printed}"));
        Ok(())
    }

    /// Every reading of the files is in the master dataset, and nothing of the log is there twice. A load that resumes gives
    /// no reading to the log again, at whichever server; only one that stood still may write what another has written.
    fn holds_every_reading(&self, api: &Api) -> Result<()> {
        let (expected, distinct) = (self.expected.rows, self.expected.readings);
        let mut seen = 0;
        wait::until("complete master dataset", SETTLE_WITHIN, || {
            seen = api.sql("SELECT count(*) FROM readings")?.value::<u64>()?;
            Ok((seen >= expected).then_some(()))
        })
        .with_context(|| format!("{seen} of {expected} readings are in the master dataset"))?;
        let count = |columns: &str| {
            let sql = format!("SELECT count(*) FROM (SELECT DISTINCT {columns} FROM readings)");
            api.sql(&sql)?.value::<u64>()
        };
        let different = count("device_id, metric, event_time")?;
        ensure!(different == distinct, "{different} different readings are archived, not {distinct}");
        let places = count("kafka_partition, kafka_offset, kafka_index")?;
        ensure!(places == seen, "{seen} rows in the master dataset from {places} places of the log");
        ensure!(
            self.fate == Fate::KillOrStop || seen == expected,
            "{seen} rows in the master dataset for {expected} readings"
        );
        say(&format!("LOSS-1: {expected} readings archived in {seen} rows, none of the log's twice"));
        Ok(())
    }
}
