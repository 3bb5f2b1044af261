//! A Kafka-protocol broker within our own process, for one machine on which no Kafka is installed.
//!
//! It speaks to clients on loopback only, keeps its log in files of one directory, and does what Wye needs of a
//! broker and what ordinary clients expect: idempotent writes, fetches that wait for data, classic consumer groups,
//! DeleteRecords that give the disk back at once. What it has acknowledged is on the disk, past its cache, since there
//! is no replica elsewhere. It has one node, no replicas, no transactions, no access control: who asks for those is told
//! so, and takes a Kafka.
//!
//! It knows neither readings nor views; to it a payload is bytes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use catalog::Catalog;
use coordinator::Coordinator;
use disk::{Disk, OsDisk};
pub use error::BrokerError;
pub use health::{HealthWatch, Trouble};
pub use limits::Limits;
use offsets::Offsets;
pub use repair::{Loss, Repair, repair};
use server::Server;

mod catalog;
mod coordinator;
mod decompress;
mod disk;
mod error;
mod fetch;
mod frames;
mod groups;
mod health;
mod limits;
mod offsets;
mod old_produce;
mod partition_log;
mod produced;
mod record_batch;
mod records;
mod recovery;
mod refusals;
mod repair;
mod requests;
mod segment;
mod sequences;
mod server;
mod shape;
mod storage;
#[cfg(test)]
mod testing;
mod topic_settings;

/// How long [`Broker::stop`] waits for a write that a client did not wait for.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How the embedded broker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Its directory; created if absent. One process at a time.
    pub data_dir: PathBuf,
    /// The port on 127.0.0.1.
    pub port: Port,
    /// At how many bytes a segment file is closed. Deleted records give the disk back in whole segments (and when
    /// everything was deleted).
    pub segment_bytes: u64,
    /// What clients may take.
    pub limits: Limits,
}

/// On which port of 127.0.0.1 clients find the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// One that is free.
    Free,
    /// This one, or the start fails.
    Only(u16),
    /// This one, or a free one if somebody else has it, which is logged.
    Preferred(u16),
}

impl BrokerConfig {
    /// A broker in `data_dir`, on a free port.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: Port::Free,
            segment_bytes: 32 * 1024 * 1024,
            limits: Limits::default(),
        }
    }
}

/// A running broker. Dropping it stops it as a crash would; [`Self::stop`] is the orderly way.
pub struct Broker {
    bootstrap_servers: String,
    catalog: Arc<Catalog>,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl Broker {
    /// Opens the directory, takes the port, and serves until [`Self::stop`].
    ///
    /// # Errors
    /// `Storage`: of kind `Conflict` when another process has the directory or the port, `Corrupt` when the
    /// directory holds something else.
    pub async fn start(config: BrokerConfig) -> Result<Self, BrokerError> {
        Self::start_on(Arc::new(OsDisk), config).await
    }

    async fn start_on(disk: Arc<dyn Disk>, config: BrokerConfig) -> Result<Self, BrokerError> {
        let started = Instant::now();
        let (directory, segment_bytes) = (config.data_dir.clone(), config.segment_bytes);
        let open = move || Catalog::open_on(disk, &directory, segment_bytes);
        let opened = tokio::task::spawn_blocking(open).await;
        let catalog = match opened {
            Ok(Ok(catalog)) => Arc::new(catalog),
            Ok(Err(source)) if source.kind() == io::ErrorKind::WouldBlock => {
                return Err(failure("open, because another process has it open,", &config.data_dir, source));
            }
            Ok(Err(source)) => return Err(failure("open", &config.data_dir, source)),
            Err(_) => return Err(BrokerError::Cancelled),
        };
        let (listener, address) = listen(config.port).await?;
        let kept = Arc::clone(&catalog);
        let offsets = match tokio::task::spawn_blocking(move || Offsets::open(kept)).await {
            Ok(Ok(offsets)) => offsets,
            Ok(Err(source)) => {
                return Err(failure("read the committed offsets in", &config.data_dir, source));
            }
            Err(_) => return Err(BrokerError::Cancelled),
        };

        let cancel = CancellationToken::new();
        let coordinator = Arc::new(Coordinator::new(offsets));
        let server = Server::new(Arc::clone(&catalog), Arc::clone(&coordinator), address, config.limits);
        let mut tasks = JoinSet::new();
        tasks.spawn(coordinator.run(cancel.clone()));
        tasks.spawn(server.accept(listener, cancel.clone()));
        tasks.spawn(health::look_for_room(Arc::clone(&catalog), cancel.clone()));
        let milliseconds = started.elapsed().as_millis() as u64;
        info!(%address, data_dir = %config.data_dir.display(), milliseconds, "embedded broker is up");
        Ok(Self { bootstrap_servers: address.to_string(), catalog, cancel, tasks })
    }

    /// `host:port`, for a Kafka client.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// What is wrong with the storage, now and later, for who says whether the process is ready.
    pub fn health(&self) -> HealthWatch {
        HealthWatch::new(&self.catalog)
    }

    /// Stops taking requests and lets go of the directory. What was acknowledged is on the disk already.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
        // A write may still run whose client is gone. The directory is free for the next broker only after that.
        let deadline = Instant::now() + STOP_PATIENCE;
        while Arc::strong_count(&self.catalog) > 1 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn listen(port: Port) -> Result<(TcpListener, SocketAddr), BrokerError> {
    match port {
        Port::Free => bind(0).await,
        Port::Only(port) => bind(port).await,
        Port::Preferred(port) => match bind(port).await {
            Err(BrokerError::Storage { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                let (listener, address) = bind(0).await?;
                warn!(%address, "embedded broker: port {port} is taken, so Kafka clients find it at {address}");
                Ok((listener, address))
            }
            bound => bound,
        },
    }
}

async fn bind(port: u16) -> Result<(TcpListener, SocketAddr), BrokerError> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let refused = |source| failure("listen on", Path::new(&wanted.to_string()), source);
    let listener = TcpListener::bind(wanted).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
}

fn failure(what: &'static str, path: &Path, source: io::Error) -> BrokerError {
    BrokerError::Storage { what, path: path.to_owned(), source }
}

/// The offsets that a Kafka partition holds: `[low, high)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetRange {
    /// The first offset that is still there (or, with nothing there, the next one to come).
    pub(crate) low: i64,
    /// The offset that the next record will get.
    pub(crate) high: i64,
}
