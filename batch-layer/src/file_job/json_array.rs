//! Reads the objects of a JSON array as objects one after another: the brackets and commas between them become spaces. Text
//! that is no array is passed on as it is.

use std::io::{Read, Result};

/// A reader of the objects of an array.
pub(crate) struct JsonArray<R> {
    inner: R,
    place: Place,
    /// Open brackets and braces within the array.
    depth: usize,
    in_text: bool,
    escaped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Within,
    After,
    NoArray,
}

impl<R> JsonArray<R> {
    /// A reader of what another one reads.
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, place: Place::Before, depth: 0, in_text: false, escaped: false }
    }

    fn pass(&mut self, byte: u8) -> u8 {
        match self.place {
            Place::NoArray | Place::After => return byte,
            Place::Before if byte.is_ascii_whitespace() => return byte,
            Place::Before if byte == b'[' => {
                self.place = Place::Within;
                return b' ';
            }
            Place::Before => {
                self.place = Place::NoArray;
                return byte;
            }
            Place::Within => {}
        }
        if self.in_text {
            self.in_text = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return byte;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b']' if self.depth == 0 => {
                self.place = Place::After;
                return b' ';
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' if self.depth == 0 => return b' ',
            _ => {}
        }
        byte
    }
}

impl<R: Read> Read for JsonArray<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.inner.read(buffer)?;
        if self.place != Place::NoArray {
            for byte in &mut buffer[..count] {
                *byte = self.pass(*byte);
            }
        }
        let is_cut = count == 0 && !buffer.is_empty() && self.place == Place::Within;
        if is_cut {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the JSON array has no end"));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String> {
        let mut read = String::new();
        // One byte at a time.
        let mut reader = JsonArray::new(text.as_bytes());
        let mut byte = [0];
        while reader.read(&mut byte)? > 0 {
            read.push(byte[0] as char);
        }
        Ok(read)
    }

    #[test]
    fn the_objects_of_an_array_are_read_one_after_another() {
        let text = r#" [{"a": [1, 2], "b": "],\"["}, {"a": []}]"#;
        assert_eq!(read(text).unwrap(), r#"  {"a": [1, 2], "b": "],\"["}  {"a": []} "#);
        let lines = "{\"a\": 1}\n{\"a\": [2, 3]}";
        assert_eq!(read(lines).unwrap(), lines);
        assert!(read(r#"[{"a": 1}"#).is_err());
    }
}
