//! What commands that work by themselves share: the settings, the log, the tables, and the files of the data directory. Must
//! not know which layers run on it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use tokio_util::sync::CancellationToken;
use wye_batch::compute::Compute;
use wye_batch::telemetry::BatchTelemetry;
use wye_broker::{Broker, BrokerConfig, BrokerError, Limits, Port};
use wye_domain::ledger::Tables;
use wye_domain::{ErrorKind, error_chain};
use wye_log::client::{Log, LogConfig};
use wye_runtime::clock::Clock;
use wye_runtime::telemetry::Telemetry;
use wye_speed::ingest::telemetry::IngestTelemetry;
use wye_speed::ingest::{self, Ingest};
use wye_tables::TablesError;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;

use crate::client::Misused;
use crate::settings::{EmbeddedPort, LogSection};
use crate::terminal::program;
use check::Checked;

pub(crate) mod check;
pub(crate) mod data_dir;

/// The usual port of a Kafka broker.
const KAFKA_PORT: u16 = 9092;

/// What all layers share.
pub(crate) struct Site {
    pub(crate) log: Log,
    pub(crate) root: TableRoot,
    pub(crate) telemetry: Telemetry,
    pub(crate) clock: Arc<dyn Clock>,
    /// The name of this server in the log.
    pub(crate) name: String,
}

/// Connects to Kafka, or starts the embedded broker and connects to that. Creates the topics.
pub(crate) async fn open_log(
    checked: &Checked,
    data_dir: &Path,
    port: Port,
    shutdown: &CancellationToken,
) -> Result<(Option<Broker>, Log)> {
    let settings = &checked.settings.log;
    let (broker, bootstrap_servers) = if settings.is_embedded() {
        let broker = Broker::start(embedded_broker(settings, data_dir, port));
        let broker = broker.await.map_err(|error| broker_error(error, data_dir))?;
        let servers = broker.bootstrap_servers().to_owned();
        (Some(broker), servers)
    } else {
        (None, settings.bootstrap_servers.clone())
    };
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

/// The port of the embedded broker in `wye up`.
pub(crate) fn embedded_port(settings: &LogSection) -> Port {
    match settings.embedded_port {
        EmbeddedPort::Default => Port::Preferred(KAFKA_PORT),
        EmbeddedPort::Only(0) => Port::Free,
        EmbeddedPort::Only(port) => Port::Only(port),
    }
}

fn embedded_broker(settings: &LogSection, data_dir: &Path, port: Port) -> BrokerConfig {
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

/// The location of the tables, which is checked.
///
/// # Errors
/// When it cannot be used, or `shutdown` is cancelled first.
pub(crate) async fn table_root(
    checked: &Checked,
    data_dir: &Path,
    shutdown: &CancellationToken,
) -> Result<TableRoot> {
    let location = match checked.settings.tables.root.as_str() {
        "" => return Ok(TableRoot::directory(&data_dir.join("tables"))?),
        location => location,
    };
    match shutdown.run_until_cancelled(TableRoot::open(location, &checked.s3)).await {
        // A wrong location is a wrong setting.
        Some(Err(error @ TablesError::Location { .. })) => bail!(Misused(error_chain(&error))),
        Some(root) => Ok(root?),
        None => bail!("stopped before the store of the tables has answered"),
    }
}

/// What the batch layer works with.
pub(crate) fn batch_parts(checked: &Checked, site: &Site) -> Result<wye_batch::layer::Parts> {
    Ok(wye_batch::layer::Parts {
        log: site.log.clone(),
        root: site.root.clone(),
        plans: Arc::clone(&checked.plans),
        acceptance: checked.acceptance,
        compute: Arc::new(Compute::new()?),
        telemetry: BatchTelemetry::register(&site.telemetry),
        clock: Arc::clone(&site.clock),
        process_id: std::process::id(),
    })
}

pub(crate) async fn start_ingest(
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

/// Checks that the tables belong to the log.
///
/// # Errors
/// When the readings of the log are archived in other tables, or the tables have readings of another log.
pub(crate) async fn claim_tables(ingest: &Ingest, root: &TableRoot) -> Result<()> {
    let readings = Readings::open(root).await?.snapshot().await?;
    // Whoever archives has noted it in the log first. Offsets of another log mean other readings, which would not be archived.
    if ingest.tables().is_none() && !readings.archived().is_empty() {
        bail!(
            "the tables at {root} have readings of another log: was the log deleted or replaced? Restore it, or set `root` in \
             [tables] to an empty location"
        );
    }
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
