//! What answers say of themselves: complete only when nothing is missing, and until when a question waits.

use std::time::Duration;

use wye_domain::time::SECOND;

use super::*;
use crate::fixture::{self, Row, Site, begin, family, flush_through, summary};

fn reset(hub: &Hub, generation: i64, epoch: i64) {
    let definitions = hub.directory().plans().fingerprint();
    hub.apply(0, &Header::Begin { generation, epoch, definitions, reset: true }, &[]);
}

fn flushed(hub: &Hub, generation: i64, epoch: i64, through: i64) {
    let header = Header::Rows { generation, epoch, through, complete: true, newest_event_time: 0 };
    hub.apply(0, &header, &[]);
}

/// A hub with an owner that has brought nine records into answers.
fn served() -> Hub {
    let hub = fixture::hub();
    hub.set_caught_up();
    begin(&hub, 0);
    flushed(&hub, 1, 0, 9);
    hub.note_log_ends(&BTreeMap::from([(0, 9)]), SECOND);
    hub
}

fn reason(hub: &Hub, now: i64) -> Option<&'static str> {
    hub.coverage(now).reason().map(Reason::name)
}

#[test]
fn an_answer_is_complete_when_nothing_of_the_log_is_missing() {
    let hub = served();
    let coverage = hub.coverage(SECOND);
    assert!(coverage.complete());
    assert_eq!((coverage.covered().to_string(), coverage.lacking()), ("0:9".to_owned(), Some(0)));
    // What was known of the log a while ago says nothing of now.
    assert_eq!(reason(&hub, 3 * SECOND), Some("log_end_unknown"));
}

#[test]
fn an_answer_is_incomplete_while_a_rebuild_refills() {
    let hub = served();
    reset(&hub, 4, 0);
    assert_eq!(reason(&hub, SECOND), Some("rebuilding"));
    flushed(&hub, 4, 0, 5);
    assert_eq!(reason(&hub, SECOND), Some("rebuilding"));
    assert_eq!(hub.coverage(SECOND).lacking(), Some(4));
    flushed(&hub, 4, 0, 9);
    assert_eq!(reason(&hub, SECOND), None);
}

#[test]
fn an_answer_is_incomplete_while_the_speed_layer_is_dead() {
    let hub = served();
    for second in 2..14 {
        hub.note_log_ends(&BTreeMap::from([(0, 10 + second)]), second * SECOND);
    }
    let now = 13 * SECOND;
    let coverage = hub.coverage(now);
    assert_eq!((coverage.reason(), coverage.lacking()), (Some(Reason::Behind), Some(14)));
    assert_eq!(coverage.lacking_for(), 11 * SECOND);
    assert_eq!(hub.stalled(now), [0]);
    flushed(&hub, 1, 0, 12);
    assert!(hub.stalled(now).is_empty());
}

#[test]
fn an_answer_is_incomplete_right_after_a_load() {
    let hub = fixture::hub();
    hub.set_caught_up();
    hub.note_log_ends(&BTreeMap::from([(0, 0)]), SECOND);
    assert!(hub.coverage(SECOND).complete());
    hub.note_written(&"0:7".parse().unwrap(), SECOND);
    let coverage = hub.coverage(SECOND);
    assert_eq!((coverage.reason(), coverage.lacking()), (Some(Reason::Behind), Some(7)));
}

#[test]
fn a_damaged_epoch_makes_answers_incomplete() {
    let hub = served();
    hub.damage(0);
    assert_eq!(reason(&hub, SECOND), Some("damaged"));
    reset(&hub, 4, 0);
    flushed(&hub, 4, 0, 9);
    assert_eq!(reason(&hub, SECOND), None);
}

#[test]
fn a_record_is_covered_with_its_last_rows_only() {
    let row = RealtimeRow {
        series: wye_domain::series::SeriesId(0),
        window_start: 0,
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
    let header = Header::Rows { generation: 1, epoch: 0, through: 9, complete: true, newest_event_time: 0 };
    assert!(matches!(incomplete(&header), Header::Rows { complete: false, .. }));
}

#[tokio::test]
async fn a_question_waits_until_its_position_is_covered() {
    let hub = Arc::new(served());
    let position: Position = "0:12".parse().unwrap();
    let soon = Instant::now() + Duration::from_millis(20);
    assert!(!hub.until_covered(&position, soon).await);
    let late = Instant::now() + Duration::from_secs(60);
    let (asked, writer) = (Arc::clone(&hub), Arc::clone(&hub));
    let write = async {
        tokio::task::yield_now().await;
        flushed(&writer, 1, 0, 11);
        tokio::task::yield_now().await;
        flushed(&writer, 1, 0, 12);
    };
    let (covered, ()) = tokio::join!(asked.until_covered(&position, late), write);
    assert!(covered);
    assert!(!hub.until_covered(&"1:1".parse().unwrap(), Instant::now()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_batch_view_waits_for_the_epochs_that_it_would_lose() {
    let site = Site::new().await;
    let row: Vec<Row> = vec![(family("t", "a"), 0, summary(&[(1.0, 1)]))];
    begin(&site.hub, 0);
    flush_through(&site.hub, 0, 9, &row);
    // An epoch starts inside of what the rows hold: its owner has to bring the rest again.
    let horizon = BTreeMap::from([(0, 6)]);
    assert_eq!(site.hub.would_lose(&horizon), [0]);
    assert!(site.hub.would_lose(&BTreeMap::from([(0, 9)])).is_empty());
    begin(&site.hub, 6);
    assert_eq!(site.hub.would_lose(&horizon), [0]);
    flush_through(&site.hub, 6, 9, &row);
    assert!(site.hub.would_lose(&horizon).is_empty());
}
