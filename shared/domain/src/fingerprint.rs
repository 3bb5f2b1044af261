//! Fingerprints of texts, to compare the rules by which stored numbers were computed. Must not know what a text says.
//!
//! Stability contract: fingerprints are stored with realtime rows and batch views.

/// FNV-1a (64 bits) over the bytes of a text.
pub fn of_text(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
