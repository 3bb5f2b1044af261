//! The files in `deploy/` for schedulers: they follow the schemas of Kubernetes, and name commands that the program has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use wye_tests::site::program;
use wye_tests::{datasets, oracle};

/// Validates the documents of a file against the schemas of Kubernetes, and prints the arguments of each container, one line
/// each.
const VALIDATE: &str = r#"
import sys, yaml, kubernetes_validate
for document in yaml.safe_load_all(open(sys.argv[1])):
    kubernetes_validate.validate(document, "1.31", strict=True)
    spec = document.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    for container in spec.get("template", {}).get("spec", {}).get("containers", []):
        print(" ".join(container["args"]))
"#;

fn deploy() -> PathBuf {
    datasets::project_root().join("deploy")
}

/// Checks that the program has the command and all of its options.
fn has(line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
    let output = Command::new(program()?).args(&words[1..options]).arg("--help").output()?;
    let help = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{line}: there is no such command");
    for option in words.iter().filter(|word| word.starts_with("--")) {
        ensure!(help.contains(option), "{line}: there is no option {option}");
    }
    Ok(())
}

#[test]
fn kubernetes_files_are_valid_and_name_commands_that_exist() -> Result<()> {
    let python = oracle::python()?;
    let mut lines = 0;
    for file in std::fs::read_dir(deploy().join("kubernetes"))? {
        let path = file?.path();
        let output = Command::new(&python).args(["-c", VALIDATE]).arg(&path).output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        for line in printed.lines() {
            has(line)?;
            lines += 1;
        }
    }
    ensure!(lines >= 2, "only {lines} containers");
    Ok(())
}

#[test]
fn the_cron_file_names_a_command_that_exists() -> Result<()> {
    let path: &Path = &deploy().join("cron/wye");
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find(|line| !line.starts_with('#')).context("no line")?;
    // Five fields of time, and the user.
    let command = line.split_whitespace().skip(6).take_while(|word| !word.contains('>'));
    has(&command.collect::<Vec<_>>().join(" "))
}
