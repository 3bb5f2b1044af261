//! Processes of the speed layer: each takes a Kafka partition over step by step, feeds the owner, and carries out its
//! effects one by one, so that anything can happen between two of them.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};

use super::layers::{self, Effect, Ended, Owner, OwnerInput, OwnerRules, Takeover};
use super::log::{Content, KafkaPartition, ViewAbout, ViewKind};
use super::steps::Task;

/// A process for one Kafka partition.
pub(crate) struct Process {
    /// The version of its configuration.
    pub(crate) version: usize,
    stage: Stage,
    /// What is to be done before anything else.
    effects: VecDeque<Effect>,
    /// The next record of `control` that it reads as an owner.
    next_control: i64,
    /// In how many records it writes the rows of a flush.
    pub(crate) records: usize,
    /// Whether the log deletes what it is asked to.
    pub(crate) does_trim: bool,
}

/// How far a process is with taking the Kafka partition over.
enum Stage {
    Down,
    /// The claim is in `control`.
    Claimed {
        generation: i64,
    },
    /// It is in `realtime-views` too.
    Marked {
        generation: i64,
        marker: i64,
    },
    /// `control` was read up to the claim.
    ControlRead {
        generation: i64,
        marker: i64,
        takeover: Box<Takeover>,
    },
    /// The owner has started; past readings are not yet remembered.
    Started {
        generation: i64,
        owner: Box<Owner>,
    },
    Owning {
        generation: i64,
        owner: Box<Owner>,
    },
}

/// A budget of effects.
pub(crate) struct Budget(pub(crate) usize);

impl Budget {
    /// Takes one effect from it; whether there was one left.
    pub(crate) fn take(&mut self) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        left
    }
}

impl Process {
    pub(crate) fn new(version: usize) -> Self {
        Self {
            version,
            stage: Stage::Down,
            effects: VecDeque::new(),
            next_control: 0,
            records: 1,
            does_trim: true,
        }
    }

    /// The process is gone, with everything that it had not done yet.
    pub(crate) fn crash(&mut self) {
        self.stage = Stage::Down;
        self.effects.clear();
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.stage, Stage::Down)
    }

    pub(crate) fn is_owning(&self) -> bool {
        matches!(self.stage, Stage::Owning { .. })
    }

    /// Its generation, where it has claimed the Kafka partition.
    pub(crate) fn generation(&self) -> Option<i64> {
        match self.stage {
            Stage::Down => None,
            Stage::Claimed { generation }
            | Stage::Marked { generation, .. }
            | Stage::ControlRead { generation, .. }
            | Stage::Started { generation, .. }
            | Stage::Owning { generation, .. } => Some(generation),
        }
    }

    /// Takes the Kafka partition over, as far as the budget goes.
    pub(crate) fn take_over(
        &mut self,
        kafka_partition: &mut KafkaPartition,
        rules: &OwnerRules,
        budget: &mut Budget,
    ) -> Result<()> {
        while !matches!(self.stage, Stage::Owning { .. }) {
            if !self.carry_out(kafka_partition, budget)? || !budget.take() {
                return Ok(());
            }
            let stage = std::mem::replace(&mut self.stage, Stage::Down);
            self.stage = self.next_stage(stage, kafka_partition, rules)?;
        }
        self.carry_out(kafka_partition, budget).map(|_| ())
    }

    fn next_stage(&mut self, stage: Stage, log: &mut KafkaPartition, rules: &OwnerRules) -> Result<Stage> {
        Ok(match stage {
            Stage::Down => {
                let (payload, about) = layers::claim();
                Stage::Claimed { generation: log.append_control(payload, about) }
            }
            Stage::Claimed { generation } => {
                let (payload, about) = layers::claim_marker(generation);
                Stage::Marked { generation, marker: log.append_view(payload, about) }
            }
            Stage::Marked { generation, marker } => {
                let mut takeover = Box::<Takeover>::default();
                let records = log.control.iter().filter(|(offset, _)| *offset <= generation);
                records.for_each(|(offset, payload)| takeover.control(offset, payload));
                Stage::ControlRead { generation, marker, takeover }
            }
            Stage::ControlRead { generation, marker, mut takeover } => {
                let records = log.views.iter().filter(|(offset, _)| *offset <= marker);
                records.for_each(|(offset, record)| takeover.view(offset, &record.payload));
                let mut owner = takeover.owner(rules, (log.number, generation), log.readings.low());
                let horizon = log.horizon_before(generation);
                log.note(|| format!("the owner of generation {generation} resumes at {}", owner.next()));
                ensure!(
                    owner.next() >= horizon,
                    "an owner starts at {}, below the horizon {horizon} that it has read",
                    owner.next()
                );
                match owner.start() {
                    Ok(effects) => self.effects.extend(effects),
                    Err(Ended::GivenUp) => return Ok(Stage::Down),
                    Err(Ended::Failed(error)) => return Err(error),
                }
                Stage::Started { generation, owner: Box::new(owner) }
            }
            Stage::Started { generation, mut owner } => {
                let past = log
                    .readings
                    .iter()
                    .filter(|(offset, _)| (owner.remembers_from()..owner.next()).contains(offset));
                let past: Vec<_> = past.collect();
                log.note(|| format!("remembers from {} on", owner.remembers_from()));
                for (offset, entry) in past {
                    if let Content::Message { payload, .. } = &entry.content {
                        owner.remember(offset, entry.time, payload)?;
                    }
                }
                owner.remembered()?;
                self.next_control = owner.next_control();
                Stage::Owning { generation, owner }
            }
            stage @ Stage::Owning { .. } => stage,
        })
    }

    /// Works as an owner, as far as the budget of effects goes.
    pub(crate) fn work(&mut self, log: &mut KafkaPartition, task: Task, budget: &mut Budget) -> Result<()> {
        if !self.carry_out(log, budget)? {
            return Ok(());
        }
        match task {
            Task::Flush => self.step(log, &OwnerInput::Flush, budget).map(|_| ()),
            Task::Epoch => self.step(log, &OwnerInput::Epoch, budget).map(|_| ()),
            Task::Read(most) => self.read(log, most, budget),
            Task::Listen => self.listen(log, budget),
        }
    }

    fn read(&mut self, log: &mut KafkaPartition, most: usize, budget: &mut Budget) -> Result<()> {
        for _ in 0..most {
            let Stage::Owning { owner, .. } = &self.stage else { return Ok(()) };
            let offset = owner.next();
            if offset < log.readings.low() {
                // What the owner needs was deleted: only a newer owner can have done that.
                self.crash();
                return Ok(());
            }
            let Some(entry) = log.readings.get(offset) else { return Ok(()) };
            let (time, next) = (entry.time, offset + 1);
            log.note(|| format!("{offset} is read"));
            let payload;
            let input = match &entry.content {
                Content::Empty => OwnerInput::Empty { next },
                Content::Unreadable => OwnerInput::Unreadable { next },
                Content::Message { payload: bytes, .. } => {
                    payload = bytes.clone();
                    OwnerInput::Message { offset, time, payload: &payload }
                }
            };
            let went_on = self.step(log, &input, budget)?;
            if !went_on {
                return Ok(());
            }
        }
        Ok(())
    }

    fn listen(&mut self, log: &mut KafkaPartition, budget: &mut Budget) -> Result<()> {
        // It reads its own records too.
        loop {
            let offset = self.next_control.max(log.control.low());
            let Some(payload) = log.control.get(offset).cloned() else { return Ok(()) };
            self.next_control = offset + 1;
            if !self.step(log, &OwnerInput::Control { offset, payload: &payload }, budget)? {
                return Ok(());
            }
        }
    }

    /// One step of the owner; whether all its effects were carried out and it goes on.
    fn step(
        &mut self,
        log: &mut KafkaPartition,
        input: &OwnerInput<'_>,
        budget: &mut Budget,
    ) -> Result<bool> {
        let Stage::Owning { owner, .. } = &mut self.stage else { return Ok(false) };
        match owner.step(*input, self.records) {
            Ok(effects) => self.effects.extend(effects),
            Err(Ended::GivenUp) => {
                log.note(|| "the owner gives up".to_owned());
                self.crash();
                return Ok(false);
            }
            Err(Ended::Failed(error)) => return Err(error),
        }
        self.carry_out(log, budget)
    }

    /// Carries effects out as far as the budget goes; whether none is left.
    fn carry_out(&mut self, log: &mut KafkaPartition, budget: &mut Budget) -> Result<bool> {
        while !self.effects.is_empty() {
            if !budget.take() {
                return Ok(false);
            }
            match self.effects.pop_front() {
                Some(Effect::View(payload, about)) => self.append_view(log, payload, about)?,
                Some(Effect::Control(payload, about)) => {
                    log.append_control(payload, about);
                }
                Some(Effect::Trim(topic, before)) if self.does_trim => log.trim(topic, before),
                Some(Effect::Trim(..)) | None => {}
            }
        }
        Ok(true)
    }

    fn append_view(&mut self, log: &mut KafkaPartition, payload: Vec<u8>, about: ViewAbout) -> Result<()> {
        let offset = log.append_view(payload, about);
        if let (ViewKind::Begin { epoch, .. }, Stage::Started { owner, .. } | Stage::Owning { owner, .. }) =
            (about.kind, &mut self.stage)
        {
            match owner.step(OwnerInput::Begun { epoch, offset }, 1) {
                Ok(effects) => self.effects.extend(effects),
                Err(_) => bail!("the acknowledgement of an epoch's beginning is refused"),
            }
        }
        Ok(())
    }
}
