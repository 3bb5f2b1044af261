//! Series: a metric and one group of it, the name under which numbers are served.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::{DomainError, json};

/// The identity of a series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// The name of the metric definition; `*` for the family of all reading names.
    pub definition: Arc<str>,
    /// The metric's name as it is served.
    pub metric: Arc<str>,
    /// The values of the definition's dimensions, in its order; `None` where the expression was null.
    pub group: Box<[Option<Arc<str>>]>,
}

impl SeriesKey {
    /// The stored form: a JSON array `[definition, metric, [group..]]`.
    pub fn encode(&self) -> String {
        json::to_string(&(&*self.definition, &*self.metric, &self.group))
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when it is something else.
    pub fn decode(text: &str) -> Result<Self, DomainError> {
        let (definition, metric, group): (Arc<str>, Arc<str>, Vec<Option<Arc<str>>>) =
            serde_json::from_str(text)
                .map_err(|error| DomainError::Decode { what: "series key", reason: error.to_string() })?;
        Ok(Self { definition, metric, group: group.into() })
    }

    /// The public key, `metric{dimension="value",…}`, with `\` and `"` escaped; null dimensions are left out.
    pub fn metric_key(&self, dimensions: &[impl AsRef<str>]) -> String {
        let mut key = self.metric.to_string();
        key.push('{');
        let mut comma = false;
        for (dimension, value) in dimensions.iter().zip(&*self.group) {
            let Some(value) = value else { continue };
            if comma {
                key.push(',');
            }
            comma = true;
            key.push_str(dimension.as_ref());
            key.push_str("=\"");
            for c in value.chars() {
                if c == '"' || c == '\\' {
                    key.push('\\');
                }
                key.push(c);
            }
            key.push('"');
        }
        key.push('}');
        key
    }
}

/// The number of a series inside one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesId(pub u32);

/// Gives each series a [`SeriesId`], counting from 0.
#[derive(Debug, Default, Clone)]
pub struct SeriesTable {
    ids: HashMap<Arc<SeriesKey>, SeriesId, foldhash::fast::RandomState>,
    keys: Vec<Arc<SeriesKey>>,
}

impl SeriesTable {
    /// The id of a series, new or known.
    ///
    /// # Panics
    /// When there are 2³² series already.
    pub fn id(&mut self, key: SeriesKey) -> SeriesId {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = SeriesId(u32::try_from(self.keys.len()).expect("memory holds fewer than 2^32 series"));
        let key = Arc::new(key);
        self.keys.push(key.clone());
        self.ids.insert(key, id);
        id
    }

    /// The id of a known series.
    pub fn find(&self, key: &SeriesKey) -> Option<SeriesId> {
        self.ids.get(key).copied()
    }

    /// The key of a series.
    pub fn key(&self, id: SeriesId) -> &Arc<SeriesKey> {
        &self.keys[id.0 as usize]
    }

    /// All series in the order of their ids.
    pub fn keys(&self) -> &[Arc<SeriesKey>] {
        &self.keys
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_read_well() {
        let key = SeriesKey {
            definition: "*".into(),
            metric: "PM2.5".into(),
            group: Box::new([Some("a\"b".into()), None]),
        };
        assert_eq!(SeriesKey::decode(&key.encode()).unwrap(), key);
        assert_eq!(key.metric_key(&["device_id", "line"]), r#"PM2.5{device_id="a\"b"}"#);
        let mut table = SeriesTable::default();
        assert_eq!(table.id(key.clone()), table.id(key));
        assert_eq!(table.len(), 1);
    }
}
