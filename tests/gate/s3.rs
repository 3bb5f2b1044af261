//! Tables on S3: nothing is lost or counted twice when servers are killed, also where the store fails, is slow or loses
//! answers; two runs at once; a store that cannot hold tables.
//!
//! The S3 server is that of `scripts/s3.sh`, which the gate starts. Without it these tests are skipped with a message; in CI
//! that is a failure.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use wye_tests::datasets::say;
use wye_tests::faults::{Counts, FaultyServer};
use wye_tests::s3::S3;
use wye_tests::setting;
use wye_tests::site::Site;

use crate::alone;
use crate::crash::{self, Fault};

const KILLS: usize = 8;
/// Everything takes longer on a store that fails.
const KILLS_WITH_FAULTS: usize = 4;
/// How long a refusal may take.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);

/// No process of a test has printed the secret.
fn check_outputs(site: &Site, s3: &S3) -> Result<()> {
    let mut outputs = 0;
    for entry in std::fs::read_dir(site.directory())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            ensure!(!text.contains(&s3.secret_key), "{} has the secret", path.display());
            outputs += 1;
        }
    }
    ensure!(outputs > 0, "no outputs");
    Ok(())
}

#[test]
fn loss_1_with_tables_on_s3() -> Result<()> {
    let Some(s3) = S3::find()? else { return Ok(()) };
    let mut site = Site::new()?;
    site.configure(&s3.tables("crash"))?;
    crash::check(&site, vec![site.another("data")], Fault::Kill, KILLS)?;
    ensure!(!site.data_dir().join("tables").exists(), "there are tables in the data directory");
    check_outputs(&site, &s3)
}

#[test]
fn loss_1_two_servers_with_tables_on_a_store_that_fails() -> Result<()> {
    let Some(s3) = S3::find()? else { return Ok(()) };
    let seed = setting::number("WYE_TEST_SEED")?.unwrap_or_else(rand::random);
    let faulty = FaultyServer::before(s3.address(), seed)?;
    let mut site = Site::new()?;
    let tables = s3.behind(&faulty.address()).tables("faults");
    // Shorter than the late requests of the faulty server.
    let tables = format!("{tables}s3_request_timeout = \"2s\"\n");
    let Some(_kafka) = crash::on_kafka(&mut site, &tables)? else { return Ok(()) };
    let servers = vec![site.another("first"), site.another("second")];
    crash::check(&site, servers, Fault::Kill, KILLS_WITH_FAULTS)?;
    let counts = faulty.counts();
    say(&format!("the store: {counts:?}"));
    let Counts { requests, errors, closed, torn, unanswered, cut, slow, late } = counts;
    ensure!([errors, closed, torn, unanswered, cut, slow, late].iter().all(|count| *count > 0), "{counts:?}");
    let failed = errors + closed + torn + unanswered + cut;
    ensure!(requests > 300 && failed * 20 > requests, "{counts:?}");
    check_outputs(&site, &s3)
}

#[test]
fn the_batch_layer_alone_with_tables_on_s3() -> Result<()> {
    let Some(s3) = S3::find()? else { return Ok(()) };
    let mut site = Site::new()?;
    site.configure(&format!("{}{}", alone::CONFIG, s3.tables("alone")))?;
    let mut server = site.up()?;
    let api = server.ready()?;
    for number in 0..3 {
        alone::post(&api, number)?;
    }
    server.stop()?;
    let archived = alone::report(&site, &["archive", "--json"])?;
    ensure!(archived["readings"] == 3, "{archived}");
    let run = alone::report(&site, &["batch", "run", "--json"])?;
    ensure!(run["outcome"] == "committed" && run["readings"] == 3, "{run}");
    let again = alone::report(&site, &["batch", "run", "--json"])?;
    ensure!(again["outcome"] == "nothing_new", "{again}");
    let mut server = site.up()?;
    let api = server.ready()?;
    let counted: i64 = api.sql("SELECT CAST(sum(\"count\") AS BIGINT) FROM batch_metrics")?.value()?;
    ensure!(counted == 3, "{counted} readings are in the batch view");
    server.stop()?;
    check_outputs(&site, &s3)
}

#[test]
fn two_batch_runs_at_once_on_apache_kafka_with_tables_on_s3() -> Result<()> {
    let Some(s3) = S3::find()? else { return Ok(()) };
    alone::two_runs_at_once(Site::new()?, &s3.tables("two"))
}

#[test]
fn a_store_that_cannot_hold_tables_is_refused() -> Result<()> {
    let Some(s3) = S3::find()? else { return Ok(()) };
    let accepting = FaultyServer::accepting_all()?;
    let tables = s3.tables("refused");
    for (toml, word) in [
        (s3.behind(&accepting.address()).tables("refused"), "a store with conditional writes"),
        (tables.replace("s3://wye/", "s3://absent/"), "no such bucket"),
        (tables.replace(&s3.secret_key, "other"), "rejects the access key"),
        (format!("{}s3_retries = 1\n", s3.behind("127.0.0.1:9").tables("refused")), "cannot use the store"),
        (tables.replace("s3_allow_http = true", ""), "s3_allow_http = true"),
        ("[tables]\nroot = \"gs://bucket/prefix\"\n".to_owned(), "s3://BUCKET/PREFIX"),
    ] {
        let mut site = Site::new()?;
        site.configure(&toml)?;
        let mut process = site.up()?.process;
        let ended = process.ended_within(REFUSED_WITHIN)?;
        let printed = std::fs::read_to_string(process.output())?;
        ensure!(ended.is_some_and(|status| !status.success()), "{ended:?}: {printed}");
        ensure!(printed.contains(word), "no {word:?}: {printed}");
        check_outputs(&site, &s3)?;
    }
    Ok(())
}

#[test]
fn printed_settings_have_no_secret() -> Result<()> {
    let mut command = Command::new(wye_tests::site::program()?);
    command.args(["up", "--print-defaults"]).env("WYE_TABLES__S3_SECRET_ACCESS_KEY", "s3cret");
    let printed = String::from_utf8(command.output()?.stdout)?;
    ensure!(printed.contains("s3_secret_access_key") && !printed.contains("s3cret"), "{printed}");
    Ok(())
}

#[test]
fn a_run_alone_on_a_store_that_stays_away_is_to_be_tried_again() -> Result<()> {
    let Some(s3) = S3::find()? else { return Ok(()) };
    let mut site = Site::new()?;
    site.configure(&s3.tables("away"))?;
    site.up()?.ready().map(drop)?;
    let away = s3.behind("127.0.0.1:9");
    site.configure(&format!("{}s3_retries = 1\ns3_retry_timeout = \"0s\"\n", away.tables("away")))?;
    alone::ends_with(alone::command(&site, &["batch", "run"]), 75, "cannot use the store of the tables")?;

    // Without an access key, the role of the machine is asked for.
    site.configure("[tables]\nroot = \"s3://wye/away\"\ns3_retries = 1\ns3_retry_timeout = \"0s\"\n")?;
    let mut command = alone::command(&site, &["batch", "run"]);
    command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9").env_remove("AWS_ACCESS_KEY_ID");
    alone::ends_with(command, 75, "no access key is given")
}
