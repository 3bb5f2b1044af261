//! A dead letter on its way into the log: what was refused, where it came from, and the reason. Must not know who
//! refuses.

use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::wire::Rejected;
use wye_log::producer::Outgoing;
use wye_log::topics::{DEAD_LETTER, MAX_PAYLOAD_BYTES};

/// Where a refused thing came in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    /// In a request.
    Http,
    /// In the topic of readings.
    Kafka { kafka_partition: i32, kafka_offset: i64 },
}

/// See the module.
pub(crate) struct Letter<'a> {
    context: Vec<u8>,
    payload: &'a [u8],
}

impl<'a> Letter<'a> {
    /// A letter about what was received at `received_time` (µs). What is larger than a message can be is cut.
    pub(crate) fn new(rejected: &'a Rejected, origin: Origin, received_time: i64) -> Self {
        let (source, kafka_partition, kafka_offset) = match origin {
            Origin::Http => ("http", None, None),
            Origin::Kafka { kafka_partition, kafka_offset } => {
                ("kafka", Some(kafka_partition), Some(kafka_offset))
            }
        };
        let bytes = rejected.payload.len();
        let (payload, detail) = match rejected.payload.get(..MAX_PAYLOAD_BYTES) {
            Some(head) if head.len() < bytes => {
                (head, format!("first {} of {bytes} bytes: {}", head.len(), rejected.detail))
            }
            _ => (rejected.payload.as_slice(), rejected.detail.clone()),
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
        Self { context: context.encode(), payload }
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

#[cfg(test)]
mod tests {
    use wye_domain::wire::Reason;

    use super::*;

    #[test]
    fn bytes_stay_as_they_are_up_to_the_size_of_a_message() {
        for (bytes, kept, detail) in [
            (MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, "no".to_owned()),
            (
                MAX_PAYLOAD_BYTES + 1,
                MAX_PAYLOAD_BYTES,
                format!("first {MAX_PAYLOAD_BYTES} of {} bytes: no", MAX_PAYLOAD_BYTES + 1),
            ),
        ] {
            let rejected = Rejected {
                item_index: 4,
                reason: Reason::NotJson,
                detail: "no".to_owned(),
                payload: vec![7; bytes],
            };
            let origin = Origin::Kafka { kafka_partition: 2, kafka_offset: 9 };
            let letter = Letter::new(&rejected, origin, 1);
            let headers = letter.headers();
            let message = letter.message(&headers);
            assert_eq!(message.payload.len(), kept);
            let context = Context::decode(headers[0].1).unwrap();
            assert_eq!((context.detail, context.kafka_offset, context.item_index), (detail, Some(9), 4));
        }
    }
}
