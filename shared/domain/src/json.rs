//! Writes the types of this crate as JSON.

use serde::Serialize;

/// The JSON bytes of a value, see [`to_string`].
pub(crate) fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    to_string(value).into_bytes()
}

/// The JSON text of a value. Only for the types of this crate, which can always be written: their map keys are texts or
/// numbers, and none has a `Serialize` of its own that fails.
pub(crate) fn to_string<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("types of this crate are always JSON")
}
