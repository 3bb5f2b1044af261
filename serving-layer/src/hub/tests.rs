//! What answers say of themselves: complete only when nothing is missing, and until when a question waits.

use std::time::Duration;

use wye_domain::place::{Generation, Offset};
use wye_domain::summary::Summary;
use wye_domain::time::{Span, WindowSize};
use wye_metrics::merge::Source;

use super::*;
use crate::coverage::Reason;
use crate::snapshot::{MemoryView, RunFacts};
use crate::testing::{
    self, OWNER, PARTITION, Row, Site, begin, family, flush_through, flushed, horizon, log_ends, minute,
    summary, view_rows,
};
use crate::windows::Question;

fn at(seconds: i64) -> Micros {
    Micros::EPOCH + Span::from_secs(seconds)
}

/// The owner after [`OWNER`].
const NEXT_OWNER: Generation = Generation(Offset(4));

fn reset(hub: &Hub, generation: Generation, epoch: i64) {
    let definitions = hub.directory().plans().fingerprint();
    let header = Header::Begin { generation, epoch: Offset(epoch), definitions, reset: true };
    hub.apply(PARTITION, &header, &[]);
}

fn flush(hub: &Hub, generation: Generation, epoch: i64, through: i64) {
    hub.apply(PARTITION, &flushed(generation, epoch, through), &[]);
}

/// A hub with an owner that has brought nine records into answers.
fn served() -> Hub {
    let hub = testing::hub();
    hub.step(Input::CaughtUp);
    begin(&hub, 0);
    flush(&hub, OWNER, 0, 9);
    log_ends(&hub, 9, at(1));
    hub
}

fn coverage(hub: &Hub, seconds: i64) -> Coverage {
    hub.read().coverage(at(seconds))
}

fn reason(hub: &Hub, seconds: i64) -> Option<&'static str> {
    coverage(hub, seconds).reason().map(Reason::name)
}

#[test]
fn an_answer_is_complete_when_nothing_of_the_log_is_missing() {
    let hub = served();
    let coverage = coverage(&hub, 1);
    assert!(coverage.complete());
    assert_eq!((coverage.covered().to_string(), coverage.lacking()), ("0:9".to_owned(), Some(0)));
    // An old answer of the log says nothing about its end now.
    assert_eq!(reason(&hub, 3), Some("log_end_unknown"));
}

#[test]
fn an_answer_is_incomplete_while_a_rebuild_refills() {
    let hub = served();
    reset(&hub, NEXT_OWNER, 0);
    assert_eq!(reason(&hub, 1), Some("rebuilding"));
    flush(&hub, NEXT_OWNER, 0, 5);
    assert_eq!(reason(&hub, 1), Some("rebuilding"));
    assert_eq!(coverage(&hub, 1).lacking(), Some(4));
    flush(&hub, NEXT_OWNER, 0, 9);
    assert_eq!(reason(&hub, 1), None);
}

#[test]
fn an_answer_is_incomplete_while_the_speed_layer_is_dead() {
    let hub = served();
    for second in 2..14 {
        log_ends(&hub, 10 + second, at(second));
    }
    let coverage = coverage(&hub, 13);
    assert_eq!((coverage.reason(), coverage.lacking()), (Some(Reason::Behind), Some(14)));
    assert_eq!(coverage.lacking_for(), Span::from_secs(11));
    assert_eq!(hub.read().stalled(at(13)), [PARTITION]);
    flush(&hub, OWNER, 0, 12);
    assert!(hub.read().stalled(at(13)).is_empty());
}

#[test]
fn an_answer_is_incomplete_right_after_a_load() {
    let hub = testing::hub();
    hub.step(Input::CaughtUp);
    log_ends(&hub, 0, at(1));
    assert!(coverage(&hub, 1).complete());
    hub.step(Input::Written { position: &"0:7".parse().unwrap(), at: at(1) });
    let coverage = coverage(&hub, 1);
    assert_eq!((coverage.reason(), coverage.lacking()), (Some(Reason::Behind), Some(7)));
}

#[test]
fn readings_that_were_deleted_are_missing_until_it_is_certain_that_no_batch_view_has_them() {
    let hub = testing::hub();
    hub.step(Input::CaughtUp);
    hub.step(Input::ViewsChecked);
    log_ends(&hub, 9, at(1));
    assert_eq!(hub.read().without_start(at(1)), [PARTITION]);
    // A batch view covers everything since a moment ago, and the log has deleted it.
    hub.step(Input::LogStart { kafka_partition: PARTITION, oldest: Offset(9) });
    assert_eq!(reason(&hub, 1), Some("behind"));
    // This check had begun before the batch view was there.
    hub.step(Input::ViewsChecked);
    assert_eq!((reason(&hub, 1), coverage(&hub, 1).lacking()), (Some("behind"), Some(9)));
    // There is none: something else has deleted them.
    hub.step(Input::ViewsChecked);
    assert_eq!(reason(&hub, 1), None);
}

#[test]
fn rows_from_before_deleted_records_do_not_count() {
    let hub = served();
    // The records in between, with a reset, were deleted before they were read. What is left begins with the epoch at the
    // newest horizon, 5, which an older owner had begun too.
    hub.step(Input::FromStart { kafka_partition: PARTITION });
    begin(&hub, 5);
    flush(&hub, OWNER, 5, 7);
    begin(&hub, 7);
    flush(&hub, OWNER, 7, 9);
    assert_eq!(reason(&hub, 1), Some("gap"));
    let view = MemoryView {
        version: ViewVersion(1),
        horizon: horizon(5),
        facts: RunFacts::of(&testing::run(hub.directory().plans())),
        rows: Vec::new(),
    };
    let snapshot = BatchSnapshot::in_memory(view, hub.directory()).unwrap();
    assert!(hub.read().would_lose(snapshot.horizon()).is_empty());
    hub.step(Input::BatchView(Arc::new(snapshot)));
    assert_eq!(reason(&hub, 1), None);
}

#[test]
fn a_damaged_epoch_makes_answers_incomplete() {
    let hub = served();
    hub.step(Input::Undecodable { kafka_partition: PARTITION });
    assert_eq!(reason(&hub, 1), Some("damaged"));
    reset(&hub, NEXT_OWNER, 0);
    flush(&hub, NEXT_OWNER, 0, 9);
    assert_eq!(reason(&hub, 1), None);
}

#[test]
fn a_record_is_covered_with_its_last_rows_only() {
    let row = RealtimeRow {
        series: wye_domain::series::SeriesId(0),
        window_start: minute(0),
        summary: wye_domain::summary::Summary::EMPTY,
    };
    for (rows, pieces) in
        [(0, vec![]), (1, vec![]), (2_000, vec![]), (2_001, vec![2_000]), (6_000, vec![2_000, 2_000])]
    {
        let rows = vec![row.clone(); rows];
        let (last, before) = in_turns(&rows);
        let before: Vec<usize> = before.map(<[RealtimeRow]>::len).collect();
        assert_eq!(before, pieces);
        assert_eq!(last.len() + before.iter().sum::<usize>(), rows.len());
    }
    assert!(matches!(incomplete(&flushed(OWNER, 0, 9)), Header::Rows { complete: false, .. }));
}

#[test]
fn a_state_is_driven_and_asked_without_a_runtime() {
    let directory = testing::directory();
    let plans = Arc::clone(directory.plans());
    let mut state = HubState::new(&directory, 1);
    assert_eq!(state.starting(), Some(Starting::RealtimeViews));
    for input in [Input::CaughtUp, Input::ViewsChecked] {
        assert!(state.step(input.clone()).wake);
        assert!(!state.step(input).wake, "nothing has changed");
    }
    assert_eq!(state.starting(), None);
    let before = state.edition();
    // The batch view has two readings of a window, and realtime rows a third one.
    let batch = [(family("t", "a"), minute(0), summary(&[(1.0, 1), (2.0, 2)]))];
    let view = MemoryView {
        version: ViewVersion(0),
        horizon: horizon(2),
        facts: RunFacts { as_of: Some(at(5)), ..RunFacts::of(&testing::run(&plans)) },
        rows: vec![view_rows(&plans, &batch)],
    };
    let snapshot = BatchSnapshot::in_memory(view, &directory).unwrap();
    assert!(state.would_lose(snapshot.horizon()).is_empty());
    assert!(state.step(Input::BatchView(Arc::new(snapshot))).wake);
    assert_ne!(state.edition(), before, "the first version is not the same as none");
    let series = directory.resolve([family("t", "a")].iter().map(String::as_str))[0].unwrap();
    let definitions = plans.fingerprint();
    let header = Header::Begin { generation: OWNER, epoch: Offset(2), definitions, reset: false };
    let begin = Input::Record { kafka_partition: PARTITION, header: &header, rows: &[] };
    assert_eq!(state.step(begin).applied, Some(Applied::Taken));
    let header = flushed(OWNER, 2, 3);
    let rows = [RealtimeRow { series, window_start: minute(0), summary: summary(&[(9.0, 3)]) }];
    let _ = state.step(Input::Record { kafka_partition: PARTITION, header: &header, rows: &rows });
    let ends = [(PARTITION, Offset(3))].into();
    let _ = state.step(Input::LogEnds { ends: &ends, asked_at: at(9) });

    let capture = state.capture(at(9));
    assert!(capture.coverage.complete());
    assert_eq!(capture.coverage.covered().to_string(), "0:3");
    let question =
        Question { infos: directory.infos(), windows: minute(-1)..minute(1), step: WindowSize::MINUTE };
    let merged = capture.merged(question, &directory).unwrap();
    let [(info, answers)] = merged.as_slice() else { panic!("{merged:?}") };
    let [answer] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((info.id, answer.window_start, answer.source), (series, minute(0), Source::Merged));
    assert_eq!(answer.summary, {
        let mut all = summary(&[(9.0, 3)]);
        all.merge(&summary(&[(1.0, 1), (2.0, 2)]));
        all
    });
    let current = state.current(&directory.infos(), at(9));
    assert_eq!(current.answers[0].1, *answer);
    assert_eq!(state.available(&directory.infos()), Some(minute(0)..minute(1)));
}

#[test]
fn conflicts_of_a_batch_row_without_readings_count_in_the_newest_window() {
    let hub = testing::hub();
    let plans = Arc::clone(hub.directory().plans());
    let conflicts = |conflicts| Summary { conflicts, ..Summary::EMPTY };
    let batch = [
        (family("t", "a"), minute(0), summary(&[(1.0, 1)])),
        (family("t", "a"), minute(1), conflicts(2)),
        (family("t", "b"), minute(-1), conflicts(3)),
    ];
    let view = MemoryView {
        version: ViewVersion(1),
        horizon: horizon(2),
        facts: RunFacts { as_of: Some(at(5)), ..RunFacts::of(&testing::run(&plans)) },
        rows: vec![view_rows(&plans, &batch)],
    };
    let snapshot = BatchSnapshot::in_memory(view, hub.directory()).unwrap();
    hub.step(Input::BatchView(Arc::new(snapshot)));
    let newest = |hub: &Hub| -> Vec<(Micros, u64, Source)> {
        let current = hub.read().current(&hub.directory().infos(), at(9));
        let answers = current.answers.into_iter();
        answers.map(|(_, one)| (one.window_start, one.summary.conflicts, one.source)).collect()
    };
    assert_eq!(newest(&hub), [(minute(0), 0, Source::Batch)]);
    begin(&hub, 2);
    let rows = [
        (family("t", "a"), minute(1), summary(&[(9.0, 61)])),
        (family("t", "b"), minute(-1), summary(&[(9.0, -59)])),
    ];
    flush_through(&hub, 2, 3, &rows);
    assert_eq!(newest(&hub), [(minute(1), 2, Source::Merged), (minute(-1), 3, Source::Merged)]);
}

#[tokio::test]
async fn a_question_waits_until_its_position_is_covered() {
    let hub = Arc::new(served());
    let position: Position = "0:12".parse().unwrap();
    assert!(!hub.until_covered(&position, Duration::from_millis(20)).await);
    let (asked, writer) = (Arc::clone(&hub), Arc::clone(&hub));
    let write = async {
        tokio::task::yield_now().await;
        flush(&writer, OWNER, 0, 11);
        tokio::task::yield_now().await;
        flush(&writer, OWNER, 0, 12);
    };
    let (covered, ()) = tokio::join!(asked.until_covered(&position, Duration::from_secs(60)), write);
    assert!(covered);
    assert!(!hub.until_covered(&"1:1".parse().unwrap(), Duration::ZERO).await);
}

/// The Kafka partitions of which answers with a horizon would cover less.
fn lost_at(hub: &Hub, offset: i64) -> Vec<KafkaPartition> {
    hub.read().would_lose(&horizon(offset))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_batch_view_waits_for_the_epochs_that_it_would_lose() {
    let site = Site::new().await;
    let row: Vec<Row> = vec![(family("t", "a"), minute(0), summary(&[(1.0, 1)]))];
    begin(&site.hub, 0);
    flush_through(&site.hub, 0, 9, &row);
    // An epoch starts inside of what the rows hold: its owner has to compute the rest again.
    assert_eq!(lost_at(&site.hub, 6), [PARTITION]);
    assert!(lost_at(&site.hub, 9).is_empty());
    begin(&site.hub, 6);
    assert_eq!(lost_at(&site.hub, 6), [PARTITION]);
    flush_through(&site.hub, 6, 9, &row);
    assert!(lost_at(&site.hub, 6).is_empty());
}
