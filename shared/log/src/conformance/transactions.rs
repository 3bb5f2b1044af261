//! Producers with transactions, which only a real Kafka supports: the end of a transaction takes an offset without a
//! record.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use wye_domain::place::Offset;

use super::{DEADLINE, FIRST, Target, new_topic, on_blocking_thread, targets};
use crate::reader::Reader;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
enum End {
    Commit,
    Abort,
}

fn write(producer: &BaseProducer, topic: &str, payload: &str, end: End) {
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<(), str>::to(topic).partition(0).payload(payload)).unwrap();
    producer.flush(TIMEOUT).unwrap();
    match end {
        End::Commit => producer.commit_transaction(TIMEOUT).unwrap(),
        End::Abort => producer.abort_transaction(TIMEOUT).unwrap(),
    }
}

/// Reads until the position is the end of the log.
fn read_to_the_end(reader: &mut Reader, end: Offset) -> Vec<String> {
    let (mut read, since) = (Vec::new(), Instant::now());
    while reader.position(FIRST) != Some(end) {
        assert!(since.elapsed() < DEADLINE, "at {:?} of {end} after {read:?}", reader.position(FIRST));
        let take = &mut |message: crate::reader::Message<'_>| {
            read.push(String::from_utf8(message.payload.to_vec()).unwrap());
        };
        reader.poll_batch(1000, Duration::from_millis(100), take).unwrap();
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reaches_the_end_after_transactions() {
    for Target { log, _embedded } in targets().await {
        if _embedded.is_some() {
            continue;
        }
        let topic = new_topic(&log, 1).await;
        on_blocking_thread(move || {
            let producer: BaseProducer =
                log.config().client(&[("transactional.id", topic)]).create().unwrap();
            producer.init_transactions(TIMEOUT).unwrap();
            let mut reader = Reader::new(&log, topic).unwrap();
            reader.assign(&[(FIRST, Offset(0))]).unwrap();
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
                while log.offsets_blocking(topic, FIRST).unwrap().high < Offset(2 * number) {
                    assert!(since.elapsed() < DEADLINE, "{payload}");
                }
                assert_eq!(read_to_the_end(&mut reader, Offset(2 * number)), expected, "{payload}");
            }
        })
        .await;
    }
}
