//! Everything in the log comes into the tables once, with several archivers and after failures too.

use arrow::array::AsArray;
use datafusion::prelude::SessionContext;
use tokio_util::sync::CancellationToken;
use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::time::Span;
use wye_log::reader::read_all;
use wye_log::topics::{DEAD_LETTER, READINGS};
use wye_runtime::clock::{Clock, SystemClock};
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;

use crate::settings::ArchiveSettings;
use crate::testing::{ARCHIVE, Site, soon, until};

/// Kafka partition, offset and value of every reading, in order.
async fn stored(site: &Site) -> Vec<(i32, i64, f64)> {
    let readings = Readings::open(&site.root).await.unwrap().snapshot().await.unwrap();
    let context = SessionContext::new();
    context.register_table("readings", readings.provider().await.unwrap()).unwrap();
    let sql = "SELECT kafka_partition, kafka_offset, value FROM readings ORDER BY 1, 2";
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        let kafka_partition = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>();
        let offset = batch.column(1).as_primitive::<arrow::datatypes::Int64Type>();
        let value = batch.column(2).as_primitive::<arrow::datatypes::Float64Type>();
        rows.extend(
            (0..batch.num_rows())
                .map(|row| (kafka_partition.value(row), offset.value(row), value.value(row))),
        );
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_archived_once_and_invalid_ones_are_passed_over() {
    let site = Site::start(2).await;
    site.reading(0, "a", 0, 1.0).await;
    site.send(READINGS, 0, b"no reading").await;
    site.reading(1, "b", 0, 2.0).await;
    site.archive(&[(0, 2), (1, 1)]).await;
    site.reading(0, "a", 1, 3.0).await;
    site.send(READINGS, 1, b"{}").await;
    site.archive(&[(0, 3), (1, 2)]).await;
    assert_eq!(stored(&site).await, [(0, 0, 1.0), (0, 2, 3.0), (1, 0, 2.0)]);
}

/// The letters in the topic: Kafka partition, offset and index of what they are about, reason, bytes.
async fn letters(site: &Site) -> Vec<(i32, i64, u32, String, Vec<u8>)> {
    let log = site.log.clone();
    tokio::task::spawn_blocking(move || {
        let mut letters = Vec::new();
        read_all(&log, (DEAD_LETTER, 0), None, |message| {
            let context = Context::decode(message.header(CONTEXT_HEADER).unwrap()).unwrap();
            let (kafka_partition, offset) = (context.kafka_partition.unwrap(), context.kafka_offset.unwrap());
            let payload = message.payload.to_owned();
            letters.push((kafka_partition, offset, context.item_index, context.reason, payload));
        })
        .unwrap();
        letters
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_reading_becomes_a_dead_letter_once_without_a_speed_layer() {
    let site = Site::start(2).await;
    site.send(READINGS, 0, b"{").await;
    site.reading(0, "a", 0, 1.0).await;
    site.send(READINGS, 1, br#"[{"device_id":"d"}, 7]"#).await;
    site.archive(&[(0, 2), (1, 1)]).await;
    site.send(READINGS, 0, b"").await;
    site.archive(&[(0, 3), (1, 1)]).await;
    let expected: [(i32, i64, u32, &str, &[u8]); 4] = [
        (0, 0, 0, "not_json", b"{"),
        (0, 2, 0, "empty", b""),
        (1, 0, 0, "missing_field", br#"{"device_id":"d"}"#),
        (1, 0, 1, "wrong_type", b"7"),
    ];
    let mut found = letters(&site).await;
    found.sort();
    let expected = expected.map(|(p, o, i, reason, bytes)| (p, o, i, reason.to_owned(), bytes.to_owned()));
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_appended_at_the_shutdown() {
    let site = Site::start(1).await;
    let shutdown = CancellationToken::new();
    let settings = ArchiveSettings { interval: std::time::Duration::from_secs(3600), ..ARCHIVE };
    let archiver = site.archiver(settings).await;
    soon(async {
        tokio::join!(archiver.run(shutdown.clone()), async {
            for second in 0..1_000 {
                site.reading(0, "a", second, 1.0).await;
            }
            until("the full buffer is appended", async || !site.archived().await.is_empty()).await;
            site.reading(0, "a", 1_000, 1.0).await;
            site.reading(0, "a", 1_001, 1.0).await;
            shutdown.cancel();
        })
    })
    .await;
    let archived = site.archived().await[&0];
    assert!(archived >= 1_000);
    assert_eq!(stored(&site).await.len() as i64, archived);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_archivers_at_once_do_no_harm() {
    let site = Site::start(2).await;
    let shutdown = CancellationToken::new();
    let (one, other) = (site.archiver(ARCHIVE).await, site.archiver(ARCHIVE).await);
    soon(async {
        tokio::join!(one.run(shutdown.clone()), other.run(shutdown.clone()), async {
            for second in 0..200 {
                site.reading((second % 2) as i32, "a", second, second as f64).await;
            }
            let all = [(0, 100), (1, 100)].into();
            until("everything is archived", async || site.archived().await == all).await;
            shutdown.cancel();
        })
    })
    .await;
    let expected: Vec<_> =
        (0..2).flat_map(|p| (0..100).map(move |o| (p, o, (o * 2 + i64::from(p)) as f64))).collect();
    assert_eq!(stored(&site).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_before_it_was_archived_is_counted_and_passed_over() {
    let site = Site::start(1).await;
    site.reading(0, "a", 0, 0.0).await;
    site.archive(&[(0, 1)]).await;
    for second in 1..10 {
        site.reading(0, "a", second, second as f64).await;
    }
    site.log.delete_records(READINGS, 0, 6).await.unwrap();
    site.archive(&[(0, 10)]).await;
    let offsets: Vec<i64> = stored(&site).await.iter().map(|row| row.1).collect();
    assert_eq!(offsets, [0, 6, 7, 8, 9]);
    let text = site.telemetry.render();
    assert!(text.contains("wye_archive_lost_messages_total{kafka_partition=\"0\"} 5"), "{text}");
}

fn context(kafka_offset: i64) -> Context {
    Context {
        received_time: 5_000_000,
        reason: "not_json".into(),
        detail: "expected value".into(),
        source: "kafka".into(),
        kafka_partition: Some(0),
        kafka_offset: Some(kafka_offset),
        item_index: 2,
    }
}

/// Archives until `end` letters of the topic are archived.
async fn archive_letters(site: &Site, end: i64, settings: ArchiveSettings) -> DeadLetters {
    let letters = DeadLetters::open(&site.root).await.unwrap();
    let shutdown = CancellationToken::new();
    let archiver = site.archiver(settings).await;
    soon(async {
        tokio::join!(archiver.run(shutdown.clone()), async {
            until("all letters are archived", async || {
                letters.archived().await.unwrap() == [(0, end)].into()
            })
            .await;
            shutdown.cancel();
        })
    })
    .await;
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_archived_once_with_their_bytes() {
    let site = Site::start(1).await;
    site.dead_letter(&context(77), b"hello").await;
    site.send(DEAD_LETTER, 0, b"something else").await;
    // An archiver that resumed at an earlier offset has rejected it again.
    site.dead_letter(&context(77), b"hello").await;
    let letters = archive_letters(&site, 3, ARCHIVE).await;
    let session = SessionContext::new();
    session.register_table("dead_letters", letters.provider().await.unwrap()).unwrap();
    let sql = "SELECT reason, kafka_topic, kafka_offset, arrow_cast(payload, 'Utf8') AS payload FROM dead_letters ORDER BY letter_offset";
    let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
    let table = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
    for cell in ["not_json ", "| readings ", "| 77 ", "| hello ", "not_a_dead_letter", "something else"] {
        assert_eq!(table.matches(cell).count(), 1, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_letters_leave_their_topic_once_they_are_old_enough() {
    let site = Site::start(1).await;
    for offset in 0..5 {
        site.dead_letter(&context(offset), b"{").await;
    }
    archive_letters(&site, 5, ARCHIVE).await;
    assert_eq!(site.log.offsets(DEAD_LETTER, 0).await.unwrap().low, 0);
    site.dead_letter(&context(5), b"{").await;
    site.clock.advance_to(SystemClock::default().now() + Span::from_secs(1));
    let settings = ArchiveSettings { keep_dead_letters: std::time::Duration::ZERO, ..ARCHIVE };
    archive_letters(&site, 6, settings).await;
    assert_eq!(site.log.offsets(DEAD_LETTER, 0).await.unwrap().low, 6);
}
