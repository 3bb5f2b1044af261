//! Decompression of the bodies of record batches, in every codec of Kafka, through a small buffer.
//!
//! Sources: "Record Batch", Kafka protocol documentation; the frame formats of LZ4, Zstandard and snappy-java. Where
//! readers differ, the strictest one counts: what librdkafka or the Java client cannot read is refused, since such a batch
//! would stop that client for good. So a body must be exactly one complete frame.
//!
//! It must not know the format of a record.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use lz4_flex::frame::FrameDecoder;

/// Bytes that are decompressed at a time where the codec leaves the choice.
const CHUNK: usize = 32 * 1024;
/// The largest compression ratio of a snappy block: its best element makes 64 bytes of 3.
const LARGEST_SNAPPY_RATIO: usize = 22;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Not at all.
    Plain,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    /// The codec in the attributes of a batch; `None` for a number that Kafka does not define.
    pub(crate) fn of(attributes: i16) -> Option<Self> {
        match attributes & 0b111 {
            0 => Some(Self::Plain),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A reader of the decompressed body of a batch. It never allocates more than `most_bytes` at once: a body that needs more
/// is an error of kind `FileTooLarge`. Any other error says that the body is damaged.
pub(crate) fn open(codec: Codec, body: &[u8], most_bytes: u64) -> io::Result<Box<dyn BufRead + '_>> {
    Ok(match codec {
        Codec::Plain => Box::new(body),
        Codec::Gzip => {
            Box::new(BufReader::with_capacity(CHUNK, OneFrame::Gzip(Box::new(GzDecoder::new(body)))))
        }
        Codec::Snappy => Box::new(SnappyBlocks::new(body, most_bytes)?),
        Codec::Lz4 => {
            check_lz4_frame(body)?;
            Box::new(FrameDecoder::new(body))
        }
        Codec::Zstd => {
            let decoder = zstd::Decoder::with_buffer(body)?.single_frame();
            Box::new(BufReader::with_capacity(CHUNK, OneFrame::Zstd(decoder)))
        }
    })
}

/// A decoder that reports bytes after its frame as damage.
enum OneFrame<'a> {
    Gzip(Box<GzDecoder<&'a [u8]>>),
    Zstd(zstd::Decoder<'static, &'a [u8]>),
}

impl Read for OneFrame<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (read, rest) = match self {
            Self::Gzip(decoder) => (decoder.read(into)?, decoder.get_ref().len()),
            Self::Zstd(decoder) => (decoder.read(into)?, decoder.get_ref().len()),
        };
        if read == 0 && !into.is_empty() && rest > 0 {
            return Err(damaged("bytes follow the compressed frame"));
        }
        Ok(read)
    }
}

/// Snappy as snappy-java frames it (blocks with their lengths) or bare (one block), as librdkafka sends it.
struct SnappyBlocks<'a> {
    rest: &'a [u8],
    framed: bool,
    block: Vec<u8>,
    /// Bytes of `block` that were read.
    taken: usize,
    most_bytes: u64,
}

impl<'a> SnappyBlocks<'a> {
    const MAGIC: &'static [u8] = b"\x82SNAPPY\0";
    /// Bytes of magic, version, and oldest compatible version.
    const HEADER: usize = 16;

    fn new(body: &'a [u8], most_bytes: u64) -> io::Result<Self> {
        let framed = body.starts_with(Self::MAGIC);
        let rest = if framed {
            body.get(Self::HEADER..).ok_or_else(|| damaged("the snappy header is cut off"))?
        } else {
            body
        };
        if framed && body[8..Self::HEADER] != [0, 0, 0, 1, 0, 0, 0, 1] {
            return Err(damaged("the snappy frame has an unknown version"));
        }
        Ok(Self { rest, framed, block: Vec::new(), taken: 0, most_bytes })
    }

    fn decompress_next(&mut self) -> io::Result<()> {
        let block = if self.framed {
            let (length, rest) =
                self.rest.split_first_chunk().ok_or_else(|| damaged("a snappy block is cut off"))?;
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            let (block, rest) =
                rest.split_at_checked(length).ok_or_else(|| damaged("a snappy block is cut off"))?;
            self.rest = rest;
            block
        } else {
            std::mem::take(&mut self.rest)
        };
        let length = snap::raw::decompress_len(block).map_err(|_| damaged("a snappy block has no length"))?;
        // The stated length must not allocate more than the bytes of the block can fill.
        if length > block.len() * LARGEST_SNAPPY_RATIO {
            return Err(damaged("a snappy block states a length that is impossible for its size"));
        }
        if length as u64 > self.most_bytes {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.block.clear();
        self.block.resize(length, 0);
        let decompressed = snap::raw::Decoder::new().decompress(block, &mut self.block);
        if !decompressed.is_ok_and(|decompressed| decompressed == length) {
            return Err(damaged("a snappy block does not decode"));
        }
        self.taken = 0;
        Ok(())
    }
}

impl Read for SnappyBlocks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for SnappyBlocks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.taken == self.block.len() && !self.rest.is_empty() {
            self.decompress_next()?;
        }
        Ok(&self.block[self.taken..])
    }

    fn consume(&mut self, taken: usize) {
        self.taken += taken;
    }
}

/// Checks that `body` is exactly one LZ4 frame with its end mark. The decoder accepts a frame that is cut off between two
/// blocks; librdkafka does not.
fn check_lz4_frame(body: &[u8]) -> io::Result<()> {
    const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
    const BLOCK_CHECKSUMS: u8 = 16;
    const CONTENT_SIZE: u8 = 8;
    const CONTENT_CHECKSUM: u8 = 4;
    const DICTIONARY: u8 = 1;
    let flags = *body.get(4).ok_or_else(lz4_cut_off)?;
    if !body.starts_with(&MAGIC) || flags & DICTIONARY != 0 {
        return Err(damaged("this is not an lz4 frame"));
    }
    let size = if flags & CONTENT_SIZE == 0 { 0 } else { 8 };
    // Magic, flags, block descriptor, size, header checksum.
    let mut rest = body.get(4 + 2 + size + 1..).ok_or_else(lz4_cut_off)?;
    loop {
        let (header, blocks) = rest.split_first_chunk().ok_or_else(lz4_cut_off)?;
        let header = u32::from_le_bytes(*header);
        if header == 0 {
            let checksum = if flags & CONTENT_CHECKSUM == 0 { 0 } else { 4 };
            return if blocks.len() == checksum {
                Ok(())
            } else {
                Err(damaged("bytes follow the lz4 frame"))
            };
        }
        let checksum = if flags & BLOCK_CHECKSUMS == 0 { 0 } else { 4 };
        let length = (header & 0x7FFF_FFFF) as usize + checksum;
        rest = blocks.get(length..).ok_or_else(lz4_cut_off)?;
    }
}

fn lz4_cut_off() -> io::Error {
    damaged("the lz4 frame is cut off")
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
