//! A dead letter on its way into the log. Must not know who refuses.

use wye_domain::dead_letter::{self, CONTEXT_HEADER};
use wye_domain::wire::Rejected;
use wye_log::producer::Outgoing;
use wye_log::topics::{DEAD_LETTER, MAX_PAYLOAD_BYTES};

pub(crate) use wye_domain::dead_letter::Origin;

/// See the module.
pub(crate) struct Letter<'a> {
    context: Vec<u8>,
    payload: &'a [u8],
}

impl<'a> Letter<'a> {
    /// A letter about what was received at `received_time` (µs). What is larger than a message can be is cut.
    pub(crate) fn new(rejected: &'a Rejected, origin: Origin, received_time: i64) -> Self {
        let letter = dead_letter::Letter::new(rejected, origin, received_time, MAX_PAYLOAD_BYTES);
        Self { context: letter.context.encode(), payload: letter.payload }
    }

    /// The headers of [`Self::message`].
    pub(crate) fn headers(&self) -> [(&str, &[u8]); 1] {
        [(CONTEXT_HEADER, &self.context)]
    }

    /// The message, with these headers.
    pub(crate) fn message<'m>(&self, headers: &'m [(&'m str, &'m [u8])]) -> Outgoing<'m>
    where
        'a: 'm,
    {
        Outgoing { topic: DEAD_LETTER, kafka_partition: 0, key: None, payload: self.payload, headers }
    }
}
