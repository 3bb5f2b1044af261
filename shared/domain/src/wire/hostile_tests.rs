//! Thousands of kinds of hostile bytes: no panic, no abort, no reading is lost without a rejection, and the result of a
//! message is limited to a multiple of its size.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, NullArray, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Int32Type, Schema};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use super::*;

const NOW: Micros = Micros(1_800_000_000_000_000);
const GOOD: &str = r#"{"device_id":"d","metric":"m","value":1,"event_time":1700000000123,"sequence":7,"unit":"Cel","tags":{"a":"b"}}"#;

/// Decodes a message, and returns how many readings were accepted, and what was rejected.
fn check(payload: &[u8]) -> (usize, Vec<Rejected>) {
    let mut collected = Collected::default();
    let batches = match decode(payload, NOW, &Acceptance::default(), &mut collected) {
        Decoded::Collected(_) => vec![collected.readings.finish()],
        Decoded::Batches(batches) => batches.into_iter().map(|rows| rows.batch).collect(),
    };
    let readings = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    let refused: u64 = collected.rejected.iter().map(|rejected| u64::from(rejected.readings)).sum();
    assert_eq!(refused, collected.refused);
    assert!(readings + collected.rejected.len() > 0 || payload.starts_with(ARROW_PREFIX), "{payload:?}");
    let made: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let kept: usize = collected
        .rejected
        .iter()
        .map(|rejected| rejected.payload.capacity() + rejected.detail.capacity())
        .sum();
    let most = 64 * payload.len() + (1 << 20);
    assert!(made + kept < most, "{} bytes became {made} and {kept}", payload.len());
    (readings, collected.rejected)
}

/// Arrays in arrays.
fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// Objects in objects.
fn objects(depth: usize) -> String {
    format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
}

#[test]
fn deep_nesting_is_rejected_everywhere() {
    for depth in [65, 20_000, 1_000_000] {
        for payload in [
            "[".repeat(depth),
            "{\"a\":".repeat(depth),
            deep(depth),
            objects(depth),
            GOOD.replace(r#""b""#, &deep(depth)),
            GOOD.replace(r#""b""#, &objects(depth)),
            GOOD.replace("1,", &format!("{},", deep(depth))),
            GOOD.replace(r#""unit""#, &format!(r#""x":{},"unit""#, deep(depth))),
            GOOD.replace(r#""unit""#, &format!(r#""x":{},"unit""#, "[".repeat(depth))),
            format!("[{GOOD},{}]", deep(depth)),
            format!(r#"[{GOOD},{{"]]]]":{}}}]"#, deep(depth)),
        ] {
            let (readings, rejected) = check(payload.as_bytes());
            assert_eq!((readings, rejected[0].reason), (0, Reason::TooDeep), "{depth}");
            assert_eq!(rejected[0].payload, payload.as_bytes());
        }
    }
    let shallow = GOOD.replace(r#""unit""#, &format!(r#""x":{},"unit""#, deep(60)));
    assert_eq!(check(shallow.as_bytes()).0, 1);
    assert_eq!(check(format!("[{}]", [GOOD; 300].join(",")).as_bytes()).0, 300);
}

#[test]
fn a_thousand_mutations_of_json_do_no_harm() {
    let seeds = [
        GOOD.to_owned(),
        format!("[{GOOD},{GOOD}]"),
        format!("{GOOD}\n{GOOD}"),
        r#"[[],{},"",null,1e999,-0,"\ud800"]"#.to_owned(),
    ];
    let pieces: [&[u8]; 24] = [
        b"",
        b"\0",
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\"",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b",",
        b"1e999",
        b"-",
        b"1e",
        b"NaN",
        b"null",
        b"true",
        b"99999999999999999999999",
        b"\n",
        b"WYE\x01",
    ];
    let mut kinds = 0;
    for seed in &seeds {
        let seed = seed.as_bytes();
        for at in 0..=seed.len() {
            check(&seed[..at]);
            for piece in pieces {
                check(&[&seed[..at], piece, &seed[at..]].concat());
                if at < seed.len() {
                    check(&[&seed[..at], piece, &seed[at + 1..]].concat());
                }
                kinds += 2;
            }
        }
    }
    assert!(kinds > 1_000);
}

/// An array of numbers.
fn bare(items: usize) -> String {
    format!("[{}1]", "1,".repeat(items - 1))
}

#[test]
fn small_items_do_not_become_large() {
    let (readings, rejected) = check(bare(100_000).as_bytes());
    assert_eq!((readings, rejected.len()), (0, 1_001));
    assert_eq!((rejected[1_000].readings, rejected[1_000].item_index), (99_000, 1_000));
    let (_, rejected) = check(bare((1 << 20) + 1).as_bytes());
    assert_eq!((rejected.len(), rejected[0].reason), (1, Reason::TooLarge));
    let unfinished = bare(1_000_000);
    let (_, rejected) = check(&unfinished.as_bytes()[..unfinished.len() - 1]);
    assert_eq!((rejected.len(), rejected[0].reason), (1, Reason::NotJson));
    let field = format!(r#"{{"x":{}}}"#, bare(1_000_000));
    assert_eq!(check(field.as_bytes()).1[0].reason, Reason::MissingField);
}

#[test]
fn large_texts_are_rejected() {
    for (field, bytes) in [("unit", 513), ("a", 20_000)] {
        let long = format!(r#""{}""#, "x".repeat(bytes));
        let payload = match field {
            "unit" => GOOD.replace(r#""Cel""#, &long),
            _ => GOOD.replace(r#""b""#, &long),
        };
        let (_, rejected) = check(payload.as_bytes());
        assert_eq!((rejected.len(), rejected[0].reason), (1, Reason::TooLarge), "{field}");
    }
}

/// A stream of some batches of `rows` rows that all mean the same device and metric.
fn arrow_message(
    device_id: &ArrayRef,
    rows: usize,
    batches: usize,
    compression: Option<CompressionType>,
) -> Vec<u8> {
    let metric: ArrayRef = Arc::new(StringArray::from(vec!["m"; rows]));
    let columns: [(&str, ArrayRef); 4] = [
        ("device_id", Arc::clone(device_id)),
        ("metric", metric),
        ("value", Arc::new(Float64Array::from(vec![1.0; rows]))),
        ("event_time", Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_000_000; rows]))),
    ];
    let fields = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch =
        RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(|(_, column)| column).collect());
    let batch = batch.unwrap();
    let mut bytes = ARROW_PREFIX.to_vec();
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let mut writer = StreamWriter::try_new_with_options(&mut bytes, &schema, options).unwrap();
    for _ in 0..batches {
        writer.write(&batch).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    bytes
}

fn dictionary(words: &[&str], codes: Vec<i32>) -> ArrayRef {
    let words = Arc::new(StringArray::from(words.to_vec()));
    Arc::new(DictionaryArray::<Int32Type>::new(codes.into(), words))
}

#[test]
fn columns_that_unpack_to_more_than_their_size_are_rejected() {
    let plain: ArrayRef = Arc::new(StringArray::from(vec!["d"; 1_000]));
    assert_eq!(check(&arrow_message(&plain, 1_000, 1, None)).0, 1_000);
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let (_, rejected) = check(&arrow_message(&plain, 1_000, 1, Some(compression)));
        assert_eq!(rejected[0].reason, Reason::BadArrow);
        assert!(rejected[0].detail.contains("Content-Encoding"), "{}", rejected[0].detail);
    }
    let nothing: ArrayRef = Arc::new(NullArray::new(1_000));
    let (_, rejected) = check(&arrow_message(&nothing, 1_000, 1, None));
    assert!(rejected[0].detail.contains("device_id"), "{}", rejected[0].detail);
    // A long word that many rows use, and many words that few rows of many batches use.
    let long = "x".repeat(1 << 20);
    let (readings, rejected) = check(&arrow_message(&dictionary(&[&long], vec![0; 5_000]), 5_000, 1, None));
    assert_eq!((readings, rejected[0].reason), (0, Reason::BadName));
    let words: Vec<String> = (0..20_000).map(|number| format!("device-{number}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(check(&arrow_message(&dictionary(&words, vec![3, 17_000]), 2, 500, None)).0, 1_000);
}

#[test]
fn thousands_of_damaged_arrow_messages_do_no_harm() {
    let device_id = dictionary(&["d", "e"], vec![0, 1, 0, 1, 1, 0, 0, 1]);
    let message = arrow_message(&device_id, 8, 2, None);
    let hook = std::panic::take_hook();
    // The decoder panics on some damage. That is caught, so its reports would only fill the output.
    std::panic::set_hook(Box::new(|_| {}));
    for at in 4..message.len() {
        check(&message[..at]);
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = message.clone();
            damaged[at] = byte;
            check(&damaged);
        }
        if at + 8 <= message.len() {
            for number in [i64::MAX, i64::MIN, -1, 1 << 40] {
                let mut damaged = message.clone();
                damaged[at..at + 8].copy_from_slice(&number.to_le_bytes());
                check(&damaged);
            }
        }
    }
    std::panic::set_hook(hook);
}
