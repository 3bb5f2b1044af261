//! Record batches that no client can decode: a reader skips them and no other records. They are written into the segment
//! file of the embedded broker, since a broker rejects them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wye_broker::Port;
use wye_domain::place::Offset;

use super::embedded_only::start;
use super::{DEADLINE, FIRST, new_topic, offsets, on_blocking_thread, write_numbers};
use crate::LogError;
use crate::client::Log;
use crate::reader::{Reader, read_all};

/// Codecs of a record batch.
const NONE: i16 = 0;
const GZIP: i16 = 1;
const SNAPPY: i16 = 2;
const LZ4: i16 = 3;
const ZSTD: i16 = 4;
const UNKNOWN: i16 = 7;

/// A record batch (magic 2) with a correct checksum and any body, for `records` offsets.
fn batch(base_offset: i64, codec: i16, records: i32, body: &[u8]) -> Vec<u8> {
    let now = 1_750_000_000_000_i64;
    let mut checked = Vec::new();
    checked.extend(codec.to_be_bytes());
    checked.extend((records - 1).to_be_bytes());
    checked.extend(now.to_be_bytes());
    checked.extend(now.to_be_bytes());
    // No idempotent producer.
    checked.extend((-1_i64).to_be_bytes());
    checked.extend((-1_i16).to_be_bytes());
    checked.extend((-1_i32).to_be_bytes());
    checked.extend(records.to_be_bytes());
    checked.extend(body);
    let mut batch = Vec::new();
    batch.extend(base_offset.to_be_bytes());
    batch.extend((checked.len() as i32 + 9).to_be_bytes());
    batch.extend(0_i32.to_be_bytes());
    batch.push(2);
    batch.extend(crc32c::crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    batch
}

/// A valid record with a small payload.
fn record(offset_delta: u8, payload: &[u8]) -> Vec<u8> {
    // Attributes, time delta, offset delta, no key, the payload, no headers; numbers are zigzag varints below 64.
    let mut fields = vec![0, 0, offset_delta * 2, 1, payload.len() as u8 * 2];
    fields.extend(payload);
    fields.push(0);
    let mut record = vec![fields.len() as u8 * 2];
    record.extend(fields);
    record
}

fn records(first: i64, count: u8) -> Vec<u8> {
    (0..count).flat_map(|delta| record(delta, (first + i64::from(delta)).to_string().as_bytes())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The newest segment file of a Kafka partition.
fn newest_segment(directory: &Path, topic: &str) -> PathBuf {
    let files = fs::read_dir(directory.join(format!("{topic}-0"))).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

/// Reads the first Kafka partition to its end: the offsets of its records, and the ranges that were skipped. Each payload
/// is its offset.
fn read_through(log: &Log, topic: &str) -> (Vec<Offset>, Vec<Range<i64>>) {
    let high = log.offsets_blocking(topic, FIRST).unwrap().high;
    let mut reader = Reader::new(log, topic).unwrap();
    reader.assign(&[(FIRST, Offset(0))]).unwrap();
    let (mut offsets, mut skipped, since) = (Vec::new(), Vec::<Range<i64>>::new(), Instant::now());
    while reader.position(FIRST).unwrap() < high {
        assert!(since.elapsed() < DEADLINE, "at {:?} of {high}", reader.position(FIRST));
        let polled = reader.poll_batch(1000, Duration::from_millis(100), &mut |message| {
            assert_eq!(message.payload, message.offset.to_string().as_bytes());
            offsets.push(message.offset);
        });
        match polled {
            Ok(_) => {}
            Err(LogError::Unreadable { kafka_partition: FIRST, offsets, reason, .. }) => {
                assert_eq!(reader.position(FIRST), Some(offsets.end));
                assert!(!reason.is_empty());
                match skipped.last_mut() {
                    Some(last) if last.end == offsets.start.0 => last.end = offsets.end.0,
                    _ => skipped.push(offsets.start.0..offsets.end.0),
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    (offsets, skipped)
}

/// A kind of batch that cannot be decoded.
struct Kind {
    name: &'static str,
    codec: i16,
    /// The body of five records from an offset on.
    body: fn(i64) -> Vec<u8>,
    /// How many of them can be decoded.
    readable: i64,
}

const KINDS: [Kind; 10] = [
    Kind { name: "an unknown codec", codec: UNKNOWN, body: valid, readable: 0 },
    Kind { name: "damaged gzip", codec: GZIP, body: noise, readable: 0 },
    Kind { name: "damaged snappy", codec: SNAPPY, body: noise, readable: 0 },
    Kind { name: "damaged lz4", codec: LZ4, body: noise, readable: 0 },
    Kind { name: "damaged zstd", codec: ZSTD, body: noise, readable: 0 },
    Kind { name: "random bytes instead of records", codec: NONE, body: noise, readable: 0 },
    Kind {
        name: "random bytes instead of records, in valid gzip",
        codec: GZIP,
        body: zipped_noise,
        readable: 0,
    },
    Kind { name: "a record past the end of the log", codec: NONE, body: far_record, readable: 0 },
    Kind { name: "a truncated record", codec: NONE, body: truncated, readable: 2 },
    Kind { name: "a truncated record, in valid gzip", codec: GZIP, body: zipped_truncated, readable: 2 },
];

fn valid(first: i64) -> Vec<u8> {
    records(first, 5)
}

fn noise(_: i64) -> Vec<u8> {
    (0..200_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect()
}

fn zipped_noise(first: i64) -> Vec<u8> {
    gzip(&noise(first))
}

fn truncated(first: i64) -> Vec<u8> {
    let mut bytes = valid(first);
    bytes.truncate(2 * record(0, b"10").len() + 4);
    bytes
}

fn zipped_truncated(first: i64) -> Vec<u8> {
    gzip(&truncated(first))
}

/// A record whose offset delta is far outside of the batch.
fn far_record(_: i64) -> Vec<u8> {
    let fields = [0, 0, 0x80, 0x80, 0x80, 0x80, 0x02, 1, 2, b'x', 0];
    let mut record = vec![fields.len() as u8 * 2];
    record.extend(fields);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn only_batches_that_cannot_be_decoded_are_skipped() {
    for kind in KINDS {
        check(kind).await;
    }
}

/// Valid records 0..10, two unreadable batches of five in a row, valid records 20..30.
async fn check(Kind { name, codec, body, readable }: Kind) {
    let directory = tempfile::tempdir().unwrap();
    let (broker, log) = start(directory.path(), Port::Free).await;
    let topic = new_topic(&log, 1).await;
    write_numbers(&log, topic, 0, 10).await;
    broker.stop().await;
    let mut file = OpenOptions::new().append(true).open(newest_segment(directory.path(), topic)).unwrap();
    for base_offset in [10, 15] {
        file.write_all(&batch(base_offset, codec, 5, &body(base_offset))).unwrap();
    }
    file.write_all(&batch(20, NONE, 5, &valid(20))).unwrap();
    drop(file);

    let (broker, log) = start(directory.path(), Port::Free).await;
    assert_eq!(log.offsets(topic, FIRST).await.unwrap().high, Offset(25), "{name}");
    write_numbers(&log, topic, 25, 5).await;
    let reading = log.clone();
    let started = Instant::now();
    let (read, skipped) = on_blocking_thread(move || read_through(&reading, topic)).await;
    eprintln!("{name}: read in {:?}", started.elapsed());
    let unreadable: Vec<_> = match readable {
        0 => std::iter::once(10..20).collect(),
        _ => vec![10 + readable..15, 15 + readable..20],
    };
    assert_eq!(skipped, unreadable, "{name}");
    let expected = [offsets(0..10 + readable), offsets(15..15 + readable), offsets(20..30)].concat();
    assert_eq!(read, expected, "{name}");

    let reading = log.clone();
    let read = on_blocking_thread(move || {
        let mut offsets = Vec::new();
        let end = read_all(&reading, (topic, FIRST), None, |message| offsets.push(message.offset)).unwrap();
        (end, offsets)
    });
    assert_eq!(read.await, (Offset(30), expected), "{name}");
    broker.stop().await;
}
