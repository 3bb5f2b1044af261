//! Runs against an embedded broker: which horizon they take, what they announce, and what happens to a run when another
//! one commits first or when it is cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wye_domain::ErrorKind;
use wye_domain::control::ControlRecord;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::time::{Micros, Span};
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::MetricPlans;
use wye_metrics::view_rows::{COMPUTATION, ViewSchema};
use wye_tables::restatements::Restatements;
use wye_tables::run_record::RunRecord;
use wye_tables::views::{BatchViews, Replaces, ViewCommit, ViewVersion};

use super::{BatchRunner, RunOptions};
use crate::report::Outcome;
use crate::schedule::Schedule;
use crate::settings::BatchSettings;
use crate::testing::{PATIENCE, Site, batch_settings, horizon, soon, until};
use wye_runtime::clock::Clock;

/// A run that computes until it is released.
struct Held {
    options: RunOptions,
    computes: Arc<Notify>,
    release: Sender<()>,
}

fn held() -> Held {
    let computes = Arc::new(Notify::new());
    let (release, released): (Sender<()>, Receiver<()>) = channel();
    let (notify, released) = (Arc::clone(&computes), std::sync::Mutex::new(released));
    let options = RunOptions {
        progress: Some(Arc::new(move |_| {
            notify.notify_one();
            // An error says that the run is no longer held.
            let _ = released.lock().unwrap().recv();
        })),
        ..RunOptions::default()
    };
    Held { options, computes, release }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_speed_layer_everything_archived_is_taken_and_announced_first() {
    let site = Site::start(2).await;
    for second in 0..3 {
        site.reading(0, "a", second, 1.0).await;
    }
    site.reading(0, "a", 0, 1.0).await;
    site.reading(0, "a", 1, 7.0).await;
    site.archive([(0, 5)]).await;

    let report = site.runner().await.run(RunOptions::default()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Committed);
    assert_eq!((report.readings, report.duplicates, report.conflicts), (5, 1, 1));
    assert_eq!((report.windows, report.series, report.version), (1, 1, Some(ViewVersion(1))));
    assert_eq!(report.horizon, horizon([(0, 5), (1, 0)]));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((json["outcome"].as_str(), json["horizon"]["0"].as_i64()), (Some("committed"), Some(5)));

    assert_eq!(report.unanswered, [KafkaPartition(0)]);
    let records = site.control_records(0).await;
    assert!(matches!(records[0], ControlRecord::CutRequest { through: Offset(5), .. }), "{records:?}");
    assert!(
        matches!(records[1], ControlRecord::Epoch { generation: None, start: Offset(5), .. }),
        "{records:?}"
    );
    assert_eq!(records[2..], [ControlRecord::Horizon { offset: Offset(5), version: 1 }]);

    let again = site.runner().await.run(RunOptions::default()).await.unwrap();
    assert_eq!((again.outcome, again.version, again.windows), (Outcome::NothingNew, Some(ViewVersion(1)), 1));
    let forced = site.runner().await.run(RunOptions { force: true, ..RunOptions::default() }).await.unwrap();
    assert_eq!((forced.outcome, forced.version), (Outcome::Committed, Some(ViewVersion(2))));
    assert_eq!(site.view().await.values().map(|summary| summary.count).collect::<Vec<_>>(), [3]);
}

/// A reading with an event time this far ahead.
async fn reading_ahead(site: &Site, ahead: Span) {
    let time = (site.clock.now() + ahead).millis();
    let json = format!(r#"{{"device_id":"a","metric":"t","value":1,"event_time":{time}}}"#);
    site.send(wye_log::topics::READINGS, 0, json.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_not_computed_again_because_time_has_passed() {
    let site = Site::start(1).await;
    reading_ahead(&site, Span::from_secs(5)).await;
    site.archive([(0, 1)]).await;
    let runner = site.runner_with(MetricPlans::new(vec![], Arc::default()).unwrap()).await;
    assert_eq!(runner.run(RunOptions::default()).await.unwrap().outcome, Outcome::Committed);
    site.clock.advance_to(site.clock.now() + Span::from_days(2));
    assert_eq!(runner.run(RunOptions::default()).await.unwrap().outcome, Outcome::NothingNew);
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_that_a_definition_cannot_compute_are_in_the_record_of_the_run() {
    let site = Site::start(1).await;
    for (second, tags) in [(0, r#"{"level":"1"}"#), (1, r#"{"level":"high"}"#), (1, r#"{"level":"high"}"#)] {
        let time = 1_700_000_000_000i64 + second * 1_000;
        let json = format!(r#"{{"device_id":"a","metric":"t","value":1,"event_time":{time},"tags":{tags}}}"#);
        site.send(wye_log::topics::READINGS, 0, json.as_bytes()).await;
    }
    site.archive([(0, 3)]).await;
    let config = MetricConfig {
        name: "level".into(),
        value: Some("CAST(level AS DOUBLE)".into()),
        ..MetricConfig::default()
    };
    let plans = MetricPlans::new(vec![Definition::check(&config).unwrap()], Arc::default()).unwrap();
    let runner = site.runner_with(plans).await;
    runner.run(RunOptions::default()).await.unwrap();
    let view = BatchViews::open(&site.root).unwrap().latest().await.unwrap().unwrap();
    let failures = view.run.unwrap().failures;
    let failure = failures.of("level").unwrap();
    // The duplicate does not count.
    assert_eq!((failure.readings, failure.example.event_time), (1, Micros::from_secs(1_700_000_001)));
    assert!(failure.example.message.contains("high"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_covers_what_was_in_the_log_when_it_started() {
    let site = Site::start(1).await;
    for second in 0..3 {
        site.reading(0, "a", second, 1.0).await;
    }
    site.archive([(0, 3)]).await;
    for second in 3..5 {
        site.reading(0, "a", second, 1.0).await;
    }
    let runner = BatchRunner::open(site.parts(), &batch_settings(Duration::from_secs(60))).await.unwrap();
    let report = soon(async {
        tokio::select! {
            () = site.answer_requests(0, |through| through) => unreachable!("it never ends"),
            (report, ()) = async { tokio::join!(runner.run(RunOptions::default()), async {
                // The run asks before the archiver has everything.
                until("a request", async || site.control_view(0).await.asked.is_some()).await;
                site.archive([(0, 5)]).await;
            }) } => report.unwrap(),
        }
    })
    .await;
    assert_eq!((report.readings, report.horizon), (5, horizon([(0, 5)])));
    assert_eq!((report.unanswered, report.not_covered), (vec![], BTreeMap::new()));
    assert!(
        site.control_records(0)
            .await
            .iter()
            .all(|record| !matches!(record, ControlRecord::Epoch { generation: None, .. }))
    );
    // Where the log ends at the horizon, there is nothing to ask for.
    let records = site.control_records(0).await.len();
    assert_eq!(soon(runner.run(RunOptions::default())).await.unwrap().outcome, Outcome::NothingNew);
    assert_eq!(site.control_records(0).await.len(), records);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_takes_the_newest_start_that_is_archived_and_says_what_it_leaves_out() {
    let site = Site::start(1).await;
    for second in 0..5 {
        site.reading(0, "a", second, 1.0).await;
    }
    site.archive([(0, 5)]).await;
    site.control(
        0,
        &ControlRecord::Epoch { generation: None, start: Offset(3), announced_at: None, answers: None },
    )
    .await;
    let runner = site.runner().await;
    let report = soon(async {
        tokio::select! {
            () = site.answer_requests(0, |through| Offset(through.0 + 4)) => unreachable!("it never ends"),
            report = runner.run(RunOptions::default()) => report.unwrap(),
        }
    })
    .await;
    assert_eq!((report.readings, report.horizon), (3, horizon([(0, 3)])));
    assert_eq!((report.unanswered, report.not_covered), (vec![], [(KafkaPartition(0), 2)].into()));
    assert_eq!(site.control_view(0).await.horizon, Some(Offset(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_does_not_answer_is_named_and_what_is_archived_is_taken() {
    let site = Site::start(1).await;
    for second in 0..4 {
        site.reading(0, "a", second, 1.0).await;
    }
    site.archive([(0, 4)]).await;
    // A clock that is years ahead, or behind, does not tell whether there is an owner.
    for announced_at in [Some(Micros::MAX), None, Some(site.clock.now())] {
        let claim = ControlRecord::Claim { owner: "test".into() };
        let generation = Some(Generation(site.control(0, &claim).await));
        let start = Offset(2);
        site.control(0, &ControlRecord::Epoch { generation, start, announced_at, answers: None }).await;
    }
    let report = soon(site.runner().await.run(RunOptions::default())).await.unwrap();
    let expected = (4, horizon([(0, 4)]), vec![KafkaPartition(0)]);
    assert_eq!((report.readings, report.horizon, report.unanswered), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_runs_at_once_one_commits_and_the_other_fails_with_a_conflict() {
    let site = Site::start(1).await;
    site.reading(0, "a", 0, 1.0).await;
    site.archive([(0, 1)]).await;
    let (slow, quick) = (site.runner().await, site.runner().await);
    let Held { options, computes, release } = held();
    let (second, first) = soon(async {
        tokio::join!(slow.run(options), async {
            computes.notified().await;
            let first = quick.run(RunOptions::default()).await;
            drop(release);
            first
        })
    })
    .await;
    assert_eq!(first.unwrap().version, Some(ViewVersion(1)));
    let error = second.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("nothing is lost"), "{error}");
    assert_eq!(site.view().await.len(), 1);
    assert_eq!(slow.run(RunOptions::default()).await.unwrap().outcome, Outcome::NothingNew);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_before_its_commit_leaves_the_old_view() {
    let site = Site::start(1).await;
    site.reading(0, "a", 0, 1.0).await;
    site.archive([(0, 1)]).await;
    let runner = site.runner().await;
    runner.run(RunOptions::default()).await.unwrap();
    let old = site.view().await;

    site.reading(0, "a", 120, 1.0).await;
    site.archive([(0, 2)]).await;
    let Held { options, computes, release } = held();
    soon(async {
        tokio::select! {
            _ = runner.run(RunOptions { force: true, ..options }) => panic!("it was not released"),
            () = computes.notified() => {}
        }
    })
    .await;
    drop(release);
    assert_eq!(site.view().await, old);
    let report = runner.run(RunOptions { force: true, ..RunOptions::default() }).await.unwrap();
    assert_eq!((report.version, report.readings, report.windows), (Some(ViewVersion(2)), 2, 2));
}

/// Settings of a schedule; zero: runs start only on request.
fn every(interval: Duration) -> BatchSettings {
    BatchSettings { interval, ..batch_settings(PATIENCE) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_not_announced_is_announced_at_the_start() {
    let site = Site::start(2).await;
    let runner = Arc::new(site.runner().await);
    let plans = MetricPlans::new(vec![], Arc::default()).unwrap();
    let schema = Arc::clone(ViewSchema::of(&plans).arrow());
    let run = RunRecord {
        definitions: plans.fingerprint().to_string(),
        computation: COMPUTATION,
        ..RunRecord::default()
    };
    let horizon = horizon([(0, 4), (1, 6)]);
    let commit =
        ViewCommit { schema, files: vec![], replaces: Replaces::All, horizon, run, expected_version: None };
    BatchViews::open(&site.root).unwrap().commit(commit).await.unwrap();
    let (schedule, handle) = Schedule::new(Arc::clone(&runner), every(Duration::ZERO));
    let shutdown = CancellationToken::new();
    soon(async {
        tokio::join!(schedule.run(shutdown.clone()), async {
            until("it is announced", async || site.control_view(1).await.horizon == Some(Offset(6))).await;
            assert_eq!(handle.run_now(RunOptions::default()).await.unwrap().outcome, Outcome::NothingNew);
            shutdown.cancel();
        })
    })
    .await;
    assert_eq!(site.control_records(0).await, [ControlRecord::Horizon { offset: Offset(4), version: 1 }]);
    assert_eq!(handle.run_now(RunOptions::default()).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_definitions_are_computed_at_once() {
    let site = Site::start(1).await;
    site.reading(0, "a", 0, 2.0).await;
    site.archive([(0, 1)]).await;
    site.runner().await.run(RunOptions::default()).await.unwrap();
    let doubled =
        MetricConfig { name: "doubled".into(), value: Some("value * 2".into()), ..MetricConfig::default() };
    let plans = MetricPlans::new(vec![Definition::check(&doubled).unwrap()], Arc::default()).unwrap();
    let runner = Arc::new(site.runner_with(plans).await);
    let (schedule, _handle) = Schedule::new(Arc::clone(&runner), every(Duration::from_secs(3600)));
    let shutdown = CancellationToken::new();
    soon(async {
        tokio::join!(schedule.run(shutdown.clone()), async {
            until("it is computed", async || site.view().await.values().any(|summary| summary.max == 4.0))
                .await;
            shutdown.cancel();
        })
    })
    .await;
    assert!(!runner.has_other_definitions().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_another_version_is_computed_again() {
    let site = Site::start(1).await;
    reading_ahead(&site, Span::ZERO).await;
    site.archive([(0, 1)]).await;
    let runner = site.runner().await;
    assert_eq!(runner.run(RunOptions::default()).await.unwrap().outcome, Outcome::Committed);
    assert!(!runner.has_other_definitions().await.unwrap());
    let views = BatchViews::open(&site.root).unwrap();
    let view = views.latest().await.unwrap().unwrap();
    let commit = ViewCommit {
        schema: view.schema(),
        files: vec![],
        replaces: Replaces::All,
        horizon: view.horizon.clone(),
        run: RunRecord { computation: COMPUTATION + 1, ..view.run.clone().unwrap() },
        expected_version: Some(view.version()),
    };
    views.commit(commit).await.unwrap();
    assert!(runner.has_other_definitions().await.unwrap());
    assert_eq!(runner.run(RunOptions::default()).await.unwrap().outcome, Outcome::Committed);
    assert_eq!(site.view().await.len(), 1);
}

/// A reading of device `a`, so many seconds after the time of the first.
async fn reading_at(site: &Site, from: Micros, second: i64, value: f64) {
    let time = from.millis() + second * 1_000;
    let json = format!(r#"{{"device_id":"a","metric":"t","value":{value},"event_time":{time}}}"#);
    site.send(wye_log::topics::READINGS, 0, json.as_bytes()).await;
}

/// What the table of restatements has of the minute after a time: second of the window, reason, old and new sum.
async fn restated(site: &Site, from: Micros) -> Vec<(i64, String, Option<f64>, Option<f64>)> {
    let table = Restatements::open(&site.root).await.unwrap().provider().await.unwrap();
    let session = datafusion::prelude::SessionContext::new();
    let frame = session.read_table(table).unwrap();
    let mut found = Vec::new();
    for batch in frame.collect().await.unwrap() {
        let text = |name: &str, row: usize| {
            let column =
                datafusion::arrow::compute::cast(batch.column_by_name(name).unwrap(), &DataType::Utf8);
            let column = column.unwrap();
            let column = column.as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let sum = |json: Option<String>| {
            let value: serde_json::Value = serde_json::from_str(&json?).unwrap();
            value["sum"].as_f64()
        };
        for row in 0..batch.num_rows() {
            let start = batch.column_by_name("window_start").unwrap();
            let start = start.as_primitive::<TimestampMicrosecondType>().value(row) / 1_000_000;
            let (old, new) = (sum(text("old", row)), sum(text("new", row)));
            found.push((start - from.seconds(), text("reason", row).unwrap(), old, new));
        }
    }
    found.retain(|(second, ..)| *second < 60);
    found.sort_by(|a, b| a.partial_cmp(b).unwrap());
    found
}

fn by_second(value: &str) -> MetricPlans {
    let aggregates = Some(vec!["sum".to_owned()]);
    let (window, value) = (Some("1s".into()), Some(value.into()));
    let config = MetricConfig { name: "*".into(), window, value, aggregates, ..MetricConfig::default() };
    MetricPlans::new(vec![Definition::check(&config).unwrap()], Arc::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn settled_numbers_that_change_are_restated() {
    let site = Site::start(1).await;
    // The windows are 5 minutes old, and begin with a minute.
    let from = Micros((site.clock.now().0 / 60_000_000 - 5) * 60_000_000);
    for second in 0..4 {
        reading_at(&site, from, second, 1.0).await;
    }
    // Most readings come at once, so these are settled.
    for _ in 0..8 {
        for second in 0..999 {
            reading_at(&site, site.clock.now(), second % 2, 1.0).await;
        }
    }
    site.archive([(0, 7_996)]).await;
    let runner = site.runner_with(by_second("value")).await;
    let report = runner.run(RunOptions::default()).await.unwrap();
    assert_eq!((report.outcome, report.restated), (Outcome::Committed, 0));

    // One reading more in a window, and one in a window without any, which was no number; the others are as they were.
    reading_at(&site, from, 1, 10.0).await;
    let json =
        format!(r#"{{"device_id":"a","metric":"t","value":5,"event_time":{}}}"#, from.millis() + 1_500);
    site.send(wye_log::topics::READINGS, 0, json.as_bytes()).await;
    reading_at(&site, from, 9, 2.0).await;
    site.archive([(0, 7_999)]).await;
    let report = runner.run(RunOptions::default()).await.unwrap();
    // The first of the three is a conflict, which changes the score alone.
    let expected = (1, "late_readings".to_owned(), Some(1.0), Some(6.0));
    assert_eq!((report.restated, restated(&site, from).await), (1, vec![expected]));

    // Nothing is restated twice, by whomever.
    let latest = runner.latest().await.unwrap().unwrap();
    runner.add_restatements(latest.run.as_ref()).await.unwrap();
    let forced = runner.run(RunOptions { force: true, ..RunOptions::default() }).await.unwrap();
    assert_eq!((forced.outcome, forced.restated), (Outcome::Committed, 0));
    assert_eq!(restated(&site, from).await.len(), 1);

    let other = site.runner_with(by_second("value * 2")).await;
    let report = other.run(RunOptions::default()).await.unwrap();
    let found = restated(&site, from).await;
    let changed: Vec<_> = found.iter().filter(|row| row.1 == "definition").cloned().collect();
    let definition = |second, old| (second, "definition".to_owned(), Some(old), Some(2.0 * old));
    let expected =
        [(0, 1.0), (1, 6.0), (2, 1.0), (3, 1.0), (9, 2.0)].map(|(second, old)| definition(second, old));
    assert_eq!(changed, expected);
    assert!(report.restated >= 5);
}
