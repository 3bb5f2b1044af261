//! Claims a Kafka partition, reads what is stored about it, and starts its owner. Must not know when a Kafka partition may
//! be claimed, nor how it is decided where the owner resumes.
//!
//! The claim is written to both topics first: readers ignore what older owners write after it, so what is read up to it is
//! final.

use tracing::{debug, info, warn};
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::realtime_row::{self, Header};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};

use super::Shared;
use super::execute::Executor;
use crate::SpeedError;
use crate::owner::Owner;
use crate::takeover::{Claimed, ViewsState, decide};
use crate::telemetry::label;

/// Takes the Kafka partition over; the owner is ready for the first [`Owner::step`]. Blocks.
///
/// # Errors
/// When the log cannot be read or written, or readings of the past cannot be evaluated; `ShuttingDown` at a shutdown.
pub(super) fn take_over(
    shared: &Shared,
    executor: &mut Executor,
    kafka_partition: KafkaPartition,
) -> Result<Owner, SpeedError> {
    let claimed = claim(shared, executor, kafka_partition)?;
    if shared.shutdown.is_cancelled() {
        return Err(SpeedError::ShuttingDown);
    }
    let generation = claimed.generation;
    let taken = decide(claimed, shared.rules.plans.fingerprint());
    info!(
        %kafka_partition,
        %generation,
        recovery = ?taken.recovery,
        rows = taken.rows.len(),
        "kafka partition taken over"
    );
    let mut owner = Owner::new(&shared.rules, kafka_partition, taken);
    let effects = owner.start()?;
    executor.carry_out(&mut owner, effects)?;
    remember_past(&shared.parts.log, &mut owner, kafka_partition)?;
    shared.parts.telemetry.takeovers.get_or_create(&label(kafka_partition)).inc();
    Ok(owner)
}

/// Writes the claim, and reads both topics up to it.
fn claim(
    shared: &Shared,
    executor: &Executor,
    kafka_partition: KafkaPartition,
) -> Result<Claimed, SpeedError> {
    let log = &shared.parts.log;
    let claim = ControlRecord::Claim { owner: shared.parts.name.clone() };
    let generation = Generation(executor.send(CONTROL, &claim.encode())?);
    let marker = Header::Claim { generation };
    let marker = executor.send(REALTIME_VIEWS, &realtime_row::encode(&marker, None))?;

    let mut control = ControlView::default();
    read_through(log, (CONTROL, kafka_partition), generation.claim(), |offset, payload| {
        // A record of a later version is skipped.
        if let Ok(record) = ControlRecord::decode(payload) {
            control.apply(offset, &record);
        }
    })?;
    let mut views = ViewsState::default();
    let mut undecodable = 0;
    read_through(log, (REALTIME_VIEWS, kafka_partition), marker, |offset, payload| {
        if let Err(error) = views.apply(offset, payload) {
            undecodable += 1;
            warn!(%kafka_partition, %offset, %error, "skipped a record of the realtime views; its epoch is rebuilt");
        }
    })?;
    shared.parts.telemetry.undecodable.get_or_create(&label(kafka_partition)).inc_by(undecodable);
    let log_start = log.offsets_blocking(READINGS, kafka_partition)?.low;
    Ok(Claimed { generation, control, views, log_start })
}

/// Fills the duplicate window from the log below the owner's position.
fn remember_past(log: &Log, owner: &mut Owner, kafka_partition: KafkaPartition) -> Result<(), SpeedError> {
    let (from, position) = (owner.remembers_from(), owner.next());
    let mut remembered = Ok(());
    if from.unwrap_or(Offset::START) < position {
        read_all(log, (READINGS, kafka_partition), from, |message| {
            if message.offset < position && remembered.is_ok() {
                remembered = owner.remember(message.offset, message.ingest_time, message.payload);
            }
        })?;
    }
    remembered.and_then(|()| owner.end_remembering())?;
    let remembered = owner.remembered();
    debug!(%kafka_partition, %position, remembered, "the duplicate window is filled");
    Ok(())
}

/// Reads a topic from its start up to the record at `last`, which this process has just written.
fn read_through(
    log: &Log,
    (topic, kafka_partition): (&'static str, KafkaPartition),
    last: Offset,
    mut on: impl FnMut(Offset, &[u8]),
) -> Result<(), LogError> {
    let mut from = None;
    loop {
        let end = read_all(log, (topic, kafka_partition), from, |message| {
            if message.offset <= last {
                on(message.offset, message.payload);
            }
        })?;
        if end > last {
            return Ok(());
        }
        // The broker has acknowledged the record, and readers get it in a moment.
        from = Some(end);
    }
}
