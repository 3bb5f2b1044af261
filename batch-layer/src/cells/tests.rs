//! Cells cover all readings, do not overlap, and are divided where they have too many.

use proptest::prelude::*;
use wye_tables::event_times::EventTimes;
use wye_tables::views::CellRecord;

use super::*;

const MINUTE: i64 = 60_000_000;

fn grid(windows: &[&str]) -> Grid {
    let spans = windows.iter().map(|window| wye_domain::time::WindowSize::parse(window).unwrap().span());
    Grid::for_windows(spans)
}

fn times(minutes: &BTreeMap<i64, u64>) -> TableTimes {
    let rows: Vec<(i64, u64)> = minutes.iter().map(|(minute, readings)| (*minute, *readings)).collect();
    let times: EventTimes =
        serde_json::from_value(serde_json::json!({"slot": MINUTE, "rows": rows})).unwrap();
    times.into()
}

fn cells(plan: &Plan) -> Vec<(i64, i64, Reason)> {
    let each = plan.compute.iter();
    each.map(|cell| (cell.window.start.0 / MINUTE, cell.window.end.0 / MINUTE, cell.reason)).collect()
}

fn known(cells: &[(i64, i64)]) -> Cells {
    let records = cells.iter().map(|(start, end)| CellRecord {
        start: Micros(start * MINUTE),
        end: Micros(end * MINUTE),
        ..CellRecord::default()
    });
    records.map(|record| (record.start, record)).collect()
}

/// A plan for cells of at most 100 readings, by the readings of each minute.
fn planned(new: &[(i64, u64)], old: &[(i64, u64)], cells: Cells) -> Plan {
    let mut all: BTreeMap<i64, u64> = old.iter().copied().collect();
    new.iter().for_each(|(minute, readings)| *all.entry(*minute).or_default() += readings);
    let (all, new) = (times(&all), times(&new.iter().copied().collect()));
    let below = Below { times: &all, new: &new, amended: &[], again: None };
    plan(&grid(&["1m"]), 100, below, Some(&cells))
}

#[test]
fn lengths_are_multiples_of_each_other_and_of_all_windows() {
    let few = grid(&["10s", "1m"]);
    assert_eq!((few.0[0], few.0[1]), (Span::from_mins(1), Span::from_mins(5)));
    assert_eq!(grid(&["1h", "1d"]).0[0], Span::from_days(1));
    assert_eq!(grid(&["7m", "2m"]).0[..3], [Span::from_mins(14), Span::from_mins(70), Span::from_mins(210)]);
    for windows in [&["1m"][..], &["7m", "11m", "13s"], &["1d", "365d"], &["1us"]] {
        let grid = grid(windows);
        assert!(grid.0.windows(2).all(|pair| pair[0] < pair[1] && pair[1].0 % pair[0].0 == 0), "{grid:?}");
    }
    let odd = grid(&["9999991m", "9999973m", "9999971m"]);
    assert_eq!(odd.0, [Span::MAX]);
    assert_eq!(odd.cell(0, Micros(7)), Window { start: Micros(0), end: Micros::MAX });
}

#[test]
fn cells_are_short_where_there_are_many_readings() {
    let mut all: BTreeMap<i64, u64> = (0..60).map(|minute| (minute, 60)).collect();
    all.insert(-80_000_000, 1);
    let all = times(&all);
    let below = Below { times: &all, new: &all, amended: &[], again: None };
    let plan = plan(&grid(&["1m"]), 300, below, None);
    assert!(plan.replaces.is_empty());
    let found = cells(&plan);
    assert!(found[0].0 < -80_000_000 && -80_000_000 < found[0].1, "{found:?}");
    let expected: Vec<_> = (0..12).map(|part| (part * 5, part * 5 + 5, Reason::Everything)).collect();
    assert_eq!(found[1..], expected);
    assert!(plan.compute[1..].iter().all(|cell| cell.readings == 300));
}

#[test]
fn only_cells_with_new_readings_are_computed() {
    let before = known(&[(0, 5), (5, 10), (10, 15)]);
    let old: Vec<(i64, u64)> = (0..15).map(|minute| (minute, 20)).collect();
    let plan = planned(&[(7, 1), (16, 3)], &old, before.clone());
    // The longest cell that does not overlap the others.
    assert_eq!(cells(&plan), [(5, 10, Reason::NewReadings), (15, 30, Reason::NewReadings)]);
    assert_eq!(plan.replaces, [Micros(5 * MINUTE)].into());
    assert_eq!(planned(&[], &old, before), Plan::default());
}

#[test]
fn a_cell_is_divided_when_it_has_twice_too_many() {
    let before = known(&[(0, 15), (15, 30)]);
    let old = [(0, 60), (1, 60), (6, 60), (20, 5)];
    let grown = planned(&[(6, 20)], &old, before.clone());
    assert_eq!(cells(&grown), [(0, 15, Reason::NewReadings)]);
    let plan = planned(&[(6, 21)], &old[..2], before.clone());
    assert_eq!(cells(&plan), [(0, 15, Reason::NewReadings)]);
    let plan = planned(&[(6, 81)], &old[..2], before);
    let expected = [(0, 1, Reason::Divided), (1, 2, Reason::Divided), (5, 10, Reason::Divided)];
    assert_eq!(cells(&plan), expected);
    assert_eq!(plan.replaces, [Micros::EPOCH].into());
}

#[test]
fn cells_that_were_amended_or_asked_for_are_computed_again() {
    let (all, new) = (times(&(0..20).map(|minute| (minute, 1)).collect()), TableTimes::default());
    let window = |start: i64, end: i64| Window { start: Micros(start * MINUTE), end: Micros(end * MINUTE) };
    let amended = [window(-9, 1), window(9, 10), window(30, 40)];
    let below = Below { times: &all, new: &new, amended: &amended, again: Some(window(4, 11)) };
    let before = known(&[(0, 5), (5, 10), (10, 15), (15, 20)]);
    let plan = plan(&grid(&["1m"]), 100, below, Some(&before));
    let asked_for = (10, 15, Reason::AskedFor);
    assert_eq!(cells(&plan), [(0, 5, Reason::Amended), (5, 10, Reason::Amended), asked_for]);
}

proptest! {
    /// Cells never overlap, every reading is in a cell, and each cell with new readings is computed, whatever was known.
    #[test]
    fn cells_tile_the_readings(
        runs in prop::collection::vec(prop::collection::btree_map(-2_000i64..2_000, 1u64..60, 0..40), 1..6),
        most in 1u64..400,
    ) {
        let grid = grid(&["1m"]);
        let mut known = Cells::new();
        let mut all: BTreeMap<i64, u64> = BTreeMap::new();
        for new in runs {
            new.iter().for_each(|(minute, readings)| *all.entry(*minute).or_default() += readings);
            let (all_times, new_times) = (times(&all), times(&new));
            let below = Below { times: &all_times, new: &new_times, amended: &[], again: None };
            let plan = plan(&grid, most, below, Some(&known));
            known.retain(|start, _| !plan.replaces.contains(start));
            for cell in &plan.compute {
                let Window { start, end } = cell.window;
                prop_assert!(cell.readings <= 2 * most || end - start == Span::from_mins(1), "{cell:?}");
                let record = CellRecord { start, end, ..CellRecord::default() };
                prop_assert!(known.insert(start, record).is_none());
            }
            let mut last = Micros::MIN;
            for (start, cell) in &known {
                prop_assert!(last <= *start && *start < cell.end, "{known:?}");
                last = cell.end;
            }
            for minute in all.keys() {
                let time = Micros(minute * MINUTE);
                let cell = known.range(..=time).next_back().map(|(_, cell)| cell);
                prop_assert!(cell.is_some_and(|cell| time < cell.end), "{minute} is in no cell of {known:?}");
            }
            for minute in new.keys() {
                let time = Micros(minute * MINUTE);
                let is_computed = |cell: &Cell| cell.window.start <= time && time < cell.window.end;
                prop_assert!(plan.compute.iter().any(is_computed));
            }
        }
    }
}
