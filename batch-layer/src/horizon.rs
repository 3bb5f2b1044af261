//! The control topic as a batch run uses it: it asks the owners for cuts, reads what they have announced, and tells them
//! the horizon. Must not know what a horizon is used for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::warn;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::{HorizonChoice, Liveness, choose_horizon};
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, READINGS};

use crate::error::BatchError;

/// How often an answer is looked for.
const LOOK: Duration = Duration::from_millis(50);

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

    /// Asks the owner of every Kafka partition for an epoch start at the end of the log as it is now, and waits up to
    /// `patience` for their answers. Where the log ends at a start that is known, or at the `previous` horizon, there is
    /// nothing to ask for.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn ask_for_cuts(
        &self,
        previous: &BTreeMap<i32, i64>,
        patience: Duration,
    ) -> Result<Cuts, BatchError> {
        let mut cuts = Cuts { control: self.views().await?, ..Cuts::default() };
        let mut open = BTreeMap::new();
        for kafka_partition in 0..self.kafka_partitions() {
            let range = self.log.offsets(READINGS, kafka_partition).await;
            let end = range.map_err(BatchError::log("ask for the end of the readings"))?.high;
            cuts.ends.insert(kafka_partition, end);
            let known = cuts.control.get(&kafka_partition).is_some_and(|view| view.starts.contains_key(&end));
            if !known && end > previous.get(&kafka_partition).copied().unwrap_or(0) {
                let asked_by = format!("batch run, pid {}", std::process::id());
                let request = ControlRecord::CutRequest { asked_by, through: end };
                open.insert(kafka_partition, self.append(kafka_partition, &request).await?);
            }
        }
        let deadline = Instant::now() + patience;
        while !open.is_empty() {
            cuts.control = self.views().await?;
            open.retain(|place, request| cuts.control[place].answered.is_none_or(|newest| newest < *request));
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        cuts.silent = open.into_keys().collect();
        Ok(cuts)
    }

    /// Appends a record for a Kafka partition, waits until it is acknowledged, and returns its offset.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn append(&self, kafka_partition: i32, record: &ControlRecord) -> Result<i64, BatchError> {
        let payload = record.encode();
        let outgoing =
            Outgoing { topic: CONTROL, kafka_partition, key: None, payload: &payload, headers: &[] };
        self.producer.send(outgoing).await.map_err(BatchError::log("write the control topic"))
    }
}

/// What became of the request for cuts.
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// What the control records of every Kafka partition add up to, answers included.
    pub control: BTreeMap<i32, ControlView>,
    /// By Kafka partition: where the log ended when the run asked.
    pub ends: BTreeMap<i32, i64>,
    /// The Kafka partitions whose owner has not answered.
    pub silent: BTreeSet<i32>,
}

impl Cuts {
    /// By Kafka partition: what must be archived, so that the horizon covers everything that the log had when the run
    /// asked.
    pub fn wanted(&self) -> BTreeMap<i32, i64> {
        let wanted = |(kafka_partition, end): (&i32, &i64)| {
            let view = self.control.get(kafka_partition).filter(|_| !self.silent.contains(kafka_partition));
            (*kafka_partition, view.and_then(|view| view.first_start_from(*end)).unwrap_or(*end))
        };
        self.ends.iter().map(wanted).collect()
    }

    /// By Kafka partition: how many messages were there when the run asked and lie above this horizon.
    pub fn not_covered(&self, horizon: &BTreeMap<i32, i64>) -> BTreeMap<i32, i64> {
        let lacks = |(place, end): (&i32, &i64)| (*place, end - horizon.get(place).copied().unwrap_or(0));
        self.ends.iter().map(lacks).filter(|(_, lacking)| *lacking > 0).collect()
    }

    fn liveness(&self, kafka_partition: i32) -> Liveness {
        if self.silent.contains(&kafka_partition) { Liveness::Silent } else { Liveness::Answered }
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
                warn!(kafka_partition, offset = message.offset, %error, "skipped an unknown control record");
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
    /// Those that no owner has announced: to be announced before the commit (**HOR-1**).
    pub pinned: Vec<(i32, i64)>,
}

impl Horizons {
    /// Chooses for every Kafka partition, given what is archived and the horizon of the last views.
    pub fn choose(cuts: &Cuts, archived: &BTreeMap<i32, i64>, previous: &BTreeMap<i32, i64>) -> Self {
        // A Kafka partition that the last views knew stays, even where the log has fewer by now.
        let mut chosen = Self { offsets: previous.clone(), pinned: Vec::new() };
        for (kafka_partition, view) in &cuts.control {
            let previous = previous.get(kafka_partition).copied().unwrap_or(0);
            let archived = archived.get(kafka_partition).copied().unwrap_or(previous);
            let choice = choose_horizon(view, archived, previous, cuts.liveness(*kafka_partition));
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

    fn announced(starts: &[i64]) -> ControlView {
        let mut view = ControlView::default();
        view.apply(0, &ControlRecord::Claim { owner: "x".into() });
        for (offset, start) in (1..).zip(starts) {
            let generation = Some(0);
            let record = ControlRecord::Epoch { generation, start: *start, announced_at: 0, answers: None };
            view.apply(offset, &record);
        }
        view
    }

    #[test]
    fn each_kafka_partition_gets_its_own_horizon() {
        let cuts = Cuts {
            control: [(0, announced(&[0, 10, 20])), (1, ControlView::default()), (2, announced(&[0]))].into(),
            ends: [(0, 12), (1, 9), (2, 0)].into(),
            silent: [1].into(),
        };
        assert_eq!(cuts.wanted(), [(0, 20), (1, 9), (2, 0)].into());
        let archived = [(0, 15), (1, 7)].into();
        let chosen = Horizons::choose(&cuts, &archived, &BTreeMap::new());
        assert_eq!(chosen.offsets, [(0, 10), (1, 7), (2, 0)].into());
        assert_eq!(chosen.pinned, [(1, 7)]);
        assert!(!chosen.is_nothing_new(&BTreeMap::new()));
        assert!(chosen.is_nothing_new(&chosen.offsets));
    }

    #[test]
    fn a_horizon_never_goes_back_and_is_never_forgotten() {
        let cuts = Cuts { control: [(0, announced(&[0]))].into(), ..Cuts::default() };
        let previous: BTreeMap<i32, i64> = [(0, 5), (9, 3)].into();
        let chosen = Horizons::choose(&cuts, &[(0, 5)].into(), &previous);
        assert_eq!(chosen, Horizons { offsets: previous, pinned: vec![] });
    }
}
