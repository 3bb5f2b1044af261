//! The thread that reads a topic and gathers what it has read, until it is time to append it. Must not know tables.

use std::ops::Range;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use wye_domain::assemble::RejectedAt;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::{Message, Reader};
use wye_runtime::telemetry::{KafkaPartitionLabel, PartitionGauge};
use wye_tables::append::OffsetRange;

/// Messages between two looks at what has gathered: few, since a bulk message holds many thousand readings.
const MESSAGES: usize = 32;
/// How soon a stop is noticed where nothing comes.
const GLANCE: Duration = Duration::from_millis(100);
/// How often the lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(5);

/// Where one Kafka partition goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) kafka_partition: i32,
    /// The first offset that is not archived.
    pub(super) from: i64,
    /// The first offset to read; past `from` where the log has lost what lies between.
    pub(super) read: i64,
}

/// Turns the messages of one Kafka partition into batches.
pub(super) trait Collect {
    /// Takes in the next message.
    fn push(&mut self, message: &Message<'_>);
    /// Goes past messages that no reader of the log can decode.
    fn pass_unreadable(&mut self, offsets: Range<i64>, problem: &str);
    /// Rows gathered.
    fn rows(&self) -> usize;
    /// What has gathered.
    fn take(&mut self) -> Taken;
}

/// What a [`Collect`] has gathered.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub(super) batches: Vec<RecordBatch>,
    /// What was refused, in log order.
    pub(super) refused: Vec<RejectedAt>,
}

/// What was read of one Kafka partition.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) kafka_partition: i32,
    pub(super) offsets: OffsetRange,
    pub(super) taken: Taken,
}

/// What is to be appended at once.
#[derive(Clone, Debug)]
pub(super) struct Filled {
    pub(super) parts: Vec<Part>,
    pub(super) rows: usize,
}

/// See the module.
pub(super) struct Intake {
    pub(super) log: Log,
    pub(super) topic: &'static str,
    /// Told how many messages lie ahead.
    pub(super) lag: Option<PartitionGauge>,
    pub(super) interval: Duration,
    pub(super) max_rows: usize,
    pub(super) stop: CancellationToken,
}

struct Gathering<C> {
    kafka_partition: i32,
    from: i64,
    next: i64,
    collector: C,
}

impl Intake {
    /// Reads until it is stopped, then hands over what is left; or until nobody receives. Blocks.
    ///
    /// # Errors
    /// When the log cannot be read on; what was read before has been handed over.
    pub(super) fn fill<C: Collect>(
        &self,
        starts: &[Start],
        collector: impl Fn() -> C,
        out: &mpsc::Sender<Filled>,
    ) -> Result<(), LogError> {
        let mut reader = Reader::new(&self.log, self.topic)?;
        reader.assign(&starts.iter().map(|start| (start.kafka_partition, start.read)).collect::<Vec<_>>())?;
        let begin = |start: &Start| Gathering {
            kafka_partition: start.kafka_partition,
            from: start.from,
            next: start.read,
            collector: collector(),
        };
        let mut gathering: Vec<Gathering<C>> = starts.iter().map(begin).collect();
        let mut since: Option<Instant> = None;
        let mut next_lag = Instant::now();
        loop {
            let stopping = self.stop.is_cancelled();
            let left = since.map_or(GLANCE, |since| self.interval.saturating_sub(since.elapsed()));
            let wait = if stopping { Duration::ZERO } else { left.min(GLANCE) };
            let polled = reader.poll_batch(MESSAGES, wait, &mut |message| {
                // Kafka partitions are numbered from 0 and all of them are read.
                let one = &mut gathering[message.kafka_partition as usize];
                one.collector.push(&message);
                one.next = message.offset + 1;
            });
            let polled = match polled {
                Err(LogError::Unreadable { kafka_partition, from, next, reason, .. }) => {
                    error!(
                        topic = self.topic,
                        kafka_partition, from, next, reason, "records cannot be decoded and are passed over"
                    );
                    let one = &mut gathering[kafka_partition as usize];
                    one.collector.pass_unreadable(from..next, &reason);
                    one.next = next;
                    Ok(1)
                }
                polled => polled,
            };
            let mut has_moved = !matches!(polled, Ok(0));
            for one in &mut gathering {
                // Past offsets without a message, such as the end of a transaction.
                let next = reader.position(one.kafka_partition).unwrap_or(0);
                has_moved |= next > one.next;
                one.next = one.next.max(next);
            }
            if has_moved {
                since = since.or_else(|| Some(Instant::now()));
            }
            let rows: usize = gathering.iter().map(|one| one.collector.rows()).sum();
            let is_due = rows >= self.max_rows || since.is_some_and(|since| since.elapsed() >= self.interval);
            if (is_due || stopping || polled.is_err())
                && let Some(filled) = take(&mut gathering)
            {
                since = None;
                if out.blocking_send(filled).is_err() {
                    return Ok(());
                }
            }
            polled?;
            if stopping || out.is_closed() {
                return Ok(());
            }
            if next_lag <= Instant::now() {
                next_lag = Instant::now() + LAG_INTERVAL;
                self.measure(&gathering);
            }
        }
    }

    fn measure<C>(&self, gathering: &[Gathering<C>]) {
        let Some(lag) = &self.lag else { return };
        for Gathering { kafka_partition, from, .. } in gathering {
            match self.log.offsets_blocking(self.topic, *kafka_partition) {
                Ok(range) => {
                    let label = KafkaPartitionLabel { kafka_partition: *kafka_partition };
                    lag.get_or_create(&label).set((range.high - from).max(0));
                }
                Err(error) => {
                    debug!(%error, "cannot measure the lag of the archiver");
                    return;
                }
            }
        }
    }
}

fn take<C: Collect>(gathering: &mut [Gathering<C>]) -> Option<Filled> {
    let mut filled = Filled { parts: Vec::new(), rows: 0 };
    for one in gathering.iter_mut().filter(|one| one.next > one.from) {
        filled.rows += one.collector.rows();
        filled.parts.push(Part {
            kafka_partition: one.kafka_partition,
            offsets: OffsetRange { from: one.from, next: one.next },
            taken: one.collector.take(),
        });
        one.from = one.next;
    }
    (!filled.parts.is_empty()).then_some(filled)
}
