//! Follows the realtime-views topic from a thread of its own: decodes records, resolves their series, hands them to the
//! [`Hub`]. What a record means is decided in [`crate::realtime`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::{ErrorKind, error_chain};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::{Message, Reader};
use wye_log::topics::REALTIME_VIEWS;

use crate::ServingError;
use crate::hub::{Hub, Input};
use crate::realtime::{Applied, Record};
use crate::telemetry::Instruments;

/// How many records are read before the shutdown is checked.
const RECORDS_PER_TURN: usize = 256;
/// How long the thread waits for a record before it checks the shutdown.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// The pause after an error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What the thread works with.
pub(crate) struct Tail {
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    pub(crate) instruments: Instruments,
    pub(crate) positions: TailPositions,
    pub(crate) shutdown: CancellationToken,
}

/// The next offsets of the topic, by Kafka partition.
type Positions = BTreeMap<KafkaPartition, Offset>;

/// The offsets up to which the topic has been applied, shared with the report of the lag.
#[derive(Clone, Debug)]
pub(crate) struct TailPositions(Arc<[AtomicI64]>);

impl TailPositions {
    pub(crate) fn new(kafka_partitions: i32) -> Self {
        Self(KafkaPartition::all(kafka_partitions).map(|_| AtomicI64::new(Offset::START.0)).collect())
    }

    pub(crate) fn get(&self) -> impl Iterator<Item = (KafkaPartition, Offset)> {
        let offsets = self.0.iter().map(|position| Offset(position.load(Ordering::Relaxed)));
        (0..).map(KafkaPartition).zip(offsets)
    }

    /// Stores the positions of all Kafka partitions.
    fn set(&self, positions: &Positions) {
        for (shared, position) in self.0.iter().zip(positions.values()) {
            shared.store(position.0, Ordering::Relaxed);
        }
    }
}

impl Tail {
    /// Starts the thread. It ends after `shutdown`.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system cannot start a thread.
    pub(crate) fn start(self) -> Result<JoinHandle<()>, ServingError> {
        std::thread::Builder::new()
            .name("wye-serving-tail".to_owned())
            .spawn(move || self.run())
            .map_err(|source| ServingError::Thread { source })
    }

    fn run(self) {
        // After an error, reading resumes at the same positions with a new client.
        let mut positions = Positions::new();
        while !self.shutdown.is_cancelled() {
            match self.follow(&mut positions) {
                Ok(()) => return,
                Err(problem) if problem.kind() == ErrorKind::Unavailable => {
                    warn!(error = error_chain(&problem), "cannot read the realtime views; trying again");
                }
                Err(problem) => {
                    error!(error = error_chain(&problem), "cannot read the realtime views; trying again");
                }
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Follows until the shutdown; `positions` is right at any time.
    fn follow(&self, positions: &mut Positions) -> Result<(), LogError> {
        let mut targets = Positions::new();
        for kafka_partition in KafkaPartition::all(self.log.config().kafka_partitions) {
            let range = self.log.offsets_blocking(REALTIME_VIEWS, kafka_partition)?;
            positions.entry(kafka_partition).or_insert(range.low);
            targets.insert(kafka_partition, range.high);
        }
        let mut reader = Reader::new(&self.log, REALTIME_VIEWS)?;
        assign(&mut reader, positions)?;
        loop {
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
            if !targets.is_empty() {
                targets.retain(|kafka_partition, high| positions[kafka_partition] < *high);
                if targets.is_empty() {
                    info!("the realtime views are read");
                    self.hub.step(Input::CaughtUp);
                }
            }
            let polled =
                reader.poll_batch(RECORDS_PER_TURN, POLL_TIMEOUT, &mut |message| self.take(&message));
            for (kafka_partition, position) in positions.iter_mut() {
                *position = reader.position(*kafka_partition).unwrap_or(*position);
            }
            self.positions.set(positions);
            match polled {
                Ok(_) => {}
                Err(LogError::OffsetGone { kafka_partition, low, .. }) => {
                    info!(%kafka_partition, "records were deleted before they were read; reading from the oldest one on");
                    self.hub.step(Input::FromStart { kafka_partition });
                    positions.insert(kafka_partition, low);
                    assign(&mut reader, positions)?;
                }
                Err(problem @ LogError::OffsetAhead { kafka_partition, .. }) => {
                    warn!(
                        error = error_chain(&problem),
                        %kafka_partition,
                        "the topic was replaced; reading the realtime views from its start"
                    );
                    self.hub.step(Input::FromStart { kafka_partition });
                    let low = self.log.offsets_blocking(REALTIME_VIEWS, kafka_partition)?.low;
                    positions.insert(kafka_partition, low);
                    assign(&mut reader, positions)?;
                }
                Err(problem @ LogError::Unreadable { kafka_partition, .. }) => {
                    self.instruments.skip("undecodable");
                    warn!(error = error_chain(&problem), %kafka_partition, "realtime records are skipped");
                    self.hub.step(Input::Undecodable { kafka_partition });
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    fn take(&self, message: &Message<'_>) {
        let (kafka_partition, offset) = (message.kafka_partition, message.offset);
        let applied = match Record::decode(message.payload, self.hub.directory()) {
            Ok(Record { header, rows }) => self.hub.apply(kafka_partition, &header, &rows),
            Err(problem) => {
                self.instruments.skip("undecodable");
                self.hub.step(Input::Undecodable { kafka_partition });
                warn!(error = error_chain(&problem), %kafka_partition, %offset, "cannot decode realtime record");
                return;
            }
        };
        match applied {
            Some(Applied::Taken) | None => {}
            Some(Applied::Fenced) => self.instruments.skip("fenced"),
            Some(Applied::NoEpoch) => self.instruments.skip("no_epoch"),
            Some(Applied::OtherDefinitions) => self.instruments.skip("other_definitions"),
        }
    }
}

fn assign(reader: &mut Reader, positions: &Positions) -> Result<(), LogError> {
    let starts: Vec<(KafkaPartition, Offset)> =
        positions.iter().map(|(kafka_partition, next)| (*kafka_partition, *next)).collect();
    reader.assign(&starts)
}
