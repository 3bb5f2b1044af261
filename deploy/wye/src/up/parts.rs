//! The parts of a running Wye: how each is started, and how they are connected. Must not know their order.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use tokio_util::sync::CancellationToken;
use wye_batch::compute::Compute;
use wye_batch::layer::BatchLayer;
use wye_batch::runner::RunOptions;
use wye_batch::schedule::BatchHandle;
use wye_batch::telemetry::BatchTelemetry;
use wye_broker::{Broker, BrokerConfig, BrokerError, Limits, Port};
use wye_domain::ErrorKind;
use wye_domain::ledger::Tables;
use wye_log::client::{Log, LogConfig};
use wye_runtime::clock::Clock;
use wye_runtime::telemetry::Telemetry;
use wye_serving::http::{BatchRefusal, BatchRequest, BatchTrigger, Probe};
use wye_speed::ingest::telemetry::IngestTelemetry;
use wye_speed::ingest::{self, Ingest};
use wye_speed::layer::{Ownership, Ownerships, SpeedLayer};
use wye_speed::telemetry::SpeedTelemetry;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;

use super::check::Checked;
use super::data_dir::write_address;
use crate::settings::{EmbeddedPort, LogSection};
use crate::terminal::program;

/// The usual port of a Kafka broker.
const KAFKA_PORT: u16 = 9092;

/// What all layers share.
pub(super) struct Site {
    pub(super) log: Log,
    pub(super) root: TableRoot,
    pub(super) telemetry: Telemetry,
    pub(super) clock: Arc<dyn Clock>,
    /// The name of this server in the log.
    pub(super) name: String,
}

/// Connects to Kafka, or starts the embedded broker and connects to that. Creates the topics.
pub(super) async fn open_log(
    checked: &Checked,
    data_dir: &Path,
    shutdown: &CancellationToken,
) -> Result<(Option<Broker>, Log)> {
    let settings = &checked.settings.log;
    let (broker, bootstrap_servers) = if settings.bootstrap_servers.is_empty() {
        let broker = Broker::start(embedded_broker(settings, data_dir));
        let broker = broker.await.map_err(|error| broker_error(error, data_dir))?;
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
    log_config.extra = checked.properties.clone();
    let log = Log::new(log_config)?;
    log.wait_ready(shutdown).await?;
    if broker.is_some() {
        // An earlier version may have created them with other settings. On a Kafka, its administrator changes them.
        log.update_topics().await?;
    }
    log.ensure_topics().await?;
    Ok((broker, log))
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

/// The error of a broker that does not start; for a damaged log, with the command that repairs it.
fn broker_error(error: BrokerError, data_dir: &Path) -> anyhow::Error {
    if error.kind() != ErrorKind::Corrupt {
        return error.into();
    }
    let command = format!("{} repair-log --data-dir {}", program(), data_dir.display());
    anyhow!(
        "{error}; nothing was changed. `{command}` lists the lost records; with --accept-loss it removes them, and keeps \
         copies of the damaged files"
    )
}

/// The location of the tables.
pub(super) fn table_root(checked: &Checked, data_dir: &Path) -> Result<TableRoot> {
    Ok(match checked.settings.tables.root.as_str() {
        "" => TableRoot::directory(&data_dir.join("tables"))?,
        location => TableRoot::parse(location)?,
    })
}

/// The probe of `/readyz` for the embedded broker.
pub(super) fn log_probe(broker: &Broker) -> Probe {
    let health = broker.health();
    Arc::new(move || {
        let troubles: Vec<String> = health.troubles().iter().map(ToString::to_string).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    })
}

/// The probe of `/readyz` for Kafka partitions without an owner, whose realtime rows are not written.
pub(super) fn owner_probe(ownerships: Ownerships) -> Probe {
    Arc::new(move || {
        let vacant = ownerships.get().into_iter().filter(|(_, ownership)| *ownership == Ownership::Acquiring);
        let vacant: Vec<String> = vacant.map(|(kafka_partition, _)| kafka_partition.to_string()).collect();
        let list = vacant.join(", ");
        (!vacant.is_empty())
            .then(|| format!("Kafka partition {list} has no owner; the speed layer is taking it over"))
    })
}

pub(super) async fn start_ingest(
    checked: &Checked,
    site: &Site,
    shutdown: &CancellationToken,
) -> Result<Ingest> {
    let parts = ingest::Parts {
        log: site.log.clone(),
        server: site.name.clone(),
        telemetry: IngestTelemetry::register(&site.telemetry),
        clock: Arc::clone(&site.clock),
    };
    Ok(ingest::start(checked.settings.ingest.clone(), parts, shutdown.clone()).await?)
}

pub(super) async fn start_speed(
    checked: &Checked,
    site: &Site,
    shutdown: &CancellationToken,
) -> Result<SpeedLayer> {
    let parts = wye_speed::layer::Parts {
        log: site.log.clone(),
        plans: Arc::clone(&checked.plans),
        acceptance: checked.acceptance,
        telemetry: SpeedTelemetry::register(&site.telemetry),
        clock: Arc::clone(&site.clock),
        name: site.name.clone(),
    };
    Ok(wye_speed::layer::start(checked.settings.speed.clone(), parts, shutdown.clone()).await?)
}

pub(super) async fn start_batch(
    checked: &Checked,
    site: &Site,
    shutdown: &CancellationToken,
) -> Result<BatchLayer> {
    let parts = wye_batch::layer::Parts {
        log: site.log.clone(),
        root: site.root.clone(),
        plans: Arc::clone(&checked.plans),
        acceptance: checked.acceptance,
        compute: Arc::new(Compute::new()?),
        telemetry: BatchTelemetry::register(&site.telemetry),
        clock: Arc::clone(&site.clock),
        process_id: std::process::id(),
    };
    Ok(wye_batch::layer::start(checked.settings.batch_layer(), parts, shutdown.clone()).await?)
}

/// How the serving layer requests a batch run.
pub(super) fn batch_trigger(batch: BatchHandle) -> BatchTrigger {
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

/// Checks that the tables belong to the log.
///
/// # Errors
/// When the readings of the log are archived in other tables.
pub(super) async fn claim_tables(ingest: &Ingest, root: &TableRoot) -> Result<()> {
    let readings = Readings::open(root).await?.snapshot().await?;
    let tables = Tables { id: readings.table_id().to_owned(), root: root.to_string() };
    if let Some(other) = ingest.claim_tables(tables).await? {
        bail!(
            "the tables at {root} do not belong to this log: its readings are archived in the tables at {}. Set `root` in \
             [tables] to that location, or restore those tables. To start with empty tables, delete Wye's topics too (for \
             the embedded broker: the folder `log` in the data directory)",
            other.root
        );
    }
    Ok(())
}
