//! Whether stored bytes are a quantile sketch as this crate writes it. The library that reads them trusts their bin
//! numbers and counts, and panics at some, then or when sketches are merged.
//!
//! Source: the encoding of DataDog's `DDSketchWithExactSummaryStatistics` (`VarEncodingHelper`, `Flag`).

use sketches_ddsketch::Config;

const GAMMA: u8 = 0x02;
const ZERO_COUNT: u8 = 0x04;
const SUM: u8 = 0x84;
const MIN: u8 = 0x88;
const MAX: u8 = 0x8C;
const COUNT: u8 = 0xA0;
/// Bins of positive values, as differences of their numbers with counts.
const POSITIVE: u8 = 0x05;
/// Bins of negative values.
const NEGATIVE: u8 = 0x07;

/// The most readings of one sketch: a count is stored as a float, which is exact up to here.
const MOST_READINGS: f64 = (1_u64 << 53) as f64;
/// Bits by which the difference of a count to 1.0 is rotated before it is written.
const ROTATION: u32 = 6;

/// Whether `bytes` are such a sketch.
pub(super) fn are_ours(mut bytes: &[u8]) -> bool {
    let config = Config::defaults();
    let bins = config.key(config.min_possible()) - 1..=config.key(f64::MAX) + 1;
    let (mut has_gamma, mut readings) = (false, 0.0);
    while let Some((flag, rest)) = bytes.split_first() {
        bytes = rest;
        let sound = match *flag {
            GAMMA => {
                has_gamma = true;
                float(&mut bytes) == Some(config.gamma) && float(&mut bytes) == Some(0.0)
            }
            // Answers do not use these.
            SUM | MIN | MAX => float(&mut bytes).is_some(),
            COUNT => count(&mut bytes).is_some(),
            ZERO_COUNT => count(&mut bytes).is_some_and(|count| add(&mut readings, count)),
            POSITIVE | NEGATIVE => store(&mut bytes, &bins).is_some_and(|count| add(&mut readings, count)),
            _ => false,
        };
        if !sound {
            return false;
        }
    }
    has_gamma
}

/// Adds to what a sketch holds; whether it can hold that.
fn add(readings: &mut f64, count: f64) -> bool {
    *readings += count;
    *readings <= MOST_READINGS
}

/// The bins of one sign, by ascending number. Returns how many readings are in them.
fn store(bytes: &mut &[u8], numbers: &std::ops::RangeInclusive<i32>) -> Option<f64> {
    let (mut number, mut readings) = (None, 0.0);
    for _ in 0..whole(bytes)? {
        let step = whole(bytes)?;
        let step = i64::try_from(step >> 1).ok()? ^ -((step & 1) as i64);
        number = match number {
            None => Some(step),
            Some(before) if step > 0 => Some(step.checked_add(before)?),
            Some(_) => return None,
        };
        let is_bin = i32::try_from(number?).is_ok_and(|number| numbers.contains(&number));
        if !is_bin || !add(&mut readings, count(bytes)?) {
            return None;
        }
    }
    Some(readings)
}

fn float(bytes: &mut &[u8]) -> Option<f64> {
    let (float, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(f64::from_le_bytes(*float))
}

/// A whole number: seven bits a byte, the lowest first; the ninth byte has eight.
fn whole(bytes: &mut &[u8]) -> Option<u64> {
    let mut whole = 0;
    for shift in (0..=56).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if *byte < 0x80 || shift == 56 {
            return Some(whole | u64::from(*byte) << shift);
        }
        whole |= u64::from(byte & 0x7F) << shift;
    }
    None
}

/// A count of readings, as a float of which few bits are set: seven bits a byte, the highest first.
fn count(bytes: &mut &[u8]) -> Option<f64> {
    let mut bits = 0;
    for place in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if place == 8 {
            bits |= u64::from(*byte);
            break;
        }
        bits |= u64::from(byte & 0x7F) << (57 - 7 * place);
        if *byte < 0x80 {
            break;
        }
    }
    let count = f64::from_bits(bits.rotate_right(ROTATION).wrapping_add(1.0_f64.to_bits())) - 1.0;
    (0.0..=MOST_READINGS).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sketches_ddsketch::DDSketch;

    use super::*;

    fn sketch(values: &[f64]) -> DDSketch {
        let mut sketch = DDSketch::new(Config::defaults());
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    #[test]
    fn other_configurations_and_impossible_bins_are_refused() {
        assert!(are_ours(&sketch(&[]).to_java_bytes()));
        assert!(are_ours(&sketch(&[0.0, f64::MAX, f64::MIN, 1e-9, -1e-9]).to_java_bytes()));
        let mut other = DDSketch::new(Config::new(0.02, 2048, 1e-9));
        other.add(1.0);
        assert!(!are_ours(&other.to_java_bytes()));
        assert!(!are_ours(&[]));
        let gamma = &sketch(&[]).to_java_bytes()[..];
        // One bin with the number -2^31, 2^31 - 1, or i64::MIN, with one reading.
        for number in
            [&b"\xff\xff\xff\xff\x0f"[..], b"\xfe\xff\xff\xff\x0f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert!(!are_ours(&[gamma, &[POSITIVE, 1], number, &[0x02]].concat()));
        }
        assert!(are_ours(&[gamma, &[POSITIVE, 1, 0, 0x02]].concat()));
        assert!(!are_ours(&[gamma, &[POSITIVE, 2, 0, 0x02, 0, 0x02]].concat()), "a bin twice");
        assert!(!are_ours(&[gamma, &[POSITIVE, 2, 0, 0x02]].concat()), "cut off");
    }

    proptest! {
        #[test]
        fn what_is_written_is_ours(values in prop::collection::vec(any::<f64>(), 0..200)) {
            let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
            prop_assert!(are_ours(&sketch(&values).to_java_bytes()));
        }
    }
}
