//! Every kind of bad input, and that good input next to it is kept.

use proptest::prelude::*;

use super::*;
use crate::reading::{Reading, ReadingColumns};

const NOW: Micros = Micros(1_800_000_000_000_000);

fn check(payload: &[u8]) -> (usize, Vec<Reason>) {
    let mut collected = Collected::default();
    let count = match decode(payload, NOW, &Acceptance::default(), &mut collected) {
        Decoded::Collected(count) => count,
        Decoded::Batches(batches) => batches.iter().map(|rows| rows.batch.num_rows()).sum(),
    };
    (count, collected.rejected.iter().map(|rejected| rejected.reason).collect())
}

#[test]
fn good_json_is_taken() {
    let one = br#"{"device_id":"d","metric":"m","value":1,"event_time":1700000000123}"#;
    let text = br#" {"device_id":"d","metric":"m","value":-0.0,"event_time":"2024-01-01T00:00:00+08:00","sequence":7,"unit":"Cel","tags":{"b":"1","a":"2"},"later":[]}"#;
    assert_eq!(check(one), (1, vec![]));
    assert_eq!(check(text), (1, vec![]));
    let mut collected = Collected::default();
    decode(text, NOW, &Acceptance::default(), &mut collected);
    let batch = collected.readings.finish();
    let reading = ReadingColumns::of(&batch).unwrap().reading(0);
    assert!(reading.value.is_sign_positive());
    assert_eq!(reading.event_time, Micros(1_704_038_400_000_000));
    assert_eq!(
        (reading.sequence, reading.unit, reading.tags),
        (Some(7), Some("Cel"), Some(r#"{"a":"2","b":"1"}"#))
    );
}

#[test]
fn bad_json_is_named() {
    for (payload, reason) in [
        (&b""[..], Reason::Empty),
        (b" \n", Reason::Empty),
        (b"{", Reason::NotJson),
        (b"hello", Reason::NotJson),
        (b"[{}", Reason::NotJson),
        (b"42", Reason::WrongType),
        (b"\xff\xfe", Reason::NotUtf8),
        (b"{\"device_id\":\"\xff\"}", Reason::NotUtf8),
        (b"WYE\x02....", Reason::UnknownVersion),
        (b"WYE\x01....", Reason::BadArrow),
        (br#"{"device_id":"d","metric":"m","value":1}"#, Reason::MissingField),
        (br#"{"device_id":"d","metric":"m","value":null,"event_time":1700000000123}"#, Reason::MissingField),
        (br#"{"device_id":"d","metric":"m","value":"1","event_time":1700000000123}"#, Reason::WrongType),
        (br#"{"device_id":1,"metric":"m","value":1,"event_time":1700000000123}"#, Reason::WrongType),
        (br#"{"device_id":"d","metric":"m","value":1,"event_time":"yesterday"}"#, Reason::WrongType),
        (br#"{"device_id":"d","metric":"m","value":1,"event_time":1.5}"#, Reason::WrongType),
        (
            br#"{"device_id":"d","metric":"m","value":1,"event_time":1700000000123,"tags":[1]}"#,
            Reason::WrongType,
        ),
        (br#"{"device_id":"d","metric":"m","value":NaN,"event_time":1700000000123}"#, Reason::NotJson),
        (br#"{"device_id":"d","metric":"m","value":1e999,"event_time":1700000000123}"#, Reason::NotFinite),
        (br#"{"device_id":"","metric":"m","value":1,"event_time":1700000000123}"#, Reason::BadName),
        (br#"{"device_id":"d","metric":"m","value":1,"event_time":12}"#, Reason::EventTimeOutOfRange),
        (
            br#"{"device_id":"d","metric":"m","value":1,"event_time":9223372036854775807}"#,
            Reason::EventTimeOutOfRange,
        ),
    ] {
        assert_eq!(check(payload), (0, vec![reason]), "{}", String::from_utf8_lossy(payload));
    }
}

#[test]
fn good_items_next_to_bad_ones_are_kept_in_place() {
    let payload = br#"[{"device_id":"d","metric":"m","value":1,"event_time":1700000000123}, 5,
        {"device_id":"d","metric":"m","value":2,"event_time":1700000000124}]"#;
    let mut collected = Collected::default();
    decode(payload, NOW, &Acceptance::default(), &mut collected);
    assert_eq!(collected.item_index, [0, 2]);
    assert_eq!(collected.rejected[0].item_index, 1);
    assert_eq!(collected.rejected[0].payload, b"5");
}

#[test]
fn bad_rows_of_an_arrow_message_are_taken_out() {
    let mut builder = ReadingBatchBuilder::default();
    let good = Reading {
        device_id: "d",
        metric: "m",
        value: 1.0,
        event_time: NOW,
        sequence: None,
        unit: None,
        tags: None,
    };
    for reading in [
        good,
        Reading { value: f64::NAN, ..good },
        Reading { event_time: Micros::EPOCH, ..good },
        Reading { device_id: "", ..good },
        Reading { value: 2.0, ..good },
    ] {
        builder.append(&reading);
    }
    let payload = encode(&[builder.finish()]);
    let mut collected = Collected::default();
    let Decoded::Batches(batches) = decode(&payload, NOW, &Acceptance::default(), &mut collected) else {
        panic!()
    };
    assert_eq!(batches[0].batch.num_rows(), 2);
    assert_eq!(batches[0].item_index, [0, 4]);
    let reasons: Vec<_> = collected.rejected.iter().map(|r| (r.item_index, r.reason)).collect();
    assert_eq!(reasons, [(1, Reason::NotFinite), (2, Reason::EventTimeOutOfRange), (3, Reason::BadName)]);
}

proptest! {
    /// No bytes make the decoder panic, and nothing disappears without a word.
    #[test]
    fn any_bytes_are_accounted_for(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let (count, rejected) = check(&payload);
        prop_assert!(count + rejected.len() > 0);
    }

    #[test]
    fn any_arrow_bytes_are_survived(cut in 0usize..2_000, flip in 0usize..2_000, byte in any::<u8>()) {
        let mut builder = ReadingBatchBuilder::default();
        for i in 0..20 {
            builder.append(&Reading { device_id: "d", metric: "m", value: 1.0, event_time: NOW + Span(i), sequence: Some(i), unit: None, tags: None });
        }
        let mut payload = encode(&[builder.finish()]);
        payload.truncate(payload.len().saturating_sub(cut).max(4));
        if flip > 4 && flip < payload.len() {
            payload[flip] = byte;
        }
        check(&payload);
    }
}

#[test]
fn the_fingerprint_of_the_rules_follows_each_of_them() {
    let rules = Acceptance::default();
    // Stored rows have this fingerprint: if it changes, every view is computed again.
    assert_eq!(rules.fingerprint(), 0x815a_623e_5bdb_a3a3);
    let others = [
        Acceptance { earliest: rules.earliest + Span(1), ..rules },
        Acceptance { max_future: rules.max_future + Span(1), ..rules },
    ];
    for other in others {
        assert_ne!(other.fingerprint(), rules.fingerprint());
    }
}
