//! Reads the values of settings, for `#[serde(deserialize_with = "..")]`. Durations are read by `humantime_serde`.

use std::num::NonZeroUsize;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use wye_domain::time::{Micros, parse_rfc3339};

/// A size in bytes, written as `"64MiB"`.
///
/// # Errors
/// When it is not written like that.
pub fn byte_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let unit: Option<usize> = match text[digits.len()..].trim() {
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "" | "B" => Some(1),
        _ => None,
    };
    let (Some(unit), Ok(count)) = (unit, digits.parse::<usize>()) else {
        return Err(D::Error::custom(format!("{text:?} is not a size; write for example \"64MiB\"")));
    };
    count.checked_mul(unit).ok_or_else(|| {
        D::Error::custom(format!("{text:?} is too large for this machine; write for example \"64MiB\""))
    })
}

/// The same; `None` for no bytes.
///
/// # Errors
/// When it is not written like that.
pub fn byte_size_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(Some(byte_size(deserializer)?).filter(|bytes| *bytes > 0))
}

/// A number; `None` for 0.
///
/// # Errors
/// When it is not a number.
pub fn number_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroUsize>, D::Error> {
    Ok(NonZeroUsize::new(usize::deserialize(deserializer)?))
}

/// A time, written as RFC 3339.
///
/// # Errors
/// When it is not written like that.
pub fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_rfc3339(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Written {
        #[serde(deserialize_with = "byte_size")]
        size: usize,
    }

    fn read(text: &str) -> Result<Written, toml::de::Error> {
        toml::from_str(&format!("size = {text}\n"))
    }

    #[test]
    fn sizes_have_a_unit_and_fit() {
        for (text, bytes) in [
            ("\"64\"", 64),
            ("\"0B\"", 0),
            ("\" 3 KiB\"", 3 << 10),
            ("\"\u{a0}1GiB \"", 1 << 30),
            ("\"2GiB\"", 2 << 30),
        ] {
            assert_eq!(read(text).unwrap().size, bytes);
        }
        for text in ["\"many\"", "\"-1\"", "\"1.5MiB\"", "\"1TB\"", "\"\"", "64", "\"MiB\""] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(read("\"99999999999GiB\"").unwrap_err().to_string().contains("too large for this machine"));
    }
}
