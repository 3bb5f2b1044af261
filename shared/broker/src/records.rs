//! The records inside a record batch: read one after the other, each field checked, nothing kept in memory.
//!
//! Source: "Record", Kafka protocol documentation. What Apache Kafka's `LogValidator` refuses is refused, so that every
//! client can read what is stored.
//!
//! It must not know the header of a batch beyond [`Body`], nor where a batch comes from.

use std::io::{self, BufRead};

use crate::clock::Timestamp;
use crate::decompress::{self, Codec};
use crate::record_batch;

/// The records of a batch, with what its header says about them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    pub(crate) codec: Codec,
    /// Everything after the header.
    pub(crate) bytes: &'a [u8],
    /// The number of records.
    pub(crate) records: i32,
    /// The create time of each record is stored as a difference to this.
    pub(crate) base_timestamp: Timestamp,
}

/// The fields of a record that the broker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The difference of its offset to the base offset of the batch.
    pub(crate) offset_delta: i32,
    /// Its create time.
    pub(crate) timestamp: Timestamp,
}

/// Why the records of a batch cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// They are damaged, or do not match the header.
    Invalid(&'static str),
    /// They are larger after decompression than is allowed.
    TooLarge,
}

/// Reads the records of a batch and calls `on` with each. Decompresses no more than `most_bytes`.
///
/// # Errors
/// The first problem. The records before it must be ignored then.
pub(crate) fn read(body: &Body<'_>, most_bytes: u64, mut on: impl FnMut(Record)) -> Result<(), Unreadable> {
    let reader = decompress::open(body.codec, body.bytes, most_bytes).map_err(unreadable)?;
    let mut fields = Fields { reader, taken: 0, most_bytes };
    for offset_delta in 0..body.records {
        let length = fields.length("a record has no length")?;
        let end = fields.taken + length;
        let _attributes = fields.byte()?;
        let timestamp = body.base_timestamp.0.checked_add(fields.varint(10)?).map(Timestamp);
        let timestamp = timestamp.ok_or(Unreadable::Invalid("the timestamp of a record is out of range"))?;
        if fields.varint(5)? != i64::from(offset_delta) {
            return Err(Unreadable::Invalid("the offsets of the records are not consecutive"));
        }
        fields.skip_nullable(end)?; // key
        fields.skip_nullable(end)?; // value
        let headers = fields.length("the number of headers is negative")?;
        for _ in 0..headers {
            let name = fields.length("the name of a header is null")?;
            fields.skip(name, end)?;
            fields.skip_nullable(end)?;
        }
        if fields.taken != end {
            return Err(Unreadable::Invalid("the length of a record does not match its fields"));
        }
        on(Record { offset_delta, timestamp });
    }
    if !fields.reader.fill_buf().map_err(unreadable)?.is_empty() {
        return Err(Unreadable::Invalid("bytes follow the last record"));
    }
    Ok(())
}

/// Reads the fields of records.
struct Fields<R> {
    reader: R,
    /// Bytes read so far.
    taken: u64,
    most_bytes: u64,
}

impl<R: BufRead> Fields<R> {
    fn byte(&mut self) -> Result<u8, Unreadable> {
        let byte = *self.reader.fill_buf().map_err(unreadable)?.first().ok_or(CUT_OFF)?;
        self.consume(1)?;
        Ok(byte)
    }

    /// A zigzag varint of at most `most` bytes: 5 for one of 32 bits, 10 for one of 64.
    fn varint(&mut self, most: u32) -> Result<i64, Unreadable> {
        let mut value = 0_u64;
        for at in 0..most {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << (7 * at);
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(Unreadable::Invalid("a number is too long"))
    }

    /// A length that cannot be null.
    fn length(&mut self, otherwise: &'static str) -> Result<u64, Unreadable> {
        u64::try_from(self.varint(5)?).map_err(|_| Unreadable::Invalid(otherwise))
    }

    /// Skips a field that is null (length -1) or has a length.
    fn skip_nullable(&mut self, end: u64) -> Result<(), Unreadable> {
        match self.varint(5)? {
            -1 => Ok(()),
            length => {
                let length = u64::try_from(length);
                self.skip(length.map_err(|_| Unreadable::Invalid("a length is negative"))?, end)
            }
        }
    }

    /// Skips `length` bytes of a record that ends at `end`.
    fn skip(&mut self, length: u64, end: u64) -> Result<(), Unreadable> {
        let mut rest = length;
        if self.taken + rest > end {
            return Err(Unreadable::Invalid("a field is longer than its record"));
        }
        while rest > 0 {
            let held = self.reader.fill_buf().map_err(unreadable)?.len();
            if held == 0 {
                return Err(CUT_OFF);
            }
            let taken = rest.min(held as u64);
            self.consume(taken)?;
            rest -= taken;
        }
        Ok(())
    }

    fn consume(&mut self, bytes: u64) -> Result<(), Unreadable> {
        self.reader.consume(bytes as usize);
        self.taken += bytes;
        if self.taken > self.most_bytes { Err(Unreadable::TooLarge) } else { Ok(()) }
    }
}

const CUT_OFF: Unreadable = Unreadable::Invalid("the records are cut off");

fn unreadable(error: io::Error) -> Unreadable {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CUT_OFF,
        io::ErrorKind::FileTooLarge => Unreadable::TooLarge,
        _ => Unreadable::Invalid("the compressed records do not decode"),
    }
}

/// A complete batch with one record that has `value` and nothing else.
pub(crate) fn single(value: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0, 0];
    write_varint(&mut record, -1);
    write_varint(&mut record, value.len() as i64);
    record.extend_from_slice(value);
    record.push(0);
    let mut body = Vec::with_capacity(record.len() + 5);
    write_varint(&mut body, record.len() as i64);
    body.extend_from_slice(&record);
    record_batch::pack(&body, 1)
}

/// The value of the record in a batch that [`single`] made; `None` for any other.
pub(crate) fn single_value(batch: &[u8]) -> Option<&[u8]> {
    let mut rest = batch.get(record_batch::HEADER..)?;
    let _length = read_varint(&mut rest)?;
    rest = rest.strip_prefix(&[0, 0, 0])?;
    if read_varint(&mut rest)? != -1 {
        return None;
    }
    let length = usize::try_from(read_varint(&mut rest)?).ok()?;
    rest.get(..length)
}

fn write_varint(into: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}

fn read_varint(from: &mut &[u8]) -> Option<i64> {
    let mut fields = Fields { reader: *from, taken: 0, most_bytes: u64::MAX };
    let value = fields.varint(10).ok()?;
    *from = fields.reader;
    Some(value)
}
