//! The answers of the real program compared with the independent oracle: before any batch run, during one, and after it.
//! They do not change.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use wye_tests::api::Api;
use wye_tests::datasets::{self, say};
use wye_tests::kafka::Kafka;
use wye_tests::oracle::Oracle;
use wye_tests::site::Site;
use wye_tests::wait;

const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn air_quality_is_the_same_from_both_layers() -> Result<()> {
    let Some(stations) = datasets::beijing(3)? else { return Ok(()) };
    check("beijing", "beijing-multisite", stations)
}

/// The recording goes back in time once, so some times come twice with different values: the first counts.
#[test]
fn a_clock_that_goes_back_does_not_change_the_answers() -> Result<()> {
    let Some(recording) = datasets::machine_temperature()? else { return Ok(()) };
    check("machine_temperature", "nab-machine-temperature", vec![recording])
}

/// The same with all layers on a real Apache Kafka. `make test` sets `WYE_TEST_KAFKA` where one is installed; this test
/// starts another one, since Wye's topics must be empty.
#[test]
fn apache_kafka_gives_the_same_answers() -> Result<()> {
    let Some(stations) = datasets::beijing(2)? else { return Ok(()) };
    let mut site = Site::new()?;
    let Some(kafka) = Kafka::start(site.directory().join("kafka"))? else { return Ok(()) };
    site.configure(&format!(
        "[log]\nbootstrap_servers = \"{}\"\nkafka_partitions = 3\n",
        kafka.bootstrap_servers()?
    ))?;
    let outcome = compare_throughout(&site, "beijing", "beijing-multisite", stations);
    drop(kafka);
    if let Err(error) = outcome {
        panic!("outputs in {}: {error:#}", site.keep().display());
    }
    Ok(())
}

fn check(oracle: &str, mapping: &str, files: Vec<PathBuf>) -> Result<()> {
    let site = Site::new()?;
    let outcome = compare_throughout(&site, oracle, mapping, files);
    if let Err(error) = outcome {
        panic!("outputs in {}: {error:#}", site.keep().display());
    }
    Ok(())
}

fn compare_throughout(site: &Site, name: &str, mapping: &str, files: Vec<PathBuf>) -> Result<()> {
    let oracle = Oracle::new(name, files.clone())?;
    let expected = oracle.expectation()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    site.load(&datasets::mapping(mapping), &files)?.succeed(WITHIN)?;
    wait::until("complete answer", WITHIN, || {
        let seen = api.sql("SELECT coalesce(sum(\"count\"), 0) FROM unified_series")?.value::<u64>()?;
        Ok((seen == expected.readings).then_some(()))
    })?;
    compare(&oracle, &api, &format!("{name}: before any batch run"))?;
    let mut batch = site.batch_run()?;
    while batch.ended()?.is_none() {
        compare(&oracle, &api, &format!("{name}: during a batch run"))?;
    }
    batch.succeed(WITHIN)?;
    compare(&oracle, &api, &format!("{name}: after it"))?;
    server.stop()
}

fn compare(oracle: &Oracle, api: &Api, when: &str) -> Result<()> {
    let printed = oracle.compare(api.url()).with_context(|| when.to_owned())?;
    say(&format!("{when}: {printed}"));
    Ok(())
}
