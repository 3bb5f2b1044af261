//! Dead letters: what could not be accepted, with its bytes, where it came from, and why.
//!
//! Stability contract: JSON objects in the topic `readings.dead-letter`; fields are only ever added.

use serde::{Deserialize, Serialize};

use crate::DomainError;

/// One dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// When it was received, in µs.
    pub received_time: i64,
    /// Why, from a closed set: see [`crate::wire::Reason`].
    pub reason: String,
    /// The same for people.
    pub detail: String,
    /// Where it came in: `kafka` or `http`.
    pub source: String,
    /// Its place in the log, where it came in there.
    pub kafka_partition: Option<i32>,
    /// Its offset in the log, where it came in there.
    pub kafka_offset: Option<i64>,
    /// Which reading of the message or request.
    pub item_index: u32,
    /// The bytes as they came, in Base64.
    pub payload_base64: String,
}

impl DeadLetter {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("dead letters are always JSON")
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DomainError> {
        serde_json::from_slice(bytes)
            .map_err(|error| DomainError::Decode { what: "dead letter", reason: error.to_string() })
    }
}
