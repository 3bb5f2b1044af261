//! Processes of the serving layer: each follows the realtime views, switches to new batch views, and asks the log for its
//! ends, all of it late.

use std::sync::Arc;

use anyhow::Result;

use super::batch::{Committed, Tables};
use super::events::Event;
use super::layers::{Patience, Plans, Serving};
use super::log::KafkaPartition;
use super::notes::Notes;
use super::open_flush::OpenFlushes;

/// A process of the serving layer.
pub(crate) struct Server {
    pub(crate) version: usize,
    pub(crate) serving: Serving,
    /// The batch view that it serves.
    pub(crate) view: Option<Arc<Committed>>,
    /// A batch view that it has loaded and not switched to yet.
    loaded: Option<Arc<Committed>>,
    /// By Kafka partition: the next record of the realtime views.
    next: Vec<i64>,
    /// By Kafka partition: the end of the realtime views when it started.
    targets: Vec<i64>,
    /// By Kafka partition: the flushes that are not complete, as far as it has read.
    pub(crate) flushes: Vec<OpenFlushes>,
    /// By Kafka partition: what it has been told of the end of the readings.
    pub(crate) ends: Vec<i64>,
    /// When (µs) it last asked.
    pub(crate) asked_at: Option<i64>,
}

impl Server {
    pub(crate) fn start(version: usize, plans: &Plans, log: &[KafkaPartition]) -> Result<Self> {
        Ok(Self {
            version,
            serving: Serving::new(plans, log.len())?,
            view: None,
            loaded: None,
            next: log.iter().map(|log| log.views.low()).collect(),
            targets: log.iter().map(|log| log.views.end()).collect(),
            flushes: log.iter().map(|_| OpenFlushes::default()).collect(),
            ends: vec![0; log.len()],
            asked_at: None,
        })
    }

    /// Reads up to so many records of the realtime views of each Kafka partition.
    pub(crate) fn tail(&mut self, log: &[KafkaPartition], most: usize) -> Result<()> {
        for (p, log) in log.iter().enumerate() {
            for _ in 0..most {
                if self.next[p] < log.views.low() {
                    // Records were deleted before they were read.
                    log.count(Event::ServingOvertakenByTrim);
                    self.next[p] = log.views.low();
                    self.flushes[p] = OpenFlushes::default();
                    self.serving.restart_from_oldest(p);
                }
                let Some(record) = log.views.get(self.next[p]) else { break };
                self.serving.record(p, &record.payload);
                if let Some(about) = record.about {
                    self.flushes[p].apply(about);
                }
                self.next[p] += 1;
            }
        }
        if self.next.iter().zip(&self.targets).all(|(next, target)| next >= target) {
            self.serving.caught_up();
        }
        Ok(())
    }

    pub(crate) fn ask_ends(&mut self, log: &[KafkaPartition], now: i64) {
        self.ends = log.iter().map(|log| log.readings.end()).collect();
        self.asked_at = Some(now);
        self.serving.log_ends(&self.ends, now);
        for p in self.serving.without_start(now) {
            self.serving.log_start(p, log[p].readings.low());
        }
    }

    /// The log has acknowledged a message that was sent by way of this process.
    pub(crate) fn written(&mut self, kafka_partition: usize, next: i64, now: i64) {
        if self.asked_at.is_some() {
            self.ends[kafka_partition] = self.ends[kafka_partition].max(next);
        }
        self.serving.written(kafka_partition, next, now);
    }

    /// Looks for a new batch view, and switches to the one that it has loaded, unless answers would cover less.
    pub(crate) fn look_for_view(&mut self, tables: &Tables, patience: Patience, notes: &Notes) -> Result<()> {
        if self.loaded.is_none() {
            let newest = tables.views.last();
            self.loaded = newest.filter(|newest| self.number() != Some(newest.number)).cloned();
        }
        let Some(loaded) = self.loaded.take() else {
            self.serving.views_checked();
            return Ok(());
        };
        if patience == Patience::Left && self.serving.would_lose(&loaded.view) {
            notes.count(Event::ViewWaited);
            self.loaded = Some(loaded);
            return Ok(());
        }
        self.serving.serve(loaded.number, &loaded.view)?;
        notes.count(Event::ViewSwitched);
        self.view = Some(loaded);
        self.serving.views_checked();
        Ok(())
    }

    fn number(&self) -> Option<u64> {
        self.view.as_ref().map(|view| view.number)
    }
}
