//! The header of a Kafka record batch (magic 2), the unit in which records are sent, stored and fetched.
//!
//! Source: "Record Batch", Kafka protocol documentation. Only the header is read here; the records in it are for
//! [`crate::records`].

/// What the broker needs of a record batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordBatch {
    /// The offset of its first record, once it is in the log.
    pub(crate) base_offset: i64,
    /// Bytes of the whole batch with its header.
    pub(crate) size: usize,
    /// How many offsets it takes: at least 1.
    pub(crate) offsets: i64,
    /// How many records it announces; none where the records of these offsets were lost.
    pub(crate) records: i32,
    /// Codec, timestamp type and kind, as bits.
    pub(crate) attributes: i16,
    /// What the create time of each record is counted from, milliseconds since 1970.
    pub(crate) base_timestamp: i64,
    /// The largest create time in it, or the time at which the log took it; milliseconds since 1970.
    pub(crate) max_timestamp: i64,
    /// The producer that names itself in it; negative for none.
    pub(crate) producer_id: i64,
    /// Who numbered it, if anybody did.
    pub(crate) sequence: Option<Sequence>,
}

const STAMPED_BY_LOG: i16 = 0b1000;
const TRANSACTIONAL: i16 = 0b1_0000;
const CONTROL: i16 = 0b10_0000;

/// The numbering by which a repeated batch is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    /// The number of its first record; numbers go on at 0 after `i32::MAX`.
    pub(crate) first: i32,
    /// The number of its last record.
    pub(crate) last: i32,
}

/// Why bytes are no record batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBatch {
    /// There are fewer bytes than it needs: `needed` in all, as far as can be told.
    Short { needed: usize },
    /// What is there cannot be a batch.
    Malformed,
    /// The checksum does not match.
    Damaged,
}

/// Bytes of the header up to the first record.
pub(crate) const HEADER: usize = 61;
/// Bytes before those that the length field counts.
const UNCOUNTED: usize = 12;
/// Where the checksum stands; it covers everything from [`CHECKED`] on.
const CHECKSUM: usize = 17;
const CHECKED: usize = 21;
const ATTRIBUTES: usize = 21;
const MAX_TIMESTAMP: usize = 35;

impl RecordBatch {
    /// Reads the header of the batch that `bytes` start with. The records need not be there.
    pub(crate) fn read_header(bytes: &[u8]) -> Result<Self, NoBatch> {
        if bytes.len() < HEADER {
            return Err(NoBatch::Short { needed: HEADER });
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
            return Err(NoBatch::Malformed);
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
            base_offset: int64(bytes, 0),
            size: counted as usize + UNCOUNTED,
            offsets: i64::from(last_offset_delta) + 1,
            records,
            attributes,
            base_timestamp: int64(bytes, 27),
            max_timestamp: int64(bytes, MAX_TIMESTAMP),
            producer_id,
            sequence,
        })
    }

    /// Reads the header and checks that the whole batch is there and undamaged.
    pub(crate) fn check(bytes: &[u8]) -> Result<Self, NoBatch> {
        let batch = Self::read_header(bytes)?;
        if bytes.len() < batch.size {
            return Err(NoBatch::Short { needed: batch.size });
        }
        let checksum = int32(bytes, CHECKSUM) as u32;
        if crc32c::crc32c(&bytes[CHECKED..batch.size]) != checksum {
            return Err(NoBatch::Damaged);
        }
        Ok(batch)
    }

    /// Whether it belongs to a Kafka transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it holds what brokers tell each other.
    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether its records have the time at which the log took them.
    pub(crate) fn is_stamped_by_log(&self) -> bool {
        self.attributes & STAMPED_BY_LOG != 0
    }

    /// The offset after its last record.
    pub(crate) fn end_offset(&self) -> i64 {
        self.base_offset + self.offsets
    }
}

/// Writes where a batch stands in the log into its header: neither field is under the checksum.
pub(crate) fn place(bytes: &mut [u8], base_offset: i64) {
    bytes[0..8].copy_from_slice(&base_offset.to_be_bytes());
    // The leader epoch. There is one leader, for ever.
    bytes[12..16].copy_from_slice(&0_i32.to_be_bytes());
}

/// A batch of `records` plain records that are in `body`, without times and without a producer.
pub(crate) fn pack(body: &[u8], records: i32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[8..12].copy_from_slice(&((HEADER - UNCOUNTED + body.len()) as i32).to_be_bytes());
    bytes[12..16].copy_from_slice(&(-1_i32).to_be_bytes());
    bytes[16] = 2;
    bytes[23..27].copy_from_slice(&(records - 1).to_be_bytes());
    bytes[43..57].fill(0xFF); // No producer: its number, epoch and sequence are -1.
    bytes[57..61].copy_from_slice(&records.to_be_bytes());
    bytes.extend_from_slice(body);
    set_max_timestamp(&mut bytes, 0);
    bytes
}

/// Makes `now` (milliseconds since 1970) the time of all records of a whole batch, as the log's stamp.
pub(crate) fn set_log_append_time(bytes: &mut [u8], now: i64) {
    let attributes = int16(bytes, ATTRIBUTES) | STAMPED_BY_LOG;
    bytes[ATTRIBUTES..ATTRIBUTES + 2].copy_from_slice(&attributes.to_be_bytes());
    set_max_timestamp(bytes, now);
}

/// Writes the largest time of its records into the header of a whole batch.
pub(crate) fn set_max_timestamp(bytes: &mut [u8], milliseconds: i64) {
    bytes[MAX_TIMESTAMP..MAX_TIMESTAMP + 8].copy_from_slice(&milliseconds.to_be_bytes());
    let checksum = crc32c::crc32c(&bytes[CHECKED..]);
    bytes[CHECKSUM..CHECKED].copy_from_slice(&checksum.to_be_bytes());
}

fn int16(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn int32(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn int64(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{NoBatch, RecordBatch, Sequence, place};

    /// A batch with a true header and `size` bytes that nobody decodes in place of its records.
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
    fn reads_what_was_written() {
        let mut bytes = batch(10, 100, Some((4, 5)), 1234);
        place(&mut bytes, 77);
        let read = RecordBatch::check(&bytes).unwrap();
        let sequence = Sequence { producer_id: 4, producer_epoch: 0, first: 5, last: 14 };
        assert_eq!((read.base_offset, read.end_offset(), read.size), (77, 87, 161));
        assert_eq!((read.max_timestamp, read.sequence), (1234, Some(sequence)));
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        let bytes = batch(3, 1, Some((4, i32::MAX - 1)), 0);
        assert_eq!(RecordBatch::check(&bytes).unwrap().sequence.unwrap().last, 0);
    }

    #[test]
    fn sees_damage_and_cuts() {
        let whole = batch(10, 100, None, 0);
        let mut damaged = whole.clone();
        damaged[100] ^= 1;
        assert_eq!(RecordBatch::check(&damaged), Err(NoBatch::Damaged));
        assert_eq!(RecordBatch::check(&whole[..100]), Err(NoBatch::Short { needed: 161 }));
        assert_eq!(RecordBatch::check(&whole[..20]), Err(NoBatch::Short { needed: 61 }));
        assert_eq!(RecordBatch::check(&[0; 200]), Err(NoBatch::Malformed));
    }
}
