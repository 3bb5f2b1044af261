//! Producers with transactions, which only a real Kafka has: their ends take offsets that hold no record.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::{DEADLINE, Target, beside, new_topic, targets};
use crate::reader::Reader;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
enum End {
    Commit,
    Abort,
}

fn write(producer: &BaseProducer, topic: &str, payload: &str, end: End) {
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<(), str>::to(topic).partition(0).payload(payload)).unwrap();
    producer.flush(PATIENCE).unwrap();
    match end {
        End::Commit => producer.commit_transaction(PATIENCE).unwrap(),
        End::Abort => producer.abort_transaction(PATIENCE).unwrap(),
    }
}

/// Reads until the reader stands at the end of the log.
fn read_to_the_end(reader: &mut Reader, end: i64) -> Vec<String> {
    let (mut read, since) = (Vec::new(), Instant::now());
    while reader.position(0) != Some(end) {
        assert!(since.elapsed() < DEADLINE, "at {:?} of {end} after {read:?}", reader.position(0));
        let take = &mut |message: crate::reader::Message<'_>| {
            read.push(String::from_utf8(message.payload.to_vec()).unwrap());
        };
        reader.poll_batch(1000, Duration::from_millis(100), take).unwrap();
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_comes_to_the_end_past_what_transactions_leave() {
    for Target { log, _embedded } in targets().await {
        if _embedded.is_some() {
            continue;
        }
        let topic = new_topic(&log, 1).await;
        beside(move || {
            let producer: BaseProducer =
                log.config().client(&[("transactional.id", topic)]).create().unwrap();
            producer.init_transactions(PATIENCE).unwrap();
            let mut reader = Reader::new(&log, topic).unwrap();
            reader.assign(&[(0, 0)]).unwrap();
            let transactions = [
                ("a", End::Commit, &["a"][..]),
                ("b", End::Abort, &[]),
                ("c", End::Commit, &["c"]),
                ("d", End::Commit, &["d"]),
            ];
            for (number, (payload, end, expected)) in (1..).zip(transactions) {
                write(&producer, topic, payload, end);
                // Each takes an offset for its record and one for its end, which is written a little later.
                let since = Instant::now();
                while log.offsets_blocking(topic, 0).unwrap().high < 2 * number {
                    assert!(since.elapsed() < DEADLINE, "{payload}");
                }
                assert_eq!(read_to_the_end(&mut reader, 2 * number), expected, "{payload}");
            }
        })
        .await;
    }
}
