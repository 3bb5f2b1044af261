//! The protocol of epochs as pure decisions: which horizon a batch run takes, where a new owner resumes, and whose
//! realtime rows count. Must not know how records are stored, nor any clock.
//!
//! - **HOR-1** every horizon is an epoch start: [`choose_horizon`] returns only such offsets.
//! - **HOR-2** the epochs of a Kafka partition tile its offsets: where they might not, [`resolve`] rebuilds. Readers check
//!   it too.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::control::ControlView;
use crate::place::{Generation, Offset};

/// The horizon that a batch run takes for one Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HorizonChoice {
    /// An announced epoch start, or the previous horizon.
    Announced(Offset),
    /// No owner has answered: everything that is archived. The batch run announces this start itself.
    Pinned(Offset),
}

impl HorizonChoice {
    /// The chosen offset.
    pub fn offset(self) -> Offset {
        match self {
            Self::Announced(offset) | Self::Pinned(offset) => offset,
        }
    }
}

/// Whether a Kafka partition has an owner: a batch run asks for a cut to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It has answered, or there was nothing to ask for.
    Answered,
    /// No answer came in time.
    Silent,
}

/// The facts about one Kafka partition by which a batch run chooses a horizon, in addition to the control topic.
#[derive(Clone, Copy, Debug)]
pub struct HorizonFacts {
    /// The next readings offset to archive: all below it is in the master dataset.
    pub archived: Offset,
    /// The horizon of the last batch run; the start of the log where there was none.
    pub previous: Offset,
    /// Whether the owner has answered.
    pub liveness: Liveness,
}

/// Chooses the newest epoch start that is fully archived and not before the previous horizon. Where the owner is silent,
/// everything that is archived.
pub fn choose_horizon(control: &ControlView, facts: HorizonFacts) -> HorizonChoice {
    let HorizonFacts { archived, previous, liveness } = facts;
    let announced = control.epoch_of(archived).unwrap_or(previous).max(previous);
    match liveness {
        Liveness::Silent if archived > announced => HorizonChoice::Pinned(archived),
        Liveness::Silent | Liveness::Answered => HorizonChoice::Announced(announced),
    }
}

/// Where an owner of a Kafka partition resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// From a checkpoint, inside an epoch whose rows it takes over.
    Resume {
        /// The next readings offset.
        position: Offset,
        /// The epoch that is open there.
        epoch: Offset,
    },
    /// From an epoch start with empty state; the rows of it and of later epochs are void.
    Rebuild {
        /// The next readings offset, and the start of the first epoch.
        from: Offset,
    },
}

/// What an owner finds when it takes a Kafka partition over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The next readings offset of the last complete flush in the realtime-views topic.
    pub checkpoint: Option<Offset>,
    /// The newest epoch there.
    pub open_epoch: Option<Offset>,
    /// The epochs that have begun there and are not void, the newest one too.
    pub begun: BTreeSet<Offset>,
    /// The readings offset that the rows of the open epoch reach to, past the checkpoint after an incomplete flush;
    /// `None` where there are no rows.
    pub rows_through: Option<Offset>,
    /// Where a record does not decode: the first epoch that may lack rows, or have void ones.
    pub damaged_from: Option<Offset>,
    /// Whether these rows were computed with the definitions in force now.
    pub same_definitions: bool,
    /// The oldest readings offset that is still in the log.
    pub log_start: Offset,
}

/// Decides where a new owner resumes.
///
/// - It resumes at the checkpoint, unless the stored rows cannot be used for one of the reasons below.
/// - Never below the horizon: the batch view has that already.
/// - Where an epoch's rows hold offsets on both sides of an announced start (a batch run pinned it while the owner was
///   away or slow, or before the owner had read the announcement), they straddle a possible horizon. That epoch and later
///   ones are rebuilt; the epochs before it stay, and the next one begins at the announced start.
/// - The same from the first epoch on that may lack rows.
pub fn resolve(control: &ControlView, found: &Found) -> Recovery {
    let floor = control.horizon.map_or(found.log_start, |horizon| horizon.max(found.log_start));
    let (Some(position), Some(open), true) = (found.checkpoint, found.open_epoch, found.same_definitions)
    else {
        return Recovery::Rebuild { from: floor };
    };
    if position < floor {
        return Recovery::Rebuild { from: floor };
    }
    let reach = found.rows_through.map_or(position, |through| through.max(position));
    let straddled =
        straddled(control, &found.begun, floor..reach).map(|straddled| straddled.epoch.unwrap_or(floor));
    if let Some(from) = straddled.into_iter().chain(found.damaged_from).min() {
        return Recovery::Rebuild { from: from.max(floor) };
    }
    // At an announced start the open epoch has ended.
    let ended = position > open && control.starts.contains_key(&position);
    Recovery::Resume { position, epoch: if ended { position } else { open } }
}

/// An announced start that lies inside of what an epoch's rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Straddled {
    /// The announced start.
    pub start: Offset,
    /// The epoch; `None` where no epoch that has begun lies before the start.
    pub epoch: Option<Offset>,
}

/// The first announced start among `offsets` at which no epoch has begun, where rows hold all of `offsets`. An owner cuts
/// at starts beyond them when it reaches them.
pub fn straddled(
    control: &ControlView,
    begun: &BTreeSet<Offset>,
    offsets: Range<Offset>,
) -> Option<Straddled> {
    let mut announced = control.starts.keys().copied().skip_while(|start| *start < offsets.start);
    let start = announced.find(|start| !begun.contains(start)).filter(|start| *start < offsets.end)?;
    Some(Straddled { start, epoch: begun.range(..start).next_back().copied() })
}

/// Whose realtime rows count, in the order of the realtime-views topic: those of the newest generation seen so far.
/// Records of a fenced owner are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    newest: Option<Generation>,
}

impl Fence {
    /// Whether a record of a generation counts; if so, that generation is now the newest.
    pub fn admit(&mut self, generation: Generation) -> bool {
        let admitted = self.newest.is_none_or(|newest| generation >= newest);
        if admitted {
            self.newest = Some(generation);
        }
        admitted
    }

    /// The newest generation seen; `None` before the first record.
    #[must_use]
    pub fn newest(&self) -> Option<Generation> {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;
    use crate::control::ControlRecord;

    fn view(starts: &[i64], horizon: Option<i64>) -> ControlView {
        let mut view = ControlView::default();
        view.apply(Offset(0), &ControlRecord::Claim { owner: "x".into() });
        for (at, start) in (1..).zip(starts) {
            let announced = ControlRecord::Epoch {
                generation: Some(Generation(Offset(0))),
                start: Offset(*start),
                announced_at: None,
                answers: None,
            };
            view.apply(Offset(at), &announced);
        }
        view.horizon = horizon.map(Offset);
        view
    }

    fn chosen(control: &ControlView, archived: i64, previous: i64, liveness: Liveness) -> HorizonChoice {
        let (archived, previous) = (Offset(archived), Offset(previous));
        choose_horizon(control, HorizonFacts { archived, previous, liveness })
    }

    fn announced(offset: i64) -> HorizonChoice {
        HorizonChoice::Announced(Offset(offset))
    }

    fn pinned(offset: i64) -> HorizonChoice {
        HorizonChoice::Pinned(Offset(offset))
    }

    fn resume(position: i64, epoch: i64) -> Recovery {
        Recovery::Resume { position: Offset(position), epoch: Offset(epoch) }
    }

    fn rebuild(from: i64) -> Recovery {
        Recovery::Rebuild { from: Offset(from) }
    }

    #[test]
    fn a_batch_run_takes_the_newest_archived_start() {
        use Liveness::Answered;
        let control = view(&[0, 100, 200], None);
        assert_eq!(chosen(&control, 150, 0, Answered), announced(100));
        assert_eq!(chosen(&control, 200, 0, Answered), announced(200));
        assert_eq!(chosen(&control, 150, 120, Answered), announced(120));
    }

    #[test]
    fn where_no_owner_answers_everything_archived_is_taken() {
        let silent = Liveness::Silent;
        assert_eq!(chosen(&ControlView::default(), 70, 0, silent), pinned(70));
        let control = view(&[0, 100], None);
        assert_eq!(chosen(&control, 150, 0, silent), pinned(150));
        assert_eq!(chosen(&control, 100, 0, silent), announced(100));
    }

    /// At 150 in an epoch from 100, after epochs from 0 and 50, with rows of an incomplete flush up to 160.
    fn found() -> Found {
        Found {
            checkpoint: Some(Offset(150)),
            open_epoch: Some(Offset(100)),
            begun: [0, 50, 100].map(Offset).into(),
            rows_through: Some(Offset(160)),
            same_definitions: true,
            ..Found::default()
        }
    }

    fn resolved(starts: &[i64], horizon: Option<i64>, found: Found) -> Recovery {
        resolve(&view(starts, horizon), &found)
    }

    #[test]
    fn owners_resume_at_their_checkpoint_or_rebuild() {
        let resumed = resume(150, 100);
        assert_eq!(resolved(&[0, 50, 100], None, found()), resumed);
        assert_eq!(resolved(&[0, 50, 100, 160], None, found()), resumed);
        assert_eq!(resolved(&[0, 50, 100, 160], Some(100), found()), resumed);
        assert_eq!(resolved(&[0, 50, 100, 200], Some(200), found()), rebuild(200));
        let changed = Found { same_definitions: false, ..found() };
        assert_eq!(resolved(&[0, 50, 100], Some(100), changed), rebuild(100));
        let fresh = Found { same_definitions: true, log_start: Offset(30), ..Found::default() };
        assert_eq!(resolve(&ControlView::default(), &fresh), rebuild(30));
    }

    #[test]
    fn a_start_inside_an_epoch_costs_that_epoch_and_no_earlier_one() {
        assert_eq!(resolved(&[0, 50, 100, 130], None, found()), rebuild(100));
        assert_eq!(resolved(&[0, 50, 100, 155], None, found()), rebuild(100));
        // An owner had not read it when it began the next epoch.
        assert_eq!(resolved(&[0, 50, 70, 100], None, found()), rebuild(50));
        assert_eq!(resolved(&[0, 50, 70, 100], Some(70), found()), rebuild(70));
        // A checkpoint at a start cannot be used where rows reach past it.
        assert_eq!(resolved(&[0, 50, 100, 150], None, found()), rebuild(100));
        let exact = Found { rows_through: Some(Offset(150)), ..found() };
        let resumed = resume(150, 150);
        assert_eq!(resolved(&[0, 50, 100, 150], None, exact.clone()), resumed);
        assert_eq!(resolved(&[0, 50, 100, 150], Some(150), exact), resumed);
        assert_eq!(resolved(&[0, 50, 100, 150], Some(150), found()), rebuild(150));
        // 120 is a start too, which the owner did not reach; the horizon is past it.
        let exact = Found { rows_through: None, ..found() };
        assert_eq!(resolved(&[0, 50, 100, 120, 150], Some(150), exact), resumed);
        assert_eq!(resolved(&[0, 50, 100, 120], Some(120), found()), rebuild(120));
    }

    #[test]
    fn epochs_that_may_lack_rows_are_rebuilt() {
        let damaged = Found { damaged_from: Some(Offset(50)), ..found() };
        assert_eq!(resolved(&[0, 50, 100], None, damaged.clone()), rebuild(50));
        assert_eq!(resolved(&[0, 50, 100], Some(100), damaged), rebuild(100));
    }

    #[test]
    fn records_of_a_fenced_owner_are_ignored() {
        let mut fence = Fence::default();
        let [old, new] = [1, 4].map(|claim| Generation(Offset(claim)));
        assert!(fence.admit(old) && fence.admit(new) && fence.admit(new));
        assert!(!fence.admit(old));
        assert_eq!(fence.newest(), Some(new));
    }

    /// One thing that can happen to a Kafka partition.
    #[derive(Clone, Debug)]
    enum Step {
        /// The owner announces a start this far after the newest one.
        Announce(i64),
        /// The archiver writes this many offsets.
        Archive(i64),
        /// A batch run chooses a horizon; where it pins one, it announces it.
        Run(Liveness),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (1..40i64).prop_map(Step::Announce),
            2 => (1..40i64).prop_map(Step::Archive),
            1 => Just(Step::Run(Liveness::Answered)),
            1 => Just(Step::Run(Liveness::Silent)),
        ]
    }

    /// What a new owner finds: epochs that have begun, and starts that were announced at some of them and elsewhere.
    fn found_and_control() -> impl Strategy<Value = (ControlView, Found)> {
        let sets = (prop::collection::btree_set(0..60i64, 1..6), prop::collection::btree_set(0..80i64, 0..5));
        let reach = (0..30i64, 0..10i64, any::<bool>());
        let floors = (prop::option::of(any::<usize>()), 0..40i64);
        let flaws = (prop::option::weighted(0.2, 0..6usize), prop::bool::weighted(0.9));
        (sets, reach, floors, flaws).prop_map(|((mut begun, mut announced), reach, floors, flaws)| {
            begun.insert(0);
            let newest = *begun.last().unwrap();
            // Most epochs are announced.
            announced.extend(begun.iter().filter(|start| *start % 5 > 0));
            let starts: Vec<i64> = announced.into_iter().collect();
            let begun: BTreeSet<Offset> = begun.into_iter().map(Offset).collect();
            let (flushed, incomplete, has_rows) = reach;
            let checkpoint = Offset(newest + flushed);
            let (damaged, same_definitions) = flaws;
            let damaged_from = damaged.map(|place| *begun.iter().nth(place % begun.len()).unwrap());
            // Every horizon is a start. Only readings below it are deleted from the log.
            let horizon = floors.0.filter(|_| !starts.is_empty()).map(|place| starts[place % starts.len()]);
            let log_start = Offset(floors.1.min(horizon.unwrap_or(0)));
            let found = Found {
                checkpoint: Some(checkpoint),
                open_epoch: Some(Offset(newest)),
                begun,
                rows_through: has_rows.then_some(Offset(checkpoint.0 + incomplete)),
                damaged_from,
                same_definitions,
                log_start,
            };
            (view(&starts, horizon), found)
        })
    }

    /// Whether the epochs that stay tile the offsets from `floor` to `end`: in each of them, the epoch whose rows hold an
    /// offset is the one that the announced starts ask for.
    fn tiles(control: &ControlView, begun: &BTreeSet<Offset>, floor: Offset, end: Offset) -> bool {
        (floor.0..end.0).map(Offset).all(|offset| {
            let holder = begun.range(..=offset).next_back();
            let announced = control.starts.range(floor..=offset).next_back();
            announced.is_none_or(|(start, _)| holder.is_some_and(|holder| holder >= start))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        /// **HOR-1**: every horizon is an epoch start, also where a silent owner lets a batch run pin one. It never goes
        /// back, and a run whose owner is silent covers everything that is archived.
        #[test]
        fn horizons_are_starts_and_never_go_back(steps in prop::collection::vec(step(), 1..60)) {
            let mut control = view(&[0], None);
            let (mut newest, mut archived, mut previous) = (0, Offset(0), Offset(0));
            for (at, step) in (2..).map(Offset).zip(steps) {
                let epoch = |generation, start| ControlRecord::Epoch {
                    generation,
                    start,
                    announced_at: None,
                    answers: None,
                };
                match step {
                    Step::Announce(ahead) => {
                        newest += ahead;
                        control.apply(at, &epoch(control.generation, Offset(newest)));
                    }
                    Step::Archive(count) => archived = Offset(archived.0 + count),
                    Step::Run(liveness) => {
                        let choice = choose_horizon(&control, HorizonFacts { archived, previous, liveness });
                        if let HorizonChoice::Pinned(start) = choice {
                            prop_assert_eq!(liveness, Liveness::Silent);
                            control.apply(at, &epoch(None, start));
                        }
                        let horizon = choice.offset();
                        prop_assert!(control.starts.contains_key(&horizon), "{horizon} is not a start");
                        prop_assert!(previous <= horizon && horizon <= archived);
                        let skipped = control.starts.range(horizon..=archived).nth(1);
                        prop_assert!(skipped.is_none(), "{horizon} is not the newest start");
                        prop_assert!(liveness == Liveness::Answered || horizon == archived);
                        previous = horizon;
                    }
                }
            }
        }

        /// **HOR-2**: what a new owner keeps tiles the offsets, and it keeps as much as it can.
        #[test]
        fn epochs_tile_the_offsets((control, found) in found_and_control()) {
            let floor = control.horizon.unwrap_or_default().max(found.log_start);
            let checkpoint = found.checkpoint.unwrap();
            let reach = found.rows_through.unwrap_or(checkpoint).max(checkpoint);
            let is_sound = found.same_definitions
                && checkpoint >= floor
                && found.damaged_from.is_none()
                && tiles(&control, &found.begun, floor, reach);
            match resolve(&control, &found) {
                Recovery::Resume { position, epoch } => {
                    prop_assert!(is_sound, "rows that do not tile were kept");
                    prop_assert_eq!(position, checkpoint);
                    let is_next = epoch == position && control.starts.contains_key(&epoch);
                    prop_assert!(is_next || Some(epoch) == found.open_epoch);
                    let cut = control.next_start_after(epoch);
                    prop_assert!(cut.is_none_or(|cut| cut > position), "a cut was passed");
                }
                Recovery::Rebuild { from } => {
                    prop_assert!(!is_sound, "sound rows were dropped");
                    prop_assert!(from == floor || (from > floor && found.begun.contains(&from)));
                    let kept: BTreeSet<Offset> = found.begun.range(..from).copied().collect();
                    prop_assert!(tiles(&control, &kept, floor, from));
                    prop_assert!(found.damaged_from.is_none_or(|damaged| damaged.max(floor) >= from));
                    if found.same_definitions && checkpoint >= floor {
                        // The first epoch that is rebuilt had to be.
                        let end = found.begun.range((Bound::Excluded(from), Bound::Unbounded)).next();
                        let end = end.copied().unwrap_or(reach).min(reach);
                        let had_to = found.damaged_from.is_some_and(|damaged| damaged.max(floor) == from)
                            || !tiles(&control, &found.begun, floor, end);
                        prop_assert!(had_to, "{from} could have stayed");
                    }
                }
            }
        }
    }
}
