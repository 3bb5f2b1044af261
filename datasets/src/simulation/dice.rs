//! Random numbers as a function: the same key always gives the same number. It must not keep any state.

/// 2 to the power of the bits of a double's mantissa.
const MANTISSA: f64 = (1_u64 << 53) as f64;

/// A number in `[0, 1)` that looks random and depends on all of `key`.
pub(crate) fn share(key: &[u64]) -> f64 {
    let bits = key.iter().fold(0x9e37_79b9_7f4a_7c15, |hash, part| mix(hash ^ mix(*part)));
    (bits >> 11) as f64 / MANTISSA
}

/// A key for further numbers that depends on all of `key`.
pub(crate) fn key(key: &[u64]) -> u64 {
    (share(key) * MANTISSA) as u64
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), after one
/// step of its counter so that 0 does not stay 0.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
