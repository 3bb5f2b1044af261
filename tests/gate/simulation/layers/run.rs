//! What a batch run decides.

pub(crate) use wye_batch::run::Patience;
use wye_batch::run::{self, ControlViews, Facts, Previous, Run};
use wye_domain::control::ControlView;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::Micros;
use wye_tables::views::ViewVersion;

use super::super::log::ControlAbout;
use super::{BatchView, Plans, apply_control, control_about, horizon};

/// What the control topic of one Kafka partition says, for a batch run.
#[derive(Clone, Default)]
pub(crate) struct Control(ControlView);

impl Control {
    pub(crate) fn read<'a>(records: impl Iterator<Item = (i64, &'a Vec<u8>)>) -> Self {
        let mut control = Self::default();
        records.for_each(|(offset, payload)| apply_control(&mut control.0, offset, payload));
        control
    }
}

/// What a batch run starts from.
pub(crate) struct RunStart<'a> {
    /// In µs.
    pub(crate) started: i64,
    /// The newest batch view with its version.
    pub(crate) previous: Option<(u64, &'a BatchView)>,
    pub(crate) control: Vec<Control>,
    /// The end of the readings of each Kafka partition.
    pub(crate) ends: Vec<i64>,
}

/// What is done for a batch run.
pub(crate) enum RunEffect {
    /// Appends a request for a cut to `control`.
    Request(usize, Vec<u8>, ControlAbout),
    /// Appends another record to `control`.
    Announce(usize, Vec<u8>, ControlAbout),
    ReadControl,
    ReadArchived,
    Commit {
        horizon: Vec<i64>,
        as_of: Option<i64>,
        replaces: Option<u64>,
    },
    /// The view stays.
    Keep,
}

/// What happens to a batch run.
pub(crate) enum RunInput {
    Requested { kafka_partition: usize, offset: i64 },
    Control(Vec<Control>, Patience),
    Archived(Vec<i64>, Patience),
    Committed(u64),
}

/// A batch run that decides.
pub(crate) struct BatchRun(Run);

impl BatchRun {
    pub(crate) fn start(plans: &Plans, start: RunStart<'_>) -> (Self, Vec<RunEffect>) {
        let rules = run::Rules {
            started: Micros(start.started),
            definitions: plans.plans.fingerprint().to_string(),
            amendments: Vec::new(),
            asked_by: String::new(),
            force: false,
        };
        let previous = start.previous.map(|(version, view)| Previous {
            version: ViewVersion(version),
            horizon: horizon(&view.horizon),
            definitions: Some(view.definitions.to_string()),
            amendments: Vec::new(),
        });
        let facts = Facts { previous, control: control_views(start.control), ends: horizon(&start.ends) };
        let (run, effects) = Run::start(rules, facts);
        (Self(run), run_effects(effects))
    }

    pub(crate) fn step(&mut self, input: RunInput) -> Vec<RunEffect> {
        run_effects(self.0.step(match input {
            RunInput::Requested { kafka_partition, offset } => {
                let kafka_partition = KafkaPartition(kafka_partition as i32);
                run::Input::Requested { kafka_partition, request: Offset(offset) }
            }
            RunInput::Control(control, patience) => run::Input::Control(control_views(control), patience),
            RunInput::Archived(archived, patience) => run::Input::Archived(horizon(&archived), patience),
            RunInput::Committed(version) => run::Input::Committed { version: ViewVersion(version) },
        }))
    }
}

fn control_views(control: Vec<Control>) -> ControlViews {
    (0..).map(KafkaPartition).zip(control.into_iter().map(|control| control.0)).collect()
}

fn run_effects(effects: Vec<run::Effect>) -> Vec<RunEffect> {
    let effect = |effect| match effect {
        run::Effect::RequestCut(KafkaPartition(p), record) => {
            RunEffect::Request(p as usize, record.encode(), control_about(&record))
        }
        run::Effect::Announce(KafkaPartition(p), record) => {
            RunEffect::Announce(p as usize, record.encode(), control_about(&record))
        }
        run::Effect::ReadControl => RunEffect::ReadControl,
        run::Effect::ReadArchived => RunEffect::ReadArchived,
        run::Effect::Commit(task) => RunEffect::Commit {
            horizon: task.horizon.iter().map(|(_, offset)| offset.0).collect(),
            as_of: task.as_of.map(|as_of| as_of.0),
            replaces: task.replaces.map(|version| version.0),
        },
        run::Effect::KeepView(_) => RunEffect::Keep,
    };
    effects.into_iter().map(effect).collect()
}
