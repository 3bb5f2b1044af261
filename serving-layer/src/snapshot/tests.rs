//! What is known of a view is the same, whether it was read at once, or a part of it after each run.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tokio::runtime::Runtime;
use wye_domain::summary::Summary;
use wye_tables::views::{BatchViews, Replaces};

use super::*;
use crate::testing::{Row, Site, cells, commit_amended, commit_cells, family, minute, summary};

/// What happens to a window.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Reading,
    Conflict,
    /// Its readings are found to be duplicates of others.
    Lost,
    /// It has not even conflicts any more.
    Gone,
}

/// Device, minute, and what happens.
type Change = (u8, u8, Happens);

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => Just(Happens::Reading),
        2 => Just(Happens::Conflict),
        1 => Just(Happens::Lost),
        1 => Just(Happens::Gone),
    ]
}

/// The rows after some changes.
fn rows(rows: &mut BTreeMap<(u8, u8), Row>, changes: &[Change]) {
    for (device, place, happens) in changes {
        let window = minute(i64::from(*place));
        let series = family("t", &format!("d{device}"));
        let row = rows.entry((*device, *place)).or_insert_with(|| (series, window, summary(&[])));
        match happens {
            Happens::Reading => row.2.add(f64::from(*device), window),
            Happens::Conflict => row.2.conflicts += 1,
            Happens::Lost => row.2 = Summary { conflicts: 1, ..summary(&[]) },
            Happens::Gone => {
                rows.remove(&(*device, *place));
            }
        }
    }
}

fn known(snapshot: &BatchSnapshot, directory: &Directory) -> Vec<String> {
    let mut known = Vec::new();
    for info in directory.infos() {
        let (newest, oldest) = (snapshot.newest(info.id), snapshot.oldest(info.id));
        known.push(format!("{:?}: {oldest:?} to {newest:?}", info.key.group));
        for place in 0..60 {
            known.extend(snapshot.row_from_newest_on(info.id, minute(place)).map(|row| format!("{row:?}")));
        }
    }
    known
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_view_is_the_same_read_at_once_or_part_by_part(
        runs in prop::collection::vec(prop::collection::vec((0u8..4, 0u8..60, happens()), 0..8), 1..6),
    ) {
        Runtime::new().unwrap().block_on(async {
            let site = Site::new().await;
            let length = WindowSize::parse("20m").unwrap();
            let (views, directory): (&BatchViews, _) = (&site.views, site.hub.directory());
            let context = site.engine.runtime().task_context();
            let mut all = BTreeMap::new();
            let mut before: Option<BatchSnapshot> = None;
            for (horizon, changes) in (1..).zip(&runs) {
                rows(&mut all, changes);
                let everything: Vec<Row> = all.values().cloned().collect();
                let mut everything = cells(length, &everything);
                let touched = changes.iter().map(|(_, place, _)| length.start_of(minute(i64::from(*place))));
                let touched: BTreeSet<Micros> = touched.collect();
                let changed: BTreeMap<Micros, Vec<Row>> =
                    touched.into_iter().map(|start| (start, everything.remove(&start).unwrap_or_default())).collect();
                let replaces = match before {
                    Some(_) => Replaces::Cells(changed.keys().copied().collect()),
                    None => Replaces::All,
                };
                commit_cells(views, directory, horizon, length, &changed, 3, replaces).await;
                let view = views.latest().await.unwrap().unwrap();
                let after = BatchSnapshot::load(view.clone(), before.as_ref(), directory, &context).await.unwrap();
                let fresh = BatchSnapshot::load(view, None, directory, &context).await.unwrap();
                assert_eq!(known(&after, directory), known(&fresh, directory));
                before = Some(after);
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amendment_may_take_the_newest_window_away() {
    let site = Site::new().await;
    let length = WindowSize::parse("20m").unwrap();
    let (views, directory): (&BatchViews, _) = (&site.views, site.hub.directory());
    let context = site.engine.runtime().task_context();
    let row = |device: &str, place: i64| (family("t", device), minute(place), summary(&[(1.0, 0)]));
    let rows = [row("d0", 5), row("d0", 25), row("d1", 25)];
    commit_cells(views, directory, 1, length, &cells(length, &rows), 3, Replaces::All).await;
    let view = views.latest().await.unwrap().unwrap();
    let before = BatchSnapshot::load(view, None, directory, &context).await.unwrap();
    commit_amended(views, directory, length.window_at(minute(20)), &rows[2..]).await;
    let view = views.latest().await.unwrap().unwrap();
    let after = BatchSnapshot::load(view.clone(), Some(&before), directory, &context).await.unwrap();
    let fresh = BatchSnapshot::load(view, None, directory, &context).await.unwrap();
    assert_ne!(known(&before, directory), known(&fresh, directory));
    assert_eq!(known(&after, directory), known(&fresh, directory));
}

/// A later run may find an earlier reading with the identity of one that counted: that one is a conflict then.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_window_may_lose_its_readings_or_its_row() {
    let length = WindowSize::parse("20m").unwrap();
    let row = |device: &str, place: i64| (family("t", device), minute(place), summary(&[(1.0, 0)]));
    let rows = [row("d0", 5), row("d0", 25), row("d1", 25), row("d1", 45)];
    let lost = (family("t", "d0"), minute(25), Summary { conflicts: 1, ..summary(&[]) });
    for left in [vec![lost, row("d1", 25)], vec![row("d1", 25)]] {
        let site = Site::new().await;
        let (views, directory): (&BatchViews, _) = (&site.views, site.hub.directory());
        let context = site.engine.runtime().task_context();
        commit_cells(views, directory, 1, length, &cells(length, &rows), 3, Replaces::All).await;
        let view = views.latest().await.unwrap().unwrap();
        let before = BatchSnapshot::load(view, None, directory, &context).await.unwrap();
        let replaces = Replaces::Cells([minute(20)].into());
        commit_cells(views, directory, 2, length, &cells(length, &left), 3, replaces).await;
        let view = views.latest().await.unwrap().unwrap();
        let after = BatchSnapshot::load(view.clone(), Some(&before), directory, &context).await.unwrap();
        let fresh = BatchSnapshot::load(view, None, directory, &context).await.unwrap();
        assert_ne!(known(&before, directory), known(&fresh, directory));
        assert_eq!(known(&after, directory), known(&fresh, directory));
    }
}
