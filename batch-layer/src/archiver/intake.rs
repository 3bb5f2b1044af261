//! The thread that reads a topic and collects what it has read, until it is time to append it. Must not know tables.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use wye_domain::assemble::RejectedAt;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::Micros;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::{Message, Reader};
use wye_runtime::telemetry::{KafkaPartitionLabel, PartitionGauge};

use wye_runtime::clock::Clock;

/// Messages between two checks of what is collected: few, since a bulk message holds many thousand readings.
const MESSAGES: usize = 32;
/// How soon a shutdown is noticed when no message arrives.
const LONGEST_POLL: Duration = Duration::from_millis(100);
/// How often the lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(5);

/// Where one Kafka partition is to be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) kafka_partition: KafkaPartition,
    /// The first offset that is not archived.
    pub(super) from: Offset,
    /// The first offset to read; after `from` where the records in between were deleted from the log.
    pub(super) read: Offset,
}

/// Turns the messages of one Kafka partition into batches.
pub(super) trait Collect: Send + 'static {
    /// Adds the next message.
    fn push(&mut self, message: &Message<'_>);
    /// Skips messages that no reader of the log can decode.
    fn pass_unreadable(&mut self, offsets: Range<Offset>, problem: &str, now: Micros);
    /// Rows collected.
    fn rows(&self) -> usize;
    /// Takes out what is collected.
    fn take(&mut self) -> Taken;
}

/// What a [`Collect`] has collected.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub(super) batches: Vec<RecordBatch>,
    /// What was rejected, in log order.
    pub(super) rejected: Vec<RejectedAt>,
}

/// What was read of one Kafka partition.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) kafka_partition: KafkaPartition,
    pub(super) offsets: Range<Offset>,
    pub(super) taken: Taken,
}

/// What is to be appended in one commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Filled {
    pub(super) parts: Vec<Part>,
    pub(super) rows: usize,
}

/// Reads one topic.
pub(super) struct Intake {
    pub(super) log: Log,
    pub(super) topic: &'static str,
    /// Where it is shown how many messages are not archived yet, if it is.
    pub(super) lag: Option<PartitionGauge>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) interval: Duration,
    pub(super) max_rows: usize,
    pub(super) shutdown: CancellationToken,
}

/// One Kafka partition while it is read.
struct Collecting<C> {
    kafka_partition: KafkaPartition,
    from: Offset,
    next: Offset,
    collector: C,
}

impl Intake {
    /// Reads until the shutdown, then hands over what is left; or until the receiver is dropped. `starts` has every Kafka
    /// partition of the topic, ascending. Blocks.
    ///
    /// # Errors
    /// When the log cannot be read any further; what was read before has been handed over.
    pub(super) fn fill<C: Collect>(
        &self,
        starts: Vec<(Start, C)>,
        out: &mpsc::Sender<Filled>,
    ) -> Result<(), LogError> {
        let mut reader = Reader::new(&self.log, self.topic)?;
        let first = starts.iter().map(|(start, _)| (start.kafka_partition, start.read));
        reader.assign(&first.collect::<Vec<_>>())?;
        let mut collecting: Vec<Collecting<C>> = starts.into_iter().map(Collecting::new).collect();
        // On the monotonic clock, as all times here.
        let mut since: Option<Duration> = None;
        let mut next_lag = self.clock.monotonic();
        loop {
            let stopping = self.shutdown.is_cancelled();
            let waited = since.map(|since| self.clock.monotonic().saturating_sub(since));
            let left = waited.map_or(LONGEST_POLL, |waited| self.interval.saturating_sub(waited));
            let wait = if stopping { Duration::ZERO } else { left.min(LONGEST_POLL) };
            let polled = self.poll(&mut reader, &mut collecting, wait);
            let mut has_moved = !matches!(polled, Ok(0));
            for one in &mut collecting {
                // Past offsets without a message, such as the end of a transaction.
                if let Some(next) = reader.position(one.kafka_partition)
                    && next > one.next
                {
                    has_moved = true;
                    one.next = next;
                }
            }
            let now = self.clock.monotonic();
            if has_moved {
                since = since.or(Some(now));
            }
            let rows: usize = collecting.iter().map(|one| one.collector.rows()).sum();
            let is_due = rows >= self.max_rows
                || since.is_some_and(|since| now.saturating_sub(since) >= self.interval);
            if (is_due || stopping || polled.is_err())
                && let Some(filled) = take(&mut collecting)
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
            if next_lag <= now {
                next_lag = now + LAG_INTERVAL;
                self.measure(&collecting);
            }
        }
    }

    /// Collects the next messages, and returns how many there were. What no reader can decode is skipped.
    fn poll<C: Collect>(
        &self,
        reader: &mut Reader,
        collecting: &mut [Collecting<C>],
        wait: Duration,
    ) -> Result<usize, LogError> {
        let polled = reader.poll_batch(MESSAGES, wait, &mut |message| {
            let one = of(collecting, message.kafka_partition);
            one.collector.push(&message);
            one.next = message.offset.next();
        });
        match polled {
            Err(LogError::Unreadable { kafka_partition, offsets: Range { start, end }, reason, .. }) => {
                let topic = self.topic;
                error!(topic, %kafka_partition, from = %start, next = %end, reason, "skipped records that cannot be decoded");
                let one = of(collecting, kafka_partition);
                one.collector.pass_unreadable(start..end, &reason, self.clock.now());
                one.next = end;
                Ok(1)
            }
            polled => polled,
        }
    }

    fn measure<C>(&self, collecting: &[Collecting<C>]) {
        let Some(lag) = &self.lag else { return };
        for one in collecting {
            match self.log.offsets_blocking(self.topic, one.kafka_partition) {
                Ok(range) => {
                    let label = KafkaPartitionLabel { kafka_partition: one.kafka_partition.0 };
                    let messages = range.high.since(one.from);
                    lag.get_or_create(&label).set(i64::try_from(messages).unwrap_or(i64::MAX));
                }
                Err(error) => {
                    debug!(%error, "cannot measure the lag of the archiver");
                    return;
                }
            }
        }
    }
}

impl<C> Collecting<C> {
    fn new((start, collector): (Start, C)) -> Self {
        let Start { kafka_partition, from, read } = start;
        Self { kafka_partition, from, next: read, collector }
    }
}

/// What is read of a Kafka partition: they are numbered from 0, and all of them are read.
fn of<C>(collecting: &mut [Collecting<C>], kafka_partition: KafkaPartition) -> &mut Collecting<C> {
    &mut collecting[kafka_partition.0 as usize]
}

/// What is to be appended; `None` where nothing was read.
fn take<C: Collect>(collecting: &mut [Collecting<C>]) -> Option<Filled> {
    let mut filled = Filled::default();
    for one in collecting.iter_mut().filter(|one| one.next > one.from) {
        filled.rows += one.collector.rows();
        filled.parts.push(Part {
            kafka_partition: one.kafka_partition,
            offsets: one.from..one.next,
            taken: one.collector.take(),
        });
        one.from = one.next;
    }
    (!filled.parts.is_empty()).then_some(filled)
}
