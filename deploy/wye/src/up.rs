//! `wye up`: every layer in one process, on one data directory.
//!
//! Everything that can be wrong with the settings is reported before anything is written. Each part is started after the
//! parts that it needs, and stopped before them, so that what was accepted is flushed.

mod parts;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_batch::layer::BatchLayer;
use wye_broker::Broker;
use wye_domain::time::{Micros, format_rfc3339};
use wye_runtime::clock::{Clock, SystemClock};
use wye_runtime::telemetry::Telemetry;
use wye_serving::http::Probe;
use wye_serving::layer::Serving;
use wye_speed::ingest::{self, Ingest};
use wye_speed::layer::SpeedLayer;

use crate::cli::Up;
use crate::client::ADDRESS_FILE;
use crate::host::Machine;
use crate::open_files;
use crate::settings;
use crate::site::check::{Given, check};
use crate::site::{self, Site, data_dir};
use crate::terminal::{program, say, tell};

/// How long the log may take to acknowledge readings after the last request.
const INGEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A running Wye.
pub(crate) struct Running {
    /// The address of the API.
    pub address: SocketAddr,
    /// The data directory.
    pub data_dir: PathBuf,
    broker: Option<Broker>,
    ingest: Ingest,
    ingest_shutdown: CancellationToken,
    batch: BatchLayer,
    speed: SpeedLayer,
    layers_shutdown: CancellationToken,
    serving: Serving,
    serving_shutdown: CancellationToken,
    /// Keeps other processes from the data directory.
    _lock: File,
}

/// Runs the command until Ctrl-C or SIGTERM.
///
/// # Errors
/// When Wye cannot start; the message says what to do.
pub(crate) async fn run(arguments: &Up) -> Result<()> {
    if arguments.print_defaults {
        return say(settings::defaults().trim_end());
    }
    let shutdown = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(wye_runtime::shutdown::cancel_on_signal(shutdown.clone()));
    let running = start(arguments, &shutdown).await?;
    print_examples(&running);
    shutdown.cancelled().await;
    running.stop().await;
    Ok(())
}

/// Prints commands that send a reading and query it.
fn print_examples(running: &Running) {
    let (address, data_dir) = (running.address, running.data_dir.display());
    let now = format_rfc3339(Micros::from_secs(SystemClock::default().now().seconds()));
    tell("");
    tell("Try, in another terminal:");
    tell("");
    tell(format!(
        "  curl http://{address}/v1/readings -d '{{\"device_id\": \"pump-1\", \"metric\": \"temperature\", \"value\": 21.5, \"event_time\": \"{now}\"}}'"
    ));
    tell(format!("  {} sql --data-dir {data_dir} \"SELECT * FROM unified_metrics\"", program()));
    tell("");
}

/// Starts everything, and returns when the API is ready. Cancelling `shutdown` stops the start.
///
/// # Errors
/// When Wye cannot start; the message says what to do.
pub(crate) async fn start(arguments: &Up, shutdown: &CancellationToken) -> Result<Running> {
    let data_dir = &arguments.data_dir;
    let checked =
        check(Given { data_dir, config: arguments.config.as_deref(), http: arguments.http.as_deref() })?;
    std::fs::create_dir_all(data_dir).with_context(|| {
        format!("cannot create the data directory {}; choose another with --data-dir", data_dir.display())
    })?;
    let lock = data_dir::lock(data_dir)?;
    // One that was killed has left its address.
    data_dir::remove_address(data_dir, ADDRESS_FILE)?;
    let listener = TcpListener::bind(checked.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; is another Wye running there? choose another address with --http, or port 0 for a free port",
            checked.listen
        )
    })?;
    let address = listener.local_addr().context("cannot read the address in use")?;

    let root = site::table_root(&checked, data_dir, shutdown).await?;
    let port = site::embedded_port(&checked.settings.log);
    let (broker, log) = site::open_log(&checked, data_dir, port, shutdown).await?;
    data_dir::write_address(data_dir, "kafka.addr", &log.config().bootstrap_servers)?;
    let site = Site {
        log,
        root,
        telemetry: Telemetry::default(),
        clock: Arc::new(SystemClock::default()),
        name: data_dir::server_name(data_dir)?,
    };
    let ingest_shutdown = CancellationToken::new();
    let layers_shutdown = CancellationToken::new();
    // Where the start fails, what has started ends.
    let (ingest_guard, layers_guard) =
        (ingest_shutdown.clone().drop_guard(), layers_shutdown.clone().drop_guard());
    let serving_shutdown = CancellationToken::new();
    let ingest = site::start_ingest(&checked, &site, &ingest_shutdown).await?;
    site::claim_tables(&ingest, &site.root).await?;
    let batch = parts::start_batch(&checked, &site, &layers_shutdown).await?;
    let speed = parts::start_speed(&checked, &site, &layers_shutdown).await?;
    let mut probes: Vec<Probe> = broker.iter().map(parts::log_probe).collect();
    probes.push(parts::owner_probe(speed.ownerships()));
    let serving_parts = wye_serving::layer::Parts {
        log: site.log.clone(),
        root: site.root,
        plans: checked.plans,
        telemetry: site.telemetry,
        clock: site.clock,
        host: Arc::new(Machine),
        spill_folder: Some(data_dir.join("spill")),
        open_files: open_files::raise(),
        listener,
        other_paths: ingest::http::router(ingest.clone()),
        max_body: checked.settings.ingest.max_body,
        batch_trigger: Some(parts::batch_trigger(batch.handle())),
        probes,
    };
    let serving_settings = checked.settings.serving_layer();
    let serving =
        wye_serving::layer::start(serving_settings, serving_parts, serving_shutdown.clone()).await?;
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
    // From here on, `stop` ends everything in order.
    ingest_guard.disarm();
    layers_guard.disarm();
    tokio::select! {
        () = running.serving.until_ready() => {}
        () = shutdown.cancelled() => {
            running.stop().await;
            bail!("stopped before it was ready");
        }
    }
    data_dir::write_address(data_dir, ADDRESS_FILE, &address.to_string())?;
    tell("Wye is up");
    tell(format!("  API        http://{address}"));
    tell(format!("  Kafka      {}", site.log.config().bootstrap_servers));
    tell(format!("  data       {}", data_dir.display()));
    Ok(running)
}

impl Running {
    /// Stops everything in order: acknowledged readings are stored, and what was read is flushed.
    pub(crate) async fn stop(self) {
        info!("stopping");
        if let Err(error) = data_dir::remove_address(&self.data_dir, ADDRESS_FILE) {
            warn!("{error:#}");
        }
        // First answers the requests in progress, which may wait for all other parts.
        self.serving_shutdown.cancel();
        self.serving.join().await;
        self.ingest_shutdown.cancel();
        if tokio::time::timeout(INGEST_TIMEOUT, self.ingest.join()).await.is_err() {
            warn!(
                "the log has not acknowledged some readings; their senders were answered that they may be lost"
            );
        }
        self.layers_shutdown.cancel();
        self.speed.join().await;
        self.batch.join().await;
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
        tell("Wye has stopped");
    }
}
