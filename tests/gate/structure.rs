//! The structure of the project: which crate may use which, which crates may use the heavy dependencies, and what every file
//! begins with. Reads `cargo metadata` and the source files, and does not run the program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use wye_tests::datasets::project_root;

/// Each crate of the project with those that it may use. The direction is
/// `domain <- metrics, runtime, log, broker, tables <- speed | batch | serving <- deploy, tests`; the speed layer may not use
/// tables. Tests of other crates connect to the broker.
const PLACES: [(&str, &[&str]); 13] = [
    ("wye-domain", &[]),
    ("wye-metrics", &["wye-domain"]),
    ("wye-runtime", &["wye-domain", "wye-metrics"]),
    ("wye-datasets", &["wye-domain"]),
    ("wye-broker", &["wye-domain"]),
    ("wye-log", &["wye-domain", "wye-broker"]),
    ("wye-tables", &["wye-domain", "wye-metrics"]),
    ("wye-speed", &["wye-domain", "wye-metrics", "wye-runtime", "wye-log", "wye-broker"]),
    ("wye-batch", &["wye-domain", "wye-metrics", "wye-runtime", "wye-log", "wye-tables", "wye-broker"]),
    ("wye-serving", &["wye-domain", "wye-metrics", "wye-runtime", "wye-log", "wye-tables", "wye-broker"]),
    ("wye", &ALL),
    ("wye-tests", &ALL),
    // The decoders, and no layer: a fuzzer is built with all of its dependencies.
    ("wye-fuzz", &["wye-domain", "wye-metrics", "wye-runtime", "wye-broker", "wye-datasets"]),
];

/// The program and the tests across layers may use all crates.
const ALL: [&str; 10] = [
    "wye-domain",
    "wye-metrics",
    "wye-runtime",
    "wye-datasets",
    "wye-broker",
    "wye-log",
    "wye-tables",
    "wye-speed",
    "wye-batch",
    "wye-serving",
];

/// The crates of the project that a crate may use.
fn allowed(name: &str) -> Option<&'static [&'static str]> {
    PLACES.iter().find(|(place, _)| *place == name).map(|(_, allowed)| *allowed)
}

/// A dependency whose name begins like this may be used by these crates only.
const HOMES: [(&str, &[&str]); 4] = [
    ("rdkafka", &["wye-log"]),
    // The fuzz targets write requests as seeds.
    ("kafka-protocol", &["wye-broker", "wye-fuzz"]),
    ("deltalake", &["wye-tables"]),
    // The speed layer's crate serves ingest, the serving layer everything else, and the program joins the two.
    ("axum", &["wye-speed", "wye-serving", "wye"]),
];

/// Dependencies that the domain may not have: it has no tasks, no network and no storage.
const NOT_IN_DOMAIN: [&str; 9] =
    ["tokio", "rdkafka", "kafka-protocol", "deltalake", "axum", "hyper", "reqwest", "object_store", "tonic"];

/// Files and folders that must be at the top of the source tree.
const TOP: [&str; 14] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "ARCHITECTURE.md",
    "LICENSE",
    "Makefile",
    "rust-toolchain.toml",
    ".ci/run",
    "shared",
    "speed-layer",
    "batch-layer",
    "serving-layer",
    "deploy",
    "datasets",
];

/// Each crate of the workspace with the names of its dependencies, those of tests and build scripts included.
fn crates() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(project_root())
        .output()
        .context("run cargo metadata")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().context("no dependencies")?;
            let names = dependencies.iter().map(name_of).collect::<Result<_>>()?;
            Ok((name_of(package)?, names))
        })
        .collect()
}

fn name_of(package: &serde_json::Value) -> Result<String> {
    package["name"].as_str().map(str::to_owned).context("a name is text")
}

/// Every file of the source tree, without build output and version control.
fn files() -> Result<Vec<PathBuf>> {
    const NOT_SOURCE: [&str; 5] = [".git", "target", ".venv", "__pycache__", "node_modules"];
    let mut found = Vec::new();
    let mut folders = vec![project_root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                found.push(entry.path());
            } else if !NOT_SOURCE.iter().any(|name| entry.file_name() == *name) {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn rust_files() -> Result<Vec<(PathBuf, String)>> {
    files()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|it| it == "rs"))
        .map(|path| Ok((path.clone(), std::fs::read_to_string(path)?)))
        .collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(project_root()).unwrap_or(path).display().to_string()
}

#[test]
fn crates_use_only_what_their_place_allows() -> Result<()> {
    let crates = crates()?;
    let mut faults = Vec::new();
    for (name, dependencies) in &crates {
        let Some(allowed) = allowed(name) else {
            faults.push(format!("{name} is not in `PLACES`"));
            continue;
        };
        let ours = dependencies.iter().filter(|it| crates.contains_key(*it));
        faults.extend(
            ours.filter(|it| !allowed.contains(&it.as_str())).map(|it| format!("{name} must not use {it}")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn heavy_dependencies_are_used_by_few_crates() -> Result<()> {
    let mut faults = Vec::new();
    for (name, dependencies) in &crates()? {
        for dependency in dependencies {
            for (heavy, homes) in HOMES {
                if dependency.starts_with(heavy) && !homes.contains(&name.as_str()) {
                    faults.push(format!("{name} uses {dependency}, which only {} may use", homes.join(", ")));
                }
            }
            if name == "wye-domain" && NOT_IN_DOMAIN.iter().any(|it| dependency.starts_with(it)) {
                faults.push(format!("the domain uses {dependency}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn every_file_says_what_it_is_for() -> Result<()> {
    let silent: Vec<_> = rust_files()?
        .iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| shown(path))
        .collect();
    assert!(silent.is_empty(), "these files do not begin with `//!`:\n{}", silent.join("\n"));
    Ok(())
}

#[test]
fn no_file_is_named_mod_rs() -> Result<()> {
    let unnamed: Vec<_> =
        files()?.iter().filter(|path| path.ends_with("mod.rs")).map(|path| shown(path)).collect();
    assert!(unnamed.is_empty(), "use foo.rs and foo/ instead of:\n{}", unnamed.join("\n"));
    Ok(())
}

#[test]
fn every_crate_uses_the_lints_of_the_workspace() -> Result<()> {
    let mut faults = Vec::new();
    for path in files()?.iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = std::fs::read_to_string(path)?;
        if text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
            faults.push(shown(path));
        }
    }
    assert!(faults.is_empty(), "`[lints] workspace = true` is missing in:\n{}", faults.join("\n"));
    Ok(())
}

#[test]
fn nothing_names_a_path_of_one_machine() -> Result<()> {
    // Concatenated, so that this file does not name them itself.
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut faults = Vec::new();
    for path in files()? {
        // A file that is not text has no names.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let names =
                places.iter().any(|place| line.match_indices(place).any(|(at, _)| starts_path(line, at)));
            if names {
                faults.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Whether the slash at `at` begins a path, and does not continue one.
fn starts_path(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|before: char| before.is_alphanumeric() || "._-/*}".contains(before))
}

#[test]
fn the_top_level_is_complete() {
    let missing: Vec<_> = TOP.into_iter().filter(|name| !project_root().join(name).exists()).collect();
    assert!(missing.is_empty(), "missing at the top: {}", missing.join(", "));
}
