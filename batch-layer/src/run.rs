//! A batch run as a state machine: facts in, effects out. Must not know the log, a clock, how effects are carried out, or
//! anything of the tables but the version of a view.
//!
//! 1. It asks the owners for cuts at the ends of the log, and waits for their answers.
//! 2. It waits until the archiver has reached the cuts.
//! 3. It chooses the horizon: of each Kafka partition the newest announced epoch start that is archived; where no owner
//!    has answered, everything that is archived.
//! 4. It has the views computed and committed, and announces the new horizon; or the view stays.
//!
//! The exact merge depends on the order of its effects: a horizon that no owner has announced is announced before the
//! commit (**HOR-1**). The horizon of a commit is announced after it, and by the next run where this one crashed in
//! between. Of runs that start from the same version at most one commits.

use std::collections::BTreeMap;

use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::{HorizonChoice, HorizonFacts, Liveness, choose_horizon};
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::Micros;
use wye_tables::views::ViewVersion;

#[cfg(test)]
mod tests;

/// By Kafka partition: what its control records add up to. It has every Kafka partition of the readings.
pub type ControlViews = BTreeMap<KafkaPartition, ControlView>;

/// What a run decides by, besides its facts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// When the run started, before any of its facts was read.
    pub started: Micros,
    /// The fingerprint of what is computed.
    pub definitions: String,
    /// The IDs of the amendments that are applied.
    pub amendments: Vec<String>,
    /// The name of the run in requests for a cut, for people.
    pub asked_by: String,
    /// Computes everything, and commits even if there is nothing new.
    pub force: bool,
}

/// What a run starts from. It is read in this order.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The newest batch view.
    pub previous: Option<Previous>,
    /// The control topic.
    pub control: ControlViews,
    /// Where the readings of each Kafka partition end: the next offset to come.
    pub ends: Horizon,
}

/// The batch view that a run starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct Previous {
    /// Its version.
    pub version: ViewVersion,
    /// It covers the readings below.
    pub horizon: Horizon,
    /// The fingerprint of what was computed; `None` where that is not known any more, or another version of the computation did
    /// it.
    pub definitions: Option<String>,
    /// The IDs of the amendments that were applied.
    pub amendments: Vec<String>,
}

/// What happens to a run.
#[derive(Clone, Debug)]
pub enum Input {
    /// A request for a cut was acknowledged.
    Requested {
        /// Of which Kafka partition.
        kafka_partition: KafkaPartition,
        /// The offset of the request in the control topic.
        request: Offset,
    },
    /// The control topic was read.
    Control(ControlViews, Patience),
    /// The master dataset was read: the next offset to archive of each Kafka partition.
    Archived(Horizon, Patience),
    /// The views and their horizon were committed.
    Committed {
        /// The version that has them.
        version: ViewVersion,
    },
}

/// Whether a run may wait any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    Left,
    /// It takes what there is.
    Over,
}

/// What is to be done for a run, in this order. If one of them fails, the run has failed; but once it has committed, what
/// cannot be announced is left to the next run.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Append a request to the control topic. Its acknowledgement is an [`Input::Requested`].
    RequestCut(KafkaPartition, ControlRecord),
    /// Append a record to the control topic, and wait until it is acknowledged.
    Announce(KafkaPartition, ControlRecord),
    /// Read the control topic to its end, at once or, when it is read again, a little later: [`Input::Control`].
    ReadControl,
    /// Read what the master dataset has, at once or, when it is read again, a little later: [`Input::Archived`].
    ReadArchived,
    /// Compute all views from what was last read of the master dataset, and commit them: [`Input::Committed`].
    Commit(Task),
    /// The view stays, since a new one would be the same.
    KeepView(LeftOut),
}

/// What is to be computed and committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Only readings below are read; it is committed with the views.
    pub horizon: Horizon,
    /// Everything that was ingested before this time is below the horizon; `None` where that is not known.
    pub as_of: Option<Micros>,
    /// The version that the views replace, `None` where there is none. If another run has replaced it, the commit fails.
    pub replaces: Option<ViewVersion>,
    /// What the views lack.
    pub left_out: LeftOut,
}

/// What was in the log when a run started and is not below its horizon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeftOut {
    /// The Kafka partitions whose owner has not answered.
    pub unanswered: Vec<KafkaPartition>,
    /// How many messages of each Kafka partition.
    pub messages: BTreeMap<KafkaPartition, u64>,
}

/// A batch run that has started.
#[derive(Clone, Debug)]
pub struct Run {
    rules: Rules,
    facts: Facts,
    /// The Kafka partitions that were asked for a cut and have not answered, with the offset of the request once it is
    /// acknowledged.
    unanswered: BTreeMap<KafkaPartition, Option<Offset>>,
    phase: Phase,
}

/// What a run waits for.
#[derive(Clone, Debug)]
enum Phase {
    Answers,
    Archive,
    Commit(Horizon),
    Ended,
}

/// The horizon that a run has chosen.
#[derive(Clone, Debug, Default, PartialEq)]
struct Chosen {
    horizon: Horizon,
    /// The Kafka partitions whose offset no owner has announced.
    pinned: Vec<KafkaPartition>,
}

impl Run {
    /// Starts a run: it asks every owner for an epoch start at the end of the log. Where the log ends at a start that is
    /// announced already, or at the horizon, there is nothing to ask for.
    pub fn start(rules: Rules, facts: Facts) -> (Self, Vec<Effect>) {
        let mut run = Self { rules, facts, unanswered: BTreeMap::new(), phase: Phase::Answers };
        let mut effects = Vec::new();
        for (kafka_partition, end) in run.facts.ends.iter() {
            let control = run.facts.control.get(&kafka_partition);
            let is_announced = control.is_some_and(|view| view.starts.contains_key(&end));
            if !is_announced && end > run.facts.previous_offset(kafka_partition) {
                let request =
                    ControlRecord::CutRequest { asked_by: run.rules.asked_by.clone(), through: end };
                effects.push(Effect::RequestCut(kafka_partition, request));
                run.unanswered.insert(kafka_partition, None);
            }
        }
        if run.unanswered.is_empty() {
            effects.extend(run.after_answers());
        } else {
            effects.push(Effect::ReadControl);
        }
        (run, effects)
    }

    /// Handles an input, and returns the effects to carry out. An input that the run does not wait for is ignored.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match (&self.phase, input) {
            (Phase::Answers, Input::Requested { kafka_partition, request }) => {
                self.unanswered.insert(kafka_partition, Some(request));
                Vec::new()
            }
            (Phase::Answers, Input::Control(control, patience)) => {
                self.unanswered.retain(|kafka_partition, request| {
                    let answered = control.get(kafka_partition).and_then(|view| view.answered);
                    request.is_none_or(|request| answered.is_none_or(|newest| newest < request))
                });
                self.facts.control = control;
                if !self.unanswered.is_empty() && patience == Patience::Left {
                    return vec![Effect::ReadControl];
                }
                self.after_answers()
            }
            (Phase::Archive, Input::Archived(archived, patience)) => {
                if patience == Patience::Left && !archived.covers(&self.wanted()) {
                    return vec![Effect::ReadArchived];
                }
                self.decide(&archived)
            }
            (Phase::Commit(horizon), Input::Committed { version }) => {
                let existing = horizon
                    .iter()
                    .filter(|(kafka_partition, _)| self.facts.control.contains_key(kafka_partition));
                let effects = existing
                    .map(|(kafka_partition, offset)| {
                        Effect::Announce(kafka_partition, horizon_record(offset, version))
                    })
                    .collect();
                self.phase = Phase::Ended;
                effects
            }
            _ => Vec::new(),
        }
    }

    /// The answers are there, or no longer waited for. If the run that made the previous view did not announce its
    /// horizon everywhere, that is done now.
    fn after_answers(&mut self) -> Vec<Effect> {
        self.phase = Phase::Archive;
        let previous = self.facts.previous.iter();
        let missing = previous.flat_map(|previous| {
            missing_announcements(&previous.horizon, previous.version, &self.facts.control)
        });
        let announcements =
            missing.map(|(kafka_partition, record)| Effect::Announce(kafka_partition, record));
        announcements.chain([Effect::ReadArchived]).collect()
    }

    /// What must be archived, so that the horizon covers everything that the log had when the run started.
    fn wanted(&self) -> Horizon {
        let ends = self.facts.ends.iter();
        ends.map(|(kafka_partition, end)| {
            let answered = !self.unanswered.contains_key(&kafka_partition);
            let control = self.facts.control.get(&kafka_partition).filter(|_| answered);
            let start = control.and_then(|view| view.first_start_from(end));
            (kafka_partition, start.unwrap_or(end))
        })
        .collect()
    }

    /// Chooses the horizon; then there is something to commit or not.
    fn decide(&mut self, archived: &Horizon) -> Vec<Effect> {
        let Chosen { horizon, pinned } = self.choose(archived);
        let as_of = horizon.covers(&self.facts.ends).then_some(self.rules.started);
        if !self.rules.force && self.is_nothing_new(&horizon) {
            self.phase = Phase::Ended;
            return vec![Effect::KeepView(self.left_out(&horizon))];
        }
        let pins = pinned.into_iter().map(|kafka_partition| {
            let start = horizon.offset(kafka_partition);
            let pin = ControlRecord::Epoch { generation: None, start, announced_at: None, answers: None };
            Effect::Announce(kafka_partition, pin)
        });
        let task = Task {
            horizon: horizon.clone(),
            as_of,
            replaces: self.facts.previous.as_ref().map(|previous| previous.version),
            left_out: self.left_out(&horizon),
        };
        let effects = pins.chain([Effect::Commit(task)]).collect();
        self.phase = Phase::Commit(horizon);
        effects
    }

    /// The horizon of each Kafka partition, given what is archived.
    fn choose(&self, archived: &Horizon) -> Chosen {
        let previous = self.facts.previous.as_ref();
        // A Kafka partition of the previous view stays, even where the log has fewer by now.
        let mut horizon = previous.map(|previous| previous.horizon.clone()).unwrap_or_default();
        let mut pinned = Vec::new();
        for (kafka_partition, control) in &self.facts.control {
            let previous = horizon.offset(*kafka_partition);
            let archived = archived.get(*kafka_partition).unwrap_or(previous);
            let is_silent = self.unanswered.contains_key(kafka_partition);
            let liveness = if is_silent { Liveness::Silent } else { Liveness::Answered };
            let choice = choose_horizon(control, HorizonFacts { archived, previous, liveness });
            if let HorizonChoice::Pinned(_) = choice {
                pinned.push(*kafka_partition);
            }
            horizon.set(*kafka_partition, choice.offset());
        }
        Chosen { horizon, pinned }
    }

    /// Whether a new view would be the same: no more readings, the same definitions and amendments.
    fn is_nothing_new(&self, horizon: &Horizon) -> bool {
        let Some(previous) = &self.facts.previous else { return Horizon::default().covers(horizon) };
        let is_same =
            previous.is_current(&self.rules.definitions) && previous.amendments == self.rules.amendments;
        previous.horizon.covers(horizon) && is_same
    }

    fn left_out(&self, horizon: &Horizon) -> LeftOut {
        let messages = self
            .facts
            .ends
            .iter()
            .map(|(kafka_partition, end)| (kafka_partition, end.since(horizon.offset(kafka_partition))));
        LeftOut {
            unanswered: self.unanswered.keys().copied().collect(),
            messages: messages.filter(|(_, messages)| *messages > 0).collect(),
        }
    }
}

impl Facts {
    fn previous_offset(&self, kafka_partition: KafkaPartition) -> Offset {
        self.previous.as_ref().map_or(Offset::START, |previous| previous.horizon.offset(kafka_partition))
    }
}

impl Previous {
    /// Whether it was computed with the definitions of this fingerprint.
    pub fn is_current(&self, definitions: &str) -> bool {
        self.definitions.as_deref() == Some(definitions)
    }
}

/// The horizon of a view as records for every Kafka partition of the control topic that does not have it.
pub fn missing_announcements<'a>(
    horizon: &'a Horizon,
    version: ViewVersion,
    control: &'a ControlViews,
) -> impl Iterator<Item = (KafkaPartition, ControlRecord)> + 'a {
    horizon.iter().filter_map(move |(kafka_partition, offset)| {
        let view = control.get(&kafka_partition)?;
        let is_missing = view.horizon.is_none_or(|announced| announced < offset);
        is_missing.then(|| (kafka_partition, horizon_record(offset, version)))
    })
}

fn horizon_record(offset: Offset, version: ViewVersion) -> ControlRecord {
    ControlRecord::Horizon { offset, version: version.0 }
}
