//! The correct result of a simulation: count, sum, min and max of the distinct readings that it has delivered, by device,
//! metric and 1-minute window. It must not know the path of the readings.

use std::collections::BTreeMap;

use wye_domain::time::{Micros, WindowSize};

/// The readings of one series in one minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TruthRow<'a> {
    /// The device.
    pub device_id: &'a str,
    /// The metric.
    pub metric: &'a str,
    /// Start of the minute.
    pub window_start: Micros,
    /// The readings of this minute, each counted once.
    pub summary: TruthSummary,
}

/// The readings of one window, each counted once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TruthSummary {
    /// Their number.
    pub count: u64,
    /// Their sum. It is exact where every value is a multiple of one power of two, as a simulation's values are.
    pub sum: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// Summaries by window and series; a series is an index here.
#[derive(Debug)]
pub(crate) struct Truth {
    series: usize,
    windows: BTreeMap<Micros, Vec<Option<TruthSummary>>>,
}

impl Truth {
    pub(crate) fn new(series: usize) -> Self {
        Self { series, windows: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, series: usize, event_time: Micros, value: f64) {
        let start = WindowSize::MINUTE.start_of(event_time);
        let window = self.windows.entry(start).or_insert_with(|| vec![None; self.series]);
        match &mut window[series] {
            Some(summary) => {
                summary.count += 1;
                summary.sum += value;
                summary.min = summary.min.min(value);
                summary.max = summary.max.max(value);
            }
            empty => *empty = Some(TruthSummary { count: 1, sum: value, min: value, max: value }),
        }
    }

    /// Window start, series and summary, sorted by the first two.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Micros, usize, TruthSummary)> {
        self.windows.iter().flat_map(|(&start, window)| {
            let summaries = window.iter().enumerate();
            summaries.filter_map(move |(series, summary)| summary.map(|summary| (start, series, summary)))
        })
    }

    pub(crate) fn forget_before(&mut self, window_start: Micros) {
        self.windows = self.windows.split_off(&window_start);
    }
}
