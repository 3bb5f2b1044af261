//! Reading an Arrow IPC stream that anybody may have written: no panic, and no room made for what it only announces. It
//! must not know which columns are wanted.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::{Message, MessageHeader, root_as_message};

/// Reads a stream to its end; one that breaks off is not taken at all.
///
/// The decoder waits for bytes that a damaged stream announces instead of making room for them. It panics on some
/// damaged schemas; for us that is one more way to refuse.
pub(crate) fn read(stream: &[u8]) -> Result<Vec<RecordBatch>, String> {
    refuse_compressed(stream)?;
    let decode = || -> Result<Vec<RecordBatch>, ArrowError> {
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
    };
    match std::panic::catch_unwind(decode) {
        Ok(Ok(batches)) => Ok(batches),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the stream is damaged".to_owned()),
    }
}

/// Looks at the messages of a stream before any is decoded. The decoder makes room for what a compressed buffer says
/// of its own size, and does not stop there, so that a few bytes could take all memory.
fn refuse_compressed(mut stream: &[u8]) -> Result<(), String> {
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
    const CONTINUES: [u8; 4] = [0xff; 4];
    let breaks_off = || "the stream breaks off".to_owned();
    let stream = stream.strip_prefix(&CONTINUES).unwrap_or(stream);
    if stream.is_empty() {
        return Ok(None);
    }
    let (size, rest) = stream.split_first_chunk::<4>().ok_or_else(breaks_off)?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 {
        return Ok(None);
    }
    let (head, rest) = rest.split_at_checked(size).ok_or_else(breaks_off)?;
    let message =
        root_as_message(head).map_err(|error| format!("a message of the stream is damaged: {error}"))?;
    let body = usize::try_from(message.bodyLength()).map_err(|_| breaks_off())?;
    Ok(Some((message, rest.get(body..).ok_or_else(breaks_off)?)))
}
