//! A broker of the Kafka protocol inside our own process, for one machine without Kafka.
//!
//! It serves clients on the loopback address only and keeps its log in the files of one directory. It has what Wye and
//! ordinary clients need: idempotent writes, fetches that wait for data, classic consumer groups, and DeleteRecords that
//! frees disk space at once. There is no replica elsewhere, so whatever it acknowledges is synced to the disk first. It is
//! one node without replicas, transactions or access control; requests for these are refused with a message.
//!
//! It must not know readings or views: a payload is bytes here.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_domain::place::Offset;

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
mod clock;
mod coordinator;
mod decompress;
mod disk;
mod error;
mod fetch;
mod frames;
mod groups;
mod health;
mod limits;
mod locks;
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

/// How long [`Broker::stop`] waits for writes whose clients have disconnected.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The configuration of the embedded broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The data directory; created if absent. One process at a time can use it.
    pub data_dir: PathBuf,
    /// The port on 127.0.0.1.
    pub port: Port,
    /// The size in bytes at which a segment file is closed. Deleting records frees disk space in whole segments (and all
    /// of it when every record is deleted).
    pub segment_bytes: u64,
    /// Bounds on what clients may use.
    pub limits: Limits,
}

/// The port of 127.0.0.1 on which the broker listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Any free port.
    Free,
    /// This port; the start fails if it is taken.
    Only(u16),
    /// This port, or a free one if it is taken; that is logged.
    Preferred(u16),
}

impl BrokerConfig {
    /// The default configuration in `data_dir`, on a free port.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: Port::Free,
            segment_bytes: 32 * 1024 * 1024,
            limits: Limits::default(),
        }
    }
}

/// A running broker. Dropping it stops it as a crash does; [`Self::stop`] is the orderly way.
pub struct Broker {
    bootstrap_servers: String,
    catalog: Arc<Catalog>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Broker {
    /// Opens the directory, binds the port, and serves until [`Self::stop`].
    ///
    /// # Errors
    /// `Storage`: of kind `Conflict` when another process has the directory or the port, `Corrupt` when the files in the
    /// directory are damaged.
    pub async fn start(config: BrokerConfig) -> Result<Self, BrokerError> {
        Self::start_on(Arc::new(OsDisk), config).await
    }

    async fn start_on(disk: Arc<dyn Disk>, config: BrokerConfig) -> Result<Self, BrokerError> {
        let started = clock::monotonic();
        let (directory, segment_bytes) = (config.data_dir.clone(), config.segment_bytes);
        let opened =
            tokio::task::spawn_blocking(move || Catalog::open_on(disk, &directory, segment_bytes)).await;
        let catalog = match opened {
            Ok(Ok(catalog)) => Arc::new(catalog),
            Ok(Err(source)) if source.kind() == io::ErrorKind::WouldBlock => {
                return Err(failure("open, because another process has it open,", &config.data_dir, source));
            }
            Ok(Err(source)) => return Err(failure("open", &config.data_dir, source)),
            Err(_) => return Err(BrokerError::Cancelled),
        };
        let (listener, address) = listen(config.port).await?;
        let of_catalog = Arc::clone(&catalog);
        let offsets = match tokio::task::spawn_blocking(move || Offsets::open(of_catalog)).await {
            Ok(Ok(offsets)) => offsets,
            Ok(Err(source)) => {
                return Err(failure("read the committed offsets in", &config.data_dir, source));
            }
            Err(_) => return Err(BrokerError::Cancelled),
        };

        let shutdown = CancellationToken::new();
        let coordinator = Arc::new(Coordinator::new(offsets));
        let server = Server::new(Arc::clone(&catalog), Arc::clone(&coordinator), address, config.limits);
        let mut tasks = JoinSet::new();
        tasks.spawn(coordinator.run(shutdown.clone()));
        tasks.spawn(server.accept(listener, shutdown.clone()));
        tasks.spawn(health::watch_for_space(Arc::clone(&catalog), shutdown.clone()));
        let milliseconds = (clock::monotonic() - started).as_millis() as u64;
        info!(%address, data_dir = %config.data_dir.display(), milliseconds, "embedded broker is up");
        Ok(Self { bootstrap_servers: address.to_string(), catalog, shutdown, tasks })
    }

    /// `host:port`, for a Kafka client.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Reports what is wrong with the storage, now and later; for the readiness of the process.
    pub fn health(&self) -> HealthWatch {
        HealthWatch::new(&self.catalog)
    }

    /// Stops serving requests and unlocks the directory. Everything acknowledged is on the disk already.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        // A write whose client has disconnected may still run. Another broker can open the directory only after it.
        let deadline = clock::monotonic() + STOP_PATIENCE;
        while Arc::strong_count(&self.catalog) > 1 && clock::monotonic() < deadline {
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
                warn!(%address, "embedded broker: port {port} is taken; Kafka clients must connect to {address}");
                Ok((listener, address))
            }
            bound => bound,
        },
    }
}

async fn bind(port: u16) -> Result<(TcpListener, SocketAddr), BrokerError> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match try_bind(wanted).await {
        Ok(bound) => Ok(bound),
        Err(source) => Err(failure("listen on", Path::new(&wanted.to_string()), source)),
    }
}

async fn try_bind(wanted: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(wanted).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn failure(what: &'static str, path: &Path, source: io::Error) -> BrokerError {
    BrokerError::Storage { what, path: path.to_owned(), source }
}

/// The offsets of the records that can be read from a Kafka partition: `[low, high)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetRange {
    /// The low watermark: the first offset that is not deleted; equal to `high` in an empty Kafka partition.
    pub(crate) low: Offset,
    /// The high watermark: the offset that the next record gets.
    pub(crate) high: Offset,
}
