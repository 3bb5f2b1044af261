//! Which cells a run computes. Pure.
//!
//! A cell is a stretch of event time: all windows that start in it, of all series. Time is divided into cells with about as
//! many readings each, so they are short where there are many readings, and long where there are few. The lengths of
//! cells form a chain in which each one is a multiple of the one before, and of all windows. So no window crosses
//! the edge of a cell, and a cell that has become too large can be divided.
//!
//! The rows of a cell are a function of its readings, their amendments, the definitions and the registry. A run computes the
//! cells for which one of these has changed, and leaves the others as they are.

use std::collections::{BTreeMap, BTreeSet};

use wye_domain::time::{Micros, Span, Window};
use wye_metrics::plan::MetricPlans;
use wye_tables::event_times::{LENGTHS, TableTimes};
use wye_tables::views::Cells;

#[cfg(test)]
mod tests;

/// Cells are not shorter than this, unless the windows are longer.
const SHORTEST: Span = Span::from_mins(1);

/// The lengths that cells may have, shortest first: each one is a multiple of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid(Vec<Span>);

impl Grid {
    /// For the windows of these definitions.
    #[must_use]
    pub fn of(plans: &MetricPlans) -> Self {
        Self::for_windows(plans.plans().iter().map(|plan| plan.definition().window.span()))
    }

    fn for_windows(mut windows: impl Iterator<Item = Span>) -> Self {
        let all = windows.try_fold(Span(1), common_multiple);
        // Windows without a common multiple below 300,000 years are all in one cell.
        let Some(all) = all else { return Self(vec![Span::MAX]) };
        let lengths = LENGTHS.iter().filter(|length| **length >= SHORTEST);
        let mut lengths: Vec<Span> = lengths.filter_map(|length| common_multiple(all, *length)).collect();
        lengths.dedup();
        if lengths.is_empty() {
            lengths.push(all);
        }
        Self(lengths)
    }

    /// The cell of a length that a time is in.
    fn cell(&self, level: usize, time: Micros) -> Window {
        let length = self.0[level];
        let start = Micros(time.0.div_euclid(length.0).saturating_mul(length.0));
        Window { start, end: start + length }
    }

    /// The cells of the next shorter length in a cell of a length.
    fn divided(&self, level: usize, cell: Window) -> impl Iterator<Item = (usize, Window)> + use<> {
        let (level, length) = (level - 1, self.0[level - 1]);
        let starts = std::iter::successors(Some(cell.start), move |start| Some(*start + length));
        let starts = starts.take_while(move |start| *start < cell.end);
        starts.map(move |start| (level, Window { start, end: start + length }))
    }

    /// The place of a cell's length.
    fn level(&self, cell: Window) -> usize {
        self.0.iter().position(|length| *length >= cell.length()).unwrap_or(self.0.len() - 1)
    }
}

/// The smallest common multiple of two lengths; `None` where it is too long.
fn common_multiple(a: Span, b: Span) -> Option<Span> {
    let (mut divisor, mut rest) = (a.0, b.0);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a.0 / divisor).checked_mul(b.0).map(Span)
}

/// Why a cell is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The run computes everything.
    Everything,
    /// It has new readings.
    NewReadings,
    /// It is a part of one that had too many readings.
    Divided,
    /// An amendment of its readings was made or revoked.
    Amended,
    /// Nothing has changed; it was asked for.
    AskedFor,
}

impl Reason {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::NewReadings => "new_readings",
            Self::Divided => "divided",
            Self::Amended => "amended",
            Self::AskedFor => "asked_for",
        }
    }
}

/// A cell to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The windows that start in it are computed.
    pub window: Window,
    /// About how many readings it has.
    pub readings: u64,
    /// Why it is computed.
    pub reason: Reason,
}

/// What a run does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The cells to compute, in the order of their times.
    pub compute: Vec<Cell>,
    /// The starts of the cells that these replace.
    pub replaces: BTreeSet<Micros>,
}

/// What is below the horizon of a run.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    /// All readings.
    pub times: &'a TableTimes,
    /// Those that are not in the view before.
    pub new: &'a TableTimes,
    /// The stretches of time whose readings have been amended since the view before.
    pub amended: &'a [Window],
    /// A stretch of time that is computed even if nothing has changed.
    pub again: Option<Window>,
}

/// Chooses the cells to compute, with at most `most` readings each where the lengths allow it. `before` are the cells of the view
/// that the run starts from; without one, all cells are computed.
#[must_use]
pub fn plan(grid: &Grid, most: u64, below: Below<'_>, before: Option<&Cells>) -> Plan {
    let none = Cells::new();
    let known = before.unwrap_or(&none);
    let reason = before.map_or(Reason::Everything, |_| Reason::NewReadings);
    let mut planning = Planning { grid, most, below, known, touched: BTreeMap::new(), compute: Vec::new() };
    planning.find_new(reason);
    below.amended.iter().for_each(|amended| planning.find_known(*amended, Reason::Amended));
    below.again.iter().for_each(|again| planning.find_known(*again, Reason::AskedFor));
    planning.finish()
}

struct Planning<'a> {
    grid: &'a Grid,
    most: u64,
    below: Below<'a>,
    known: &'a Cells,
    /// The known cells to compute, by start.
    touched: BTreeMap<Micros, Reason>,
    compute: Vec<Cell>,
}

impl Planning<'_> {
    /// Finds the cells with new readings: those of the view, and others where the view has none.
    fn find_new(&mut self, reason: Reason) {
        let longest = self.grid.0.len() - 1;
        let mut searched = None;
        for stretch in self.below.new.stretches() {
            let mut cell = self.grid.cell(longest, stretch.start);
            while cell.start < stretch.end && cell.start < cell.end {
                if searched.is_none_or(|searched| cell.start > searched) {
                    searched = Some(cell.start);
                    self.find_new_in(longest, cell, reason);
                }
                cell = Window { start: cell.end, end: cell.end + self.grid.0[longest] };
            }
        }
    }

    fn find_new_in(&mut self, level: usize, cell: Window, reason: Reason) {
        if self.below.new.within(cell) == 0 {
            return;
        }
        let before_its_end = self.known.range(..cell.end).next_back();
        match before_its_end.filter(|(_, known)| known.end > cell.start) {
            None => self.divide(level, cell, reason),
            Some((start, known)) if *start <= cell.start && cell.end <= known.end => {
                self.touched.insert(*start, reason);
            }
            Some(_) if level > 0 => {
                self.grid
                    .divided(level, cell)
                    .for_each(|(level, cell)| self.find_new_in(level, cell, reason));
            }
            // A known cell that is not of this grid.
            Some((start, _)) => {
                self.touched.insert(*start, reason);
            }
        }
    }

    /// Adds a cell, or the cells that it is divided into because it has too many readings.
    fn divide(&mut self, level: usize, cell: Window, reason: Reason) {
        let readings = self.below.times.within(cell);
        if readings == 0 {
            return;
        }
        if level == 0 || readings <= self.most {
            self.compute.push(Cell { window: cell, readings, reason });
            return;
        }
        self.grid.divided(level, cell).for_each(|(level, cell)| self.divide(level, cell, reason));
    }

    /// Finds the known cells that have a part of a stretch of time.
    fn find_known(&mut self, stretch: Window, reason: Reason) {
        for (start, known) in self.known.range(..stretch.end) {
            if known.end > stretch.start {
                self.touched.entry(*start).or_insert(reason);
            }
        }
    }

    fn finish(mut self) -> Plan {
        let touched = std::mem::take(&mut self.touched);
        for (start, reason) in &touched {
            let cell = self.known[start].window();
            let (level, readings) = (self.grid.level(cell), self.below.times.within(cell));
            // Not as soon as it has too many, so that a cell that grows is not divided in every run.
            if level > 0 && readings > self.most.saturating_mul(2) {
                self.divide(level, cell, Reason::Divided);
            } else {
                self.compute.push(Cell { window: cell, readings, reason: *reason });
            }
        }
        self.compute.sort_unstable_by_key(|cell| cell.window.start);
        Plan { replaces: touched.into_keys().collect(), compute: self.compute }
    }
}
