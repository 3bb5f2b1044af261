//! Record batches that no client can decode: a reader goes past them and past nothing else. They are written into the
//! segment file of the embedded broker, since no broker should take them; the client that meets them is the real one.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::embedded_only::start;
use super::{DEADLINE, beside, new_topic, write_numbers};
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

/// A record batch (magic 2) with a right checksum around any body, for `records` offsets.
fn batch(base_offset: i64, codec: i16, records: i32, body: &[u8]) -> Vec<u8> {
    let now = 1_750_000_000_000_i64;
    let mut checked = Vec::new();
    checked.extend(codec.to_be_bytes());
    checked.extend((records - 1).to_be_bytes());
    checked.extend(now.to_be_bytes());
    checked.extend(now.to_be_bytes());
    // No producer has numbered it.
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

/// A sound record with a small payload.
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

/// Reads partition 0 to its end: the offsets of its records, and the ranges that were passed over. Each payload is its
/// offset.
fn read_through(log: &Log, topic: &str, start: i64) -> (Vec<i64>, Vec<(i64, i64)>) {
    let high = log.offsets_blocking(topic, 0).unwrap().high;
    let mut reader = Reader::new(log, topic).unwrap();
    reader.assign(&[(0, start)]).unwrap();
    let (mut offsets, mut passed, since) = (Vec::new(), Vec::<(i64, i64)>::new(), Instant::now());
    while reader.position(0).unwrap() < high {
        assert!(since.elapsed() < DEADLINE, "stands at {:?} of {high}", reader.position(0));
        let polled = reader.poll_batch(1000, Duration::from_millis(100), &mut |message| {
            assert_eq!(message.payload, message.offset.to_string().as_bytes());
            offsets.push(message.offset);
        });
        match polled {
            Ok(_) => {}
            Err(LogError::Unreadable { kafka_partition: 0, from, next, reason, .. }) => {
                assert_eq!(reader.position(0), Some(next));
                assert!(!reason.is_empty());
                match passed.last_mut() {
                    Some(last) if last.1 == from => last.1 = next,
                    _ => passed.push((from, next)),
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    (offsets, passed)
}

/// A kind of batch that does not decode.
struct Kind {
    name: &'static str,
    codec: i16,
    /// The body of five records from an offset on.
    body: fn(i64) -> Vec<u8>,
    /// How many of them come out before it does not decode any more.
    good: i64,
}

const KINDS: [Kind; 10] = [
    Kind { name: "a codec that nobody knows", codec: UNKNOWN, body: sound, good: 0 },
    Kind { name: "damaged gzip", codec: GZIP, body: noise, good: 0 },
    Kind { name: "damaged snappy", codec: SNAPPY, body: noise, good: 0 },
    Kind { name: "damaged lz4", codec: LZ4, body: noise, good: 0 },
    Kind { name: "damaged zstd", codec: ZSTD, body: noise, good: 0 },
    Kind { name: "noise for records", codec: NONE, body: noise, good: 0 },
    Kind { name: "noise for records, in sound gzip", codec: GZIP, body: zipped_noise, good: 0 },
    Kind { name: "a record past the end of the log", codec: NONE, body: far_record, good: 0 },
    Kind { name: "a record that breaks off", codec: NONE, body: broken_off, good: 2 },
    Kind { name: "a record that breaks off, in sound gzip", codec: GZIP, body: zipped_broken_off, good: 2 },
];

fn sound(first: i64) -> Vec<u8> {
    records(first, 5)
}

fn noise(_: i64) -> Vec<u8> {
    (0..200_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect()
}

fn zipped_noise(first: i64) -> Vec<u8> {
    gzip(&noise(first))
}

fn broken_off(first: i64) -> Vec<u8> {
    let mut bytes = sound(first);
    bytes.truncate(2 * record(0, b"10").len() + 4);
    bytes
}

fn zipped_broken_off(first: i64) -> Vec<u8> {
    gzip(&broken_off(first))
}

/// A record whose offset delta leads far beyond the batch.
fn far_record(_: i64) -> Vec<u8> {
    let fields = [0, 0, 0x80, 0x80, 0x80, 0x80, 0x02, 1, 2, b'x', 0];
    let mut record = vec![fields.len() as u8 * 2];
    record.extend(fields);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_do_not_decode_are_passed_over_and_nothing_else_is() {
    for kind in KINDS {
        check(kind).await;
    }
}

/// Sound records 0..10, two bad batches of five one after the other, sound records 20..30.
async fn check(Kind { name, codec, body, good }: Kind) {
    let directory = tempfile::tempdir().unwrap();
    let (broker, log) = start(directory.path(), None).await;
    let topic = new_topic(&log, 1).await;
    write_numbers(&log, topic, 0, 10).await;
    broker.stop().await;
    let mut file = OpenOptions::new().append(true).open(newest_segment(directory.path(), topic)).unwrap();
    for base_offset in [10, 15] {
        file.write_all(&batch(base_offset, codec, 5, &body(base_offset))).unwrap();
    }
    file.write_all(&batch(20, NONE, 5, &sound(20))).unwrap();
    drop(file);

    let (broker, log) = start(directory.path(), None).await;
    assert_eq!(log.offsets(topic, 0).await.unwrap().high, 25, "{name}");
    write_numbers(&log, topic, 25, 5).await;
    let reading = log.clone();
    let started = Instant::now();
    let (offsets, passed) = beside(move || read_through(&reading, topic, 0)).await;
    eprintln!("{name}: passed over in {:?}", started.elapsed());
    let bad = if good == 0 { vec![(10, 20)] } else { vec![(10 + good, 15), (15 + good, 20)] };
    assert_eq!(passed, bad, "{name}");
    let expected: Vec<i64> = (0..10 + good).chain(15..15 + good).chain(20..30).collect();
    assert_eq!(offsets, expected, "{name}");

    let reading = log.clone();
    let read = beside(move || {
        let mut offsets = Vec::new();
        let end = read_all(&reading, (topic, 0), None, |message| offsets.push(message.offset)).unwrap();
        (end, offsets)
    });
    assert_eq!(read.await, (30, expected), "{name}");
    broker.stop().await;
}
