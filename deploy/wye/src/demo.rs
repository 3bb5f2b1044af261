//! `wye demo`: `wye up` with readings of a simulated plant and city. The answers are compared with the true values, which
//! the simulation has for every window.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::{AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::ipc::reader::StreamReader;
use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wye_datasets::city::City;
use wye_datasets::plant::Plant;
use wye_datasets::simulation::{PathFaults, Setup, Simulation};
use wye_domain::reading::column;
use wye_domain::time::{Micros, Span, WindowSize, format_rfc3339};
use wye_domain::wire;
use wye_runtime::clock::{Clock, SystemClock};

use crate::cli::{Demo, Up};
use crate::client::{Client, body_of};
use crate::terminal::{grouped, program, tell};
use crate::up;

/// How often readings are sent.
const TICK: Duration = Duration::from_millis(250);
/// How often the answers are compared with the simulation.
const CHECK: Duration = Duration::from_secs(30);
/// How long it may take until an acknowledged reading is in the answers, before it counts as missing.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);
/// How many minutes back windows are compared.
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
                .with_context(|| format!("{text:?} is not a duration; write for example 2m"))?,
        ),
    };
    let clock = SystemClock::default();
    let (start, interval) = (date_time(clock.now()), TimeDelta::seconds(1));
    let setup = Setup { seed: 7, start, interval, faults: PathFaults::default() };
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
    let shutdown = CancellationToken::new();
    let running = up::start(&up, &shutdown).await?;
    print_welcome(&running, &simulations);
    let client = Client::at(running.address)?;
    tokio::select! {
        outcome = feed(&client, &clock, &mut simulations, &shutdown) => outcome?,
        () = wye_runtime::shutdown::cancel_on_signal(shutdown.clone()) => {}
        () = async { match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        } } => {
            shutdown.cancel();
            print_comparison(&client, &clock, &simulations).await;
        }
    }
    running.stop().await;
    Ok(())
}

/// A time in the form of the simulations.
fn date_time(time: Micros) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.0).unwrap_or_default()
}

/// Writes the settings and the registry. Returns the path of the settings.
fn write_settings(data_dir: &Path, simulations: &[Simulation]) -> Result<PathBuf> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
    let registry: Vec<String> = simulations.iter().map(Simulation::registry_toml).collect();
    write(data_dir.join("registry.toml"), &registry.join("\n"))?;
    write(data_dir.join("wye.toml"), CONFIG)
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn print_welcome(running: &up::Running, simulations: &[Simulation]) {
    let devices: usize =
        simulations.iter().map(|simulation| simulation.registry_toml().matches("[[device]]").count()).sum();
    tell("");
    tell(format!(
        "{devices} simulated devices report every second; some readings come twice, some late. Try, in another terminal:"
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

/// Sends the readings of the simulations, and compares the answers with them, until shutdown.
async fn feed(
    client: &Client,
    clock: &SystemClock,
    simulations: &mut [Simulation],
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut next_check = clock.monotonic() + CHECK;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shutdown.is_cancelled() {
        tick.tick().await;
        let now = date_time(clock.now());
        for simulation in simulations.iter_mut() {
            let batch = simulation.next_batch(now);
            if batch.num_rows() > 0 {
                send(client, &batch, shutdown).await?;
            }
        }
        if clock.monotonic() >= next_check {
            next_check = clock.monotonic() + CHECK;
            print_comparison(client, clock, simulations).await;
            for simulation in simulations.iter_mut() {
                simulation.forget_truth_before(now - TimeDelta::minutes(COMPARED_MINUTES * 2));
            }
        }
    }
    Ok(())
}

/// Sends readings until Wye has acknowledged them, or until shutdown.
async fn send(client: &Client, batch: &RecordBatch, shutdown: &CancellationToken) -> Result<()> {
    let body = wire::encode_arrow(std::slice::from_ref(batch));
    let headers = [("content-type", "application/vnd.apache.arrow.stream")];
    loop {
        let sent = async { body_of(client.post("/v1/readings", &headers, body.clone()).await?).await }.await;
        match sent {
            Ok(_) => return Ok(()),
            Err(_) if shutdown.is_cancelled() => return Ok(()),
            // A retry may write readings a second time; they are duplicates and do not count.
            Err(error) => warn!(%error, "readings were not acknowledged; retrying"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Prints how the answers compare with the simulation.
async fn print_comparison(client: &Client, clock: &SystemClock, simulations: &[Simulation]) {
    match compare(client, clock, simulations).await {
        Ok(outcome) => tell(outcome),
        Err(error) => warn!(%error, "cannot compare with the simulation"),
    }
}

/// Compares the full windows of the last minutes with the simulation.
async fn compare(client: &Client, clock: &SystemClock, simulations: &[Simulation]) -> Result<String> {
    let newest = WindowSize::MINUTE.start_of(clock.now());
    let oldest = newest - Span::from_mins(COMPARED_MINUTES);
    let deadline = clock.monotonic() + VISIBLE_WITHIN;
    loop {
        let served = served(client, oldest).await?;
        let (mut agree, mut differ, mut readings) = (0u64, Vec::new(), 0);
        for simulation in simulations {
            let windows = oldest..newest;
            for truth in simulation.truth().filter(|row| windows.contains(&row.window_start)) {
                let window = (truth.device_id.to_owned(), truth.metric.to_owned(), truth.window_start);
                let summary = truth.summary;
                let found = served.get(&window).copied();
                let is_same = found.is_some_and(|served| {
                    (served.count, served.min, served.max) == (summary.count as i64, summary.min, summary.max)
                        && (served.sum - summary.sum).abs() <= 1e-9 * summary.sum.abs().max(1.0)
                });
                readings += summary.count;
                if is_same { agree += 1 } else { differ.push((window, summary.count, found)) }
            }
        }
        if differ.is_empty() && agree == 0 {
            return Ok("no comparison with the simulation: that needs a full minute".to_owned());
        }
        if differ.is_empty() {
            return Ok(format!(
                "compared with the simulation: {} windows of the last {COMPARED_MINUTES} minutes, {} readings, all exact",
                grouped(agree),
                grouped(readings)
            ));
        }
        if clock.monotonic() >= deadline {
            let ((device_id, metric, start), expected, found) = &differ[0];
            let found = found.map_or_else(|| "no window".to_owned(), |found| found.to_string());
            return Ok(format!(
                "compared with the simulation: {} windows are exact, {} DIFFER, such as {metric} of {device_id} from {}: \
                 {expected} readings were sent, but the answer is {found}",
                grouped(agree),
                grouped(differ.len() as u64),
                format_rfc3339(*start)
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A window as Wye answers it.
#[derive(Clone, Copy, Debug)]
struct ServedWindow {
    count: i64,
    sum: f64,
    min: f64,
    max: f64,
}

impl fmt::Display for ServedWindow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, sum, min, max } = self;
        write!(formatter, "{count} readings, sum {sum}, min {min}, max {max}")
    }
}

/// The windows from `oldest` on, by device, metric and start.
async fn served(client: &Client, oldest: Micros) -> Result<HashMap<(String, String, Micros), ServedWindow>> {
    let from = format_rfc3339(oldest);
    let sql = format!(
        "SELECT CAST(device_id AS VARCHAR) AS device_id, CAST(metric AS VARCHAR) AS metric, window_start, \
         CAST(count AS BIGINT) AS count, sum, min, max FROM unified_series \
         WHERE definition = '*' AND window_start >= TIMESTAMP '{from}'"
    );
    let headers = [("content-type", "application/json"), ("accept", "application/vnd.apache.arrow.stream")];
    let body = serde_json::to_vec(&serde_json::json!({ "sql": sql }))?;
    let answer = body_of(client.post("/v1/sql", &headers, body).await?).await?;
    let mut served = HashMap::new();
    for batch in StreamReader::try_new(answer.as_slice(), None)? {
        let batch = batch?;
        let (device_id, metric) = (text(&batch, "device_id")?, text(&batch, "metric")?);
        let window_start: &TimestampMicrosecondArray = column(&batch, "window_start")?;
        let count: &Int64Array = column(&batch, "count")?;
        let [sum, min, max] = ["sum", "min", "max"].map(|name| column::<Float64Array>(&batch, name));
        let (sum, min, max) = (sum?, min?, max?);
        for row in 0..batch.num_rows() {
            let window = (
                device_id.value(row).to_owned(),
                metric.value(row).to_owned(),
                Micros(window_start.value(row)),
            );
            let (count, sum) = (count.value(row), sum.value(row));
            served.insert(window, ServedWindow { count, sum, min: min.value(row), max: max.value(row) });
        }
    }
    Ok(served)
}

/// A column of text, whatever type of text the server sends.
fn text(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    let column = batch.column_by_name(name).with_context(|| format!("the answer has no column {name:?}"))?;
    let column = arrow::compute::cast(column, &DataType::Utf8)?;
    Ok(column.as_string::<i32>().clone())
}
