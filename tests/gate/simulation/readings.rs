//! The messages of a history: what devices and other producers send, as bytes and as what the oracle computes with. The
//! JSON is written here and not by the code under test.

use rand::Rng;
use rand::rngs::StdRng;

use super::layers;
use super::log::{Content, Topic};
use super::versions::{DAY, MINUTE, SECOND, device_name};

/// How many devices there are in each Kafka partition.
const DEVICES: u8 = 4;
/// How far back readings are sent again.
const MESSAGES_BACK: usize = 12;

/// One reading that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) device: u8,
    pub(crate) metric: u8,
    pub(crate) value: f64,
    /// In µs.
    pub(crate) event_time: i64,
    pub(crate) sequence: Option<i64>,
    pub(crate) unit: Option<&'static str>,
    /// The tag `line`.
    pub(crate) line: Option<u8>,
    /// Whether it is not a valid reading, so that it is in no metric.
    pub(crate) is_refused: bool,
}

/// What makes two readings the same.
pub(crate) type Identity = (u8, u8, i64, Option<i64>);

impl Sent {
    pub(crate) fn identity(&self) -> Identity {
        (self.device, self.metric, self.event_time, self.sequence)
    }

    pub(crate) fn metric_name(&self) -> String {
        format!("m{}", self.metric)
    }

    /// The tags as the layers store them.
    pub(crate) fn tags(&self) -> Option<String> {
        self.line.map(|line| format!(r#"{{"line":"{line}"}}"#))
    }

    fn json(&self) -> String {
        let mut json = format!(r#"{{"device_id":"{}","metric":"m{}""#, device_name(self.device), self.metric);
        if self.event_time % 1_000 == 0 {
            json += &format!(r#","event_time":{}"#, self.event_time / 1_000);
        } else {
            json += &format!(r#","event_time":"{}""#, rfc3339(self.event_time));
        }
        // The shortest text that reads back as the same number.
        json += &format!(r#","value":{:?}"#, self.value);
        if let Some(sequence) = self.sequence {
            json += &format!(r#","sequence":{sequence}"#);
        }
        if let Some(unit) = self.unit {
            json += &format!(r#","unit":"{unit}""#);
        }
        if let Some(tags) = self.tags() {
            json += &format!(r#","tags":{tags}"#);
        }
        json + "}"
    }
}

/// Whose readings, and when.
pub(crate) struct Sender {
    /// The Kafka partition that gets the message.
    pub(crate) kafka_partition: usize,
    pub(crate) kafka_partitions: usize,
    /// In µs.
    pub(crate) now: i64,
    /// The earliest event time (µs) that is accepted.
    pub(crate) earliest: i64,
    /// Whether some producer sends devices to any Kafka partition.
    pub(crate) is_spread: bool,
    /// How probable it is that a reading was sent before.
    pub(crate) resent: f64,
}

impl Sender {
    /// The next message, given what was sent to this Kafka partition, and to another one.
    pub(crate) fn message(&self, random: &mut StdRng, sent: &Topic<super::log::Entry>) -> Content {
        match random.random_range(0..100) {
            0..4 => return unreadable_payload(random),
            // A producer that got no answer sends the same message again.
            4..10 => {
                if let Some((payload, readings)) = recent(random, sent) {
                    let (payload, mut readings) = (payload.to_vec(), readings.to_vec());
                    readings.iter_mut().for_each(|reading| reading.is_refused |= self.refuses(reading));
                    return Content::Message { payload, readings };
                }
            }
            _ => {}
        }
        let count = random.random_range(1..7);
        let mut readings = Vec::with_capacity(count);
        for nth in 0..count {
            let again = if random.random_bool(self.resent) { recent_reading(random, sent) } else { None };
            let mut reading = again.unwrap_or_else(|| self.fresh(random, sent.end() * 10 + nth as i64));
            reading.is_refused = self.refuses(&reading);
            readings.push(reading);
        }
        let payload =
            if random.random_bool(0.6) { json(random, &mut readings) } else { arrow(random, &mut readings) };
        Content::Message { payload, readings }
    }

    fn fresh(&self, random: &mut StdRng, unique: i64) -> Sent {
        let is_misplaced = self.is_spread && random.random_bool(0.2);
        let home =
            if is_misplaced { random.random_range(0..self.kafka_partitions) } else { self.kafka_partition };
        let device = random.random_range(0..DEVICES) * self.kafka_partitions as u8 + home as u8;
        Sent {
            device,
            metric: random.random_range(0..3),
            value: value(random),
            event_time: self.event_time(random),
            sequence: match random.random_range(0..4) {
                0 => None,
                1 => Some(random.random_range(0..3)),
                _ => Some(1_000 + unique),
            },
            unit: *pick(random, &[None, None, Some("Cel"), Some("K")]),
            line: (!device.is_multiple_of(3)).then_some(device % 3).filter(|_| random.random_bool(0.9)),
            is_refused: false,
        }
    }

    fn event_time(&self, random: &mut StdRng) -> i64 {
        let millis = random.random_range(0..240_000) * 1_000;
        match random.random_range(0..100) {
            // Times that several readings share, at the edges of windows.
            0..55 => (self.now / (30 * SECOND) - random.random_range(0..6)) * 30 * SECOND,
            55..84 => self.now - millis + random.random_range(0..1_000),
            84..89 => self.now - millis * 60,
            // A backlog.
            89..92 => self.now - DAY - millis * 1_000,
            // A clock that is ahead.
            92..95 => self.now + 90 * SECOND + millis,
            95..97 => self.now + 2 * DAY,
            // Around 1970.
            _ => millis - 2 * MINUTE,
        }
    }

    /// Whether the event time of a reading is not plausible when the log takes it now.
    fn refuses(&self, reading: &Sent) -> bool {
        reading.event_time < self.earliest || reading.event_time > self.now + DAY
    }
}

/// Values of which sums are rounded, of very different sizes, and some that the definitions and limits care about.
fn value(random: &mut StdRng) -> f64 {
    let digits = f64::from(random.random_range(-8_000..8_000));
    match random.random_range(0..100) {
        0..60 => digits / 100.0,
        60..75 => digits / 8.0,
        75..84 => digits / 7.0 * 1e3,
        84..90 => digits * 1e9 + 0.1,
        90..93 => digits / 3e5,
        _ => *pick(random, &[0.0, -0.0, -50.0, 60.0, 40.0, 1e13, -1e13, 1.0]),
    }
}

fn pick<'a, T>(random: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

/// One of the newest messages.
fn recent<'a>(random: &mut StdRng, sent: &'a Topic<super::log::Entry>) -> Option<(&'a [u8], &'a [Sent])> {
    let all = sent.all();
    let back = random.random_range(0..MESSAGES_BACK);
    match &all.get(all.len().checked_sub(back + 1)?)?.content {
        Content::Message { payload, readings } => Some((payload, readings)),
        Content::Empty | Content::Unreadable => None,
    }
}

/// A reading of one of the newest messages, sometimes with another value.
fn recent_reading(random: &mut StdRng, sent: &Topic<super::log::Entry>) -> Option<Sent> {
    let (_, readings) = recent(random, sent)?;
    let mut again = readings.get(random.random_range(0..readings.len().max(1)))?.clone();
    match random.random_range(0..10) {
        0..2 => again.value += 1.0,
        2 => again.value = -again.value,
        _ => {}
    }
    again.value.is_finite().then_some(again)
}

/// A payload that holds no reading.
fn unreadable_payload(random: &mut StdRng) -> Content {
    let payload = *pick(
        random,
        &[
            b"not a reading".as_slice(),
            b"",
            b"WYE\x07 a later version",
            br#"[{"device_id":"d0","metric":"m0","value":1,"event_time":"#,
        ],
    );
    Content::Message { payload: payload.to_vec(), readings: Vec::new() }
}

/// An object, or an array of them; some items are not valid readings.
fn json(random: &mut StdRng, readings: &mut Vec<Sent>) -> Vec<u8> {
    if random.random_bool(0.2) {
        readings.truncate(1);
    }
    let mut items: Vec<String> = readings.iter().map(Sent::json).collect();
    for (item, reading) in items.iter_mut().zip(readings.iter_mut()) {
        if random.random_bool(0.03) {
            reading.is_refused = true;
            *item =
                (*pick(random, &["7", "{}", r#"{"device_id":"","metric":"m1","value":1,"event_time":0}"#]))
                    .to_owned();
        }
    }
    match &items[..] {
        [one] if random.random_bool(0.5) => one.clone().into_bytes(),
        items => format!("[{}]", items.join(" , ")).into_bytes(),
    }
}

/// An Arrow stream; some values are not finite.
fn arrow(random: &mut StdRng, readings: &mut [Sent]) -> Vec<u8> {
    for reading in readings.iter_mut() {
        if random.random_bool(0.03) {
            reading.value = *pick(random, &[f64::NAN, f64::INFINITY]);
            reading.is_refused = true;
        }
    }
    layers::arrow_message(readings)
}

/// A time (µs) as text. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn rfc3339(micros: i64) -> String {
    let (days, of_day) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, fraction) = (of_day / SECOND, of_day % SECOND);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z")
}
