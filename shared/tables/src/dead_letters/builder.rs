//! Builds batches of dead letters. Must not know how the letters are read.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Array, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondArray,
};
use wye_domain::batch;
use wye_domain::dead_letter::Context;
use wye_domain::place::Offset;

use crate::columns::dead_letter_schema;

/// Collects dead letters in the columns of [`dead_letter_schema`].
#[derive(Debug)]
pub struct LettersBuilder {
    /// The topic of the messages that letters are about.
    topic: &'static str,
    received_time: Vec<i64>,
    reason: StringBuilder,
    detail: StringBuilder,
    source: StringBuilder,
    kafka_topic: StringBuilder,
    kafka_partition: Int32Builder,
    kafka_offset: Int64Builder,
    item_index: Int32Builder,
    payload: BinaryBuilder,
    letter_offset: Vec<i64>,
}

impl LettersBuilder {
    /// A builder of letters about messages of `topic`. Letters about items that came in by HTTP have no topic.
    #[must_use]
    pub fn new(topic: &'static str) -> Self {
        Self {
            topic,
            received_time: Vec::new(),
            reason: StringBuilder::new(),
            detail: StringBuilder::new(),
            source: StringBuilder::new(),
            kafka_topic: StringBuilder::new(),
            kafka_partition: Int32Builder::new(),
            kafka_offset: Int64Builder::new(),
            item_index: Int32Builder::new(),
            payload: BinaryBuilder::new(),
            letter_offset: Vec::new(),
        }
    }

    /// Appends the letter at an offset of the dead-letter topic.
    pub fn append(&mut self, context: &Context, payload: &[u8], letter_offset: Offset) {
        self.received_time.push(context.received_time.0);
        self.reason.append_value(&context.reason);
        self.detail.append_value(&context.detail);
        self.source.append_value(&context.source);
        self.kafka_topic.append_option(context.kafka_offset.map(|_| self.topic));
        self.kafka_partition.append_option(context.kafka_partition.map(|partition| partition.0));
        self.kafka_offset.append_option(context.kafka_offset.map(|offset| offset.0));
        self.item_index.append_option(i32::try_from(context.item_index).ok());
        self.payload.append_value(payload);
        self.letter_offset.push(letter_offset.0);
    }

    /// How many letters are in the batch being built.
    #[must_use]
    pub fn len(&self) -> usize {
        self.letter_offset.len()
    }

    /// Whether no letter is in the batch being built.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.letter_offset.is_empty()
    }

    /// The finished batch; the builder is empty again.
    pub fn finish(&mut self) -> RecordBatch {
        let received_time = TimestampMicrosecondArray::from(std::mem::take(&mut self.received_time));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(received_time.with_timezone("UTC")),
            Arc::new(self.reason.finish()),
            Arc::new(self.detail.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.kafka_topic.finish()),
            Arc::new(self.kafka_partition.finish()),
            Arc::new(self.kafka_offset.finish()),
            Arc::new(self.item_index.finish()),
            Arc::new(self.payload.finish()),
            Arc::new(Int64Array::from(std::mem::take(&mut self.letter_offset))),
        ];
        batch::of_columns(dead_letter_schema(), columns)
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::place::KafkaPartition;
    use wye_domain::time::Micros;

    use super::*;

    #[test]
    fn a_letter_about_an_http_request_has_no_offset() {
        let http = Context {
            received_time: Micros(5),
            reason: "not_json".to_owned(),
            detail: "expected value".to_owned(),
            source: "http".to_owned(),
            kafka_partition: None,
            kafka_offset: None,
            item_index: 2,
        };
        let kafka = Context {
            source: "kafka".to_owned(),
            kafka_partition: Some(KafkaPartition(1)),
            kafka_offset: Some(Offset(77)),
            ..http.clone()
        };
        let mut builder = LettersBuilder::new("readings");
        for (offset, context) in (0..).zip([&http, &kafka]) {
            builder.append(context, b"\xff{", Offset(offset));
        }
        assert_eq!(builder.len(), 2);
        let batch = builder.finish();
        assert!(builder.is_empty());
        let nulls = ["kafka_topic", "kafka_partition", "kafka_offset", "item_index", "payload"]
            .map(|name| [0, 1].map(|row| batch[name].is_null(row)));
        let (absent, present) = ([true, false], [false, false]);
        assert_eq!(nulls, [absent, absent, absent, present, present]);
        assert_eq!(builder.finish().num_rows(), 0);
    }
}
