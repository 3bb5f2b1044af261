//! JSON messages: `{"device_id", "metric", "value", "event_time", "sequence"?, "unit"?, "tags"?}`, or an array of such.
//!
//! `event_time` is RFC 3339 text or integer milliseconds. The typed parse is the fast path; only items that it rejects are
//! parsed again to say what is wrong. The parser recurses, also through values that it skips, so nesting is bounded first.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sonic_rs::LazyValue;

use super::depth::{MAX_DEPTH, is_shallow};
use super::{Acceptance, Collected, LONGEST_NAME, Reason, check_texts};
use crate::reading::Reading;
use crate::time::{self, Micros};
use crate::{json, tags};

/// The most readings in one array: each takes some dozen bytes before it is decoded.
const MOST_ITEMS: usize = 1 << 20;

#[derive(Deserialize)]
struct JsonReading<'a> {
    #[serde(borrow)]
    device_id: Cow<'a, str>,
    #[serde(borrow)]
    metric: Cow<'a, str>,
    value: f64,
    event_time: JsonTime,
    #[serde(default)]
    sequence: Option<i64>,
    #[serde(borrow, default)]
    unit: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tags: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

/// A time, from RFC 3339 text or integer milliseconds.
struct JsonTime(Micros);

impl<'de> Deserialize<'de> for JsonTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TimeVisitor;
        impl Visitor<'_> for TimeVisitor {
            type Value = JsonTime;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("RFC 3339 text or integer milliseconds")
            }

            fn visit_i64<E: Error>(self, millis: i64) -> Result<JsonTime, E> {
                Ok(JsonTime(Micros::from_millis(millis)))
            }

            fn visit_u64<E: Error>(self, millis: u64) -> Result<JsonTime, E> {
                self.visit_i64(i64::try_from(millis).unwrap_or(i64::MAX))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<JsonTime, E> {
                time::parse_rfc3339(text).map(JsonTime).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TimeVisitor)
    }
}

/// Writes readings as one JSON message: an object for one, else an array.
pub fn encode(readings: &[Reading<'_>]) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Written<'a> {
        device_id: &'a str,
        metric: &'a str,
        value: f64,
        event_time: serde_json::Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        sequence: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        unit: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tags: Option<serde_json::Value>,
    }
    let written: Vec<Written<'_>> = readings
        .iter()
        .map(|reading| Written {
            device_id: reading.device_id,
            metric: reading.metric,
            value: reading.value,
            // Milliseconds where they are exact, text where they are not.
            event_time: if reading.event_time.0 % 1_000 == 0 {
                reading.event_time.millis().into()
            } else {
                time::format_rfc3339(reading.event_time).into()
            },
            sequence: reading.sequence,
            unit: reading.unit,
            tags: reading.tags.and_then(|tags| serde_json::from_str(tags).ok()),
        })
        .collect();
    match written.as_slice() {
        [one] => json::to_vec(one),
        many => json::to_vec(many),
    }
}

pub(super) fn decode(
    payload: &[u8],
    ingest_time: Micros,
    acceptance: &Acceptance,
    into: &mut Collected,
) -> usize {
    let before = into.readings.len();
    match payload.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => into.reject(0, Reason::Empty, "the payload is empty".to_owned(), payload),
        Some(_) if !is_shallow(payload) => {
            let detail = format!("the JSON is nested more than {MAX_DEPTH} deep");
            into.reject(0, Reason::TooDeep, detail, payload);
        }
        // The parser returns texts before it has checked that all bytes are UTF-8, so they are checked first.
        Some(first) => match std::str::from_utf8(payload) {
            Ok(text) if *first == b'[' => decode_array(text, ingest_time, acceptance, into),
            Ok(text) => decode_one(text, 0, ingest_time, acceptance, into),
            Err(error) => {
                let detail = format!("invalid UTF-8 after byte {}", error.valid_up_to());
                into.reject(0, Reason::NotUtf8, detail, payload);
            }
        },
    }
    into.readings.len() - before
}

fn decode_array(payload: &str, ingest_time: Micros, acceptance: &Acceptance, into: &mut Collected) {
    // An array is decoded only if it is well-formed to its end: the items before a mistake are no more certain than those
    // after it.
    match sonic_rs::from_str::<Items<'_>>(payload) {
        Ok(Items(items)) if items.len() > MOST_ITEMS => {
            let detail = format!("an array may hold {MOST_ITEMS} readings; send the rest in another one");
            into.reject(0, Reason::TooLarge, detail, payload.as_bytes());
        }
        Ok(Items(items)) => {
            for (index, item) in items.iter().enumerate() {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                decode_one(item.as_raw_str(), index, ingest_time, acceptance, into);
            }
        }
        Err(_) => {
            let (reason, detail) = diagnose_text(payload);
            into.reject(0, reason, detail, payload.as_bytes());
        }
    }
}

/// The items of an array, the first `MOST_ITEMS + 1` of them.
struct Items<'a>(Vec<LazyValue<'a>>);

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor;
        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of readings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items<'de>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() <= MOST_ITEMS {
                    let Some(item) = items.next_element()? else { return Ok(Items(kept)) };
                    kept.push(item);
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Items(kept))
            }
        }
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

#[inline]
fn decode_one(item: &str, index: u32, ingest_time: Micros, acceptance: &Acceptance, into: &mut Collected) {
    let reading = match sonic_rs::from_str::<JsonReading<'_>>(item) {
        Ok(reading) => reading,
        Err(error) => {
            let (reason, detail) = diagnose(item, &error.to_string());
            return into.reject(index, reason, detail, item.as_bytes());
        }
    };
    if let Err((reason, detail)) = accept(&reading, ingest_time, acceptance) {
        return into.reject(index, reason, detail, item.as_bytes());
    }
    let tags = reading.tags.as_ref().and_then(|tags| tags::canonical(tags.iter().map(|(k, v)| (&**k, &**v))));
    if let Err((reason, detail)) = check_texts(reading.unit.as_deref(), tags.as_deref()) {
        return into.reject(index, reason, detail, item.as_bytes());
    }
    into.readings.append(&Reading {
        device_id: &reading.device_id,
        metric: &reading.metric,
        value: reading.value + 0.0,
        event_time: reading.event_time.0,
        sequence: reading.sequence,
        unit: reading.unit.as_deref(),
        tags: tags.as_deref(),
    });
    into.item_index.push(i32::try_from(index).unwrap_or(i32::MAX));
}

#[inline]
fn accept(
    reading: &JsonReading<'_>,
    ingest_time: Micros,
    acceptance: &Acceptance,
) -> Result<(), (Reason, String)> {
    let names = [("device_id", &reading.device_id), ("metric", &reading.metric)];
    for (field, name) in names {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err((
                Reason::BadName,
                format!("{field} must have 1 to {LONGEST_NAME} bytes, not {}", name.len()),
            ));
        }
    }
    if !reading.value.is_finite() {
        return Err((Reason::NotFinite, "value must be finite".to_owned()));
    }
    acceptance
        .event_time(reading.event_time.0, ingest_time)
        .map_err(|detail| (Reason::EventTimeOutOfRange, detail))
}

/// Says what is wrong with a text that is not JSON. Allocates nothing for it, however large it is.
fn diagnose_text(text: &str) -> (Reason, String) {
    match serde_json::from_str::<IgnoredAny>(text) {
        Err(error) => (Reason::NotJson, error.to_string()),
        Ok(_) => (Reason::NotJson, "not readable as readings".to_owned()),
    }
}

/// A reading whose fields are of any type; `None` is absent or null.
#[derive(Deserialize)]
struct Untyped<'a> {
    #[serde(borrow)]
    device_id: Option<&'a RawValue>,
    #[serde(borrow)]
    metric: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    event_time: Option<&'a RawValue>,
    #[serde(borrow)]
    sequence: Option<&'a RawValue>,
    #[serde(borrow)]
    unit: Option<&'a RawValue>,
}

/// Says what is wrong with one item, for which the typed parse returned `error`.
fn diagnose(item: &str, error: &str) -> (Reason, String) {
    if serde_json::from_str::<IgnoredAny>(item).is_err() {
        return diagnose_text(item);
    }
    if !item.trim_ascii_start().starts_with('{') {
        return (Reason::WrongType, "a reading must be a JSON object".to_owned());
    }
    let fields: Untyped<'_> = match serde_json::from_str(item) {
        Ok(fields) => fields,
        Err(error) => return (Reason::WrongType, error.to_string()),
    };
    let required = [
        ("device_id", fields.device_id),
        ("metric", fields.metric),
        ("value", fields.value),
        ("event_time", fields.event_time),
    ];
    if let Some((field, _)) = required.iter().find(|(_, value)| value.is_none()) {
        return (Reason::MissingField, format!("field {field:?} is missing"));
    }
    let checks: [Check<'_>; 6] = [
        ("device_id", fields.device_id, is_text, "text"),
        ("metric", fields.metric, is_text, "text"),
        ("value", fields.value, is_number, "a number"),
        ("event_time", fields.event_time, is_time, "RFC 3339 text or integer milliseconds"),
        ("sequence", fields.sequence, is_integer, "an integer of 64 bits"),
        ("unit", fields.unit, is_text, "text"),
    ];
    for (field, value, is_right, expected) in checks {
        if value.is_some_and(|value| !is_right(value.get())) {
            return (Reason::WrongType, format!("field {field:?} must be {expected}"));
        }
    }
    if fields.value.and_then(|value| value.get().parse().ok()).is_some_and(f64::is_infinite) {
        return (Reason::NotFinite, "value must be finite".to_owned());
    }
    (Reason::WrongType, error.lines().next().unwrap_or_default().to_owned())
}

/// A field's name, its JSON, what it must be, and the same in words.
type Check<'a> = (&'static str, Option<&'a RawValue>, fn(&str) -> bool, &'static str);

fn is_text(json: &str) -> bool {
    json.starts_with('"')
}

fn is_number(json: &str) -> bool {
    json.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

fn is_integer(json: &str) -> bool {
    json.parse::<i64>().is_ok()
}

fn is_time(json: &str) -> bool {
    is_text(json) || is_integer(json) || json.parse::<u64>().is_ok()
}
