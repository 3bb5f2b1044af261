//! The protocol of epochs as pure decisions: which horizon a batch run may take, where a restarted owner goes on, and
//! whose realtime rows count.
//!
//! - **HOR-1** every horizon is an epoch start: [`choose_horizon`] returns only such offsets.
//! - **HOR-2** the epochs of a Kafka partition tile its offsets: an epoch is `[start, next start)` by construction.
//! - **HOR-3** an answer uses the epochs from the horizon on, all of them: see [`covers`].

use crate::control::ControlView;

/// The horizon that a batch run takes for one Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HorizonChoice {
    /// An announced epoch start, or the horizon as it was.
    Announced(i64),
    /// No speed layer is alive: everything that is archived. The batch run announces this start itself.
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

/// Silence (µs) of the announcements after which a batch run takes the speed layer for dead. A live one announces every
/// few seconds while readings come.
pub const SPEED_LAYER_SILENCE: i64 = 120 * crate::time::SECOND;

/// Chooses the newest epoch start that is fully archived (`archived` is the next offset to archive) and not before the
/// `previous` horizon. With a silent speed layer at `now` (µs), everything archived.
pub fn choose_horizon(control: &ControlView, archived: i64, previous: i64, now: i64) -> HorizonChoice {
    let announced = control.epoch_of(archived).unwrap_or(previous).max(previous);
    let silent = control.last_announced_at.is_none_or(|at| now - at > SPEED_LAYER_SILENCE);
    let never_owned = control.generation.is_none() || control.starts.is_empty();
    if archived > announced && (silent || never_owned) {
        HorizonChoice::Pinned(archived)
    } else {
        HorizonChoice::Announced(announced)
    }
}

/// Where an owner of a Kafka partition goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// From a checkpoint, inside an epoch whose rows it takes over.
    Resume {
        /// The next readings offset.
        position: i64,
        /// The epoch that is open there.
        epoch: i64,
    },
    /// From an epoch start with empty state; what stands in the topic for it and later epochs is void.
    Rebuild {
        /// The next readings offset, and the start of the first epoch.
        from: i64,
    },
}

/// What an owner finds when it takes a Kafka partition over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The next readings offset of the last complete flush in the realtime-views topic.
    pub checkpoint: Option<i64>,
    /// The epoch that its rows belong to.
    pub open_epoch: Option<i64>,
    /// The readings offset that the rows of an incomplete flush reach to; no epoch may end before it.
    pub rows_through: i64,
    /// Whether these rows were computed with the definitions in force now.
    pub same_definitions: bool,
    /// The oldest readings offset that is still in the log.
    pub log_start: i64,
}

/// Decides where to go on. A restarted owner never reads below the horizon: the batch view has that already. An owner
/// whose open epoch starts below the horizon while its position is above it rebuilds from the horizon.
pub fn resolve(control: &ControlView, found: Found) -> Recovery {
    let floor = control.horizon.unwrap_or(0).max(found.log_start);
    let Some(position) = found.checkpoint.filter(|position| *position >= floor && found.same_definitions)
    else {
        return Recovery::Rebuild { from: floor };
    };
    match control.epoch_of(position) {
        // Where somebody else announced a start inside of what the rows hold, they are of no use: they straddle it.
        Some(epoch)
            if epoch >= floor
                && (epoch == position || found.open_epoch == Some(epoch))
                && control.next_start_after(position).is_none_or(|start| start >= found.rows_through) =>
        {
            Recovery::Resume { position, epoch }
        }
        _ => Recovery::Rebuild { from: floor },
    }
}

/// Whose realtime rows count, in the order of the realtime-views topic: those of the newest generation seen so far.
/// An owner that came back from the dead writes in vain.
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

/// Whether realtime epochs complete a batch view with this horizon: the epoch that starts at the horizon is there, or
/// there is nothing after the horizon.
pub fn covers(horizon: i64, epoch_starts: impl Iterator<Item = i64>, log_end: i64) -> bool {
    let mut starts = epoch_starts;
    log_end <= horizon || starts.any(|start| start == horizon)
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
                &ControlRecord::Epoch { generation: Some(0), start: *start, announced_at: *start },
            );
        }
        view.horizon = horizon;
        view
    }

    #[test]
    fn a_batch_run_takes_the_newest_archived_start() {
        let control = view(&[0, 100, 200], None);
        assert_eq!(choose_horizon(&control, 150, 0, 0), HorizonChoice::Announced(100));
        assert_eq!(choose_horizon(&control, 200, 0, 0), HorizonChoice::Announced(200));
        assert_eq!(choose_horizon(&control, 150, 120, 0), HorizonChoice::Announced(120));
    }

    #[test]
    fn with_no_speed_layer_everything_archived_is_taken() {
        assert_eq!(choose_horizon(&ControlView::default(), 70, 0, 0), HorizonChoice::Pinned(70));
        let control = view(&[0, 100], None);
        assert_eq!(
            choose_horizon(&control, 150, 0, 100 + SPEED_LAYER_SILENCE + 1),
            HorizonChoice::Pinned(150)
        );
    }

    #[test]
    fn owners_go_on_at_their_checkpoint_or_rebuild() {
        let found = Found {
            checkpoint: Some(150),
            open_epoch: Some(100),
            rows_through: 160,
            same_definitions: true,
            log_start: 0,
        };
        assert_eq!(resolve(&view(&[0, 100], None), found), Recovery::Resume { position: 150, epoch: 100 });
        assert_eq!(resolve(&view(&[0, 100], Some(200)), found), Recovery::Rebuild { from: 200 });
        assert_eq!(resolve(&view(&[0, 100], Some(120)), found), Recovery::Rebuild { from: 120 });
        let changed = Found { same_definitions: false, ..found };
        assert_eq!(resolve(&view(&[0, 100], Some(100)), changed), Recovery::Rebuild { from: 100 });
        let fresh = Found {
            checkpoint: None,
            open_epoch: None,
            rows_through: 0,
            same_definitions: true,
            log_start: 30,
        };
        assert_eq!(resolve(&view(&[0, 100, 130], None), found), Recovery::Rebuild { from: 0 });
        assert_eq!(resolve(&view(&[0, 100, 155], None), found), Recovery::Rebuild { from: 0 });
        assert_eq!(
            resolve(&view(&[0, 100, 160], None), found),
            Recovery::Resume { position: 150, epoch: 100 }
        );
        assert_eq!(resolve(&ControlView::default(), fresh), Recovery::Rebuild { from: 30 });
    }

    #[test]
    fn a_zombie_writes_in_vain() {
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
                let horizon = choose_horizon(&control, archived.max(previous), previous, 0).offset();
                prop_assert!(starts.contains(&horizon));
                prop_assert!(horizon >= previous && horizon <= archived.max(previous));
                previous = horizon;
            }
        }

        /// HOR-2: every offset from the first start on lies in exactly one epoch.
        #[test]
        fn epochs_tile_the_offsets(starts in prop::collection::btree_set(0i64..200, 1..20), offset in 0i64..300) {
            let starts: Vec<i64> = starts.into_iter().collect();
            let control = view(&starts, None);
            let holding: Vec<i64> = starts
                .iter()
                .copied()
                .filter(|start| *start <= offset && control.next_start_after(*start).is_none_or(|next| offset < next))
                .collect();
            prop_assert_eq!(holding.first().copied(), control.epoch_of(offset));
            prop_assert!(holding.len() <= 1);
        }
    }
}
