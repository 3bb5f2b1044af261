//! From batches of readings to messages: each device's readings to its Kafka partition, in order.
//!
//! The same batches always make the same messages in the same order, so that a repeated request can be compared with the
//! messages in the log.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Range;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use wye_domain::place::KafkaPartition;
use wye_domain::reading::{ReadingBatchBuilder, ReadingColumns, TextColumn};
use wye_domain::wire;
use wye_log::partitioner::partition_of;
use wye_log::topics::MAX_PAYLOAD_BYTES;

/// Fewer readings than this go as JSON, which is smaller for them than an Arrow stream with its schema.
const FEW: usize = 8;

/// The error for a batch without the schema of readings, which accepted readings always have.
type Unexpected = Box<dyn Error + Send + Sync>;

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// Where it goes.
    pub kafka_partition: KafkaPartition,
    /// The device, if all readings are of one.
    pub device_id: Option<String>,
    /// The payload in the wire format of the log.
    pub payload: Vec<u8>,
}

/// Cuts batches into messages.
///
/// # Errors
/// When a batch does not have the schema of readings.
pub(super) fn parts(batches: &[RecordBatch], kafka_partitions: i32) -> Result<Vec<Part>, Unexpected> {
    let mut parts = Vec::new();
    for batch in batches {
        let device = TextColumn::of(batch, "device_id")?;
        let of_word: Vec<KafkaPartition> = device
            .words()
            .iter()
            .map(|word| partition_of(word.unwrap_or_default().as_bytes(), kafka_partitions))
            .collect();
        let of_row: Vec<KafkaPartition> = (0..batch.num_rows())
            .map(|row| device.code(row).map_or_else(KafkaPartition::default, |code| of_word[code]))
            .collect();
        let mut targets = of_row.clone();
        targets.sort_unstable();
        targets.dedup();
        for target in &targets {
            let own = if targets.len() == 1 {
                Cow::Borrowed(batch)
            } else {
                let mask: BooleanArray = of_row.iter().map(|row| Some(row == target)).collect();
                Cow::Owned(filter_record_batch(batch, &mask)?)
            };
            push(&own, *target, &mut parts)?;
        }
    }
    Ok(parts)
}

/// Appends the messages of a batch whose readings all go to one Kafka partition.
fn push(
    batch: &RecordBatch,
    kafka_partition: KafkaPartition,
    parts: &mut Vec<Part>,
) -> Result<(), Unexpected> {
    let rows = batch.num_rows();
    let columns = ReadingColumns::of(batch)?;
    let payload = if rows < FEW {
        wire::encode_json(&(0..rows).map(|row| columns.reading(row)).collect::<Vec<_>>())
    } else {
        wire::encode(std::slice::from_ref(batch))
    };
    if payload.len() > MAX_PAYLOAD_BYTES && rows > 1 {
        drop(payload);
        push(&rows_of(&columns, 0..rows / 2), kafka_partition, parts)?;
        return push(&rows_of(&columns, rows / 2..rows), kafka_partition, parts);
    }
    let first = columns.device_id.code(0);
    let single = (1..rows).all(|row| columns.device_id.code(row) == first);
    let device_id = single.then(|| columns.device_id.text(0).unwrap_or_default().to_owned());
    parts.push(Part { kafka_partition, device_id, payload });
    Ok(())
}

/// A batch of some rows with only the words that they use: a slice would have the words of all rows.
fn rows_of(columns: &ReadingColumns<'_>, rows: Range<usize>) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for row in rows {
        builder.append(&columns.reading(row));
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use wye_domain::assemble::Assembler;
    use wye_domain::place::Offset;
    use wye_domain::reading::Reading;
    use wye_domain::time::Micros;

    use super::*;

    #[test]
    fn every_reading_goes_once_to_its_partition() {
        let mut builder = ReadingBatchBuilder::default();
        let devices: Vec<String> = (0..50).map(|i| format!("device-{i}")).collect();
        for i in 0..1_003i64 {
            let device_id = &devices[(i * 7 % 50) as usize];
            builder.append(&Reading {
                device_id,
                metric: "m",
                value: i as f64,
                event_time: Micros(1_700_000_000_000_000 + i),
                sequence: None,
                unit: None,
                tags: None,
            });
        }
        let batch = builder.finish();
        let parts = parts(std::slice::from_ref(&batch), 4).unwrap();
        assert_eq!(parts, super::parts(&[batch], 4).unwrap());
        let mut values = Vec::new();
        for part in &parts {
            let mut assembler = Assembler::default();
            assembler.push(&part.payload, Offset::START, Micros(1_800_000_000_000_000));
            for placed in assembler.take() {
                let columns = ReadingColumns::of(&placed.batch).unwrap();
                for row in 0..placed.batch.num_rows() {
                    let reading = columns.reading(row);
                    assert_eq!(partition_of(reading.device_id.as_bytes(), 4), part.kafka_partition);
                    values.push(reading.value as i64);
                }
            }
        }
        values.sort_unstable();
        assert_eq!(values, (0..1_003).collect::<Vec<_>>());
    }
}
