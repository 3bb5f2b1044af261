//! Parses numbers from the bytes of a cell. It must not know what a number means, nor which texts mean missing.

/// Powers of ten that a double holds exactly.
const POW10: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// The double nearest to the decimal number in `text` with the decimal mark `mark` (`.` or `,`); `None` where the text is
/// not a number. The result can be infinite or NaN, where the text says so or the number is too large.
///
/// Short numbers are Clinger's exact case ("How to read floating point numbers accurately", 1990): a mantissa below 2^53
/// divided by an exact power of ten is rounded once, and so correctly. All others are parsed by the standard library, with
/// the same result.
pub(crate) fn parse_number(text: &[u8], mark: u8) -> Option<f64> {
    match parse_short(text, mark) {
        Some(value) => Some(value),
        None => parse_long(text, mark),
    }
}

fn parse_short(text: &[u8], mark: u8) -> Option<f64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    // Eighteen bytes cannot overflow the mantissa, so the loop needs no check.
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut mantissa = 0_u64;
    let mut after_mark = None;
    for (index, &byte) in digits.iter().enumerate() {
        if byte.is_ascii_digit() {
            mantissa = mantissa * 10 + u64::from(byte - b'0');
        } else if byte == mark && after_mark.is_none() && digits.len() > 1 {
            after_mark = Some(digits.len() - index - 1);
        } else {
            return None;
        }
    }
    if mantissa >= 1 << 53 {
        return None;
    }
    let value = mantissa as f64 / POW10[after_mark.unwrap_or(0)];
    Some(if negative { -value } else { value })
}

fn parse_long(text: &[u8], mark: u8) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    match mark {
        b'.' => text.parse().ok(),
        _ if text.contains('.') => None,
        _ => text.replacen(char::from(mark), ".", 1).parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse_number;

    #[test]
    fn common_notations_are_numbers() {
        for (text, number) in [
            ("0", 0.0),
            ("-0.7", -0.7),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("+2", 2.0),
            ("94.225406040000001", 94.225_406_04),
            ("inf", f64::INFINITY),
        ] {
            assert_eq!(parse_number(text.as_bytes(), b'.'), Some(number), "{text}");
        }
        for bad in ["", "-", ".", "-.", "1.2.3", "1,5", "12a", "0x10", "1 2"] {
            assert_eq!(parse_number(bad.as_bytes(), b'.'), None, "{bad}");
        }
    }

    #[test]
    fn a_point_is_invalid_with_a_decimal_comma() {
        assert_eq!(parse_number(b"1,5", b','), Some(1.5));
        assert_eq!(parse_number(b"-1,5e2", b','), Some(-150.0));
        assert_eq!(parse_number(b"1.5", b','), None);
        assert_eq!(parse_number(b"1.234,5", b','), None);
    }

    proptest! {
        #[test]
        fn equals_the_standard_library(text in "-?[0-9]{0,20}\\.?[0-9]{0,20}") {
            let expected = text.parse::<f64>().ok().map(f64::to_bits);
            prop_assert_eq!(parse_number(text.as_bytes(), b'.').map(f64::to_bits), expected);
        }
    }
}
