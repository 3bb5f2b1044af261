//! Which epochs have rows of a flush of which the last record is missing: such rows hold more readings than an answer says
//! that it covers. Worked out from what was written, not from what the layers make of it.

use std::collections::BTreeMap;

use super::log::{ViewAbout, ViewKind};

/// Of the realtime views of one Kafka partition, as far as they were read.
#[derive(Default)]
pub(crate) struct OpenFlushes {
    newest: Option<i64>,
    /// By epoch: what its rows reach to, and what complete flushes reach to.
    epochs: BTreeMap<i64, (i64, i64)>,
}

impl OpenFlushes {
    pub(crate) fn apply(&mut self, about: ViewAbout) {
        if Some(about.generation) < self.newest {
            return;
        }
        self.newest = Some(about.generation);
        match about.kind {
            ViewKind::Begin { epoch, reset: true } => drop(self.epochs.split_off(&epoch)),
            ViewKind::Claim | ViewKind::Begin { .. } => {}
            ViewKind::Rows { epoch, through, complete } => {
                let (reach, covered) = self.epochs.entry(epoch).or_default();
                *reach = (*reach).max(through);
                if complete {
                    *covered = (*covered).max(through);
                }
            }
        }
    }

    /// Whether there is one in an epoch from a horizon on.
    pub(crate) fn is_open(&self, horizon: i64) -> bool {
        self.epochs.range(horizon..).any(|(_, (reach, covered))| reach > covered)
    }
}
