//! The owner of one Kafka partition: feeds the operator, writes what changed, starts epochs, deletes what nobody needs
//! any more.
//!
//! Order of writes, on which recovery rests: rows of a flush before the record that completes it; the complete flush
//! before the `Begin` of the next epoch; that before its announcement.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tracing::{debug, warn};
use wye_domain::assemble::{Assembler, RejectedAt};
use wye_domain::control::{Announcement, ControlRecord, ControlView};
use wye_domain::epoch::Recovery;
use wye_domain::realtime_row::{self, Header};
use wye_domain::wire::Acceptance;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::reader::{Message, read_all};
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_runtime::telemetry::{KafkaPartitionLabel, ReasonLabel};
use wye_tables::plan::MetricPlans;

use crate::SpeedError;
use crate::duplicates::DuplicateWindow;
use crate::letter::{Letter, Origin};
use crate::operator::Operator;
use crate::placement::Placement;
use crate::takeover::take_over;
use crate::telemetry::SpeedTelemetry;

/// Readings are evaluated in batches of about this many rows.
const BATCH_ROWS: usize = 32_768;
/// Rows of one record, without and with sketches: both stay well below the largest message.
const ROWS_PER_RECORD: usize = 16_384;
const ROWS_PER_RECORD_WITH_SKETCHES: usize = 500;
/// An epoch ends early when it has so many windows: it bounds the owner's memory.
const WINDOWS_PER_EPOCH: usize = 400_000;

/// What every owner of a process shares.
#[derive(Clone)]
pub struct Shared {
    /// The log.
    pub log: Log,
    /// How long written records wait for company.
    pub linger: Duration,
    /// Runs the writes.
    pub handle: Handle,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// Which readings are accepted.
    pub acceptance: Acceptance,
    /// How long duplicates are looked for, in µs.
    pub duplicate_window: i64,
    /// Most identities remembered for one Kafka partition.
    pub duplicate_entries: usize,
    /// Instruments.
    pub telemetry: SpeedTelemetry,
}

/// See the module.
pub struct Owner {
    shared: Shared,
    producer: Producer,
    kafka_partition: i32,
    generation: i64,
    epoch: i64,
    /// The next readings offset.
    position: i64,
    /// The position of the last flush.
    flushed: i64,
    /// What the rows of an incomplete flush of the last owner reach to.
    rows_through: i64,
    operator: Operator,
    assembler: Assembler,
    control: ControlView,
    next_cut: Option<i64>,
    first_record: BTreeMap<i64, i64>,
    pending: Vec<Delivery>,
    newest_ingest_time: i64,
    placement: Placement,
}

impl Owner {
    /// Takes a Kafka partition over and is ready to read at [`Owner::position`]. Blocks. `now` in µs.
    ///
    /// # Errors
    /// When the log cannot be read or written, or stored records do not decode.
    pub fn take_over(
        shared: Shared,
        producer: Producer,
        kafka_partition: i32,
        now: i64,
    ) -> Result<Self, SpeedError> {
        let taken =
            take_over(&shared.log, &producer, &shared.handle, kafka_partition, shared.plans.fingerprint())?;
        let window = DuplicateWindow::new(shared.duplicate_window, shared.duplicate_entries);
        let mut operator = Operator::new(Arc::clone(&shared.plans), window);
        let (position, epoch, reset) = match taken.recovery {
            Recovery::Resume { position, epoch } => (position, epoch, false),
            Recovery::Rebuild { from } => (from, from, true),
        };
        for row in taken.rows {
            operator
                .restore(&row.series, row.window_start, row.summary, row.through)
                .map_err(|source| SpeedError::Stored { topic: REALTIME_VIEWS, kafka_partition, source })?;
        }
        let mut first_record = taken.first_record;
        if reset {
            first_record.split_off(&epoch);
        }
        shared.telemetry.takeovers.get_or_create(&KafkaPartitionLabel { kafka_partition }).inc();
        let assembler = Assembler::new(shared.acceptance);
        let placement = Placement::new(kafka_partition, shared.log.config().kafka_partitions);
        let mut owner = Self {
            shared,
            producer,
            kafka_partition,
            generation: taken.generation,
            epoch,
            position,
            flushed: position,
            rows_through: taken.rows_through,
            operator,
            assembler,
            control: taken.control,
            next_cut: None,
            first_record,
            pending: Vec::new(),
            newest_ingest_time: 0,
            placement,
        };
        owner.begin(reset)?;
        owner.announce(now)?;
        owner.next_cut = owner.control.next_start_after(owner.epoch);
        owner.remember_past(now)?;
        Ok(owner)
    }

    /// The next readings offset.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// This ownership's number: its own record's offset in the control topic.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// Which Kafka partition it owns.
    pub fn kafka_partition(&self) -> i32 {
        self.kafka_partition
    }

    /// Rebuilds the duplicate window from the log below the position.
    fn remember_past(&mut self, now: i64) -> Result<(), SpeedError> {
        let from = self.duplicates_from(now).unwrap_or(0);
        if from >= self.position {
            return Ok(());
        }
        let mut assembler = Assembler::new(self.shared.acceptance);
        let (operator, position) = (&mut self.operator, self.position);
        let mut failed = None;
        let mut feed = |assembler: &mut Assembler| {
            for placed in assembler.take() {
                failed = failed.take().or(operator.remember(&placed).err());
            }
            assembler.take_rejected();
        };
        read_all(&self.shared.log, (READINGS, self.kafka_partition), Some(from), |message| {
            if message.offset < position {
                assembler.push(message.payload, message.offset, message.timestamp_ms * 1_000);
                if assembler.rows() >= BATCH_ROWS {
                    feed(&mut assembler);
                }
            }
        })?;
        feed(&mut assembler);
        let (kafka_partition, remembered) = (self.kafka_partition, self.operator.duplicates().len());
        debug!(kafka_partition, from, position, remembered, "duplicate window rebuilt");
        match failed {
            Some(source) => Err(SpeedError::Stored { topic: READINGS, kafka_partition, source }),
            None => Ok(()),
        }
    }

    /// Where the duplicate window starts: at the newest epoch start announced before the window, or the horizon if
    /// that is earlier. `None`: at the start of the log.
    fn duplicates_from(&self, now: i64) -> Option<i64> {
        let old = self
            .control
            .starts
            .iter()
            .filter(|(_, announcement)| {
                announcement.announced_at > 0
                    && announcement.announced_at <= now - self.shared.duplicate_window
            })
            .map(|(start, _)| *start)
            .next_back()?;
        Some(old.min(self.control.horizon?))
    }

    /// Takes in one message.
    ///
    /// # Errors
    /// When the readings so far cannot be evaluated or written.
    #[inline]
    pub fn push(&mut self, message: &Message<'_>) -> Result<(), SpeedError> {
        if self.next_cut.is_some_and(|cut| message.offset >= cut) {
            self.process()?;
            while let Some(cut) = self.next_cut.filter(|cut| message.offset >= *cut) {
                self.position = cut;
                self.start_epoch(0)?;
            }
        }
        self.newest_ingest_time = self.newest_ingest_time.max(message.timestamp_ms * 1_000);
        self.placement.look_at(message.key);
        self.assembler.push(message.payload, message.offset, message.timestamp_ms * 1_000);
        if self.assembler.rows() >= BATCH_ROWS {
            self.process()?;
        }
        Ok(())
    }

    /// Goes past messages that no reader of the log can decode.
    pub fn pass_unreadable(&mut self, offsets: Range<i64>, problem: &str) {
        self.assembler.pass_unreadable(offsets, problem, wye_runtime::clock::now_micros());
    }

    /// Evaluates what was taken in.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub fn process(&mut self) -> Result<(), SpeedError> {
        let label = KafkaPartitionLabel { kafka_partition: self.kafka_partition };
        for placed in self.assembler.take() {
            let counts = self.operator.on_batch(&placed)?;
            let telemetry = &self.shared.telemetry;
            telemetry.readings.get_or_create(&label).inc_by(counts.readings);
            telemetry.duplicates.get_or_create(&label).inc_by(counts.duplicates);
            telemetry.conflicts.get_or_create(&label).inc_by(counts.conflicts);
        }
        for rejected in self.assembler.take_rejected() {
            self.write_dead_letter(&rejected)?;
        }
        if let Some(next) = self.assembler.next_offset() {
            self.position = self.position.max(next);
        }
        Ok(())
    }

    fn write_dead_letter(&mut self, at: &RejectedAt) -> Result<(), SpeedError> {
        let reason = at.rejected.reason.name();
        self.shared.telemetry.rejected.get_or_create(&ReasonLabel { reason }).inc();
        let origin = Origin::Kafka { kafka_partition: self.kafka_partition, kafka_offset: at.kafka_offset };
        let letter = Letter::new(&at.rejected, origin, at.ingest_time);
        self.enqueue(letter.message(&letter.headers()))
    }

    /// Writes what changed since the last flush; the last record is a checkpoint at the position.
    ///
    /// # Errors
    /// When the log does not take it, or did not take the last flush.
    pub fn flush(&mut self) -> Result<(), SpeedError> {
        self.process()?;
        self.settle()?;
        let changed = self.operator.changed();
        if changed == 0 && self.position == self.flushed {
            return Ok(());
        }
        let rows = if self.operator.has_sketches() { ROWS_PER_RECORD_WITH_SKETCHES } else { ROWS_PER_RECORD };
        let mut batches = Vec::with_capacity(changed / rows + 1);
        self.operator.flush(rows, |batch| batches.push(batch));
        let last = batches.pop();
        for batch in &batches {
            let record = realtime_row::encode(&self.rows_header(false), Some(batch));
            self.enqueue(self.row(&record))?;
        }
        self.settle()?;
        let record = realtime_row::encode(&self.rows_header(true), last.as_ref());
        self.enqueue(self.row(&record))?;
        self.flushed = self.position;
        let label = KafkaPartitionLabel { kafka_partition: self.kafka_partition };
        let telemetry = &self.shared.telemetry;
        telemetry.rows.get_or_create(&label).inc_by(changed as u64);
        self.placement.report(&telemetry.misplaced);
        let newest = self.operator.newest_event_time();
        if newest > i64::MIN {
            telemetry.watermark.get_or_create(&label).set(newest / 1_000_000);
        }
        self.operator.duplicates().forget(self.newest_ingest_time, self.control.horizon.unwrap_or(0));
        telemetry.remembered.get_or_create(&label).set(self.operator.duplicates().len() as i64);
        for (definition, failure) in self.operator.take_failures().iter() {
            telemetry.failed.inc_by(failure.readings);
            let example = &failure.example;
            debug!(
                definition,
                readings = failure.readings,
                message = example.message,
                device_id = example.device_id,
                metric = example.metric,
                "a metric definition cannot compute readings; GET /v1/metrics shows an example after the next batch run"
            );
        }
        let early = self.operator.duplicates().take_forgotten_early();
        if early > 0 {
            telemetry.forgotten_early.get_or_create(&label).inc_by(early);
            warn!(
                kafka_partition = self.kafka_partition,
                early,
                "the duplicate window is full; raise speed.duplicate_entries or run the batch layer more often"
            );
        }
        Ok(())
    }

    fn rows_header(&self, complete: bool) -> Header {
        Header::Rows {
            generation: self.generation,
            epoch: self.epoch,
            through: self.position,
            complete,
            newest_event_time: self.operator.newest_event_time(),
        }
    }

    /// Whether the open epoch has so many windows that a new one must start.
    pub fn is_full(&self) -> bool {
        self.operator.windows() >= WINDOWS_PER_EPOCH
    }

    /// Whether an epoch may start at the position: the open one has readings, and its rows hold none beyond it.
    pub fn may_start_epoch(&self) -> bool {
        self.position > self.epoch && self.position >= self.rows_through
    }

    /// Ends the open epoch at the position, and starts and announces the next. `now` in µs.
    ///
    /// # Errors
    /// When the log does not take it.
    pub fn start_epoch(&mut self, now: i64) -> Result<(), SpeedError> {
        self.flush()?;
        self.settle()?;
        self.epoch = self.position;
        self.operator.start_epoch();
        self.begin(false)?;
        self.announce(now)?;
        self.next_cut = self.control.next_start_after(self.epoch);
        self.shared
            .telemetry
            .epochs
            .get_or_create(&KafkaPartitionLabel { kafka_partition: self.kafka_partition })
            .inc();
        Ok(())
    }

    fn begin(&mut self, reset: bool) -> Result<(), SpeedError> {
        let header = Header::Begin {
            generation: self.generation,
            epoch: self.epoch,
            definitions: self.shared.plans.fingerprint(),
            reset,
        };
        let offset = self.send(REALTIME_VIEWS, &realtime_row::encode(&header, None))?;
        self.first_record.entry(self.epoch).or_insert(offset);
        Ok(())
    }

    fn announce(&mut self, now: i64) -> Result<(), SpeedError> {
        if self.control.starts.get(&self.epoch).is_some_and(|known| known.announced_at > 0) {
            return Ok(());
        }
        let announced_at = if now > 0 { now } else { wye_runtime::clock::now_micros() };
        let record =
            ControlRecord::Epoch { generation: Some(self.generation), start: self.epoch, announced_at };
        let readable_from = self.send(CONTROL, &record.encode())?;
        self.control.starts.insert(self.epoch, Announcement { announced_at, readable_from });
        Ok(())
    }

    /// Takes in a record of the control topic that came after the claim.
    ///
    /// # Errors
    /// `Fenced` when somebody else has claimed the Kafka partition; `Overtaken` when a start was announced inside
    /// the open epoch; or when the log does not take the deletions that a new horizon allows.
    pub fn on_control(
        &mut self,
        control_offset: i64,
        record: &ControlRecord,
        now: i64,
    ) -> Result<(), SpeedError> {
        let kafka_partition = self.kafka_partition;
        if matches!(record, ControlRecord::Claim { .. }) && control_offset > self.generation {
            return Err(SpeedError::Fenced { kafka_partition });
        }
        self.control.apply(control_offset, record);
        match record {
            ControlRecord::Epoch { start, .. } => {
                if self.epoch < *start && *start < self.position {
                    return Err(SpeedError::Overtaken { kafka_partition, start: *start });
                }
                self.next_cut = self.control.next_start_after(self.epoch);
                Ok(())
            }
            ControlRecord::Horizon { .. } => self.trim(now),
            ControlRecord::Claim { .. } => Ok(()),
        }
    }

    /// Deletes what lies below the horizon and outside of the duplicate window.
    fn trim(&mut self, now: i64) -> Result<(), SpeedError> {
        let Some(horizon) = self.control.horizon else { return Ok(()) };
        let kafka_partition = self.kafka_partition;
        self.shared.telemetry.horizon.get_or_create(&KafkaPartitionLabel { kafka_partition }).set(horizon);
        let delete = |topic: &str, before: i64| {
            let deleted =
                self.shared.handle.block_on(self.shared.log.delete_records(topic, kafka_partition, before));
            // What cannot be deleted now is deleted after the next batch run.
            if let Err(error) = deleted {
                warn!(kafka_partition, topic, before, %error, "cannot delete old records; trying again later");
            }
        };
        if let Some((_, first)) = self.first_record.range(horizon..).next() {
            delete(REALTIME_VIEWS, *first);
        }
        let floor = self.duplicates_from(now).map(|from| from.min(horizon));
        if let Some(floor) = floor {
            delete(READINGS, floor);
            if let Some(before) = self.control.deletable_before(floor) {
                delete(CONTROL, before);
            }
            self.control.starts = self.control.starts.split_off(&floor);
        }
        self.first_record = self.first_record.split_off(&horizon);
        Ok(())
    }

    fn send(&self, topic: &str, payload: &[u8]) -> Result<i64, SpeedError> {
        let message =
            Outgoing { topic, kafka_partition: self.kafka_partition, key: None, payload, headers: &[] };
        Ok(self.shared.handle.block_on(self.producer.send(message))?)
    }

    /// A record on its way into the realtime views.
    fn row<'a>(&self, payload: &'a [u8]) -> Outgoing<'a> {
        Outgoing {
            topic: REALTIME_VIEWS,
            kafka_partition: self.kafka_partition,
            key: None,
            payload,
            headers: &[],
        }
    }

    fn enqueue(&mut self, message: Outgoing<'_>) -> Result<(), SpeedError> {
        loop {
            match self.producer.enqueue(message) {
                Ok(delivery) => {
                    self.pending.push(delivery);
                    return Ok(());
                }
                Err(LogError::QueueFull) => {
                    self.settle()?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until everything written is acknowledged.
    ///
    /// # Errors
    /// When the log did not take something: the owner must then take the Kafka partition over anew.
    pub fn settle(&mut self) -> Result<(), SpeedError> {
        for delivery in std::mem::take(&mut self.pending) {
            self.shared.handle.block_on(delivery)?;
        }
        Ok(())
    }
}
