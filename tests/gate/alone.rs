//! The batch layer without a running `wye up`: `wye batch run` and `wye archive` as a scheduler such as cron or Kubernetes
//! starts them, and their exit codes.

use std::fs::File;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_tests::api::Api;
use wye_tests::generated;
use wye_tests::kafka::Kafka;
use wye_tests::process::{Process, Signal};
use wye_tests::site::Site;
use wye_tests::{datasets, wait};

pub(super) const CONFIG: &str = "[batch]\ninterval = \"0s\"\n";
const WITHIN: Duration = Duration::from_secs(60);
/// How long a command may take to end after SIGTERM.
const TERM_WITHIN: Duration = Duration::from_secs(10);

/// `wye WORDS --data-dir ...` with the configuration of a site.
pub(super) fn command(site: &Site, words: &[&str]) -> Command {
    let mut command = Command::new(site.program());
    command.args(words).arg("--data-dir").arg(site.data_dir());
    command.arg("--config").arg(site.directory().join("wye.toml"));
    command.env("WYE_LOG__EMBEDDED_PORT", "0");
    command
}

fn start(site: &Site, words: &[&str], name: &str) -> Result<Process> {
    Process::start(command(site, words), name, site.directory().join(format!("{name}.log")))
}

/// Runs a command that must succeed, and returns the JSON that it prints.
pub(super) fn report(site: &Site, words: &[&str]) -> Result<Value> {
    let Output { status, stdout, stderr } = command(site, words).output()?;
    ensure!(status.success(), "wye {words:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).with_context(|| format!("the output of wye {words:?}"))
}

/// Runs a command that must end with an exit code, and checks the message.
pub(super) fn ends_with(mut command: Command, code: i32, word: &str) -> Result<()> {
    let Output { status, stderr, .. } = command.output()?;
    let printed = String::from_utf8_lossy(&stderr);
    ensure!(status.code() == Some(code) && printed.contains(word), "{command:?}: {status}: {printed}");
    Ok(())
}

pub(super) fn post(api: &Api, number: i64) -> Result<()> {
    let reading = json!({"device_id": "pump", "metric": "pressure", "value": number, "event_time": "2026-01-01T00:00:00Z", "sequence": number});
    let (status, answer) = api.post("/v1/readings", &reading)?;
    ensure!(status == 200, "{answer}");
    Ok(())
}

#[test]
fn a_batch_run_on_the_data_directory_of_a_stopped_wye() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    // Neither a folder that does not exist nor one of somebody else becomes a data directory.
    ends_with(command(&site, &["batch", "run"]), 2, "is not a data directory")?;
    ends_with(command(&site, &["batch", "run", "--dry-run"]), 2, "is not a data directory")?;
    std::fs::create_dir(site.data_dir())?;
    ends_with(command(&site, &["batch", "run"]), 2, "is not a data directory")?;
    ensure!(std::fs::read_dir(site.data_dir())?.next().is_none(), "something was written");
    let mut server = site.up()?;
    let api = server.ready()?;
    for number in 0..3 {
        post(&api, number)?;
    }
    // It asks the running Wye, and a signal ends the command all the same.
    server.process.signal(Signal::Stop)?;
    let mut asking = start(&site, &["batch", "run"], "asking")?;
    ensure!(asking.ended_within(Duration::from_secs(1))?.is_none(), "it does not wait for the answer");
    asking.signal(Signal::Terminate)?;
    let status = asking.ended_within(TERM_WITHIN)?.context("it does not end after SIGTERM")?;
    server.process.signal(Signal::Resume)?;
    ensure!(status.code() == Some(75), "{status}");
    let served = report(&site, &["batch", "run", "--full", "--json"])?;
    ensure!(served["outcome"] == "committed" && served["served"] == true, "{served}");
    ensure!(served["readings"] == 3, "{served}");
    post(&api, 3)?;
    server.process.kill()?;

    let alone = report(&site, &["batch", "run", "--json"])?;
    ensure!(alone["outcome"] == "committed" && alone["readings"] == 4, "{alone}");
    ensure!(alone["computed_cells"] == json!({"new_readings": 1}), "{alone}");
    let nothing = report(&site, &["batch", "run", "--dry-run", "--json"])?;
    ensure!(nothing["readings"] == 4 && nothing["cells"] == json!([]), "{nothing}");
    let again = report(&site, &["batch", "run", "--json"])?;
    ensure!(again["outcome"] == "nothing_new", "{again}");
    let would = report(&site, &["batch", "run", "--dry-run", "--full", "--json"])?;
    ensure!(would["cells"][0]["reason"] == "everything" && would["cells_kept"] == 0, "{would}");
    ensure!(would["everything_because"] == "that was asked for", "{would}");
    let full = report(&site, &["batch", "run", "--full", "--json"])?;
    ensure!(full["outcome"] == "committed" && full["readings"] == 4, "{full}");
    ensure!(full["computed_cells"] == json!({"everything": 1}), "{full}");
    let archived = report(&site, &["archive", "--json"])?;
    ensure!(archived["messages"] == 0 && archived["readings"] == 4, "{archived}");

    let mut wrong = command(&site, &["batch", "run"]);
    wrong.env("WYE_BATCH__PATIENCE", "soon");
    ends_with(wrong, 2, "PATIENCE")?;
    let mut unreachable = command(&site, &["batch", "run", "--url", "http://127.0.0.1:9"]);
    unreachable.env_remove("WYE_URL");
    ends_with(unreachable, 75, "cannot reach Wye")?;

    let mut server = site.up()?;
    let api = server.ready()?;
    let counted: i64 = api.sql("SELECT CAST(sum(\"count\") AS BIGINT) FROM batch_metrics")?.value()?;
    ensure!(counted == 4, "{counted} readings are in the batch view");
    server.stop()
}

#[test]
fn a_batch_run_waits_for_another_process_or_leaves() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    let mut server = site.up()?;
    let api = server.ready()?;
    post(&api, 1)?;
    server.stop()?;
    // As another batch run has it.
    let lock = File::create(site.data_dir().join("lock"))?;
    lock.lock()?;
    ends_with(command(&site, &["batch", "run", "--when-busy", "leave"]), 75, "another process")?;
    let mut waiting = start(&site, &["batch", "run"], "waiting")?;
    ensure!(waiting.ended_within(Duration::from_secs(1))?.is_none(), "it does not wait");
    drop(lock);
    waiting.succeed(WITHIN)?;
    Ok(())
}

#[test]
fn two_batch_runs_at_once_on_apache_kafka_do_no_harm() -> Result<()> {
    let site = Site::new()?;
    let tables = format!("[tables]\nroot = \"{}\"\n", site.directory().join("tables").display());
    two_runs_at_once(site, &tables)
}

/// Two batch runs without a data directory; `tables` is the section of their tables.
pub(super) fn two_runs_at_once(mut site: Site, tables: &str) -> Result<()> {
    let Some(kafka) = Kafka::start(site.directory().join("kafka"))? else { return Ok(()) };
    let servers = kafka.bootstrap_servers()?;
    site.configure(&format!(
        "{CONFIG}[log]\nbootstrap_servers = \"{servers}\"\nkafka_partitions = 3\n{tables}"
    ))?;
    let server_site = site.another("server");
    let mut server = server_site.up()?;
    let api = server.ready()?;
    for number in 0..50 {
        post(&api, number)?;
    }
    server.stop()?;
    // Neither has a data directory.
    let archived = report(&site, &["archive", "--json"])?;
    ensure!(archived["readings"] == 50, "{archived}");
    let runs = ["first", "second"].map(|name| start(&site, &["batch", "run", "--full", "--json"], name));
    let mut versions = Vec::new();
    for run in runs {
        let output = run?.succeed(WITHIN)?;
        let line = output.lines().rfind(|line| line.starts_with('{')).context("no report")?;
        let report: Value = serde_json::from_str(line)?;
        ensure!(report["readings"] == 50, "{report}");
        versions.push(report["version"].as_u64().context("no version")?);
    }
    versions.sort_unstable();
    ensure!(versions == [1, 2], "{versions:?}");
    ensure!(!site.data_dir().exists(), "a data directory was made");
    Ok(())
}

#[test]
fn a_batch_run_that_is_stopped_leaves_the_old_view() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    let stations = generated::stations(2, 20_000, site.directory())?;
    let mut server = site.up()?;
    server.ready()?;
    let mapping = datasets::mapping("beijing-multisite");
    site.load_into_log(&mapping, &stations)?.succeed(WITHIN)?;
    server.stop()?;
    let first = report(&site, &["batch", "run", "--json"])?;
    let mut version = first["version"].as_u64().context("no version")?;
    for millis in [10, 150, 300, 600, 1_200] {
        let mut run = start(&site, &["batch", "run", "--full", "--json"], &format!("stopped-{millis}"))?;
        std::thread::sleep(Duration::from_millis(millis));
        run.signal(Signal::Terminate)?;
        let status = wait::at_most(TERM_WITHIN, || run.ended())?.context("it does not end after SIGTERM")?;
        match status.code() {
            // It was done already, or has just committed.
            Some(0) => version += 1,
            Some(75) => {}
            // Before it listens for signals.
            None if millis == 10 => {}
            _ => anyhow::bail!("{status} after {millis} ms"),
        }
    }
    let last = report(&site, &["batch", "run", "--full", "--json"])?;
    let found = last["version"].as_u64().context("no version")?;
    // A commit may have been done just before the end.
    ensure!(found > version && found <= version + 6, "version {found} after {version}");
    for key in ["readings", "windows", "series", "horizon"] {
        ensure!(last[key] == first[key], "{key}: {last} after {first}");
    }
    Ok(())
}
