//! The batch layer: an archiver for each Kafka partition, the table of batch views, and processes that do batch runs. Two of
//! them may be under way at once.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::events::Event;
use super::layers::{
    self, Archive, BatchRun, BatchView, Control, Patience, Plans, RunEffect, RunInput, RunStart,
};
use super::log::{Content, ControlAbout, KafkaPartition};
use super::speed::Budget;

/// A batch view that was committed.
pub(crate) struct Committed {
    /// The version of the table; the first is 1.
    pub(crate) number: u64,
    /// The version of the configuration that it was computed with.
    pub(crate) version: usize,
    pub(crate) horizon: Vec<i64>,
    /// When (µs) the run started, where everything that was in the log then is below the horizon.
    pub(crate) as_of_start: Option<i64>,
    pub(crate) view: Arc<BatchView>,
}

/// What the batch layer keeps.
pub(crate) struct Tables {
    pub(crate) archives: Vec<Archive>,
    /// The batch views, oldest first.
    pub(crate) views: Vec<Arc<Committed>>,
}

/// A process that does one batch run after the other.
pub(crate) struct BatchProcess {
    pub(crate) version: usize,
    run: Option<Underway>,
}

/// A batch run that has started.
struct Underway {
    run: BatchRun,
    effects: VecDeque<RunEffect>,
    started: i64,
    /// The ends of the readings when it started.
    ends: Vec<i64>,
    crash_now: Event,
}

/// What a batch process sees.
pub(crate) struct Surroundings<'a> {
    pub(crate) log: &'a mut [KafkaPartition],
    pub(crate) tables: &'a mut Tables,
    pub(crate) plans: &'a [Plans],
    /// In µs.
    pub(crate) now: i64,
    /// Whether the run waits any longer for answers and for the archiver.
    pub(crate) patience: Patience,
    /// Every n-th reading is in the master dataset twice.
    pub(crate) repeat: usize,
}

impl Tables {
    /// Archives a Kafka partition below an offset.
    pub(crate) fn archive(&mut self, log: &mut KafkaPartition, end: i64) -> Result<()> {
        while log.archived < end {
            let offset = log.archived;
            let entry = log.readings.get(offset);
            ensure!(entry.is_some(), "LOSS-1: offset {offset} was deleted before it was archived");
            if let Some(Content::Message { payload, .. }) = entry.map(|entry| &entry.content) {
                let time = entry.map_or(0, |entry| entry.time);
                self.archives[log.number as usize].message(offset, time, payload)?;
            }
            log.archived += 1;
        }
        Ok(())
    }
}

impl BatchProcess {
    pub(crate) fn new(version: usize) -> Self {
        Self { version, run: None }
    }

    pub(crate) fn crash(&mut self, log: &[KafkaPartition]) {
        if let Some(underway) = self.run.take().filter(|underway| !underway.effects.is_empty()) {
            log[0].count(underway.crash_now);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.run.is_none()
    }

    /// Starts a run, or continues it, until the budget is used.
    pub(crate) fn work(&mut self, around: &mut Surroundings<'_>, budget: &mut Budget) -> Result<()> {
        if self.run.is_none() {
            if !budget.take() {
                return Ok(());
            }
            self.run = Some(self.start(around));
        }
        while budget.take() {
            let Some(underway) = &mut self.run else { return Ok(()) };
            match underway.effects.pop_front() {
                Some(effect) => {
                    if !underway.carry_out(effect, self.version, around)? {
                        // Another run has committed first.
                        around.log[0].count(Event::BatchCommitLost);
                        self.run = None;
                    }
                }
                None => self.run = None,
            }
        }
        Ok(())
    }

    fn start(&self, around: &Surroundings<'_>) -> Underway {
        let previous = around.tables.views.last();
        let ends: Vec<i64> = around.log.iter().map(|log| log.readings.end()).collect();
        let start = RunStart {
            started: around.now,
            previous: previous.map(|committed| (committed.number, &*committed.view)),
            control: control(around.log),
            ends: ends.clone(),
        };
        let (run, effects) = BatchRun::start(&around.plans[self.version], start);
        let crash_now = Event::BatchCrashBeforeCommit;
        Underway { run, effects: effects.into(), started: around.now, ends, crash_now }
    }
}

impl Underway {
    /// Whether the run continues.
    fn carry_out(
        &mut self,
        effect: RunEffect,
        version: usize,
        around: &mut Surroundings<'_>,
    ) -> Result<bool> {
        let patience = around.patience;
        match effect {
            RunEffect::Request(kafka_partition, payload, about) => {
                let offset = around.log[kafka_partition].append_control(payload, about);
                self.step(RunInput::Requested { kafka_partition, offset });
            }
            RunEffect::Announce(kafka_partition, payload, about) => {
                if let ControlAbout::Epoch { .. } = about {
                    self.crash_now = Event::BatchCrashAfterPin;
                }
                around.log[kafka_partition].append_control(payload, about);
            }
            RunEffect::ReadControl => self.step(RunInput::Control(control(around.log), patience)),
            RunEffect::ReadArchived => {
                let archived = around.log.iter().map(|log| log.archived).collect();
                self.step(RunInput::Archived(archived, patience));
            }
            RunEffect::Commit { horizon, as_of, replaces } => {
                if around.tables.views.last().map(|view| view.number) != replaces {
                    return Ok(false);
                }
                let number = self.commit(version, &horizon, as_of, around)?;
                self.crash_now = Event::BatchCrashAfterCommit;
                around.log[0].count(Event::BatchCommitted);
                self.step(RunInput::Committed(number));
            }
            RunEffect::Keep => around.log[0].count(Event::BatchViewKept),
        }
        Ok(true)
    }

    fn step(&mut self, input: RunInput) {
        self.effects.extend(self.run.step(input));
    }

    fn commit(
        &self,
        version: usize,
        horizon: &[i64],
        as_of: Option<i64>,
        around: &mut Surroundings<'_>,
    ) -> Result<u64> {
        let tables = &mut *around.tables;
        let view =
            layers::recompute(&around.plans[version], &tables.archives, horizon, as_of, around.repeat)?;
        let previous = tables.views.last();
        for (p, log) in around.log.iter().enumerate() {
            let offset = horizon[p];
            ensure!(
                offset == 0 || log.starts.contains(&offset),
                "HOR-1: the horizon {offset} is no epoch start"
            );
            ensure!(offset <= log.archived, "a horizon of {offset}, of {} that is archived", log.archived);
            let before = previous.map_or(0, |view| view.horizon[p]);
            ensure!(offset >= before, "the horizon goes back from {before} to {offset}");
        }
        around.log[0].note(|| format!("version {version} commits the horizon {horizon:?}"));
        let is_whole = horizon.iter().zip(&self.ends).all(|(offset, end)| offset >= end);
        let number = previous.map_or(1, |view| view.number + 1);
        tables.views.push(Arc::new(Committed {
            number,
            version,
            horizon: horizon.to_vec(),
            as_of_start: is_whole.then_some(self.started),
            view: Arc::new(view),
        }));
        Ok(number)
    }
}

fn control(log: &[KafkaPartition]) -> Vec<Control> {
    log.iter().map(|log| Control::read(log.control.iter())).collect()
}
