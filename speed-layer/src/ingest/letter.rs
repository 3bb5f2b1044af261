//! A dead letter of ingest as a message to the log.

use wye_domain::dead_letter::{self, CONTEXT_HEADER, Origin};
use wye_domain::place::KafkaPartition;
use wye_domain::time::Micros;
use wye_domain::wire::Rejected;
use wye_log::producer::Outgoing;
use wye_log::topics::{DEAD_LETTER, MAX_PAYLOAD_BYTES};

/// Rejected bytes, with the reason.
pub(super) struct Letter<'a> {
    context: Vec<u8>,
    payload: &'a [u8],
}

impl<'a> Letter<'a> {
    /// A letter about something that came over HTTP. What is larger than a message can be is cut.
    pub(super) fn new(rejected: &'a Rejected, received: Micros) -> Self {
        let letter = dead_letter::Letter::new(rejected, Origin::Http, received, MAX_PAYLOAD_BYTES);
        Self { context: letter.context.encode(), payload: letter.payload }
    }

    /// The headers of [`Self::message`].
    pub(super) fn headers(&self) -> [(&str, &[u8]); 1] {
        [(CONTEXT_HEADER, &self.context)]
    }

    /// The message, with these headers.
    pub(super) fn message<'m>(&self, headers: &'m [(&'m str, &'m [u8])]) -> Outgoing<'m>
    where
        'a: 'm,
    {
        Outgoing {
            topic: DEAD_LETTER,
            kafka_partition: KafkaPartition(0),
            key: None,
            payload: self.payload,
            headers,
        }
    }
}
