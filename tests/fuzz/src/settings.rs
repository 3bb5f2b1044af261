//! Files that a person writes: configuration with metric definitions, device registry, mapping.

use std::iter;
use std::path::Path;

use wye_datasets::mapping::Mapping;
use wye_domain::registry::{Registry, RegistryConfig};
use wye_runtime::config::Config;

use crate::files::scratch;

pub(crate) fn config(bytes: &[u8]) {
    let file = scratch("wye.toml", bytes);
    match Config::load(Some(&file), iter::empty()) {
        Ok(config) => {
            let _ = config.definitions(Some(&file)).map_err(|error| error.to_string());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(crate) fn registry(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(written) = toml::from_str::<RegistryConfig>(text) else { return };
    match Registry::check(written) {
        Ok(registry) => {
            let _ = (registry.devices().len(), registry.fingerprint());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(crate) fn mapping(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Mapping::parse(text, Path::new("mapping.toml")) {
        Ok(mapping) => assert!(!mapping.metrics().is_empty(), "a mapping without a metric gives no readings"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
