//! Follows the realtime-views topic from a thread of its own: decodes records, resolves their series, hands them to the
//! [`Hub`]. What a record means is decided in [`crate::realtime`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use wye_domain::realtime_row::{self, Rows};
use wye_domain::series::SeriesId;
use wye_domain::{DomainError, ErrorKind};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::{Message, Reader};
use wye_log::topics::REALTIME_VIEWS;

use crate::ServingError;
use crate::directory::Directory;
use crate::hub::Hub;
use crate::realtime::{Applied, RealtimeRow};
use crate::telemetry::Instruments;

/// How many records are taken in before the stop signal is looked at.
const RECORDS_PER_TURN: usize = 256;
/// How long the thread waits for a record before it looks at the stop signal.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long it rests after an error.
const REST: Duration = Duration::from_millis(500);

/// What the thread works with.
pub(crate) struct Tail {
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    pub(crate) instruments: Instruments,
    pub(crate) positions: TailPositions,
    pub(crate) shutdown: CancellationToken,
}

/// The offsets up to which the topic has been applied, by Kafka partition; shared with whoever reports the lag.
#[derive(Clone, Debug)]
pub(crate) struct TailPositions(Arc<[AtomicI64]>);

impl TailPositions {
    pub(crate) fn new(kafka_partitions: i32) -> Self {
        Self((0..kafka_partitions).map(|_| AtomicI64::new(0)).collect())
    }

    pub(crate) fn get(&self) -> impl Iterator<Item = (i32, i64)> {
        (0..).zip(self.0.iter().map(|position| position.load(Ordering::Relaxed)))
    }

    fn set(&self, positions: &BTreeMap<i32, i64>) {
        for (kafka_partition, position) in positions {
            if let Some(place) = usize::try_from(*kafka_partition).ok().and_then(|index| self.0.get(index)) {
                place.store(*position, Ordering::Relaxed);
            }
        }
    }
}

impl Tail {
    /// Starts the thread. It ends after `shutdown`.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system gives no thread.
    pub(crate) fn start(self) -> Result<JoinHandle<()>, ServingError> {
        std::thread::Builder::new()
            .name("wye-serving-tail".to_owned())
            .spawn(move || self.run())
            .map_err(|source| ServingError::Thread { source })
    }

    fn run(self) {
        // After an error the topic is read on from where it was left, with a new client.
        let mut positions = BTreeMap::new();
        while !self.shutdown.is_cancelled() {
            match self.follow(&mut positions) {
                Ok(()) => return,
                Err(problem) if problem.kind() == ErrorKind::Unavailable => {
                    warn!(error = %problem, "cannot follow the realtime views; trying again");
                }
                Err(problem) => error!(error = %problem, "cannot follow the realtime views; trying again"),
            }
            std::thread::sleep(REST);
        }
    }

    /// Follows until the stop signal; `positions` is kept right all the time.
    fn follow(&self, positions: &mut BTreeMap<i32, i64>) -> Result<(), LogError> {
        let mut targets = BTreeMap::new();
        for kafka_partition in 0..self.log.config().kafka_partitions {
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
                    self.hub.set_caught_up();
                }
            }
            let polled = reader.poll_batch(RECORDS_PER_TURN, PATIENCE, &mut |message| self.take(&message));
            for (kafka_partition, position) in positions.iter_mut() {
                *position = reader.position(*kafka_partition).unwrap_or(*position);
            }
            self.positions.set(positions);
            match polled {
                Ok(_) => {}
                // Only epochs that a batch view has are deleted.
                Err(LogError::OffsetGone { kafka_partition, low, .. }) => {
                    positions.insert(kafka_partition, low);
                    assign(&mut reader, positions)?;
                }
                Err(problem @ LogError::OffsetAhead { kafka_partition, .. }) => {
                    warn!(error = %problem, kafka_partition, "reading the realtime views again from their start");
                    self.hub.clear(kafka_partition);
                    let low = self.log.offsets_blocking(REALTIME_VIEWS, kafka_partition)?.low;
                    positions.insert(kafka_partition, low);
                    assign(&mut reader, positions)?;
                }
                Err(problem @ LogError::Unreadable { .. }) => {
                    self.instruments.skip("undecodable");
                    warn!(error = %problem, "realtime records are skipped");
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    fn take(&self, message: &Message<'_>) {
        let kafka_partition = message.kafka_partition;
        match apply(&self.hub, kafka_partition, message.payload) {
            Ok(Applied::Taken) => {}
            Ok(Applied::Fenced) => self.instruments.skip("fenced"),
            Ok(Applied::NoEpoch) => self.instruments.skip("no_epoch"),
            Ok(Applied::OtherDefinitions) => self.instruments.skip("other_definitions"),
            Err(problem) => {
                self.instruments.skip("undecodable");
                self.hub.damage(kafka_partition);
                warn!(error = %problem, kafka_partition, offset = message.offset, "cannot decode realtime record");
            }
        }
    }
}

/// Decodes a record of the realtime-views topic and hands it to the hub.
///
/// # Errors
/// [`DomainError`] when the bytes are no such record; nothing has changed then.
pub fn apply(hub: &Hub, kafka_partition: i32, payload: &[u8]) -> Result<Applied, DomainError> {
    let record = realtime_row::decode(payload)?;
    let rows = match &record.rows {
        Some(batch) => resolve(hub.directory(), &Rows::of(batch)?)?,
        None => Vec::new(),
    };
    Ok(hub.apply(kafka_partition, &record.header, &rows))
}

fn resolve(directory: &Directory, rows: &Rows<'_>) -> Result<Vec<RealtimeRow>, DomainError> {
    let ids: Vec<Option<SeriesId>> = directory.resolve(rows.series.words().iter().flatten());
    let mut resolved = Vec::with_capacity(rows.window_start.len());
    for (row, window_start) in rows.window_start.iter().enumerate() {
        let Some(series) = rows.series.code(row).and_then(|code| ids.get(code).copied().flatten()) else {
            continue;
        };
        resolved.push(RealtimeRow {
            series,
            window_start: *window_start,
            summary: rows.summaries.summary(row)?,
        });
    }
    Ok(resolved)
}

fn assign(reader: &mut Reader, positions: &BTreeMap<i32, i64>) -> Result<(), LogError> {
    let starts: Vec<(i32, i64)> = positions.iter().map(|(partition, offset)| (*partition, *offset)).collect();
    reader.assign(&starts)
}
