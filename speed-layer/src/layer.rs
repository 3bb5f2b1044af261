//! Running owners: one thread for some Kafka partitions each, one reader a thread.
//!
//! A thread whose owner fails takes its Kafka partitions over anew, after a rest; one whose owner was fenced stops.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use wye_domain::ErrorKind;
use wye_domain::control::ControlRecord;
use wye_log::LogError;
use wye_log::producer::Producer;
use wye_log::reader::Reader;
use wye_log::topics::{CONTROL, READINGS};
use wye_runtime::clock::now_micros;
use wye_runtime::telemetry::KafkaPartitionLabel;

use crate::SpeedError;
use crate::owner::{Owner, Shared};

/// How long a thread rests before it takes its Kafka partitions over anew.
const REST: Duration = Duration::from_secs(1);
/// Most messages between two looks at the clock.
const POLL_MESSAGES: usize = 20_000;

/// How often things happen.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// Changed rows go out.
    pub flush_interval: Duration,
    /// A new epoch starts.
    pub epoch_interval: Duration,
}

/// The running speed layer.
pub struct SpeedLayer {
    threads: Vec<JoinHandle<()>>,
}

impl SpeedLayer {
    /// Starts `threads` threads that own the given Kafka partitions until `cancel` fires.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        shared: &Shared,
        rhythm: Rhythm,
        kafka_partitions: &[i32],
        threads: usize,
        cancel: &CancellationToken,
    ) -> Result<Self, SpeedError> {
        let threads = threads.clamp(1, kafka_partitions.len().max(1));
        let mut running = Vec::with_capacity(threads);
        for thread in 0..threads {
            let own: Vec<i32> = kafka_partitions.iter().copied().skip(thread).step_by(threads).collect();
            let (shared, cancel) = (shared.clone(), cancel.clone());
            let spawned = std::thread::Builder::new()
                .name(format!("wye-speed-{thread}"))
                .spawn(move || own_until_cancelled(&shared, rhythm, &own, &cancel))
                .map_err(SpeedError::Thread)?;
            running.push(spawned);
        }
        Ok(Self { threads: running })
    }

    /// Waits for all threads, which end once cancelled, with everything flushed. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a thread of the speed layer has panicked");
            }
        }
    }
}

fn own_until_cancelled(
    shared: &Shared,
    rhythm: Rhythm,
    kafka_partitions: &[i32],
    cancel: &CancellationToken,
) {
    while !cancel.is_cancelled() {
        match own(shared, rhythm, kafka_partitions, cancel) {
            Ok(()) => return,
            Err(error @ SpeedError::Fenced { .. }) => {
                error!(%error, "stop one of the two speed layers, or give them different kafka partitions");
                return;
            }
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::NotFound)
                {
                    warn!(%error, "taking the kafka partitions over anew");
                } else {
                    error!(%error, "taking the kafka partitions over anew");
                }
                let woken =
                    shared.handle.block_on(async { tokio::time::timeout(REST, cancel.cancelled()).await });
                if woken.is_ok() {
                    return;
                }
            }
        }
    }
}

fn own(
    shared: &Shared,
    rhythm: Rhythm,
    kafka_partitions: &[i32],
    cancel: &CancellationToken,
) -> Result<(), SpeedError> {
    // A producer of its own each time: one that has failed for good stays so.
    let producer = Producer::new(&shared.log, shared.linger)?;
    let mut owners = Vec::with_capacity(kafka_partitions.len());
    for kafka_partition in kafka_partitions {
        owners.push(Owner::take_over(shared.clone(), producer.clone(), *kafka_partition, now_micros())?);
        if cancel.is_cancelled() {
            return Ok(());
        }
    }
    let slot_of: Vec<usize> = {
        let most = kafka_partitions.iter().copied().max().unwrap_or(0);
        let mut slots = vec![usize::MAX; most as usize + 1];
        for (slot, kafka_partition) in kafka_partitions.iter().enumerate() {
            slots[*kafka_partition as usize] = slot;
        }
        slots
    };
    let mut readings = Reader::new(&shared.log, READINGS)?;
    readings.assign(
        &owners.iter().map(|owner| (owner.kafka_partition(), owner.position())).collect::<Vec<_>>(),
    )?;
    let mut control = Reader::new(&shared.log, CONTROL)?;
    control.assign(
        &owners.iter().map(|owner| (owner.kafka_partition(), owner.generation() + 1)).collect::<Vec<_>>(),
    )?;
    let mut next_flush = Instant::now() + rhythm.flush_interval;
    let mut next_epoch = Instant::now() + rhythm.epoch_interval;
    let mut next_lag = Instant::now();
    info!(?kafka_partitions, "speed layer reads");
    loop {
        let mut failed = None;
        let wait = next_flush.saturating_duration_since(Instant::now());
        let polled = readings.poll_batch(POLL_MESSAGES, wait, &mut |message| {
            if failed.is_none() {
                failed = owners[slot_of[message.kafka_partition as usize]].push(&message).err();
            }
        });
        match polled {
            Err(LogError::Unreadable { kafka_partition, from, next, reason, .. }) if failed.is_none() => {
                owners[slot_of[kafka_partition as usize]].pass_unreadable(from..next, &reason);
            }
            Err(error) if failed.is_none() => return Err(error.into()),
            _ => {}
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let now = Instant::now();
        if now >= next_flush {
            next_flush = now + rhythm.flush_interval;
            listen(&mut control, &mut owners, &slot_of)?;
            let epoch_is_due = now >= next_epoch;
            if epoch_is_due {
                next_epoch = now + rhythm.epoch_interval;
            }
            for owner in &mut owners {
                owner.process()?;
                if owner.may_start_epoch() && (epoch_is_due || owner.is_full()) {
                    owner.start_epoch(now_micros())?;
                } else {
                    owner.flush()?;
                }
            }
            if now >= next_lag {
                next_lag = now + Duration::from_secs(5);
                measure_lag(shared, &owners);
            }
        }
        if cancel.is_cancelled() {
            for owner in &mut owners {
                owner.flush()?;
                owner.settle()?;
            }
            info!(?kafka_partitions, "speed layer has flushed and stops");
            return Ok(());
        }
    }
}

/// Takes in what stands new in the control topic.
fn listen(control: &mut Reader, owners: &mut [Owner], slot_of: &[usize]) -> Result<(), SpeedError> {
    let mut failed = None;
    let polled = control.poll_batch(POLL_MESSAGES, Duration::ZERO, &mut |message| {
        // A record of a later version is passed over.
        if let Ok(record) = ControlRecord::decode(message.payload)
            && failed.is_none()
        {
            let owner = &mut owners[slot_of[message.kafka_partition as usize]];
            failed = owner.on_control(message.offset, &record, now_micros()).err();
        }
    });
    match polled {
        Err(error @ LogError::Unreadable { .. }) => warn!(%error, "control records are skipped"),
        polled => {
            polled?;
        }
    }
    failed.map_or(Ok(()), Err)
}

fn measure_lag(shared: &Shared, owners: &[Owner]) {
    for owner in owners {
        let kafka_partition = owner.kafka_partition();
        if let Ok(range) = shared.log.offsets_blocking(READINGS, kafka_partition) {
            let lag = (range.high - owner.position()).max(0);
            shared.telemetry.log_lag.get_or_create(&KafkaPartitionLabel { kafka_partition }).set(lag);
        }
    }
}

#[cfg(test)]
mod tests;
