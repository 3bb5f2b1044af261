//! What is produced, damaged in every way that Kafka refuses, for every codec.

use std::io::Write;

use kafka_protocol::error::ResponseError;

use super::{Rules, Stamp, Zstd, check};
use crate::record_batch::{self, RecordBatch};
use crate::testing::{record, varint};

const RULES: Rules = Rules {
    max_batch_bytes: 1024 * 1024,
    max_unpacked_bytes: 1024 * 1024,
    zstd: Zstd::Known,
    stamp: Stamp::CreateTime,
};

fn records(count: i64) -> Vec<u8> {
    (0..count).flat_map(|at| record(at, at, format!("value {at}").as_bytes())).collect()
}

/// A batch with this body; its times are 1000 and the largest delta of [`records`].
fn batch(attributes: i16, body: &[u8], count: i32) -> Vec<u8> {
    let mut bytes = record_batch::pack(body, count);
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    bytes[27..35].copy_from_slice(&1000_i64.to_be_bytes());
    record_batch::set_max_timestamp(&mut bytes, 1000 + i64::from(count) - 1);
    bytes
}

/// Changes the header of a good batch and makes its checksum right again.
fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = batch(0, &records(3), 3);
    change(&mut bytes);
    let newest = i64::from_be_bytes(bytes[35..43].try_into().unwrap());
    record_batch::set_max_timestamp(&mut bytes, newest);
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

/// As snappy-java frames it, in small blocks.
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
fn sound_batches_of_every_codec_pass_unchanged() {
    for (codec, name, encode) in CODECS {
        for count in [1, 2, 1000] {
            let bytes = batch(codec, &encode(&records(count)), count as i32);
            let checked = check(&bytes, &RULES).unwrap_or_else(|refusal| panic!("{name}: {refusal:?}"));
            assert_eq!(*checked, *bytes, "{name}");
        }
    }
}

#[test]
fn damage_under_a_right_checksum_is_refused_for_every_codec() {
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
fn a_bomb_is_refused_without_unpacking_it() {
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
fn a_snappy_length_makes_no_room() {
    // States four gigabytes and brings nothing.
    let bytes = batch(2, &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0], 1);
    assert_eq!(refusal(&bytes), ResponseError::InvalidRecord);
}

#[test]
fn what_kafka_refuses_is_refused() {
    use ResponseError::{
        CorruptMessage, InvalidRecord, InvalidTimestamp, InvalidTxnState, MessageTooLarge,
        UnsupportedCompressionType, UnsupportedForMessageFormat,
    };
    let good = batch(0, &records(3), 3);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let patch =
        |at: usize, bytes: &'static [u8]| with(|batch| batch[at..at + bytes.len()].copy_from_slice(bytes));
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
        ("the log's stamp", patch(21, &[0, 8]), InvalidTimestamp),
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
    let rules = Rules { zstd: Zstd::Unknown, ..RULES };
    let packed = batch(4, &zstd(&records(1)), 1);
    assert_eq!(check(&packed, &rules).unwrap_err().error, UnsupportedCompressionType);
}

#[test]
fn fields_of_records_are_checked() {
    /// A record whose fields after its time and offset are `rest`.
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
        &[1, 1, 0, 0],                         // more than its fields
        &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], // a length of six bytes
    ] {
        assert_eq!(refusal(&batch(0, &broken(rest), 1)), ResponseError::InvalidRecord, "{rest:?}");
    }
}

#[test]
fn the_log_stamps_where_its_clock_counts() {
    let rules = Rules { stamp: Stamp::LogAppendTime(77_000), ..RULES };
    for (codec, name, encode) in CODECS {
        let bytes = batch(codec, &encode(&records(3)), 3);
        let stamped = check(&bytes, &rules).unwrap();
        let read = RecordBatch::check(&stamped).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(read.is_stamped_by_log());
        assert_eq!((read.max_timestamp, read.base_timestamp, read.attributes & 7), (77_000, 1000, codec));
        assert_eq!(
            stamped[record_batch::HEADER..],
            bytes[record_batch::HEADER..],
            "{name}: the records stay"
        );
    }
}

#[test]
fn the_header_tells_the_newest_time_of_its_records() {
    let far = with(|batch| batch[35..43].copy_from_slice(&i64::MAX.to_be_bytes()));
    assert_eq!(RecordBatch::check(&far).unwrap().max_timestamp, i64::MAX);
    let checked = check(&far, &RULES).unwrap();
    assert_eq!(RecordBatch::check(&checked).unwrap().max_timestamp, 1002);
}

#[test]
fn a_time_out_of_range_is_refused() {
    let bytes = with(|batch| batch[27..35].copy_from_slice(&i64::MAX.to_be_bytes()));
    assert_eq!(refusal(&bytes), ResponseError::InvalidRecord);
}
