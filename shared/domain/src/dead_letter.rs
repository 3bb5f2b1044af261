//! Dead letters: messages that were not accepted, with their bytes, where they came from, and why.
//!
//! Stability contract: a message of the topic `readings.dead-letter` has the rejected bytes, unchanged, as its payload,
//! and a [`Context`] as JSON in the header [`CONTEXT_HEADER`]; fields are only ever added. So a consumer can put the bytes
//! back into the topic that they came from.

use serde::{Deserialize, Serialize};

use crate::place::{KafkaPartition, Offset};
use crate::time::Micros;
use crate::wire::Rejected;
use crate::{DomainError, json};

/// The header of a dead letter that says why it is one.
pub const CONTEXT_HEADER: &str = "wye-dead-letter";

/// The longest detail in bytes: most of a message must be left to the payload.
const LONGEST_DETAIL: usize = 2_048;

/// What a dead letter says of its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// When it was received.
    pub received_time: Micros,
    /// Why it was rejected, one of the names of [`crate::wire::Reason`].
    pub reason: String,
    /// The reason in words, for people.
    pub detail: String,
    /// Where it came in: `kafka` or `http`.
    pub source: String,
    /// Its Kafka partition, if it was in the log.
    pub kafka_partition: Option<KafkaPartition>,
    /// Its offset there.
    pub kafka_offset: Option<Offset>,
    /// Which reading of the message or request.
    pub item_index: u32,
}

/// Where rejected bytes came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a request.
    Http,
    /// In the topic of readings.
    Kafka {
        /// Its Kafka partition.
        kafka_partition: KafkaPartition,
        /// Its offset there.
        kafka_offset: Offset,
    },
}

/// A dead letter: what goes into its header, and its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter<'a> {
    /// What is known of the rejected bytes.
    pub context: Context,
    /// The rejected bytes.
    pub payload: &'a [u8],
}

impl<'a> Letter<'a> {
    /// A letter about bytes that were received at `received_time`. A payload longer than `longest` bytes is cut, and the
    /// detail says so.
    pub fn new(rejected: &'a Rejected, origin: Origin, received_time: Micros, longest: usize) -> Self {
        let (source, kafka_partition, kafka_offset) = match origin {
            Origin::Http => ("http", None, None),
            Origin::Kafka { kafka_partition, kafka_offset } => {
                ("kafka", Some(kafka_partition), Some(kafka_offset))
            }
        };
        let bytes = rejected.payload.len();
        let detail = match rejected.readings {
            1 => rejected.detail.clone(),
            readings => format!("{readings} readings, one a line, of which the first: {}", rejected.detail),
        };
        let (payload, detail) = match rejected.payload.get(..longest) {
            Some(head) if head.len() < bytes => {
                (head, format!("first {} of {bytes} bytes: {detail}", head.len()))
            }
            _ => (rejected.payload.as_slice(), detail),
        };
        let context = Context {
            received_time,
            reason: rejected.reason.name().to_owned(),
            detail,
            source: source.to_owned(),
            kafka_partition,
            kafka_offset,
            item_index: rejected.item_index,
        };
        Self { context, payload }
    }
}

impl Context {
    /// The value of the header. A detail past 2,048 bytes is cut, and says so.
    pub fn encode(&self) -> Vec<u8> {
        if self.detail.len() <= LONGEST_DETAIL {
            return json::to_vec(self);
        }
        let detail = format!("{} (cut)", &self.detail[..self.detail.floor_char_boundary(LONGEST_DETAIL)]);
        json::to_vec(&Self { detail, ..self.clone() })
    }

    /// Reads the value of the header.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when it is something else.
    pub fn decode(header: &[u8]) -> Result<Self, DomainError> {
        serde_json::from_slice(header)
            .map_err(|error| DomainError::Decode { what: "dead letter's context", reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reason;

    #[test]
    fn bytes_stay_as_they_are_up_to_the_longest_that_fits() {
        for (bytes, kept, detail) in [(100, 100, "no"), (101, 100, "first 100 of 101 bytes: no")] {
            let rejected = Rejected {
                item_index: 4,
                readings: 1,
                reason: Reason::NotJson,
                detail: "no".to_owned(),
                payload: vec![7; bytes],
            };
            let origin = Origin::Kafka { kafka_partition: KafkaPartition(2), kafka_offset: Offset(9) };
            let Letter { context, payload } = Letter::new(&rejected, origin, Micros(1), 100);
            assert_eq!(payload.len(), kept);
            assert_eq!(
                (context.detail.as_str(), context.kafka_offset, context.item_index),
                (detail, Some(Offset(9)), 4)
            );
        }
    }

    #[test]
    fn contexts_come_back_and_long_details_are_cut_between_characters() {
        let mut context = Context {
            received_time: Micros(5),
            reason: "not_json".to_owned(),
            detail: "expected value".to_owned(),
            source: "kafka".to_owned(),
            kafka_partition: Some(KafkaPartition(3)),
            kafka_offset: None,
            item_index: 7,
        };
        assert_eq!(Context::decode(&context.encode()).unwrap(), context);
        context.detail = format!("x{}", "ü".repeat(3_000));
        let cut = Context::decode(&context.encode()).unwrap().detail;
        assert_eq!(cut, format!("x{} (cut)", "ü".repeat(1_023)));
        assert!(Context::decode(b"{}").is_err());
    }
}
