//! Windows that should have readings and have none. Pure.
//!
//! The registry says which series should have readings. From when on is known where it says since when a device is in use.
//! Otherwise it is the first window of the series, but not before the first reading has arrived at all: history that was
//! imported, and readings with wrong clocks, do not make years of missing windows.

use std::ops::Range;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use wye_domain::series::SeriesId;
use wye_domain::time::{Micros, Window, WindowSize};

use crate::directory::SeriesInfo;
use crate::hub::Capture;

/// A series that should have readings, and in which stretch of time.
#[derive(Clone, Debug)]
pub struct ExpectedSeries {
    /// The series.
    pub info: Arc<SeriesInfo>,
    /// From where on its windows should have readings.
    pub from: Micros,
}

impl Capture {
    /// Those of some series that should have readings in each window of a length, or of the series' own where there is none.
    pub fn expected(
        &self,
        infos: impl Iterator<Item = Arc<SeriesInfo>>,
        step: Option<WindowSize>,
    ) -> Vec<ExpectedSeries> {
        let with_expectation = infos.filter_map(|info| {
            let expectation =
                info.expectation.as_ref().filter(|it| it.may_lack(step.unwrap_or(info.window)))?;
            Some((expectation.since(), info))
        });
        let expected: Vec<(Option<Micros>, Arc<SeriesInfo>)> = with_expectation.collect();
        let snapshot = self.snapshot.as_deref().filter(|snapshot| snapshot.usable());
        let first_ingest = snapshot.and_then(|snapshot| snapshot.facts().first_ingest);
        let without_since = expected.iter().filter(|(since, _)| since.is_none() && first_ingest.is_some());
        let in_epochs = self.oldest_in_epochs(&without_since.map(|(_, info)| info.id).collect());
        expected
            .into_iter()
            .filter_map(|(since, info)| {
                let in_view = snapshot.and_then(|snapshot| snapshot.oldest(info.id));
                let oldest = in_view.into_iter().chain(in_epochs.get(&info.id).copied()).min();
                let from = since.or_else(|| Some(oldest?.max(first_ingest?)))?;
                Some(ExpectedSeries { info, from })
            })
            .collect()
    }

    /// The first window with readings of some series in realtime epochs.
    fn oldest_in_epochs(&self, wanted: &HashSet<SeriesId>) -> HashMap<SeriesId, Micros> {
        let mut oldest: HashMap<SeriesId, Micros> = HashMap::new();
        let epochs = if wanted.is_empty() { &[] } else { self.epochs.as_slice() };
        for epoch in epochs {
            let rows = epoch.keys().filter(|(_, series, _)| wanted.contains(series));
            for (_, series, start) in rows.filter(|(row, ..)| epoch.has_readings(*row)) {
                let known = oldest.entry(series).or_insert(start);
                *known = start.min(*known);
            }
        }
        oldest
    }
}

impl ExpectedSeries {
    /// The windows of a length without readings, of those that start in a stretch of time. `present` are the stretches with
    /// readings. Whether there should be some is for [`missing`] to say.
    ///
    /// [`missing`]: wye_metrics::merge::missing
    pub fn absent(
        self,
        step: WindowSize,
        starts: Range<Micros>,
        present: Vec<Window>,
    ) -> impl Iterator<Item = (Arc<SeriesInfo>, Window)> + use<> {
        let Self { info, from } = self;
        let from = whole(step, from.max(starts.start));
        absent(from, starts.end, present).flat_map(move |stretch| {
            let info = Arc::clone(&info);
            let starts = std::iter::successors(Some(stretch.start), move |start| Some(*start + step.span()));
            let starts = starts.take_while(move |start| *start < stretch.end);
            starts.map(move |start| (Arc::clone(&info), step.window_at(start)))
        })
    }
}

/// The first start of a window at a time or later.
fn whole(step: WindowSize, time: Micros) -> Micros {
    let start = step.start_of(time);
    if start < time { start + step.span() } else { start }
}

/// What is left of a stretch of time without others.
fn absent(from: Micros, to: Micros, mut present: Vec<Window>) -> impl Iterator<Item = Window> {
    present.sort_unstable_by_key(|stretch| stretch.start);
    let last = Window { start: to, end: to };
    let mut next = from;
    present.into_iter().chain([last]).filter_map(move |stretch| {
        let gap = Window { start: next, end: stretch.start.min(to) };
        next = next.max(stretch.end);
        (gap.start < gap.end).then_some(gap)
    })
}

/// In which stretches of time series have readings.
#[derive(Clone, Debug, Default)]
pub struct Presence(HashMap<SeriesId, Vec<Window>>);

impl Presence {
    /// Adds windows of a series; cheap where they follow each other.
    pub fn add(&mut self, series: SeriesId, windows: impl Iterator<Item = Window>) {
        let stretches = self.0.entry(series).or_default();
        for window in windows {
            match stretches.last_mut() {
                Some(last) if last.end == window.start => last.end = window.end,
                _ => stretches.push(window),
            }
        }
    }

    /// Adds everything of another.
    pub fn merge(&mut self, other: Self) {
        for (series, stretches) in other.0 {
            self.0.entry(series).or_default().extend(stretches);
        }
    }

    /// Takes out the stretches of a series, in no order.
    pub fn take(&mut self, series: SeriesId) -> Vec<Window> {
        self.0.remove(&series).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn absent_stretches_are_those_that_are_not_present(
            from in 0i64..30,
            length in 0i64..30,
            windows in prop::collection::vec(0i64..40, 0..30),
        ) {
            let mut parts = [Presence::default(), Presence::default()];
            for (place, start) in windows.iter().enumerate() {
                let window = Window { start: Micros(*start), end: Micros(start + 1) };
                parts[place % 2].add(SeriesId(1), [window].into_iter());
            }
            let [mut all, other] = parts;
            all.merge(other);
            let gaps = absent(Micros(from), Micros(from + length), all.take(SeriesId(1)));
            let found: Vec<i64> = gaps.flat_map(|gap| gap.start.0..gap.end.0).collect();
            let expected: Vec<i64> = (from..from + length).filter(|time| !windows.contains(time)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
