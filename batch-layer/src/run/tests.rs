//! What a run decides, without a log and without tables; and the protocol's laws for several runs at once.

use proptest::prelude::*;

use wye_domain::place::Generation;

use super::*;
use crate::testing::horizon;

/// The owner whose claim is the first control record.
const OWNER: Generation = Generation(Offset::START);

fn rules() -> Rules {
    let (definitions, asked_by) = ("now".to_owned(), "test".to_owned());
    Rules { started: Micros(1_000), definitions, amendments: Vec::new(), asked_by, force: false }
}

/// What the control records of an owner add up to that has announced these starts.
fn announced(starts: &[i64]) -> ControlView {
    let mut view = ControlView::default();
    view.apply(OWNER.claim(), &ControlRecord::Claim { owner: "x".into() });
    for (offset, start) in (1..).zip(starts) {
        view.apply(Offset(offset), &epoch(Some(OWNER), Offset(*start), None));
    }
    view
}

fn epoch(generation: Option<Generation>, start: Offset, answers: Option<Offset>) -> ControlRecord {
    ControlRecord::Epoch { generation, start, announced_at: None, answers }
}

fn control<const N: usize>(views: [ControlView; N]) -> ControlViews {
    (0..).map(KafkaPartition).zip(views).collect()
}

fn request(through: i64) -> ControlRecord {
    ControlRecord::CutRequest { asked_by: "test".to_owned(), through: Offset(through) }
}

fn previous(offsets: Horizon) -> Previous {
    Previous {
        amendments: Vec::new(),
        version: ViewVersion(3),
        horizon: offsets,
        definitions: Some("now".to_owned()),
    }
}

/// The only effect.
fn only(effects: Vec<Effect>) -> Effect {
    let [effect] = <[Effect; 1]>::try_from(effects).unwrap();
    effect
}

fn task(effects: &[Effect]) -> &Task {
    match effects.last() {
        Some(Effect::Commit(task)) => task,
        _ => panic!("{effects:?} has no commit"),
    }
}

#[test]
fn each_kafka_partition_gets_its_own_horizon() {
    let facts = Facts {
        previous: None,
        control: control([announced(&[0, 10]), ControlView::default(), announced(&[0]), announced(&[0, 8])]),
        ends: horizon([(0, 12), (1, 9), (2, 0), (3, 8)]),
    };
    let (mut run, effects) = Run::start(rules(), facts);
    // Nothing to ask for where the log is empty, or ends at a start.
    let requests = [
        Effect::RequestCut(KafkaPartition(0), request(12)),
        Effect::RequestCut(KafkaPartition(1), request(9)),
        Effect::ReadControl,
    ];
    assert_eq!(effects, requests);
    assert_eq!(run.step(Input::Requested { kafka_partition: KafkaPartition(0), request: Offset(5) }), []);
    assert_eq!(run.step(Input::Requested { kafka_partition: KafkaPartition(1), request: Offset(0) }), []);

    // One owner answers, by a start that it will make; the other does not.
    let mut answered = announced(&[0, 10]);
    answered.apply(Offset(5), &request(12));
    answered.apply(Offset(6), &epoch(Some(OWNER), Offset(20), Some(Offset(5))));
    let views = control([answered, ControlView::default(), announced(&[0]), announced(&[0, 8])]);
    assert_eq!(run.step(Input::Control(views.clone(), Patience::Left)), [Effect::ReadControl]);
    assert_eq!(run.step(Input::Control(views, Patience::Over)), [Effect::ReadArchived]);

    // The archiver does not come as far as 20 in time.
    let archived = horizon([(0, 15), (1, 9), (2, 0), (3, 8)]);
    assert_eq!(run.step(Input::Archived(archived, Patience::Left)), [Effect::ReadArchived]);
    let archived = horizon([(0, 15), (1, 7), (3, 8)]);
    let effects = run.step(Input::Archived(archived, Patience::Over));
    assert_eq!(effects[0], Effect::Announce(KafkaPartition(1), epoch(None, Offset(7), None)));
    let expected = Task {
        horizon: horizon([(0, 10), (1, 7), (2, 0), (3, 8)]),
        as_of: None,
        replaces: None,
        left_out: LeftOut {
            unanswered: vec![KafkaPartition(1)],
            messages: [(KafkaPartition(0), 2), (KafkaPartition(1), 2)].into(),
        },
    };
    assert_eq!(effects[1..], [Effect::Commit(expected)]);
    let announcements: Vec<Effect> = horizon([(0, 10), (1, 7), (2, 0), (3, 8)])
        .iter()
        .map(|(kafka_partition, offset)| {
            Effect::Announce(kafka_partition, ControlRecord::Horizon { offset, version: 1 })
        })
        .collect();
    assert_eq!(run.step(Input::Committed { version: ViewVersion(1) }), announcements);
    assert_eq!(run.step(Input::Committed { version: ViewVersion(1) }), []);
}

#[test]
fn an_answer_is_waited_for_until_it_names_the_request() {
    let facts = Facts { previous: None, control: control([announced(&[0])]), ends: horizon([(0, 4)]) };
    let (mut run, _) = Run::start(rules(), facts);
    // An answer to an older request, and an answer to this one before its acknowledgement has come.
    let mut view = announced(&[0]);
    view.apply(Offset(2), &epoch(Some(OWNER), Offset(4), Some(Offset(1))));
    assert_eq!(run.step(Input::Control(control([view.clone()]), Patience::Left)), [Effect::ReadControl]);
    run.step(Input::Requested { kafka_partition: KafkaPartition(0), request: Offset(3) });
    assert_eq!(run.step(Input::Control(control([view.clone()]), Patience::Left)), [Effect::ReadControl]);
    view.apply(Offset(4), &epoch(Some(OWNER), Offset(4), Some(Offset(3))));
    assert_eq!(run.step(Input::Control(control([view]), Patience::Left)), [Effect::ReadArchived]);
    let effects = run.step(Input::Archived(horizon([(0, 4)]), Patience::Left));
    assert_eq!((task(&effects).as_of, &task(&effects).left_out), (Some(Micros(1_000)), &LeftOut::default()));
}

/// A run over one Kafka partition whose view covers all of its five readings.
fn nothing_to_do(rules: Rules, previous: Previous) -> Vec<Effect> {
    let facts =
        Facts { previous: Some(previous), control: control([announced(&[0, 5])]), ends: horizon([(0, 5)]) };
    let (mut run, effects) = Run::start(rules, facts);
    assert_eq!(effects.last(), Some(&Effect::ReadArchived));
    run.step(Input::Archived(horizon([(0, 5)]), Patience::Left))
}

#[test]
fn a_view_stays_until_something_is_new() {
    let current = previous(horizon([(0, 5)]));
    assert_eq!(only(nothing_to_do(rules(), current.clone())), Effect::KeepView(LeftOut::default()));
    let forced = Rules { force: true, ..rules() };
    assert_eq!(task(&nothing_to_do(forced, current.clone())).replaces, Some(ViewVersion(3)));
    for definitions in [Some("before".to_owned()), None] {
        let changed = Previous { definitions, ..current.clone() };
        assert_eq!(task(&nothing_to_do(rules(), changed)).horizon, horizon([(0, 5)]));
    }
    let amended = Previous { amendments: vec!["a".to_owned()], ..current };
    assert_eq!(task(&nothing_to_do(rules(), amended)).horizon, horizon([(0, 5)]));
}

#[test]
fn a_horizon_that_was_not_announced_is_announced_first() {
    let mut announced_there = announced(&[0, 5]);
    announced_there.apply(Offset(9), &ControlRecord::Horizon { offset: Offset(5), version: 3 });
    let facts = Facts {
        // Kafka partition 7 is of a time when there were more.
        previous: Some(previous(horizon([(0, 5), (1, 6), (7, 2)]))),
        control: control([announced_there, announced(&[0, 6])]),
        ends: horizon([(0, 5), (1, 6)]),
    };
    let (_, effects) = Run::start(rules(), facts);
    let record = ControlRecord::Horizon { offset: Offset(6), version: 3 };
    assert_eq!(effects, [Effect::Announce(KafkaPartition(1), record), Effect::ReadArchived]);
}

#[test]
fn a_horizon_never_goes_back_and_is_never_forgotten() {
    let facts = Facts {
        previous: Some(previous(horizon([(0, 5), (9, 3)]))),
        control: control([announced(&[0])]),
        ends: horizon([(0, 2)]),
    };
    let (mut run, _) = Run::start(Rules { force: true, ..rules() }, facts);
    let effects = run.step(Input::Archived(horizon([(0, 2)]), Patience::Over));
    assert_eq!(task(&effects).horizon, horizon([(0, 5), (9, 3)]));
}

/// A log and tables in memory, with several runs at once.
#[derive(Default)]
struct World {
    /// Per Kafka partition: its control records, and the end of its readings.
    logs: [(Vec<ControlRecord>, Offset); 2],
    archived: Horizon,
    /// The horizons that were committed, by version.
    views: Vec<Horizon>,
    runs: Vec<(Run, std::collections::VecDeque<Effect>)>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    Readings {
        to: usize,
        count: i64,
    },
    Archives,
    /// An owner claims a Kafka partition.
    Claims {
        of: usize,
    },
    /// The newest owner answers what was asked, by a start this far beyond.
    Answers {
        of: usize,
        beyond: i64,
    },
    Starts,
    /// The next effect of a run is carried out.
    Goes {
        which: usize,
        patience: Patience,
    },
    Crashes {
        which: usize,
    },
}

fn happens() -> impl Strategy<Value = Happens> {
    let patience = prop_oneof![3 => Just(Patience::Left), 1 => Just(Patience::Over)];
    prop_oneof![
        4 => (0..2usize, 1..5i64).prop_map(|(to, count)| Happens::Readings { to, count }),
        3 => Just(Happens::Archives),
        1 => (0..2usize).prop_map(|of| Happens::Claims { of }),
        4 => (0..2usize, 0..3i64).prop_map(|(of, beyond)| Happens::Answers { of, beyond }),
        2 => Just(Happens::Starts),
        16 => (any::<usize>(), patience).prop_map(|(which, patience)| Happens::Goes { which, patience }),
        1 => any::<usize>().prop_map(|which| Happens::Crashes { which }),
    ]
}

impl World {
    fn control(&self) -> ControlViews {
        control([0, 1].map(|log| {
            let mut view = ControlView::default();
            (0..).zip(&self.logs[log].0).for_each(|(offset, record)| view.apply(Offset(offset), record));
            view
        }))
    }

    fn ends(&self) -> Horizon {
        Horizon::from_iter([0, 1].map(|log| (KafkaPartition(log as i32), self.logs[log].1)))
    }

    /// The version of the newest view.
    fn version(&self) -> Option<ViewVersion> {
        (!self.views.is_empty()).then_some(ViewVersion(self.views.len() as u64))
    }

    fn append(&mut self, kafka_partition: KafkaPartition, record: ControlRecord) -> Offset {
        let records = &mut self.logs[kafka_partition.0 as usize].0;
        records.push(record);
        Offset(records.len() as i64 - 1)
    }

    fn happen(&mut self, happens: Happens) -> Result<(), TestCaseError> {
        match happens {
            Happens::Readings { to, count } => self.logs[to].1.0 += count,
            Happens::Archives => self.archived = self.ends(),
            Happens::Claims { of } => self.logs[of].0.push(ControlRecord::Claim { owner: "x".into() }),
            Happens::Answers { of, beyond } => {
                let view = &self.control()[&KafkaPartition(of as i32)];
                if let (Some(generation), Some(asked)) = (view.generation, view.unanswered()) {
                    let start = Offset(self.logs[of].1.max(asked.through).0 + beyond);
                    self.logs[of].0.push(epoch(Some(generation), start, Some(asked.request)));
                }
            }
            Happens::Starts => {
                let newest = self.views.last().cloned().zip(self.version());
                let newest = newest.map(|(horizon, version)| Previous { version, ..previous(horizon) });
                let facts = Facts { previous: newest, control: self.control(), ends: self.ends() };
                let (run, effects) = Run::start(rules(), facts);
                self.runs.push((run, effects.into()));
            }
            Happens::Goes { which, patience } if !self.runs.is_empty() => {
                let which = which % self.runs.len();
                let Some(effect) = self.runs[which].1.pop_front() else { return Ok(()) };
                match self.carry_out(effect, patience)? {
                    Carried::Input(input) => {
                        let (run, effects) = &mut self.runs[which];
                        effects.extend(run.step(input));
                    }
                    Carried::Done => {}
                    Carried::Failed => {
                        self.runs.remove(which);
                    }
                }
            }
            Happens::Crashes { which } if !self.runs.is_empty() => {
                let which = which % self.runs.len();
                self.runs.remove(which);
            }
            Happens::Goes { .. } | Happens::Crashes { .. } => {}
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect, patience: Patience) -> Result<Carried, TestCaseError> {
        Ok(match effect {
            Effect::RequestCut(kafka_partition, record) => {
                let request = self.append(kafka_partition, record);
                Carried::Input(Input::Requested { kafka_partition, request })
            }
            Effect::Announce(kafka_partition, record) => {
                self.append(kafka_partition, record);
                Carried::Done
            }
            Effect::ReadControl => Carried::Input(Input::Control(self.control(), patience)),
            Effect::ReadArchived => Carried::Input(Input::Archived(self.archived.clone(), patience)),
            Effect::KeepView(_) => Carried::Done,
            Effect::Commit(task) => {
                if task.replaces != self.version() {
                    return Ok(Carried::Failed);
                }
                self.check(&task)?;
                self.views.push(task.horizon);
                let version = ViewVersion(self.views.len() as u64);
                Carried::Input(Input::Committed { version })
            }
        })
    }

    /// The laws of a horizon that is about to be committed.
    fn check(&self, task: &Task) -> Result<(), TestCaseError> {
        let control = self.control();
        for (kafka_partition, offset) in task.horizon.iter() {
            let is_start = control[&kafka_partition].starts.contains_key(&offset);
            prop_assert!(offset == Offset::START || is_start, "HOR-1: {offset} is not announced");
        }
        prop_assert!(self.archived.covers(&task.horizon), "it is not archived");
        if let Some(newest) = self.views.last() {
            prop_assert!(task.horizon.follows(newest), "it goes back");
        }
        Ok(())
    }
}

/// What has become of an effect.
enum Carried {
    Input(Input),
    Done,
    /// The run has failed.
    Failed,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn horizons_are_announced_and_archived_and_follow_each_other(
        history in prop::collection::vec(happens(), 1..150),
    ) {
        let mut world = World::default();
        for happens in history {
            world.happen(happens)?;
        }
        // A run that no owner answers and no other run disturbs covers everything that is archived, and announces it.
        world.runs.clear();
        world.happen(Happens::Archives)?;
        world.happen(Happens::Starts)?;
        while !world.runs.is_empty() && !world.runs[0].1.is_empty() {
            world.happen(Happens::Goes { which: 0, patience: Patience::Over })?;
        }
        let ends = world.ends();
        prop_assert!(world.views.last().cloned().unwrap_or_default().covers(&ends));
        let control = world.control();
        for (kafka_partition, offset) in world.views.last().cloned().unwrap_or_default().iter() {
            prop_assert_eq!(control[&kafka_partition].horizon, Some(offset));
        }
    }
}
