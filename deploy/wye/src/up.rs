//! `wye up`: every layer in one process, on one data directory.
//!
//! Order: what can be wrong is found before anything is written; parts are started in the order in which they need
//! each other, and stopped the other way round, so that what was taken in is flushed.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_batch::compute::Compute;
use wye_batch::layer::BatchLayer;
use wye_batch::runner::RunOptions;
use wye_batch::schedule::BatchHandle;
use wye_batch::telemetry::BatchTelemetry;
use wye_broker::{Broker, BrokerConfig, BrokerError, Limits, Port};
use wye_domain::ErrorKind;
use wye_domain::registry::Registry;
use wye_domain::wire::Acceptance;
use wye_log::client::{Log, LogConfig};
use wye_metrics::definition::Definition;
use wye_metrics::plan::MetricPlans;
use wye_runtime::clock::SystemClock;
use wye_runtime::config::{self, ConfigError, definition_error};
use wye_runtime::telemetry::Telemetry;
use wye_serving::http::{BatchRefusal, BatchRequest, BatchTrigger, Probe};
use wye_serving::layer::Serving;
use wye_speed::ingest::telemetry::IngestTelemetry;
use wye_speed::ingest::{self, Ingest, Tables};
use wye_speed::layer::{Ownership, Ownerships, SpeedLayer};
use wye_speed::telemetry::SpeedTelemetry;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;

use crate::cli::Up;
use crate::client::ADDRESS_FILE;
use crate::host::Machine;
use crate::open_files;
use crate::settings::{self, EmbeddedPort, LogSection, Settings};
use crate::terminal::{program, say, tell};

/// How long the log may take to acknowledge readings after the last request.
const INGEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Where Kafka clients look for a broker.
const KAFKA_PORT: u16 = 9092;

/// A running Wye.
pub(crate) struct Running {
    /// The address of the API.
    pub address: SocketAddr,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    broker: Option<Broker>,
    ingest: Ingest,
    ingest_shutdown: CancellationToken,
    batch: BatchLayer,
    speed: SpeedLayer,
    layers_shutdown: CancellationToken,
    serving: Serving,
    serving_shutdown: CancellationToken,
    // Held until the end: one process a data directory.
    _lock: File,
}

/// Runs the command until Ctrl-C or SIGTERM.
///
/// # Errors
/// One line that says what to do.
pub(crate) async fn run(arguments: &Up) -> Result<()> {
    if arguments.print_defaults {
        return say(settings::defaults().trim_end());
    }
    let cancel = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(wye_runtime::shutdown::cancel_on_signal(cancel.clone()));
    let running = start(arguments, &cancel).await?;
    tell("");
    tell("Try, in another terminal:");
    tell("");
    let data_dir = running.data_dir.display();
    tell(format!(
        "  curl http://{}/v1/readings -d '{{\"device_id\": \"pump-1\", \"metric\": \"temperature\", \"value\": 21.5, \"event_time\": \"{}\"}}'",
        running.address,
        chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
    ));
    tell(format!("  {} sql --data-dir {data_dir} \"SELECT * FROM unified_metrics\"", program()));
    tell("");
    cancel.cancelled().await;
    running.stop().await
}

/// The checked settings of a process.
struct Setup {
    settings: Settings,
    plans: Arc<MetricPlans>,
    listen: SocketAddr,
    acceptance: Acceptance,
    /// Of the Kafka client.
    properties: BTreeMap<String, String>,
}

/// What all layers share.
struct Site {
    log: Log,
    root: TableRoot,
    telemetry: Telemetry,
    /// What this server calls itself in the log.
    name: String,
}

/// Starts everything; returns once the API is ready. `cancel` calls the start off.
///
/// # Errors
/// One line that says what to do.
pub(crate) async fn start(arguments: &Up, cancel: &CancellationToken) -> Result<Running> {
    let setup = check(arguments)?;
    let data_dir = &arguments.data_dir;
    std::fs::create_dir_all(data_dir).with_context(|| {
        format!("cannot create the data directory {}; choose another by --data-dir", data_dir.display())
    })?;
    let lock = lock(data_dir)?;
    let listener = TcpListener::bind(setup.listen).await.with_context(|| {
        format!("cannot listen on {}; is another Wye running there? choose another address by --http, or port 0 for a free one", setup.listen)
    })?;
    let address = listener.local_addr().context("cannot tell the address in use")?;

    let (broker, log) = open_log(&setup, data_dir, cancel).await?;
    let root = match setup.settings.tables.root.as_str() {
        "" => TableRoot::directory(&data_dir.join("tables"))?,
        location => TableRoot::parse(location)?,
    };
    let site = Site { log, root, telemetry: Telemetry::default(), name: server_name(data_dir)? };
    let ingest_shutdown = CancellationToken::new();
    let layers_shutdown = CancellationToken::new();
    let serving_shutdown = CancellationToken::new();
    let ingest = start_ingest(&setup, &site, &ingest_shutdown).await?;
    claim_tables(&ingest, &site.root).await?;
    let batch = start_batch(&setup, &site, &layers_shutdown).await?;
    let speed = start_speed(&setup, &site, &layers_shutdown).await?;
    let mut probes: Vec<Probe> = broker.iter().map(log_probe).collect();
    probes.push(owner_probe(speed.ownerships()));
    let parts = wye_serving::layer::Parts {
        log: site.log.clone(),
        root: site.root.clone(),
        plans: Arc::clone(&setup.plans),
        telemetry: site.telemetry.clone(),
        clock: Arc::new(SystemClock::default()),
        host: Arc::new(Machine),
        spill_folder: Some(data_dir.join("spill")),
        open_files: open_files::raise(),
        listener,
        other_paths: ingest::http::router(ingest.clone()),
        max_body: setup.settings.ingest.max_body,
        batch_trigger: Some(batch_trigger(batch.handle())),
        probes,
    };
    let serving =
        wye_serving::layer::start(setup.settings.serving_layer(), parts, serving_shutdown.clone()).await?;
    let running = Running {
        address,
        data_dir: data_dir.clone(),
        broker,
        ingest,
        ingest_shutdown,
        batch,
        speed,
        layers_shutdown,
        serving,
        serving_shutdown,
        _lock: lock,
    };
    tokio::select! {
        () = running.serving.until_ready() => {}
        () = cancel.cancelled() => {
            running.stop().await?;
            bail!("stopped before it was ready");
        }
    }
    write_address(data_dir, ADDRESS_FILE, &address.to_string())?;
    tell("Wye is up");
    tell(format!("  API        http://{address}"));
    tell(format!("  Kafka      {}", site.log.config().bootstrap_servers));
    tell(format!("  data       {}", data_dir.display()));
    Ok(running)
}

/// Reads and checks everything that can be wrong before anything is started.
fn check(arguments: &Up) -> Result<Setup> {
    if arguments.data_dir.as_os_str().is_empty() {
        bail!("--data-dir is empty; write for example --data-dir wye-data");
    }
    let file = arguments.config.as_deref();
    let mut settings = Settings::load(file, std::env::vars())?;
    let listen_place = if arguments.http.is_some() { "--http" } else { "`listen` in [http]" };
    if let Some(address) = &arguments.http {
        settings.http.listen.clone_from(address);
    }
    let mut problems = Vec::new();
    let registry = config::registry(&settings.registry.file, file).map_err(|error| problems.push(error));
    let definitions = config::definitions(&settings.metric, file).map_err(|error| problems.push(error));
    let plans = match (definitions, registry) {
        (Ok(definitions), Ok(registry)) => plan(definitions, registry, file, &mut problems),
        _ => None,
    };
    let listen = settings.http.address().map_err(|unworkable| {
        problems.push(ConfigError::Parse {
            place: listen_place.to_owned(),
            problem: format!("{}; write for example {}", unworkable.problem, unworkable.example),
        });
    });
    ConfigError::all(problems)?;
    let (Some(plans), Ok(listen)) = (plans, listen) else { bail!("the settings cannot be used") };
    let acceptance = settings.ingest.acceptance();
    let plans = Arc::new(plans.accepting(&acceptance));
    let properties = settings.log.client_properties(file)?;
    Ok(Setup { settings, plans, listen, acceptance, properties })
}

/// Plans the definitions; what is wrong with any of them is added to the problems.
fn plan(
    definitions: Vec<Definition>,
    registry: Registry,
    file: Option<&Path>,
    problems: &mut Vec<ConfigError>,
) -> Option<MetricPlans> {
    let registry = Arc::new(registry);
    let wrong = problems.len();
    for (index, definition) in definitions.iter().enumerate() {
        if let Err(error) = MetricPlans::new(vec![definition.clone()], Arc::clone(&registry)) {
            problems.push(definition_error(file, index, error.key, &error.to_string()));
        }
    }
    if problems.len() > wrong {
        return None;
    }
    let names: Vec<String> = definitions.iter().map(|definition| definition.name.clone()).collect();
    let planned = MetricPlans::new(definitions, registry).map_err(|error| {
        let index = names.iter().rposition(|name| *name == error.metric).unwrap_or(0);
        problems.push(definition_error(file, index, error.key, &error.to_string()));
    });
    planned.ok()
}

fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| {
        format!(
            "cannot write into the data directory {}; check its permissions, or choose another by --data-dir",
            data_dir.display()
        )
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another Wye runs on the data directory {}; stop it, or choose another by --data-dir",
                data_dir.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

async fn open_log(
    Setup { settings: Settings { log: settings, .. }, properties, .. }: &Setup,
    data_dir: &Path,
    cancel: &CancellationToken,
) -> Result<(Option<Broker>, Log)> {
    let (broker, bootstrap_servers) = if settings.bootstrap_servers.is_empty() {
        let broker = Broker::start(embedded_broker(settings, data_dir));
        let broker = broker.await.map_err(|error| log_refused(error, data_dir))?;
        let servers = broker.bootstrap_servers().to_owned();
        (Some(broker), servers)
    } else {
        (None, settings.bootstrap_servers.clone())
    };
    write_address(data_dir, "kafka.addr", &bootstrap_servers)?;
    let mut log_config = LogConfig::new(bootstrap_servers, settings.kafka_partitions);
    if broker.is_none() {
        log_config.replication_factor = settings.replication_factor;
    }
    log_config.extra = properties.clone();
    let log = Log::new(log_config)?;
    log.wait_ready(cancel).await?;
    if broker.is_some() {
        // An earlier version may have made them with other settings. On a Kafka, they are for its owner to change.
        log.update_topics().await?;
    }
    log.ensure_topics().await?;
    Ok((broker, log))
}

/// A log that is damaged comes with the command that gives up what is damaged.
fn log_refused(error: BrokerError, data_dir: &Path) -> anyhow::Error {
    if error.kind() != ErrorKind::Corrupt {
        return error.into();
    }
    let command = format!("{} repair-log --data-dir {}", program(), data_dir.display());
    anyhow!(
        "{error}; nothing was changed. `{command}` shows what is lost; with --accept-loss it gives that up, and keeps a copy"
    )
}

/// What `/readyz` says of the embedded broker.
fn log_probe(broker: &Broker) -> Probe {
    let health = broker.health();
    Arc::new(move || {
        let troubles: Vec<String> = health.troubles().iter().map(ToString::to_string).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    })
}

/// What `/readyz` says of Kafka partitions that no owner writes realtime rows of.
fn owner_probe(ownerships: Ownerships) -> Probe {
    Arc::new(move || {
        let vacant = ownerships.get().into_iter().filter(|(_, ownership)| *ownership == Ownership::Acquiring);
        let vacant: Vec<String> = vacant.map(|(kafka_partition, _)| kafka_partition.to_string()).collect();
        let list = vacant.join(", ");
        (!vacant.is_empty())
            .then(|| format!("Kafka partition {list} has no owner; the speed layer is taking it over"))
    })
}

fn embedded_broker(settings: &LogSection, data_dir: &Path) -> BrokerConfig {
    let port = match settings.embedded_port {
        EmbeddedPort::Default => Port::Preferred(KAFKA_PORT),
        EmbeddedPort::Only(0) => Port::Free,
        EmbeddedPort::Only(port) => Port::Only(port),
    };
    let limits = Limits {
        connections: settings.embedded_connections,
        idle: settings.embedded_idle,
        memory: settings.embedded_memory,
        unpacked_batch_bytes: settings.embedded_max_batch,
        ..Limits::default()
    };
    BrokerConfig { port, limits, ..BrokerConfig::new(data_dir.join("log")) }
}

async fn start_ingest(setup: &Setup, site: &Site, shutdown: &CancellationToken) -> Result<Ingest> {
    let parts = ingest::Parts {
        log: site.log.clone(),
        server: site.name.clone(),
        telemetry: IngestTelemetry::register(&site.telemetry),
        clock: Arc::new(SystemClock::default()),
    };
    Ok(ingest::start(setup.settings.ingest.clone(), parts, shutdown.clone()).await?)
}

async fn start_speed(setup: &Setup, site: &Site, shutdown: &CancellationToken) -> Result<SpeedLayer> {
    let parts = wye_speed::layer::Parts {
        log: site.log.clone(),
        plans: Arc::clone(&setup.plans),
        acceptance: setup.acceptance,
        telemetry: SpeedTelemetry::register(&site.telemetry),
        clock: Arc::new(SystemClock::default()),
        name: site.name.clone(),
    };
    Ok(wye_speed::layer::start(setup.settings.speed.clone(), parts, shutdown.clone()).await?)
}

async fn start_batch(setup: &Setup, site: &Site, shutdown: &CancellationToken) -> Result<BatchLayer> {
    let parts = wye_batch::layer::Parts {
        log: site.log.clone(),
        root: site.root.clone(),
        plans: Arc::clone(&setup.plans),
        acceptance: setup.acceptance,
        compute: Arc::new(Compute::new()?),
        telemetry: BatchTelemetry::register(&site.telemetry),
        clock: Arc::new(SystemClock::default()),
        process_id: std::process::id(),
    };
    Ok(wye_batch::layer::start(setup.settings.batch_layer(), parts, shutdown.clone()).await?)
}

/// How the serving layer asks for a batch run.
fn batch_trigger(batch: BatchHandle) -> BatchTrigger {
    Arc::new(move |request: BatchRequest| {
        let batch = batch.clone();
        Box::pin(async move {
            let report = batch
                .run_now(RunOptions { force: request.force, progress: None })
                .await
                .map_err(|error| BatchRefusal { kind: error.kind(), message: error.to_string() })?;
            Ok(serde_json::to_value(report).unwrap_or_default())
        })
    })
}

/// Refuses tables that are not those of the log.
async fn claim_tables(ingest: &Ingest, root: &TableRoot) -> Result<()> {
    let readings = Readings::open(root).await?.snapshot().await?;
    let tables = Tables { id: readings.table_id().to_owned(), root: root.to_string() };
    if let Some(other) = ingest.claim_tables(tables).await? {
        bail!(
            "the tables at {root} are not those of this log: its readings are archived in tables at {}. Set [tables] \
             root to those, or restore them; to begin with empty tables, delete Wye's topics too (or, of the embedded \
             broker, the folder `log` in the data directory)",
            other.root
        );
    }
    Ok(())
}

/// What this server calls itself in the log: made up once for a data directory, which one process has at a time.
fn server_name(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("server-name");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    // The standard library seeds its hashers with random numbers.
    let name = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    std::fs::write(&path, &name).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(name)
}

/// Writes a file that others read, whole or not at all.
fn write_address(data_dir: &Path, name: &str, address: &str) -> Result<()> {
    let (path, draft) = (data_dir.join(name), data_dir.join(format!("{name}.new")));
    std::fs::write(&draft, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

impl Running {
    /// Stops everything in order; what was acknowledged is kept, what was read is flushed.
    ///
    /// # Errors
    /// When the log cannot be closed in order; nothing acknowledged is lost by that.
    pub(crate) async fn stop(self) -> Result<()> {
        info!("draining");
        let gone = std::fs::remove_file(self.data_dir.join(ADDRESS_FILE));
        if let Err(error) = gone
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(%error, "cannot remove {ADDRESS_FILE}");
        }
        // Answers the requests in progress, which may wait for all other parts.
        self.serving_shutdown.cancel();
        self.serving.join().await;
        self.ingest_shutdown.cancel();
        if tokio::time::timeout(INGEST_TIMEOUT, self.ingest.join()).await.is_err() {
            warn!(
                "the log has not acknowledged some readings; their senders were told that they may be lost"
            );
        }
        self.layers_shutdown.cancel();
        self.speed.join().await;
        self.batch.join().await;
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
        tell("Wye has stopped");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &str, http: &str) -> String {
        let file =
            std::env::temp_dir().join(format!("wye-up-test-{}-{:x}.toml", std::process::id(), config.len()));
        std::fs::write(&file, config).unwrap();
        let up = Up {
            data_dir: "data".into(),
            config: Some(file.clone()),
            http: Some(http.to_owned()),
            print_defaults: false,
        };
        let outcome = check(&up);
        std::fs::remove_file(file).unwrap();
        outcome.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn all_definitions_that_cannot_be_planned_are_named_at_once() {
        let config =
            "[[metric]]\nname = \"a\"\nwhere = \"value >\"\n[[metric]]\nname = \"b\"\nvalue = \"upper(\"\n";
        let message = refused(config, "nowhere");
        for word in ["3 settings", "line 3", "line 6", "\"nowhere\"", "localhost:8080"] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn views_of_two_metrics_cannot_have_one_name() {
        let config = "[[metric]]\nname = \"a\"\nrollups = [\"1h\"]\n[[metric]]\nname = \"b\"\n[[metric]]\nname = \"a_1h\"\n";
        let message = refused(config, "127.0.0.1:0");
        assert!(message.contains("line 7") && message.contains("\"a\""), "{message}");
    }
}
