//! `wye demo`: `wye up`, fed by a simulated plant and city. The simulation knows the true value of every window, and
//! compares what Wye serves with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::ipc::reader::StreamReader;
use chrono::{TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wye_datasets::city::City;
use wye_datasets::plant::Plant;
use wye_datasets::simulation::{PathFaults, Setup, Simulation};
use wye_domain::wire;

use crate::cli::{Demo, Up};
use crate::client::{Client, body_of};
use crate::terminal::{grouped, program, tell};
use crate::up;

/// How often readings are sent.
const TICK: Duration = Duration::from_millis(250);
/// How often what is served is compared with the truth.
const CHECK: Duration = Duration::from_secs(30);
/// How long a reading may take from its acknowledgement to the answer before it counts as missing.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);
/// How far back windows are compared.
const COMPARED_MINUTES: i64 = 10;

const CONFIG: &str = r#"# The demo's settings and metric definitions; `wye up --config` takes a file like this.
[registry]
file = "registry.toml"

[batch]
interval = "30s"

# One metric for each reading name, by device: a new sensor shows up by itself.
[[metric]]
name = "*"
rollups = ["1h", "1d"]

[[metric]]
name = "line_temperature"
help = "Temperature of a production line"
unit = "Cel"
where = "metric = 'temperature'"
by = ["production_line"]
rollups = ["5m", "1h"]
aggregates = ["count", "avg", "min", "max", "stddev", "p50", "p95", "p99", "distinct_devices"]

[[metric]]
name = "district_pm2_5"
help = "Fine dust of a district"
unit = "ug/m3"
where = "metric = 'pm2_5'"
by = ["district"]
rollups = ["1h"]
aggregates = ["count", "avg", "max", "p95"]
"#;

/// Runs the command.
///
/// # Errors
/// As `wye up`.
pub(crate) async fn run(arguments: &Demo) -> Result<()> {
    let duration = match &arguments.duration {
        None => None,
        Some(text) => Some(
            humantime::parse_duration(text)
                .with_context(|| format!("{text:?} is not a time; write for example 2m"))?,
        ),
    };
    let setup =
        Setup { seed: 7, start: Utc::now(), interval: TimeDelta::seconds(1), faults: PathFaults::default() };
    let machines_per_line = arguments.machines.div_ceil(4);
    let mut simulations = vec![
        Plant { lines: 4, machines_per_line }.simulate(&setup),
        City { stations: arguments.stations }.simulate(&setup),
    ];
    let config = write_settings(&arguments.data_dir, &simulations)?;
    let up = Up {
        data_dir: arguments.data_dir.clone(),
        config: Some(config),
        http: arguments.http.clone(),
        print_defaults: false,
    };
    let cancel = CancellationToken::new();
    let running = up::start(&up, &cancel).await?;
    print_welcome(&running, &simulations);
    let client = Client::at(running.address)?;
    tokio::select! {
        outcome = feed(&client, &mut simulations, &cancel) => outcome?,
        () = wye_runtime::shutdown::cancel_on_signal(cancel.clone()) => {}
        () = async { match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        } } => {
            cancel.cancel();
            match compare(&client, &simulations).await {
                Ok(outcome) => tell(outcome),
                Err(error) => warn!(%error, "cannot compare with the simulation"),
            }
        }
    }
    running.stop().await
}

fn write_settings(data_dir: &Path, simulations: &[Simulation]) -> Result<PathBuf> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
    let registry: Vec<String> = simulations.iter().map(Simulation::registry_toml).collect();
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = data_dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    write("registry.toml", &registry.join("\n"))?;
    write("wye.toml", CONFIG)
}

fn print_welcome(running: &up::Running, simulations: &[Simulation]) {
    let devices: usize =
        simulations.iter().map(|simulation| simulation.registry_toml().matches("[[device]]").count()).sum();
    tell("");
    tell(format!(
        "{devices} simulated devices report every second, some twice, some late. Try, in another terminal:"
    ));
    tell("");
    let (data_dir, wye) = (running.data_dir.display(), program());
    let base = format!("http://{}", running.address);
    for command in [
        format!("curl {base}/v1/metrics/line_temperature/current"),
        format!("curl '{base}/v1/metrics/temperature/series?device_id=machine-001&from=-10m'"),
        format!(
            "{wye} sql --data-dir {data_dir} \"SELECT * FROM line_temperature ORDER BY window_start DESC LIMIT 4\""
        ),
        format!(
            "{wye} sql --data-dir {data_dir} \"SELECT metric_key, current_value, confidence_score, source FROM unified_metrics LIMIT 10\""
        ),
        format!("{wye} batch run --data-dir {data_dir}"),
    ] {
        tell(format!("  {command}"));
    }
    tell("");
}

/// Sends what the simulations hand out, and compares, until cancelled.
async fn feed(client: &Client, simulations: &mut [Simulation], cancel: &CancellationToken) -> Result<()> {
    let mut next_check = Instant::now() + CHECK;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !cancel.is_cancelled() {
        tick.tick().await;
        let now = Utc::now();
        for simulation in simulations.iter_mut() {
            let batch = simulation.next_batch(now);
            if batch.num_rows() > 0 {
                send(client, &batch, cancel).await?;
            }
        }
        if Instant::now() >= next_check {
            next_check = Instant::now() + CHECK;
            match compare(client, simulations).await {
                Ok(outcome) => tell(outcome),
                Err(error) => warn!(%error, "cannot compare with the simulation"),
            }
            for simulation in simulations.iter_mut() {
                simulation.forget_truth_before(now - TimeDelta::minutes(COMPARED_MINUTES * 2));
            }
        }
    }
    Ok(())
}

async fn send(client: &Client, batch: &RecordBatch, cancel: &CancellationToken) -> Result<()> {
    let body = wire::encode(std::slice::from_ref(batch))[wire::ARROW_PREFIX.len()..].to_vec();
    let headers = [("content-type", "application/vnd.apache.arrow.stream")];
    loop {
        let sent = async { body_of(client.post("/v1/readings", &headers, body.clone()).await?).await }.await;
        match sent {
            Ok(_) => return Ok(()),
            Err(_) if cancel.is_cancelled() => return Ok(()),
            // Sending it again may bring readings twice; they are duplicates and do not count.
            Err(error) => warn!(%error, "readings were not taken; sending them again"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Compares the windows of the last minutes, whole ones only, with the truth.
async fn compare(client: &Client, simulations: &[Simulation]) -> Result<String> {
    let minute = 60_000_000;
    let newest = Utc::now().timestamp_micros() / minute * minute;
    let oldest = newest - COMPARED_MINUTES * minute;
    let deadline = Instant::now() + VISIBLE_WITHIN;
    loop {
        let served = served(client, oldest).await?;
        let (mut agree, mut differ, mut readings) = (0u64, Vec::new(), 0);
        for simulation in simulations {
            for truth in
                simulation.truth().filter(|row| row.window_start.0 >= oldest && row.window_start.0 < newest)
            {
                let key = (truth.device_id.to_owned(), truth.metric.to_owned(), truth.window_start.0);
                let summary = truth.summary;
                let found = served.get(&key).copied();
                let same = found.is_some_and(|(count, sum, min, max)| {
                    (count, min, max) == (summary.count as i64, summary.min, summary.max)
                        && (sum - summary.sum).abs() <= 1e-9 * summary.sum.abs().max(1.0)
                });
                readings += summary.count;
                if same { agree += 1 } else { differ.push((key, summary.count, found)) }
            }
        }
        if differ.is_empty() && agree == 0 {
            return Ok("too short to compare with the simulation: that needs one whole minute".to_owned());
        }
        if differ.is_empty() {
            return Ok(format!(
                "compared with the simulation: {} windows of the last {COMPARED_MINUTES} minutes, {} readings, all exact",
                grouped(agree),
                grouped(readings)
            ));
        }
        if Instant::now() >= deadline {
            let ((device_id, metric, _), expected, found) = &differ[0];
            return Ok(format!(
                "compared with the simulation: {} windows are exact, {} DIFFER, such as {metric} of {device_id}: {expected} readings, served {found:?}",
                grouped(agree),
                grouped(differ.len() as u64)
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

type Served = std::collections::HashMap<(String, String, i64), (i64, f64, f64, f64)>;

async fn served(client: &Client, oldest: i64) -> Result<Served> {
    let from = wye_domain::time::format_rfc3339(wye_domain::time::Micros(oldest));
    let sql = format!(
        "SELECT CAST(device_id AS VARCHAR) AS device_id, CAST(metric AS VARCHAR) AS metric, window_start, \
         CAST(count AS BIGINT) AS count, sum, min, max FROM unified_series \
         WHERE definition = '*' AND window_start >= TIMESTAMP '{from}'"
    );
    let headers = [("content-type", "application/json"), ("accept", "application/vnd.apache.arrow.stream")];
    let body = serde_json::to_vec(&serde_json::json!({ "sql": sql }))?;
    let answer = body_of(client.post("/v1/sql", &headers, body).await?).await?;
    let mut served = Served::new();
    for batch in StreamReader::try_new(answer.as_slice(), None)? {
        let batch = batch?;
        let text = |name: &str| -> Result<_> {
            let column = batch.column_by_name(name).context("a column is missing in the answer")?;
            Ok(arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8)?.as_string::<i32>().clone())
        };
        let (device_id, metric) = (text("device_id")?, text("metric")?);
        let column = |name: &str| batch.column_by_name(name).context("a column is missing in the answer");
        let window_start = column("window_start")?.as_primitive::<TimestampMicrosecondType>();
        let count = column("count")?.as_primitive::<Int64Type>();
        let float = |name: &str| -> Result<_> { Ok(column(name)?.as_primitive::<Float64Type>()) };
        let (sum, min, max) = (float("sum")?, float("min")?, float("max")?);
        for row in 0..batch.num_rows() {
            let key =
                (device_id.value(row).to_owned(), metric.value(row).to_owned(), window_start.value(row));
            served.insert(key, (count.value(row), sum.value(row), min.value(row), max.value(row)));
        }
    }
    Ok(served)
}
