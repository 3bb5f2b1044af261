//! Reads and writes Arrow IPC streams. A stream may come from any program, so reading it neither panics nor allocates for
//! data that the stream only announces. Must not know which columns are wanted.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::ipc::{Message, MessageHeader, root_as_message};

/// Reads a stream to its end. A stream that is cut off is rejected as a whole.
///
/// The decoder waits for bytes that a damaged stream announces instead of allocating for them. It panics on some damaged
/// schemas; that is caught and is an error too.
pub(crate) fn read(stream: &[u8]) -> Result<Vec<RecordBatch>, String> {
    reject_compressed(stream)?;
    match std::panic::catch_unwind(|| decode(stream)) {
        Ok(Ok(batches)) => Ok(batches),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the stream is damaged".to_owned()),
    }
}

fn decode(stream: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut bytes = Buffer::from(stream);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        match decoder.decode(&mut bytes)? {
            Some(batch) => batches.push(batch),
            None => break,
        }
    }
    decoder.finish()?;
    Ok(batches)
}

/// Appends a stream to `bytes`. The batches have the schema.
pub(crate) fn write(bytes: &mut Vec<u8>, schema: &Schema, batches: &[RecordBatch]) {
    try_write(bytes, schema, batches)
        .expect("a write to a vector cannot fail, and the batches have the schema");
}

fn try_write(bytes: &mut Vec<u8>, schema: &Schema, batches: &[RecordBatch]) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(bytes, schema)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()
}

/// Rejects a stream with compressed buffers before any message is decoded. The decoder allocates the uncompressed size that a
/// buffer announces, so a few bytes could use all memory.
fn reject_compressed(mut stream: &[u8]) -> Result<(), String> {
    while let Some((message, rest)) = next_message(stream)? {
        let compression = match message.header_type() {
            MessageHeader::RecordBatch => {
                message.header_as_record_batch().and_then(|batch| batch.compression())
            }
            MessageHeader::DictionaryBatch => message
                .header_as_dictionary_batch()
                .and_then(|dictionary| dictionary.data())
                .and_then(|batch| batch.compression()),
            _ => None,
        };
        if compression.is_some() {
            return Err(
                "its buffers are compressed; write the stream without compression, and compress the whole \
                        request (Content-Encoding: zstd or gzip) or let the Kafka producer compress"
                    .to_owned(),
            );
        }
        stream = rest;
    }
    Ok(())
}

/// The first message of a stream, and what comes after its body; `None` at the end.
fn next_message(stream: &[u8]) -> Result<Option<(Message<'_>, &[u8])>, String> {
    const CONTINUATION: [u8; 4] = [0xff; 4];
    const CUT_OFF: &str = "the stream is cut off";
    let stream = stream.strip_prefix(&CONTINUATION).unwrap_or(stream);
    if stream.is_empty() {
        return Ok(None);
    }
    let (size, rest) = stream.split_first_chunk::<4>().ok_or(CUT_OFF)?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 {
        return Ok(None);
    }
    let (head, rest) = rest.split_at_checked(size).ok_or(CUT_OFF)?;
    let message =
        root_as_message(head).map_err(|error| format!("a message of the stream is damaged: {error}"))?;
    let body = usize::try_from(message.bodyLength()).map_err(|_| CUT_OFF)?;
    Ok(Some((message, rest.get(body..).ok_or(CUT_OFF)?)))
}
