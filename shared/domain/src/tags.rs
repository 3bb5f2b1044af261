//! Tags of a reading as canonical JSON text: one object, keys sorted, values strings. Equal tags are equal bytes,
//! so a dictionary of tag texts holds each distinct combination once.

use std::collections::BTreeMap;

use crate::json;

/// Writes tags in canonical form; `None` when there are none.
pub fn canonical<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let sorted: BTreeMap<&str, &str> = tags.into_iter().collect();
    if sorted.is_empty() {
        return None;
    }
    Some(json::to_string(&sorted))
}

/// The value of one tag in canonical (or any valid) tag text.
pub fn get(text: &str, name: &str) -> Option<String> {
    let tags: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    match tags.get(name)? {
        serde_json::Value::String(value) => Some(value.clone()),
        serde_json::Value::Null => None,
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_sorts_and_get_reads() {
        let text = canonical([("b", "2"), ("a", "x\"y")]).unwrap();
        assert_eq!(text, r#"{"a":"x\"y","b":"2"}"#);
        assert_eq!(get(&text, "a").as_deref(), Some("x\"y"));
        assert_eq!(get(&text, "c"), None);
        assert_eq!(canonical([]), None);
    }
}
