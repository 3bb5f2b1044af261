//! The protocol of epochs as pure decisions: which horizon a batch run takes, where a new owner resumes, and whose
//! realtime rows count. Must not know how records are stored, nor any clock.
//!
//! - **HOR-1** every horizon is an epoch start: [`choose_horizon`] returns only such offsets.
//! - **HOR-2** the epochs of a Kafka partition tile its offsets: where they might not, [`resolve`] rebuilds. Readers check
//!   it too.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::control::ControlView;

/// The horizon that a batch run takes for one Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HorizonChoice {
    /// An announced epoch start, or the horizon as it was.
    Announced(i64),
    /// No owner has answered: everything that is archived. The batch run announces this start itself.
    Pinned(i64),
}

impl HorizonChoice {
    /// The chosen offset.
    pub fn offset(self) -> i64 {
        match self {
            Self::Announced(offset) | Self::Pinned(offset) => offset,
        }
    }
}

/// Whether a Kafka partition has an owner, as a batch run has found out by asking for a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It has answered, or there was nothing to ask for.
    Answered,
    /// No answer came within the patience.
    Silent,
}

/// Chooses the newest epoch start that is fully archived (`archived` is the next offset to archive) and not before the
/// `previous` horizon. Where the owner is silent, everything archived.
pub fn choose_horizon(
    control: &ControlView,
    archived: i64,
    previous: i64,
    liveness: Liveness,
) -> HorizonChoice {
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
        position: i64,
        /// The epoch that is open there.
        epoch: i64,
    },
    /// From an epoch start with empty state; the rows of it and of later epochs are void.
    Rebuild {
        /// The next readings offset, and the start of the first epoch.
        from: i64,
    },
}

/// What an owner finds when it takes a Kafka partition over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The next readings offset of the last complete flush in the realtime-views topic.
    pub checkpoint: Option<i64>,
    /// The newest epoch there.
    pub open_epoch: Option<i64>,
    /// The epochs that have begun there and are not void, the newest one too.
    pub begun: BTreeSet<i64>,
    /// The readings offset that its rows reach to, past the checkpoint after an incomplete flush.
    pub rows_through: i64,
    /// Where a record does not decode: the first epoch that may lack rows, or have void ones.
    pub damaged_from: Option<i64>,
    /// Whether these rows were computed with the definitions in force now.
    pub same_definitions: bool,
    /// The oldest readings offset that is still in the log.
    pub log_start: i64,
}

/// Decides where a new owner resumes.
///
/// - It resumes at the checkpoint, unless something below says that the stored rows are of no use.
/// - Never below the horizon: the batch view has that already.
/// - Where an epoch's rows hold offsets on both sides of an announced start (a batch run pinned it while the owner was
///   away, slow, or had not heard of it yet), they straddle a possible horizon. That epoch and later ones are rebuilt;
///   the epochs before it stay, and the next one begins at the announced start.
/// - The same from the first epoch on that may lack rows.
pub fn resolve(control: &ControlView, found: &Found) -> Recovery {
    let floor = control.horizon.unwrap_or(0).max(found.log_start);
    let (Some(position), Some(open), true) = (found.checkpoint, found.open_epoch, found.same_definitions)
    else {
        return Recovery::Rebuild { from: floor };
    };
    if position < floor {
        return Recovery::Rebuild { from: floor };
    }
    let reach = position.max(found.rows_through);
    let straddled =
        straddled(control, &found.begun, floor..reach).map(|straddled| straddled.epoch.unwrap_or(floor));
    if let Some(from) = straddled.into_iter().chain(found.damaged_from).min() {
        return Recovery::Rebuild { from: from.max(floor) };
    }
    match control.next_start_after(open) {
        Some(start) if start == position => Recovery::Resume { position, epoch: start },
        _ => Recovery::Resume { position, epoch: open },
    }
}

/// An announced start that lies inside of what an epoch's rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Straddled {
    /// The announced start.
    pub start: i64,
    /// The epoch; `None` where no epoch that has begun lies before the start.
    pub epoch: Option<i64>,
}

/// The first announced start among `offsets` at which no epoch has begun, where rows hold all of `offsets`. What is
/// announced beyond them is cut when it is reached.
pub fn straddled(control: &ControlView, begun: &BTreeSet<i64>, offsets: Range<i64>) -> Option<Straddled> {
    let mut announced = control.starts.keys().copied().skip_while(|start| *start < offsets.start);
    let start = announced.find(|start| !begun.contains(start)).filter(|start| *start < offsets.end)?;
    Some(Straddled { start, epoch: begun.range(..start).next_back().copied() })
}

/// Whose realtime rows count, in the order of the realtime-views topic: those of the newest generation seen so far.
/// Records of a fenced owner are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    newest: Option<i64>,
}

impl Fence {
    /// Whether a record of a generation counts; it then is the newest.
    pub fn admit(&mut self, generation: i64) -> bool {
        let admitted = self.newest.is_none_or(|newest| generation >= newest);
        if admitted {
            self.newest = Some(generation);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::ControlRecord;

    fn view(starts: &[i64], horizon: Option<i64>) -> ControlView {
        let mut view = ControlView::default();
        view.apply(0, &ControlRecord::Claim { owner: "x".into() });
        for (i, start) in starts.iter().enumerate() {
            view.apply(
                i as i64 + 1,
                &ControlRecord::Epoch {
                    generation: Some(0),
                    start: *start,
                    announced_at: *start,
                    answers: None,
                },
            );
        }
        view.horizon = horizon;
        view
    }

    #[test]
    fn a_batch_run_takes_the_newest_archived_start() {
        use Liveness::Answered;
        let control = view(&[0, 100, 200], None);
        assert_eq!(choose_horizon(&control, 150, 0, Answered), HorizonChoice::Announced(100));
        assert_eq!(choose_horizon(&control, 200, 0, Answered), HorizonChoice::Announced(200));
        assert_eq!(choose_horizon(&control, 150, 120, Answered), HorizonChoice::Announced(120));
    }

    #[test]
    fn where_no_owner_answers_everything_archived_is_taken() {
        let silent = Liveness::Silent;
        assert_eq!(choose_horizon(&ControlView::default(), 70, 0, silent), HorizonChoice::Pinned(70));
        let control = view(&[0, 100], None);
        assert_eq!(choose_horizon(&control, 150, 0, silent), HorizonChoice::Pinned(150));
        assert_eq!(choose_horizon(&control, 100, 0, silent), HorizonChoice::Announced(100));
    }

    /// At 150 in an epoch from 100, after epochs from 0 and 50, with rows of an incomplete flush up to 160.
    fn found() -> Found {
        Found {
            checkpoint: Some(150),
            open_epoch: Some(100),
            begun: [0, 50, 100].into(),
            rows_through: 160,
            same_definitions: true,
            ..Found::default()
        }
    }

    fn resolved(starts: &[i64], horizon: Option<i64>, found: Found) -> Recovery {
        resolve(&view(starts, horizon), &found)
    }

    #[test]
    fn owners_resume_at_their_checkpoint_or_rebuild() {
        let resume = Recovery::Resume { position: 150, epoch: 100 };
        assert_eq!(resolved(&[0, 50, 100], None, found()), resume);
        assert_eq!(resolved(&[0, 50, 100, 160], None, found()), resume);
        assert_eq!(resolved(&[0, 50, 100, 160], Some(100), found()), resume);
        assert_eq!(resolved(&[0, 50, 100, 200], Some(200), found()), Recovery::Rebuild { from: 200 });
        let changed = Found { same_definitions: false, ..found() };
        assert_eq!(resolved(&[0, 50, 100], Some(100), changed), Recovery::Rebuild { from: 100 });
        let fresh = Found { same_definitions: true, log_start: 30, ..Found::default() };
        assert_eq!(resolve(&ControlView::default(), &fresh), Recovery::Rebuild { from: 30 });
    }

    #[test]
    fn a_start_inside_an_epoch_costs_that_epoch_and_no_earlier_one() {
        assert_eq!(resolved(&[0, 50, 100, 130], None, found()), Recovery::Rebuild { from: 100 });
        assert_eq!(resolved(&[0, 50, 100, 155], None, found()), Recovery::Rebuild { from: 100 });
        // An owner had not heard of it when it began the next epoch.
        assert_eq!(resolved(&[0, 50, 70, 100], None, found()), Recovery::Rebuild { from: 50 });
        assert_eq!(resolved(&[0, 50, 70, 100], Some(70), found()), Recovery::Rebuild { from: 70 });
        // A checkpoint at a start is of no use where rows reach past it.
        assert_eq!(resolved(&[0, 50, 100, 150], None, found()), Recovery::Rebuild { from: 100 });
        let exact = Found { rows_through: 150, ..found() };
        let resume = Recovery::Resume { position: 150, epoch: 150 };
        assert_eq!(resolved(&[0, 50, 100, 150], None, exact.clone()), resume);
        assert_eq!(resolved(&[0, 50, 100, 150], Some(150), exact), resume);
        assert_eq!(resolved(&[0, 50, 100, 150], Some(150), found()), Recovery::Rebuild { from: 150 });
        assert_eq!(resolved(&[0, 50, 100, 120], Some(120), found()), Recovery::Rebuild { from: 120 });
    }

    #[test]
    fn what_may_lack_rows_is_rebuilt() {
        let damaged = Found { damaged_from: Some(50), ..found() };
        assert_eq!(resolved(&[0, 50, 100], None, damaged.clone()), Recovery::Rebuild { from: 50 });
        assert_eq!(resolved(&[0, 50, 100], Some(100), damaged), Recovery::Rebuild { from: 100 });
    }

    #[test]
    fn records_of_a_fenced_owner_are_ignored() {
        let mut fence = Fence::default();
        assert!(fence.admit(1) && fence.admit(4) && fence.admit(4));
        assert!(!fence.admit(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]

        /// HOR-1 and that a horizon never goes back.
        #[test]
        fn horizons_are_starts_and_never_go_back(
            mut starts in prop::collection::btree_set(0i64..1_000, 1..20),
            archives in prop::collection::vec(0i64..1_200, 1..20),
        ) {
            starts.insert(0);
            let starts: Vec<i64> = starts.into_iter().collect();
            let control = view(&starts, None);
            let mut previous = 0;
            for archived in archives {
                let horizon = choose_horizon(&control, archived.max(previous), previous, Liveness::Answered).offset();
                prop_assert!(starts.contains(&horizon));
                prop_assert!(horizon >= previous && horizon <= archived.max(previous));
                previous = horizon;
            }
        }
    }
}
