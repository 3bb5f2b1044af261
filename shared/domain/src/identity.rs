//! The identity of a reading: device, metric, event time and sequence. The first reading with an identity in log
//! order counts; a later one is a duplicate, or a conflict if its value differs, see [`copy_of`].
//!
//! The speed layer remembers identities as 64-bit fingerprints. Two of n distinct readings share one with a
//! probability of about n²/2⁶⁵, 10⁻⁵ for 16 million; the batch layer compares the fields themselves. Fingerprints
//! are never stored.

use std::hash::BuildHasher;

use crate::time::Micros;

/// A 64-bit fingerprint of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

/// The hash of a name, computed once per distinct word of a batch.
pub fn word_hash(word: &str) -> u64 {
    foldhash::quality::FixedState::with_seed(0x5779_6500).hash_one(word)
}

/// What makes a reading the same reading as another one.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// [`word_hash`] of the device's name.
    pub device_hash: u64,
    /// [`word_hash`] of the metric's name.
    pub metric_hash: u64,
    /// When it was measured.
    pub event_time: Micros,
    /// The device's own counter, where it sends one.
    pub sequence: Option<i64>,
}

impl Identity {
    /// Combines the hashed names with the numbers.
    #[inline]
    #[must_use]
    pub fn fingerprint(self) -> Fingerprint {
        let Self { device_hash, metric_hash, event_time, sequence } = self;
        let names = fold(device_hash ^ 0x9E37_79B9_7F4A_7C15, metric_hash ^ 0xC2B2_AE3D_27D4_EB4F);
        let numbers = match sequence {
            Some(sequence) => fold(sequence as u64 ^ 0x1656_67B1_9E37_79F9, 0xD6E8_FEB8_6659_FD93),
            None => 0x2545_F491_4F6C_DD1D,
        };
        Fingerprint(fold(names ^ event_time.0 as u64, numbers ^ 0xA076_1D64_78BD_642F).wrapping_add(names))
    }
}

/// Full 64×64→128 multiplication, both halves folded together.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// What a reading is, compared with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    /// The first with its identity: it counts.
    First,
    /// The same value again: it does not count.
    Duplicate,
    /// Another value for a known identity: it does not count and lowers validity.
    Conflict,
}

/// What a later reading of a known identity is: a duplicate if its value is the same number as the one that counts, else a
/// conflict. Both layers use this rule: 0 and −0 are the same number, and all NaN are.
#[inline]
pub fn copy_of(counting: f64, value: f64) -> Novelty {
    if counting == value || (counting.is_nan() && value.is_nan()) {
        Novelty::Duplicate
    } else {
        Novelty::Conflict
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_later_reading_with_the_same_number_is_a_duplicate() {
        let nan = f64::from_bits(f64::NAN.to_bits() | 1);
        for (counting, value, expected) in [
            (1.0, 1.0, Novelty::Duplicate),
            (0.0, -0.0, Novelty::Duplicate),
            (f64::NAN, nan, Novelty::Duplicate),
            (1.0, 1.0 + f64::EPSILON, Novelty::Conflict),
            (1.0, f64::NAN, Novelty::Conflict),
            (1.0, -1.0, Novelty::Conflict),
        ] {
            assert_eq!(copy_of(counting, value), expected, "{counting} {value}");
            assert_eq!(copy_of(value, counting), expected, "{value} {counting}");
        }
    }

    #[test]
    fn neighbours_have_different_fingerprints() {
        let mut seen = HashSet::new();
        for device in 0..20 {
            for time in 0..2_000 {
                for sequence in [None, Some(0), Some(time)] {
                    let identity = Identity {
                        device_hash: word_hash(&format!("device-{device}")),
                        metric_hash: word_hash("t"),
                        event_time: Micros::from_millis(time),
                        sequence,
                    };
                    assert!(seen.insert(identity.fingerprint()) || sequence == Some(0));
                }
            }
        }
    }
}
