//! Files written by people: configuration with metric definitions, device registry, mapping.

use std::collections::BTreeMap;
use std::iter;
use std::path::Path;

use serde::Deserialize;
use wye_datasets::mapping::Mapping;
use wye_domain::registry::{Registry, RegistryConfig};
use wye_metrics::definition::MetricConfig;
use wye_runtime::config::value::{byte_size, time};
use wye_runtime::config::{self, Setting, Settings, Unworkable};

use crate::Outcome;
use crate::files::scratch;

/// A configuration with any value for each setting, since the layers parse their values one by one.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    metric: Vec<MetricConfig>,
    #[serde(flatten)]
    sections: BTreeMap<String, BTreeMap<String, toml::Value>>,
}

/// Every setting of the program with its default.
const DEFAULTS: &str = concat!(
    include_str!("../../../deploy/wye/src/settings.toml"),
    include_str!("../../../speed-layer/src/settings.toml"),
    include_str!("../../../batch-layer/src/settings.toml"),
    include_str!("../../../serving-layer/src/settings.toml"),
);

impl Settings for Written {
    const SECRET: &'static [&'static str] = &["client", "sasl_password"];

    fn check(&self) -> Vec<Unworkable> {
        for value in self.sections.values().flat_map(BTreeMap::values) {
            let _ = byte_size(value.clone()).map_err(|error| error.to_string());
            let _ = time(value.clone()).map_err(|error| error.to_string());
        }
        let max_body = Setting { section: "ingest", key: "max_body", example: "\"64MiB\"" };
        let size = byte_size(self.sections["ingest"]["max_body"].clone()).unwrap_or_default();
        max_body.at_least_one(size).into_iter().collect()
    }
}

pub(crate) fn config(bytes: &[u8]) -> Outcome {
    let file = scratch("wye.toml", bytes)?;
    match config::load::<Written>(DEFAULTS, Some(&file), iter::empty()) {
        Ok(written) => {
            let _ = config::definitions(&written.metric, Some(&file)).map_err(|error| error.to_string());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Ok(())
}

pub(crate) fn registry(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    let Ok(written) = toml::from_str::<RegistryConfig>(text) else { return Ok(()) };
    match Registry::check(written) {
        Ok(registry) => {
            let _ = (registry.devices().len(), registry.fingerprint());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Ok(())
}

pub(crate) fn mapping(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    match Mapping::parse(text, Path::new("mapping.toml")) {
        Ok(mapping) => assert!(!mapping.metrics().is_empty(), "a mapping without a metric has no readings"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Ok(())
}
