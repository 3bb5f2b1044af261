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

/// Tag text in canonical form after changes; a tag without a value is removed.
pub fn changed(text: Option<&str>, changes: &BTreeMap<String, Option<String>>) -> Option<String> {
    let before = text.map(parsed).unwrap_or_default();
    let kept = before.iter().filter(|(name, _)| !changes.contains_key(*name));
    let kept = kept.filter_map(|(name, value)| Some((name.clone(), value_text(value)?)));
    let new = changes.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
    let all: BTreeMap<String, String> = kept.chain(new).collect();
    canonical(all.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// The value of one tag in canonical (or any valid) tag text.
pub fn get(text: &str, name: &str) -> Option<String> {
    value_text(parsed(text).get(name)?)
}

/// The tags of a text; none where it is no tag text.
fn parsed(text: &str) -> BTreeMap<String, serde_json::Value> {
    serde_json::from_str(text).unwrap_or_default()
}

fn value_text(value: &serde_json::Value) -> Option<String> {
    match value {
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

    #[test]
    fn tags_are_set_and_removed() {
        let changes = BTreeMap::from([("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), None)]);
        assert_eq!(changed(None, &changes).as_deref(), Some(r#"{"a":"1"}"#));
        let text = changed(Some(r#"{"c":7,"b":"x","a":"y","d":null}"#), &changes);
        assert_eq!(text.as_deref(), Some(r#"{"a":"1","c":"7"}"#));
        let remove = BTreeMap::from([("a".to_owned(), None)]);
        assert_eq!(changed(Some(r#"{"a":"1"}"#), &remove), None);
    }
}
