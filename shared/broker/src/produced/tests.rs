//! Produced batches, damaged in every way that Kafka refuses, in every codec.

use std::io::Write;

use kafka_protocol::error::ResponseError;

use super::{Rules, TimestampType, Zstd, check};
use crate::clock::Timestamp;
use crate::record_batch::{self, RecordBatch};
use crate::testing::{record, varint};

const RULES: Rules = Rules {
    max_batch_bytes: 1024 * 1024,
    max_unpacked_bytes: 1024 * 1024,
    zstd: Zstd::Supported,
    timestamps: TimestampType::CreateTime,
};

fn records(count: i64) -> Vec<u8> {
    (0..count).flat_map(|at| record(at, at, format!("value {at}").as_bytes())).collect()
}

/// A batch with this body, with timestamps from 1000 on as in [`records`].
fn batch(attributes: i16, body: &[u8], count: i32) -> Vec<u8> {
    let mut bytes = record_batch::pack(body, count);
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    bytes[27..35].copy_from_slice(&1000_i64.to_be_bytes());
    record_batch::set_max_timestamp(&mut bytes, Timestamp(1000 + i64::from(count) - 1));
    bytes
}

/// A valid batch with these bytes at a position of its header, and a right checksum.
fn patch(at: usize, patched: &[u8]) -> Vec<u8> {
    let mut bytes = batch(0, &records(3), 3);
    bytes[at..at + patched.len()].copy_from_slice(patched);
    let latest = i64::from_be_bytes(bytes[35..43].try_into().unwrap());
    record_batch::set_max_timestamp(&mut bytes, Timestamp(latest));
    bytes
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn lz4(body: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zstd(body: &[u8]) -> Vec<u8> {
    zstd::encode_all(body, 3).unwrap()
}

fn snappy(body: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(body).unwrap()
}

/// Snappy in the frame of snappy-java, in small blocks.
fn snappy_framed(body: &[u8]) -> Vec<u8> {
    let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for block in body.chunks(100) {
        let block = snappy(block);
        framed.extend((block.len() as i32).to_be_bytes());
        framed.extend(block);
    }
    framed
}

/// A codec's number, name and encoder.
type TestCodec = (i16, &'static str, fn(&[u8]) -> Vec<u8>);

const CODECS: [TestCodec; 6] = [
    (0, "plain", <[u8]>::to_vec),
    (1, "gzip", gzip),
    (2, "snappy", snappy),
    (2, "snappy framed", snappy_framed),
    (3, "lz4", lz4),
    (4, "zstd", zstd),
];

fn refusal(bytes: &[u8]) -> ResponseError {
    check(bytes, &RULES).map(|_| ()).unwrap_err().error
}

#[test]
fn valid_batches_of_every_codec_are_stored_unchanged() {
    for (codec, name, encode) in CODECS {
        for count in [1, 2, 1000] {
            let bytes = batch(codec, &encode(&records(count)), count as i32);
            let checked = check(&bytes, &RULES).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
            assert_eq!(*checked, *bytes, "{name}");
        }
    }
}

#[test]
fn damaged_records_with_a_right_checksum_are_refused_in_every_codec() {
    for (codec, name, encode) in CODECS {
        let body = encode(&records(50));
        let mut damaged: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"garbage, and a lot of it, which decodes as nothing".to_vec(),
            [body.as_slice(), b"more"].concat(),
            encode(&records(49)),
            encode(&records(51)),
            encode(&records(50)[..500]),
            encode(&[records(50), vec![0]].concat()),
            encode(&vec![0xFF; 300]),
        ];
        damaged.extend((1..body.len()).step_by(7).map(|cut| body[..cut].to_vec()));
        for body in damaged {
            let bytes = batch(codec, &body, 50);
            assert_eq!(refusal(&bytes), ResponseError::InvalidRecord, "{name}: {} bytes", body.len());
        }
    }
}

#[test]
fn a_decompression_bomb_is_refused_in_every_codec() {
    // One record of 20 MB of zeros.
    let value = vec![0; 20 * 1024 * 1024];
    let body = record(0, 0, &value);
    drop(value);
    for (codec, name, encode) in CODECS.into_iter().filter(|(codec, ..)| *codec != 0) {
        let bytes = batch(codec, &encode(&body), 1);
        let rules = Rules { max_batch_bytes: usize::MAX, ..RULES };
        assert_eq!(check(&bytes, &rules).unwrap_err().error, ResponseError::MessageTooLarge, "{name}");
    }
}

#[test]
fn a_stated_snappy_length_allocates_nothing() {
    // States four gigabytes, and has no bytes.
    let bytes = batch(2, &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0], 1);
    assert_eq!(refusal(&bytes), ResponseError::InvalidRecord);
}

#[test]
fn batches_that_kafka_refuses_are_refused() {
    use ResponseError::{
        CorruptMessage, InvalidRecord, InvalidTimestamp, InvalidTxnState, MessageTooLarge,
        UnsupportedCompressionType, UnsupportedForMessageFormat,
    };
    let good = batch(0, &records(3), 3);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cases: Vec<(&str, Vec<u8>, ResponseError)> = vec![
        ("nothing", Vec::new(), InvalidRecord),
        ("a few bytes", vec![0; 10], InvalidRecord),
        ("cut off in the header", good[..40].to_vec(), InvalidRecord),
        ("cut off in the records", good[..good.len() - 1].to_vec(), InvalidRecord),
        ("two batches", [good.clone(), good.clone()].concat(), InvalidRecord),
        ("a flipped bit", flipped, CorruptMessage),
        ("message format 0", patch(16, &[0]), UnsupportedForMessageFormat),
        ("message format 1", patch(16, &[1]), UnsupportedForMessageFormat),
        ("message format 3", patch(16, &[3]), InvalidRecord),
        ("codec 5", patch(21, &[0, 5]), UnsupportedCompressionType),
        ("codec 7", patch(21, &[0, 7]), UnsupportedCompressionType),
        ("a transaction", patch(21, &[0, 16]), InvalidTxnState),
        ("a control batch", patch(21, &[0, 32]), InvalidRecord),
        ("a control batch of a transaction", patch(21, &[0, 48]), InvalidRecord),
        ("a log append time", patch(21, &[0, 8]), InvalidTimestamp),
        ("a base offset", patch(0, &[0, 0, 0, 0, 0, 0, 0, 1]), InvalidRecord),
        ("a larger last offset", patch(23, &[0, 0, 0, 3]), InvalidRecord),
        ("a smaller last offset", patch(23, &[0, 0, 0, 1]), InvalidRecord),
        ("a negative last offset", patch(23, &[0xFF; 4]), InvalidRecord),
        ("no records", patch(57, &[0; 4]), InvalidRecord),
        ("many records", patch(57, &[0x7F, 0xFF, 0xFF, 0xFF]), InvalidRecord),
        ("a producer without a sequence", patch(43, &[0, 0, 0, 0, 0, 0, 0, 1]), InvalidRecord),
        ("a length below the header's", patch(8, &[0, 0, 0, 9]), InvalidRecord),
        ("a negative length", patch(8, &[0xFF; 4]), InvalidRecord),
        ("offsets with a gap", batch(0, &[record(0, 0, b""), record(2, 0, b"")].concat(), 2), InvalidRecord),
        ("too large", batch(0, &record(0, 0, &vec![0; 2 << 20]), 1), MessageTooLarge),
    ];
    for (name, bytes, error) in cases {
        assert_eq!(refusal(&bytes), error, "{name}");
    }
    let rules = Rules { zstd: Zstd::Unsupported, ..RULES };
    let compressed = batch(4, &zstd(&records(1)), 1);
    assert_eq!(check(&compressed, &rules).unwrap_err().error, UnsupportedCompressionType);
}

#[test]
fn fields_of_records_are_checked() {
    /// A record with these bytes after its timestamp and offset.
    fn broken(rest: &[u8]) -> Vec<u8> {
        let fields = [&[0, 0, 0], rest].concat();
        let mut record = Vec::new();
        varint(&mut record, fields.len() as i64);
        record.extend(fields);
        record
    }
    check(&batch(0, &broken(&[1, 1, 0]), 1), &RULES).expect("null key, null value, no headers");
    for rest in [
        &[][..],
        &[1],
        &[1, 1],
        &[3, 1, 0],                            // a key of length -2
        &[1, 100, 0],                          // a value that is longer than the record
        &[1, 1, 1],                            // -1 headers
        &[1, 1, 2],                            // one header that is not there
        &[1, 1, 2, 1, 1],                      // a header without a name
        &[1, 1, 0, 0],                         // a byte after the last field
        &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], // a length of six bytes
    ] {
        assert_eq!(refusal(&batch(0, &broken(rest), 1)), ResponseError::InvalidRecord, "{rest:?}");
    }
}

#[test]
fn the_broker_sets_timestamps_where_the_topic_says_so() {
    let rules = Rules { timestamps: TimestampType::LogAppendTime(Timestamp(77_000)), ..RULES };
    for (codec, name, encode) in CODECS {
        let bytes = batch(codec, &encode(&records(3)), 3);
        let stored = check(&bytes, &rules).unwrap();
        let read = RecordBatch::check(&stored).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(read.has_log_append_time());
        assert_eq!((read.max_timestamp, read.base_timestamp), (Timestamp(77_000), Timestamp(1000)));
        assert_eq!(read.attributes & 7, codec);
        assert_eq!(
            stored[record_batch::HEADER..],
            bytes[record_batch::HEADER..],
            "{name}: the records are unchanged"
        );
    }
}

#[test]
fn the_header_gets_the_latest_timestamp_of_its_records() {
    let wrong = patch(35, &i64::MAX.to_be_bytes());
    assert_eq!(RecordBatch::check(&wrong).unwrap().max_timestamp, Timestamp(i64::MAX));
    let checked = check(&wrong, &RULES).unwrap();
    assert_eq!(RecordBatch::check(&checked).unwrap().max_timestamp, Timestamp(1002));
}

#[test]
fn a_timestamp_out_of_range_is_refused() {
    let bytes = patch(27, &i64::MAX.to_be_bytes());
    assert_eq!(refusal(&bytes), ResponseError::InvalidRecord);
}
