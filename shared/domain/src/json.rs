//! Writing this crate's own types as JSON.

use serde::Serialize;

/// The JSON bytes of a value. For the types of this crate only: none has map keys that JSON cannot hold, and none refuses
/// to be written.
pub(crate) fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("types of this crate are always JSON")
}

/// The same as text.
pub(crate) fn to_string<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("types of this crate are always JSON")
}
