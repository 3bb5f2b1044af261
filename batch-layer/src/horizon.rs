//! The control topic as a batch run uses it: what the speed layer has announced, and what the run tells it. Must not
//! know what a horizon is used for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::warn;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::{HorizonChoice, choose_horizon};
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, READINGS};

use crate::error::BatchError;

/// What the control records of one Kafka partition add up to, as far as they were read.
#[derive(Clone, Debug, Default)]
struct Followed {
    /// The next offset of the control topic to read.
    next: Option<i64>,
    view: ControlView,
}

/// Reads and writes the control topic.
pub struct ControlLog {
    log: Log,
    producer: Producer,
    followed: Arc<Mutex<BTreeMap<i32, Followed>>>,
}

impl ControlLog {
    /// On this log; nothing is read yet.
    ///
    /// # Errors
    /// When the producer's settings are refused.
    pub fn new(log: Log) -> Result<Self, BatchError> {
        let producer =
            Producer::new(&log, Duration::ZERO).map_err(BatchError::log("write the control topic"))?;
        Ok(Self { log, producer, followed: Arc::default() })
    }

    /// How many Kafka partitions the readings have.
    pub fn kafka_partitions(&self) -> i32 {
        self.log.config().kafka_partitions
    }

    /// Where the log of readings ends now, by Kafka partition.
    ///
    /// # Errors
    /// When the log cannot be asked.
    pub async fn log_ends(&self) -> Result<BTreeMap<i32, i64>, BatchError> {
        let mut ends = BTreeMap::new();
        for kafka_partition in 0..self.kafka_partitions() {
            let range = self.log.offsets(READINGS, kafka_partition).await;
            let range = range.map_err(BatchError::log("ask where the readings end"))?;
            ends.insert(kafka_partition, range.high);
        }
        Ok(ends)
    }

    /// What the control records of every Kafka partition add up to now.
    ///
    /// # Errors
    /// When the topic cannot be read.
    pub async fn views(&self) -> Result<BTreeMap<i32, ControlView>, BatchError> {
        let mut followed = Arc::clone(&self.followed).lock_owned().await;
        let log = self.log.clone();
        let read = tokio::task::spawn_blocking(move || {
            for kafka_partition in 0..log.config().kafka_partitions {
                follow(&log, kafka_partition, followed.entry(kafka_partition).or_default())?;
            }
            Ok(followed.iter().map(|(place, followed)| (*place, followed.view.clone())).collect())
        });
        read.await.map_err(|_| BatchError::Stopping)?
    }

    /// Appends a record for a Kafka partition, and waits until it is acknowledged.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn append(&self, kafka_partition: i32, record: &ControlRecord) -> Result<(), BatchError> {
        let payload = record.encode();
        let outgoing =
            Outgoing { topic: CONTROL, kafka_partition, key: None, payload: &payload, headers: &[] };
        self.producer.send(outgoing).await.map_err(BatchError::log("write the control topic"))?;
        Ok(())
    }
}

/// Reads on to the end of one Kafka partition of the control topic.
fn follow(log: &Log, kafka_partition: i32, followed: &mut Followed) -> Result<(), BatchError> {
    let mut next = followed.next;
    let view = &mut followed.view;
    let end = read_all(log, (CONTROL, kafka_partition), next, |message| {
        next = Some(message.offset + 1);
        match ControlRecord::decode(message.payload) {
            Ok(record) => view.apply(message.offset, &record),
            Err(error) => {
                warn!(kafka_partition, offset = message.offset, %error, "unknown control record passed over");
            }
        }
    });
    // What was applied must not be applied again, whether or not the end was reached.
    followed.next = next;
    followed.next = Some(end.map_err(BatchError::log("read the control topic"))?);
    Ok(())
}

/// The horizon of every Kafka partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Horizons {
    /// By Kafka partition.
    pub offsets: BTreeMap<i32, i64>,
    /// Those that no speed layer has announced: to be announced before the commit (**HOR-1**).
    pub pinned: Vec<(i32, i64)>,
}

impl Horizons {
    /// Chooses for every Kafka partition, given what is archived and the horizon of the last views. `now` in µs.
    pub fn choose(
        control: &BTreeMap<i32, ControlView>,
        archived: &BTreeMap<i32, i64>,
        previous: &BTreeMap<i32, i64>,
        now: i64,
    ) -> Self {
        // A Kafka partition that the last views knew stays, even where the log has fewer by now.
        let mut chosen = Self { offsets: previous.clone(), pinned: Vec::new() };
        for (kafka_partition, view) in control {
            let previous = previous.get(kafka_partition).copied().unwrap_or(0);
            let archived = archived.get(kafka_partition).copied().unwrap_or(previous);
            let choice = choose_horizon(view, archived, previous, now);
            if let HorizonChoice::Pinned(offset) = choice {
                chosen.pinned.push((*kafka_partition, offset));
            }
            chosen.offsets.insert(*kafka_partition, choice.offset());
        }
        chosen
    }

    /// Whether all readings below these ends are below the horizon.
    pub fn covers(&self, ends: &BTreeMap<i32, i64>) -> bool {
        ends.iter().all(|(place, end)| self.offsets.get(place).copied().unwrap_or(0) >= *end)
    }

    /// Whether nothing lies between `previous` and these.
    pub fn is_nothing_new(&self, previous: &BTreeMap<i32, i64>) -> bool {
        self.offsets.iter().all(|(place, offset)| *offset <= previous.get(place).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(starts: &[i64], at: i64) -> ControlView {
        let mut view = ControlView::default();
        view.apply(0, &ControlRecord::Claim { owner: "x".into() });
        for (offset, start) in (1..).zip(starts) {
            let record = ControlRecord::Epoch { generation: Some(0), start: *start, announced_at: at };
            view.apply(offset, &record);
        }
        view
    }

    #[test]
    fn each_kafka_partition_gets_its_own_horizon() {
        let now = 1_000_000_000;
        let control =
            [(0, announced(&[0, 10, 20], now)), (1, ControlView::default()), (2, announced(&[0], now))];
        let archived = [(0, 15), (1, 7)].into();
        let chosen = Horizons::choose(&control.into(), &archived, &BTreeMap::new(), now);
        assert_eq!(chosen.offsets, [(0, 10), (1, 7), (2, 0)].into());
        assert_eq!(chosen.pinned, [(1, 7)]);
        assert!(!chosen.is_nothing_new(&BTreeMap::new()));
        assert!(chosen.is_nothing_new(&chosen.offsets));
    }

    #[test]
    fn a_horizon_never_goes_back_and_is_never_forgotten() {
        let control = [(0, announced(&[0], 0))].into();
        let previous: BTreeMap<i32, i64> = [(0, 5), (9, 3)].into();
        let chosen = Horizons::choose(&control, &[(0, 5)].into(), &previous, 0);
        assert_eq!(chosen, Horizons { offsets: previous, pinned: vec![] });
    }
}
