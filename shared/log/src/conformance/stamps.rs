//! Ingest time is the log's: what a producer stamps on its records changes nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::producer::{FutureProducer, FutureRecord};

use super::{Target, beside, new_topic, targets};
use crate::reader::{first_offset_since, read_all};

/// 1970, 2099, and the end of time, in ms.
const STAMPS: [i64; 3] = [1, 4_070_908_800_000, i64::MAX];

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_producer_changes_nothing() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        let producer: FutureProducer = log.config().client(&[]).create().unwrap();
        let before = now();
        for stamp in STAMPS {
            let record: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(topic).partition(0).payload(&b"x"[..]).timestamp(stamp);
            producer.send(record, Duration::from_secs(30)).await.unwrap();
        }
        let after = now();
        beside(move || {
            let mut stamps = Vec::new();
            read_all(&log, (topic, 0), None, |message| stamps.push(message.timestamp_ms)).unwrap();
            assert_eq!(stamps.len(), STAMPS.len());
            // The broker's clock is this machine's.
            assert!(
                stamps.iter().all(|stamp| (before..=after).contains(stamp)),
                "{before} {stamps:?} {after}"
            );
            let first = |since| first_offset_since(&log, (topic, 0), since).unwrap();
            assert_eq!((first(before), first(after + 1)), (Some(0), None));
        })
        .await;
    }
}
