//! How often a device reports each of its metrics, over time. Pure.

use crate::time::{Micros, Span, Window};

/// When which reporting interval is in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Schedule {
    /// From when on which interval is in force; `None`: no reading is expected. Ascending. Before the first, none is
    /// expected either.
    pieces: Vec<(Micros, Option<Span>)>,
}

/// What a schedule is made from.
#[derive(Clone, Debug)]
pub struct ScheduleParts {
    /// No reading is expected before; [`Micros::MIN`] where that is not known.
    pub since: Micros,
    /// No reading is expected from then on; [`Micros::MAX`] while the device is in use.
    pub until: Micros,
    /// The first interval, positive.
    pub interval: Span,
    /// Later intervals, positive, and from when on.
    pub changes: Vec<(Micros, Span)>,
    /// Stretches of time in which no reading is expected.
    pub maintenance: Vec<Window>,
}

impl Schedule {
    /// One interval at all times.
    #[must_use]
    pub fn always(interval: Span) -> Self {
        Self { pieces: vec![(Micros::MIN, Some(interval))] }
    }

    /// A schedule of its parts, in any order.
    #[must_use]
    pub fn new(mut parts: ScheduleParts) -> Self {
        parts.changes.sort_by_key(|(from, _)| *from);
        let ScheduleParts { since, until, interval, changes, maintenance } = parts;
        let mut edges = vec![since, until];
        edges.extend(changes.iter().map(|(from, _)| *from));
        edges.extend(maintenance.iter().flat_map(|window| [window.start, window.end]));
        edges.retain(|edge| (since..until).contains(edge) || *edge == until);
        edges.sort_unstable();
        edges.dedup();
        let mut pieces: Vec<(Micros, Option<Span>)> = Vec::with_capacity(edges.len());
        for edge in edges {
            let is_off = edge >= until || maintenance.iter().any(|w| (w.start..w.end).contains(&edge));
            let in_force = changes.iter().rev().find(|(from, _)| *from <= edge);
            let interval = (!is_off).then(|| in_force.map_or(interval, |(_, interval)| *interval));
            if pieces.last().is_none_or(|(_, last)| *last != interval) {
                pieces.push((edge, interval));
            }
        }
        if until == Micros::MAX && pieces.len() > 1 && pieces.last().is_some_and(|(from, _)| *from == until) {
            pieces.pop();
        }
        Self { pieces }
    }

    /// From when on readings are expected; `None` where that is not known.
    #[must_use]
    pub fn since(&self) -> Option<Micros> {
        let (first, _) = self.pieces.first()?;
        (*first > Micros::MIN).then_some(*first)
    }

    /// The interval that is in force at all times; `None` where there are several.
    #[must_use]
    pub fn only_interval(&self) -> Option<Span> {
        match self.pieces.as_slice() {
            [(Micros::MIN, interval)] => *interval,
            _ => None,
        }
    }

    /// The shortest interval that is ever in force; `None` where there is none.
    #[must_use]
    pub fn shortest_interval(&self) -> Option<Span> {
        self.pieces.iter().filter_map(|(_, interval)| *interval).min()
    }

    /// The parts of a stretch of time in which readings are expected: how long each is, and the interval.
    pub fn within(&self, window: Window) -> impl Iterator<Item = (Span, Span)> {
        let ends = self.pieces.iter().skip(1).map(|(from, _)| *from).chain([Micros::MAX]);
        self.pieces.iter().zip(ends).filter_map(move |((from, interval), end)| {
            let length = end.min(window.end) - window.start.max(*from);
            Some((length, (*interval)?)).filter(|_| length > Span::ZERO)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: i64) -> Micros {
        Micros::from_secs(seconds)
    }

    fn within(schedule: &Schedule, from: i64, to: i64) -> Vec<(i64, i64)> {
        let parts = schedule.within(Window { start: at(from), end: at(to) });
        parts.map(|(length, interval)| (length.0 / 1_000_000, interval.0 / 1_000_000)).collect()
    }

    #[test]
    fn one_interval_is_in_force_at_all_times() {
        let schedule = Schedule::always(Span::from_secs(10));
        assert_eq!(within(&schedule, -60, 60), [(120, 10)]);
        assert_eq!((schedule.since(), schedule.only_interval()), (None, Some(Span::from_secs(10))));
        let parts = ScheduleParts {
            since: Micros::MIN,
            until: Micros::MAX,
            interval: Span::from_secs(10),
            changes: vec![],
            maintenance: vec![],
        };
        assert_eq!(Schedule::new(parts), schedule);
    }

    #[test]
    fn nothing_is_expected_before_and_after_the_use_of_a_device() {
        let schedule = Schedule::new(ScheduleParts {
            since: at(100),
            until: at(200),
            interval: Span::from_secs(10),
            changes: vec![(at(50), Span::from_secs(5)), (at(300), Span::from_secs(1))],
            maintenance: vec![],
        });
        // The change before its use is in force from the beginning, the one after it never.
        assert_eq!(within(&schedule, 0, 1_000), [(100, 5)]);
        assert_eq!(within(&schedule, 200, 1_000), []);
        assert_eq!(schedule.shortest_interval(), Some(Span::from_secs(5)));
    }

    #[test]
    fn changes_and_maintenance_divide_time() {
        let schedule = Schedule::new(ScheduleParts {
            since: at(100),
            until: at(1_000),
            interval: Span::from_secs(10),
            changes: vec![(at(600), Span::from_secs(2)), (at(400), Span::from_secs(5))],
            maintenance: vec![
                Window { start: at(550), end: at(650) },
                Window { start: at(900), end: at(2_000) },
            ],
        });
        assert_eq!(within(&schedule, 0, 100), []);
        assert_eq!(within(&schedule, 0, 5_000), [(300, 10), (150, 5), (250, 2)]);
        assert_eq!(within(&schedule, 540, 660), [(10, 5), (10, 2)]);
        assert_eq!(within(&schedule, 560, 640), []);
        assert_eq!((schedule.since(), schedule.only_interval()), (Some(at(100)), None));
        assert_eq!(schedule.shortest_interval(), Some(Span::from_secs(2)));
    }
}
