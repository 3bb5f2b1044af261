//! Which series there are: one small number each, with everything about a series that does not change.
//!
//! Shared by both sides of the merge. Series are only ever added, so a number is valid as long as the process runs. This
//! file does not know any window or value.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use hashbrown::{HashMap, HashSet};
use wye_domain::series::{SeriesId, SeriesKey};
use wye_domain::time::WindowSize;
use wye_metrics::definition::Definition;
use wye_metrics::expectation::Expectation;
use wye_metrics::merge::SeriesFacts;
use wye_metrics::plan::{Expectations, MetricPlans};

/// A map by series text or the like.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What is known of a series.
#[derive(Debug)]
pub struct SeriesInfo {
    /// Its number.
    pub id: SeriesId,
    /// Its identity.
    pub key: SeriesKey,
    /// The public key, `metric{dimension="value"}`.
    pub metric_key: String,
    /// The index of its definition among the plans.
    pub definition: usize,
    /// The length of its windows.
    pub window: WindowSize,
    /// The readings that it should get; `None` where that is unknown.
    pub expectation: Option<Arc<Expectation>>,
}

impl SeriesInfo {
    /// What the merge needs of it.
    pub fn facts(&self) -> SeriesFacts<'_> {
        SeriesFacts { window: self.window, expectation: self.expectation.as_deref() }
    }
}

/// A series without its number.
struct Described {
    key: SeriesKey,
    metric_key: String,
    definition: usize,
    window: WindowSize,
    expectation: Option<Arc<Expectation>>,
}

/// All series that were seen since the process started.
#[derive(Debug)]
pub struct Directory {
    plans: Arc<MetricPlans>,
    expectations: Expectations,
    dimensions: Vec<String>,
    /// By definition and dimension of all: its index in the definition's group.
    indices: Vec<Vec<Option<usize>>>,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_text: Map<Arc<str>, SeriesId>,
    infos: Vec<Arc<SeriesInfo>>,
    by_metric: Vec<Map<Arc<str>, Vec<SeriesId>>>,
    /// Stored texts that are not a series of a definition in force.
    foreign: HashSet<Box<str>>,
}

impl Directory {
    /// An empty directory for the definitions in force.
    pub fn new(plans: Arc<MetricPlans>, expectations: Expectations) -> Self {
        let dimensions = plans.dimension_names();
        let indices = plans.plans().iter().map(|plan| indices_of(plan.definition(), &dimensions)).collect();
        let inner = Inner { by_metric: vec![Map::default(); plans.plans().len()], ..Inner::default() };
        Self { plans, expectations, dimensions, indices, inner: RwLock::new(inner) }
    }

    /// The definitions in force.
    pub fn plans(&self) -> &Arc<MetricPlans> {
        &self.plans
    }

    /// Whether any series may have an expectation.
    pub fn has_expectations(&self) -> bool {
        !self.expectations.is_empty()
    }

    /// A definition by its index.
    pub fn definition(&self, index: usize) -> &Definition {
        self.plans.plans()[index].definition()
    }

    /// The names of the dimensions of all definitions.
    pub fn dimensions(&self) -> &[String] {
        &self.dimensions
    }

    /// A series' value of the n-th dimension of all.
    pub fn dimension<'a>(&self, info: &'a SeriesInfo, dimension: usize) -> Option<&'a str> {
        let index = self.indices[info.definition][dimension]?;
        info.key.group.get(index)?.as_deref()
    }

    /// The numbers of series by their stored texts; new series get one. `None` for a text that is not a series of a
    /// definition in force.
    pub fn resolve<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Vec<Option<SeriesId>> {
        let mut unknown = Vec::new();
        let mut ids = Vec::new();
        {
            let inner = self.read();
            for text in texts {
                let id = inner.by_text.get(text).copied();
                if id.is_none() && !inner.foreign.contains(text) {
                    unknown.push((ids.len(), text));
                }
                ids.push(id);
            }
        }
        if unknown.is_empty() {
            return ids;
        }
        let described: Vec<_> =
            unknown.into_iter().map(|(at, text)| (at, text, self.describe(text))).collect();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for (at, text, info) in described {
            ids[at] = inner.add(text, info);
        }
        ids
    }

    /// The number of a series by its stored text.
    pub fn find(&self, text: &str) -> Option<SeriesId> {
        self.read().by_text.get(text).copied()
    }

    /// What is known of a series.
    ///
    /// # Panics
    /// When the number was not given by this directory.
    pub fn info(&self, id: SeriesId) -> Arc<SeriesInfo> {
        Arc::clone(&self.read().infos[id.0 as usize])
    }

    /// What is known of all series, by number.
    pub fn infos(&self) -> Vec<Arc<SeriesInfo>> {
        self.read().infos.clone()
    }

    /// The series of a metric for which `keep` holds.
    pub fn select(
        &self,
        definition: usize,
        metric: &str,
        keep: impl Fn(&SeriesInfo) -> bool,
    ) -> Vec<Arc<SeriesInfo>> {
        let inner = self.read();
        let ids = inner.by_metric[definition].get(metric).map(Vec::as_slice).unwrap_or_default();
        ids.iter().map(|id| &inner.infos[id.0 as usize]).filter(|info| keep(info)).cloned().collect()
    }

    /// The names of the metrics of a definition that have a series, sorted.
    pub fn metrics(&self, definition: usize) -> Vec<Arc<str>> {
        let inner = self.read();
        let mut names: Vec<Arc<str>> = inner.by_metric[definition].keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether a metric of a definition has a series.
    pub fn has_metric(&self, definition: usize, metric: &str) -> bool {
        let inner = self.read();
        inner.by_metric[definition].contains_key(metric)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything about a series but its number.
    fn describe(&self, text: &str) -> Option<Described> {
        let key = SeriesKey::decode(text).ok()?;
        let index = self.plans.plans().iter().position(|plan| plan.definition().name == *key.definition)?;
        let definition = self.definition(index);
        if key.group.len() != definition.dimensions.len() {
            return None;
        }
        Some(Described {
            metric_key: key.metric_key(&definition.dimension_names()),
            definition: index,
            window: definition.window,
            expectation: self.expectations.of(&key).cloned(),
            key,
        })
    }
}

/// The indices of named dimensions in the group of a definition.
fn indices_of(definition: &Definition, names: &[String]) -> Vec<Option<usize>> {
    let own = definition.dimension_names();
    names.iter().map(|name| own.iter().position(|own| own == name)).collect()
}

impl Inner {
    /// # Panics
    /// At 2^32 series.
    fn add(&mut self, text: &str, described: Option<Described>) -> Option<SeriesId> {
        if let Some(id) = self.by_text.get(text) {
            return Some(*id);
        }
        let Some(Described { key, metric_key, definition, window, expectation }) = described else {
            self.foreign.insert(text.into());
            return None;
        };
        let number = u32::try_from(self.infos.len());
        let id = SeriesId(number.expect("2^32 series of more than 100 bytes each do not fit in memory"));
        self.by_metric[definition].entry(Arc::clone(&key.metric)).or_default().push(id);
        self.by_text.insert(text.into(), id);
        self.infos.push(Arc::new(SeriesInfo { id, key, metric_key, definition, window, expectation }));
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn series_keep_their_numbers_and_foreign_ones_get_none() {
        let directory = testing::directory();
        let texts = [r#"["*","t",["a"]]"#, r#"["other","t",["a"]]"#, "junk", r#"["*","t",["b"]]"#];
        let ids = directory.resolve(texts.iter().copied());
        assert_eq!(ids.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true]);
        assert_eq!(directory.resolve(texts.iter().copied()), ids);
        assert_eq!(directory.find(texts[3]), ids[3]);
        assert_eq!(directory.info(ids[3].unwrap()).metric_key, r#"t{device_id="b"}"#);
        assert_eq!(directory.select(0, "t", |info| directory.dimension(info, 0) == Some("a")).len(), 1);
        assert!(directory.has_metric(0, "t") && !directory.has_metric(0, "u"));
    }
}
