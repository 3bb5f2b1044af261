//! How deep a JSON text nests, found without recursion. Parsers recurse, so they only get shallow texts.
//!
//! On a text that is JSON up to some byte the count is exact up to that byte, so no parser gets deeper before it finds the
//! mistake.

/// The deepest nesting that is parsed. A reading needs 3: an array, the reading, its tags.
pub(super) const MAX_DEPTH: usize = 64;

/// Whether nothing in `text` is nested deeper than [`MAX_DEPTH`].
#[inline]
pub(super) fn is_shallow(text: &[u8]) -> bool {
    // Counting brackets costs a few nanoseconds, and few brackets cannot nest deep.
    openings(text) <= MAX_DEPTH || scan(text)
}

/// How many bytes are `[` or `{`, in strings too.
#[inline]
fn openings(text: &[u8]) -> usize {
    // `[` and `{` differ in the bit 0x20 only. Chunks of 255 cannot overflow a byte, which lets the loop use vectors.
    text.chunks(255)
        .map(|chunk| usize::from(chunk.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>()))
        .sum()
}

fn scan(text: &[u8]) -> bool {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at = after_string(text, at),
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// The place after the string whose first byte is at `at`.
fn after_string(text: &[u8], mut at: usize) -> usize {
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => break,
            b'\\' => at += 1,
            _ => {}
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn only_nesting_counts() {
        assert!(is_shallow(nested(MAX_DEPTH).as_bytes()));
        assert!(!is_shallow(nested(MAX_DEPTH + 1).as_bytes()));
        assert!(!is_shallow("[".repeat(MAX_DEPTH + 1).as_bytes()));
        assert!(!is_shallow(format!(r#"["]]]]","\"]",{}"#, nested(MAX_DEPTH)).as_bytes()));
        assert!(is_shallow(format!("[{}]", "[],{},".repeat(10_000)).as_bytes()));
        assert!(is_shallow(format!(r#"["{}\\","\"{}"]"#, "[".repeat(1_000), "{".repeat(1_000)).as_bytes()));
        assert!(is_shallow(b"\"\\"));
    }

    #[test]
    fn brackets_are_counted_past_a_chunk() {
        for count in [0, 1, 254, 255, 256, 600] {
            assert_eq!(openings(&b"[".repeat(count)), count);
            assert_eq!(openings(&b"x{".repeat(count)), count);
        }
    }
}
