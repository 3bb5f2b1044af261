//! The header of a Kafka record batch (magic 2), the unit in which records are sent, stored and fetched.
//!
//! Source: "Record Batch", Kafka protocol documentation. Only the header is read here; [`crate::records`] reads the
//! records after it.

use wye_domain::place::Offset;

use crate::clock::Timestamp;

/// The fields of a record batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordBatch {
    /// The offset of its first record, once it is in the log.
    pub(crate) base_offset: Offset,
    /// Bytes of the whole batch, header included.
    pub(crate) size: usize,
    /// How many offsets it takes: at least 1.
    pub(crate) offset_count: i64,
    /// How many records it has; 0 where the records of these offsets were lost.
    pub(crate) records: i32,
    /// Codec, timestamp type and kind, as bits.
    pub(crate) attributes: i16,
    /// The create time of each record is stored as a difference to this.
    pub(crate) base_timestamp: Timestamp,
    /// The latest create time of its records, or the time at which it was appended to the log.
    pub(crate) max_timestamp: Timestamp,
    /// The producer that is named in it.
    pub(crate) producer_id: Option<i64>,
    /// Its sequence numbers, if it is from an idempotent producer.
    pub(crate) sequence: Option<Sequence>,
}

/// The timestamps are the times of the append, as with `LogAppendTime`.
const LOG_APPEND_TIME: i16 = 0b1000;
const TRANSACTIONAL: i16 = 0b1_0000;
const CONTROL: i16 = 0b10_0000;

/// The sequence numbers of a batch of an idempotent producer; a repeated batch has the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    /// The number of its first record; 0 follows `i32::MAX`.
    pub(crate) first: i32,
    /// The number of its last record.
    pub(crate) last: i32,
}

/// Why bytes are not a valid record batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidBatch {
    /// The bytes end too early. `needed` is the size of the header where that is incomplete, else of the batch.
    Short { needed: usize },
    /// The header has impossible values.
    Malformed,
    /// The checksum does not match.
    Damaged,
}

/// Bytes of the header up to the first record.
pub(crate) const HEADER: usize = 61;
/// Bytes before those that the length field counts.
const UNCOUNTED: usize = 12;
/// The position of the checksum; it covers everything from [`CHECKED`] on.
const CHECKSUM: usize = 17;
const CHECKED: usize = 21;
const ATTRIBUTES: usize = 21;
const MAX_TIMESTAMP: usize = 35;

impl RecordBatch {
    /// Reads the header of the batch at the start of `bytes`. The records may be missing.
    pub(crate) fn read_header(bytes: &[u8]) -> Result<Self, InvalidBatch> {
        if bytes.len() < HEADER {
            return Err(InvalidBatch::Short { needed: HEADER });
        }
        let counted = int32(bytes, 8);
        let (magic, attributes) = (bytes[16], int16(bytes, ATTRIBUTES));
        let (last_offset_delta, records) = (int32(bytes, 23), int32(bytes, 57));
        if magic != 2
            || counted < (HEADER - UNCOUNTED) as i32
            || last_offset_delta < 0
            || last_offset_delta == i32::MAX
            || records < 0
        {
            return Err(InvalidBatch::Malformed);
        }
        let (producer_id, first) = (int64(bytes, 43), int32(bytes, 53));
        let producer_epoch = int16(bytes, 51);
        let sequence = (producer_id >= 0 && producer_epoch >= 0 && first >= 0).then(|| Sequence {
            producer_id,
            producer_epoch,
            first,
            last: first.wrapping_add(last_offset_delta) & i32::MAX,
        });
        Ok(Self {
            base_offset: Offset(int64(bytes, 0)),
            size: counted as usize + UNCOUNTED,
            offset_count: i64::from(last_offset_delta) + 1,
            records,
            attributes,
            base_timestamp: Timestamp(int64(bytes, 27)),
            max_timestamp: Timestamp(int64(bytes, MAX_TIMESTAMP)),
            producer_id: (producer_id >= 0).then_some(producer_id),
            sequence,
        })
    }

    /// Reads the header, and checks that the batch is complete and its checksum is right.
    pub(crate) fn check(bytes: &[u8]) -> Result<Self, InvalidBatch> {
        let batch = Self::read_header(bytes)?;
        if bytes.len() < batch.size {
            return Err(InvalidBatch::Short { needed: batch.size });
        }
        let checksum = int32(bytes, CHECKSUM) as u32;
        if crc32c::crc32c(&bytes[CHECKED..batch.size]) != checksum {
            return Err(InvalidBatch::Damaged);
        }
        Ok(batch)
    }

    /// Whether it belongs to a Kafka transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it holds control records, which only brokers write.
    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether the timestamp of its records is the time of the append.
    pub(crate) fn has_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// The offset after its last record.
    pub(crate) fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0 + self.offset_count)
    }
}

/// Writes the offset that a batch gets in the log into its header. The checksum does not cover it.
pub(crate) fn set_base_offset(bytes: &mut [u8], base_offset: Offset) {
    bytes[0..8].copy_from_slice(&base_offset.0.to_be_bytes());
    // The leader epoch: always 0, since there is one node.
    bytes[12..16].copy_from_slice(&0_i32.to_be_bytes());
}

/// A batch of `records` uncompressed records, encoded in `body`, without times and without a producer.
pub(crate) fn pack(body: &[u8], records: i32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[8..12].copy_from_slice(&((HEADER - UNCOUNTED + body.len()) as i32).to_be_bytes());
    bytes[12..16].copy_from_slice(&(-1_i32).to_be_bytes());
    bytes[16] = 2;
    bytes[23..27].copy_from_slice(&(records - 1).to_be_bytes());
    bytes[43..57].fill(0xFF); // No producer: its number, epoch and sequence are -1.
    bytes[57..61].copy_from_slice(&records.to_be_bytes());
    bytes.extend_from_slice(body);
    set_max_timestamp(&mut bytes, Timestamp(0));
    bytes
}

/// Makes `now` the timestamp of all records of a complete batch, the time of the append.
pub(crate) fn set_log_append_time(bytes: &mut [u8], now: Timestamp) {
    let attributes = int16(bytes, ATTRIBUTES) | LOG_APPEND_TIME;
    bytes[ATTRIBUTES..ATTRIBUTES + 2].copy_from_slice(&attributes.to_be_bytes());
    set_max_timestamp(bytes, now);
}

/// Writes the latest timestamp of its records into the header of a complete batch, and the checksum of the result.
pub(crate) fn set_max_timestamp(bytes: &mut [u8], timestamp: Timestamp) {
    bytes[MAX_TIMESTAMP..MAX_TIMESTAMP + 8].copy_from_slice(&timestamp.0.to_be_bytes());
    let checksum = crc32c::crc32c(&bytes[CHECKED..]);
    bytes[CHECKSUM..CHECKED].copy_from_slice(&checksum.to_be_bytes());
}

fn int16(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(field(bytes, at))
}

/// The big-endian number in the four bytes from `at` on.
pub(crate) fn int32(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(field(bytes, at))
}

fn int64(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(field(bytes, at))
}

fn field<const SIZE: usize>(bytes: &[u8], at: usize) -> [u8; SIZE] {
    let mut field = [0; SIZE];
    field.copy_from_slice(&bytes[at..at + SIZE]);
    field
}

#[cfg(test)]
pub(crate) mod tests {
    use wye_domain::place::Offset;

    use super::{InvalidBatch, RecordBatch, Sequence, set_base_offset};
    use crate::clock::Timestamp;

    /// A batch with a correct header; instead of records it has `size` bytes that no test decodes. `sequence` is a
    /// producer with its first sequence number, `timestamp` is in milliseconds since 1970.
    pub(crate) fn batch(records: i32, size: usize, sequence: Option<(i64, i32)>, timestamp: i64) -> Vec<u8> {
        let (producer_id, first) = sequence.unwrap_or((-1, -1));
        let mut bytes = vec![0_u8; 8];
        bytes.extend_from_slice(&((super::HEADER - super::UNCOUNTED + size) as i32).to_be_bytes());
        bytes.extend_from_slice(&(-1_i32).to_be_bytes());
        bytes.push(2);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&0_i16.to_be_bytes());
        bytes.extend_from_slice(&(records - 1).to_be_bytes());
        bytes.extend_from_slice(&timestamp.to_be_bytes());
        bytes.extend_from_slice(&timestamp.to_be_bytes());
        bytes.extend_from_slice(&producer_id.to_be_bytes());
        bytes.extend_from_slice(&0_i16.to_be_bytes());
        bytes.extend_from_slice(&first.to_be_bytes());
        bytes.extend_from_slice(&records.to_be_bytes());
        bytes.resize(super::HEADER + size, 7);
        let checksum = crc32c::crc32c(&bytes[super::CHECKED..]);
        bytes[super::CHECKSUM..super::CHECKED].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let mut bytes = batch(10, 100, Some((4, 5)), 1234);
        set_base_offset(&mut bytes, Offset(77));
        let read = RecordBatch::check(&bytes).unwrap();
        let sequence = Sequence { producer_id: 4, producer_epoch: 0, first: 5, last: 14 };
        assert_eq!((read.base_offset, read.end_offset(), read.size), (Offset(77), Offset(87), 161));
        assert_eq!((read.max_timestamp, read.sequence), (Timestamp(1234), Some(sequence)));
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        let bytes = batch(3, 1, Some((4, i32::MAX - 1)), 0);
        assert_eq!(RecordBatch::check(&bytes).unwrap().sequence.unwrap().last, 0);
    }

    #[test]
    fn damaged_and_incomplete_batches_are_detected() {
        let whole = batch(10, 100, None, 0);
        let mut damaged = whole.clone();
        damaged[100] ^= 1;
        assert_eq!(RecordBatch::check(&damaged), Err(InvalidBatch::Damaged));
        assert_eq!(RecordBatch::check(&whole[..100]), Err(InvalidBatch::Short { needed: 161 }));
        assert_eq!(RecordBatch::check(&whole[..20]), Err(InvalidBatch::Short { needed: 61 }));
        assert_eq!(RecordBatch::check(&[0; 200]), Err(InvalidBatch::Malformed));
    }
}
