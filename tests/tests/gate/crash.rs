//! **LOSS-1** on the real program: `kill -9` at random moments while loading and batching; in the end every window is
//! what the independent oracle computes from the source files, before a batch run and after it, and the master dataset
//! holds every reading exactly once.
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
use wye_tests::oracle::{Expectation, Oracle};
use wye_tests::process::Process;
use wye_tests::site::Site;
use wye_tests::wait;

const KILLS: usize = 20;
const STATIONS: usize = 2;
const ROWS_PER_PIECE: usize = 1500;
/// The longest life between two kills.
const LONGEST_LIFE: Duration = Duration::from_millis(1500);
/// How often the commands are looked at in between.
const GLANCE: Duration = Duration::from_millis(20);
/// How long a command may go on after its server was killed, before it is killed too.
const ORPHAN_WITHIN: Duration = Duration::from_secs(10);
const LOAD_WITHIN: Duration = Duration::from_secs(120);
const BATCH_WITHIN: Duration = Duration::from_secs(60);
const SETTLE_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn loss_1_kills_lose_nothing_and_count_nothing_twice() -> Result<()> {
    let Some(stations) = datasets::beijing(STATIONS) else { return Ok(()) };
    let kills = setting("WYE_TEST_KILLS")?.map_or(KILLS, |kills| kills as usize);
    let seed = setting("WYE_TEST_SEED")?.unwrap_or_else(rand::random);
    let site = Site::new()?;
    let outcome = Story::prepare(&site, stations, seed).and_then(|story| story.tell(kills));
    if let Err(error) = outcome {
        panic!("with WYE_TEST_SEED={seed}, outputs in {}: {error:#}", site.keep().display());
    }
    Ok(())
}

fn setting(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    Ok(Some(text.parse().with_context(|| format!("{name}={text} is no number"))?))
}

struct Story<'a> {
    site: &'a Site,
    stations: Vec<PathBuf>,
    /// The same readings in many small files, so that every life of the server has something new to load.
    pieces: Vec<PathBuf>,
    mapping: PathBuf,
    oracle: Oracle,
    expected: Expectation,
    random: StdRng,
    /// A `wye load` that was not killed together with its server.
    orphan: Option<Process>,
}

impl<'a> Story<'a> {
    fn prepare(site: &'a Site, stations: Vec<PathBuf>, seed: u64) -> Result<Self> {
        let mut pieces = Vec::new();
        for station in &stations {
            pieces.extend(datasets::cut(station, ROWS_PER_PIECE, site.directory())?);
        }
        let oracle = Oracle::new("beijing", stations.clone())?;
        let expected = oracle.expectation()?;
        say(&format!("LOSS-1: seed {seed}, {} readings in {} files", expected.readings, pieces.len()));
        let mapping = datasets::mapping("beijing-multisite");
        let random = StdRng::seed_from_u64(seed);
        Ok(Self { site, stations, pieces, mapping, oracle, expected, random, orphan: None })
    }

    fn tell(mut self, kills: usize) -> Result<()> {
        for life in 0..kills {
            let files = self.pieces.len() * (life + 1) / kills;
            self.live_and_die(files).with_context(|| format!("life {life} of {kills}"))?;
        }
        let mut server = self.site.up()?;
        let api = server.ready()?;
        if let Some(orphan) = &mut self.orphan {
            orphan
                .ended_within(LOAD_WITHIN)?
                .context("a load goes on for ever after its server was killed")?;
        }
        self.site.load(&self.mapping, &self.pieces)?.succeed(LOAD_WITHIN).context("the load that ends it")?;
        self.settle(&api)?;
        self.agree(&api, "before the batch run")?;
        self.site.batch_run()?.succeed(BATCH_WITHIN)?;
        self.agree(&api, "after the batch run")?;
        self.holds_every_reading_once(&api)?;

        server.stop()?;
        let mut server = self.site.up()?;
        let api = server.ready()?;
        self.agree(&api, "after a clean restart")?;

        // The same readings once more, in other files: duplicates, every one.
        self.site.load(&self.mapping, &self.stations)?.succeed(LOAD_WITHIN)?;
        self.site.batch_run()?.succeed(BATCH_WITHIN)?;
        self.settle(&api)?;
        self.agree(&api, "after loading all of it again")?;
        server.stop()
    }

    /// One life of the server: it starts, is given work, and is killed at a random moment.
    fn live_and_die(&mut self, files: usize) -> Result<()> {
        let mut server = self.site.up()?;
        if self.random.random_bool(0.15) {
            // Killed while it recovers from the last kill.
            let life = self.random.random_range(Duration::ZERO..Duration::from_millis(400));
            ensure!(server.process.ended_within(life)?.is_none(), "the server ended by itself");
            return server.process.kill();
        }
        server.ready()?;
        let orphan = match self.orphan.take() {
            Some(mut orphan) => orphan.ended()?.is_none().then_some(orphan),
            None => None,
        };
        // A load whose server was killed may end as it likes, one that begins in this life may not.
        let must_succeed = orphan.is_none();
        let mut load = match orphan {
            Some(orphan) => orphan,
            None => self.site.load(&self.mapping, &self.pieces[..files])?,
        };
        let mut batch = self.site.batch_run()?;
        let death = Instant::now() + self.random.random_range(Duration::from_millis(5)..LONGEST_LIFE);
        while let Some(rest) = death.checked_duration_since(Instant::now()) {
            server.process.ended_within(rest.min(GLANCE))?;
            server.process.still_runs()?;
            if must_succeed {
                load.done()?;
            }
            if batch.done()? {
                batch = self.site.batch_run()?;
            }
        }
        server.process.kill()?;
        if batch.ended_within(ORPHAN_WITHIN)?.is_none() {
            batch.kill()?;
        }
        if self.random.random_bool(0.5) {
            load.kill()?;
        } else if load.ended()?.is_none() {
            self.orphan = Some(load);
        }
        Ok(())
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

    fn holds_every_reading_once(&self, api: &Api) -> Result<()> {
        let expected = self.expected.readings;
        let distinct = "SELECT count(*) FROM (SELECT DISTINCT device_id, metric, event_time FROM readings)";
        let mut seen = 0;
        wait::until("complete master dataset", SETTLE_WITHIN, || {
            seen = api.sql(distinct)?.value::<u64>()?;
            Ok((seen == expected).then_some(()))
        })
        .with_context(|| format!("{seen} of {expected} readings are in the master dataset"))?;
        // Not even as duplicates: neither does a load that goes on give a reading to the log again, nor does the archiver
        // take one from there again.
        let rows = api.sql("SELECT count(*) FROM readings")?.value::<u64>()?;
        ensure!(rows == expected, "{rows} rows in the master dataset for {expected} readings");
        say(&format!("LOSS-1: {expected} readings archived, each of them once"));
        Ok(())
    }
}
