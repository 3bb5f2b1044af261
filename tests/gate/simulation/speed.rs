//! Processes of the speed layer: each takes a Kafka partition over step by step, feeds the owner, and carries out its
//! effects one by one, so that anything can happen between two of them.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};

use super::events::Event;
use super::layers::{self, Effect, Ended, Owner, OwnerInput, OwnerRules, Recovered, Takeover};
use super::log::{Content, ControlAbout, KafkaPartition, ViewAbout, ViewKind};
use super::steps::Task;
use super::versions::VERSIONS;

/// A process for one Kafka partition.
pub(crate) struct Process {
    /// The version of its configuration.
    pub(crate) version: usize,
    stage: Stage,
    /// What is to be done before anything else.
    effects: VecDeque<Effect>,
    /// A crash after the effect that was carried out last.
    crash_now: Option<Event>,
    /// The next record of `control` that it reads as an owner.
    next_control: i64,
    /// What the rows that it has taken over reach to, where that is past its position.
    rows_through: i64,
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
            crash_now: None,
            next_control: 0,
            rows_through: 0,
            records: 1,
            does_trim: true,
        }
    }

    /// The process is gone, in the middle of a step, with everything that it had not done yet.
    pub(crate) fn crash(&mut self, log: &KafkaPartition) {
        let event = match self.stage {
            Stage::Claimed { .. } => Some(Event::CrashBetweenClaimAndMarker),
            Stage::Marked { .. } => Some(Event::CrashAfterMarker),
            Stage::ControlRead { .. } => Some(Event::CrashAfterReading),
            Stage::Started { .. } if self.effects.is_empty() => Some(Event::CrashBeforeRemembering),
            Stage::Started { .. } | Stage::Owning { .. } => {
                self.crash_now.filter(|_| !self.effects.is_empty())
            }
            Stage::Down => None,
        };
        event.into_iter().for_each(|event| log.count(event));
        self.stop();
    }

    /// The process is gone.
    pub(crate) fn stop(&mut self) {
        self.stage = Stage::Down;
        self.effects.clear();
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.stage, Stage::Down)
    }

    /// Whether it is between its claim and its first step as an owner.
    pub(crate) fn is_claiming(&self) -> bool {
        !self.is_down() && !self.is_owning()
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
                let (mut owner, recovered) =
                    takeover.owner(rules, (log.number, generation), log.readings.low());
                self.rows_through = match recovered {
                    Recovered::ResumedInsideIncompleteFlush { through } => through,
                    Recovered::Resumed | Recovered::Rebuilt => 0,
                };
                self.count_recovery(recovered, log);
                let horizon = log.horizon_before(generation);
                log.note(|| format!("the owner of generation {generation} resumes at {}", owner.next()));
                ensure!(
                    owner.next() >= horizon,
                    "an owner starts at {}, below the horizon {horizon} that it has read",
                    owner.next()
                );
                match owner.start() {
                    Ok(effects) => self.effects.extend(effects),
                    Err(Ended::Fenced | Ended::Overtaken) => bail!("an owner ends before its first step"),
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

    fn count_recovery(&self, recovered: Recovered, log: &mut KafkaPartition) {
        log.count(match recovered {
            Recovered::Resumed => Event::Resumed,
            Recovered::ResumedInsideIncompleteFlush { .. } => Event::ResumedInsideIncompleteFlush,
            Recovered::Rebuilt => Event::Rebuilt,
        });
        let version = self.version;
        match log.owned_by.replace(version) {
            Some(before) if before == version => {}
            Some(before) if VERSIONS[before].has_definitions_of(&VERSIONS[version]) => {
                log.count(Event::ResumedFromOtherRegistry);
            }
            Some(_) => log.count(Event::ResumedFromOtherDefinitions),
            None => {}
        }
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
                self.stop();
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

    /// One step of the owner; whether all its effects were carried out and it continues.
    fn step(
        &mut self,
        log: &mut KafkaPartition,
        input: &OwnerInput<'_>,
        budget: &mut Budget,
    ) -> Result<bool> {
        let Stage::Owning { generation, owner } = &mut self.stage else { return Ok(false) };
        match owner.step(*input, self.records) {
            Ok(effects) => self.effects.extend(effects),
            Err(Ended::Fenced) => {
                log.note(|| "the owner is fenced".to_owned());
                log.count(Event::Fenced);
                self.stop();
                return Ok(false);
            }
            Err(Ended::Overtaken) => {
                log.note(|| "the owner is overtaken".to_owned());
                ensure!(
                    log.may_overtake(*generation),
                    "HOR-1: an owner is overtaken, and nobody else has pinned or claimed since its claim"
                );
                log.count(Event::Overtaken);
                self.stop();
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
                Some(Effect::View(payload, about)) => {
                    self.crash_now = Some(match about.kind {
                        ViewKind::Rows { complete: false, .. } => Event::CrashAfterIncompleteRows,
                        ViewKind::Rows { .. } => Event::CrashAfterCheckpoint,
                        ViewKind::Begin { .. } | ViewKind::Claim => Event::CrashAfterBegin,
                    });
                    self.append_view(log, payload, about)?;
                }
                Some(Effect::Control(payload, about)) => {
                    self.crash_now = Some(Event::CrashAfterAnnouncement);
                    self.append_control(log, payload, about);
                }
                Some(Effect::Trim(topic, before)) if self.does_trim => {
                    self.crash_now = Some(Event::CrashAfterTrim);
                    log.trim(topic, before);
                }
                Some(Effect::Trim(..)) | None => {}
            }
        }
        Ok(true)
    }

    fn append_control(&mut self, log: &mut KafkaPartition, payload: Vec<u8>, about: ControlAbout) {
        log.append_control(payload, about);
        if let (ControlAbout::Epoch { start, answers: true, .. }, Some(next)) = (about, self.next()) {
            if start > next {
                log.count(Event::CutAnsweredAhead);
            }
            if self.rows_through > next {
                log.count(Event::CutAnsweredInsideIncompleteFlush);
            }
        }
    }

    /// The next offset of the owner, where there is one.
    fn next(&self) -> Option<i64> {
        match &self.stage {
            Stage::Started { owner, .. } | Stage::Owning { owner, .. } => Some(owner.next()),
            Stage::Down | Stage::Claimed { .. } | Stage::Marked { .. } | Stage::ControlRead { .. } => None,
        }
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
