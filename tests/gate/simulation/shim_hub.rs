//! Temporary: the state of the serving layer's hub, until it can be driven without tokio.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use wye_domain::time::WindowSize;
use wye_metrics::merge::{Answer, Judge, Rollup};
use wye_metrics::view_rows::reader::ViewRows;
use wye_serving::coverage::LogEnd;
use wye_serving::directory::{Directory, SeriesInfo};
use wye_serving::realtime::{CapturedRows, Flaw, Reach, RealtimeStore, Selection, Start};

use super::layers::BatchView;

pub(crate) struct HubState {
    pub(crate) store: RealtimeStore,
    pub(crate) view: Option<Arc<BatchView>>,
    pub(crate) ends: Vec<LogEnd>,
    pub(crate) log_starts: Vec<i64>,
    pub(crate) caught_up: bool,
    pub(crate) definitions: u64,
}

impl HubState {
    pub(crate) fn new(definitions: u64, kafka_partitions: usize) -> Self {
        Self {
            store: RealtimeStore::new(definitions),
            view: None,
            ends: vec![LogEnd::default(); kafka_partitions],
            log_starts: vec![0; kafka_partitions],
            caught_up: false,
            definitions,
        }
    }

    pub(crate) fn start_at(&self, p: usize, horizon: Option<&[i64]>) -> Start {
        match horizon {
            Some(horizon) => Start::Horizon(horizon[p]),
            None => Start::LogStart(self.log_starts[p]),
        }
    }

    pub(crate) fn reach(&self, p: usize) -> Reach {
        self.store.reach(p as i32, self.start_at(p, self.view.as_ref().map(|view| &view.horizon[..])))
    }

    pub(crate) fn reason(&self, p: usize, now: i64) -> Option<&'static str> {
        let reach = self.reach(p);
        let usable = self.is_usable();
        if !self.caught_up {
            Some("starting")
        } else if !usable || self.store.has_other_definitions() {
            Some("other_definitions")
        } else if let Some(flaw @ (Flaw::Damaged | Flaw::Gap)) = reach.flaw {
            Some(if flaw == Flaw::Gap { "gap" } else { "damaged" })
        } else {
            match self.ends[p].end(now) {
                None => Some("log_end_unknown"),
                Some(end) if end > reach.covered => Some(reach.flaw.map_or("behind", |_| "rebuilding")),
                Some(_) => None,
            }
        }
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.view.as_ref().is_none_or(|view| view.definitions == self.definitions)
    }

    pub(crate) fn answers(
        &self,
        directory: &Directory,
        definition: usize,
        step: WindowSize,
        now: i64,
    ) -> Result<Vec<(Arc<SeriesInfo>, Answer)>> {
        let infos: Vec<_> =
            directory.infos().into_iter().filter(|info| info.definition == definition).collect();
        let mut windows: BTreeMap<(u32, i64), Rollup> = BTreeMap::new();
        if let Some(view) = self.view.as_ref().filter(|_| self.is_usable()) {
            for batch in &view.rows {
                let rows = ViewRows::of(batch)?;
                for row in 0..rows.len() {
                    let id = directory.resolve(rows.series.text(row).into_iter())[0];
                    let Some(id) = id.filter(|id| directory.info(*id).definition == definition) else {
                        continue;
                    };
                    let row = rows.row(row)?;
                    windows.entry((id.0, step.start_of(row.window_start))).or_default().add_batch(&row);
                }
            }
        }
        let rows =
            CapturedRows::collect(&self.store.capture(), &Selection { step: Some(step), ..Selection::all() });
        for group in 0..rows.len() {
            let (id, start) = rows.key(group);
            if infos.iter().any(|info| info.id == id) {
                windows.entry((id.0, start)).or_default().add_realtime(&rows.summary(group));
            }
        }
        let lateness = self.view.as_ref().map(|view| view.tally.lateness.clone()).unwrap_or_default();
        let as_of = self.view.as_ref().map_or(0, |view| view.as_of);
        let judge = Judge { lateness: &lateness, now, as_of };
        let mut answers = Vec::new();
        for ((id, start), rollup) in windows {
            let info = directory.infos()[id as usize].clone();
            if let Some(answer) = rollup.finish(info.facts(), (start, start + step.micros()), judge) {
                answers.push((info, answer));
            }
        }
        Ok(answers)
    }
}
