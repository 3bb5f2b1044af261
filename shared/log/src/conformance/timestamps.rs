//! Ingest time is set by the log: timestamps of producers are ignored.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use wye_domain::place::Offset;
use wye_domain::time::Span;

use super::{FIRST, Target, new_topic, now, on_blocking_thread, targets};
use crate::reader::{first_offset_since, read_all};

/// 1970, 2099, and the largest, in ms.
const TIMESTAMPS: [i64; 3] = [1, 4_070_908_800_000, i64::MAX];

#[tokio::test(flavor = "multi_thread")]
async fn timestamps_of_a_producer_are_ignored() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        let producer: FutureProducer = log.config().client(&[]).create().unwrap();
        let before = now();
        for timestamp in TIMESTAMPS {
            let record: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(topic).partition(0).payload(&b"x"[..]).timestamp(timestamp);
            producer.send(record, Duration::from_secs(30)).await.unwrap();
        }
        let after = now();
        on_blocking_thread(move || {
            let mut times = Vec::new();
            read_all(&log, (topic, FIRST), None, |message| times.push(message.ingest_time)).unwrap();
            assert_eq!(times.len(), TIMESTAMPS.len());
            // The broker runs on this machine, so it has the same clock.
            assert!(
                times.iter().all(|time| (before..=after).contains(time)),
                "{before:?} {times:?} {after:?}"
            );
            let found = [before, after + Span::from_millis(1)]
                .map(|since| first_offset_since(&log, (topic, FIRST), since).unwrap());
            assert_eq!(found, [Some(Offset(0)), None]);
        })
        .await;
    }
}
