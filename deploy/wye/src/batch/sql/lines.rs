//! The report of a job on files, as lines.

use std::time::Duration;

use wye_batch::file_job::recipe::Action;
use wye_batch::file_job::report::{InputReport, JobReport, RuleReport};

use crate::terminal::{grouped, report_line, seconds};

/// The widest column of names; longer names move what follows.
const WIDEST: usize = 32;

/// Prints a report. Without a recipe and without an output there is nothing to report.
pub(super) fn print(report: &JobReport, took: Duration) {
    for input in &report.inputs {
        if input.recipe.is_some() || report.output.is_some() {
            print_input(input);
        }
    }
    if let Some(output) = &report.output {
        let (rows, took) = (counted(report.rows, "row"), seconds(took));
        report_line(format!("{}: {rows} in {took}", output.display()));
    }
}

fn print_input(input: &InputReport) {
    let (rows, files) = (counted(input.rows_read, "row"), counted(input.files as u64, "file"));
    let dropped = counted(input.rows_dropped, "row");
    report_line(format!("{}: {rows} read from {files}, {dropped} dropped", input.name));
    if input.recipe.is_none() {
        return;
    }
    let found: Vec<&RuleReport> = input.rules.iter().filter(|rule| rule.values > 0).collect();
    let widest = found.iter().map(|rule| rule.column.chars().count()).max().unwrap_or_default();
    let width = widest.min(WIDEST);
    for rule in found {
        let examples: Vec<String> = rule.examples.iter().map(ToString::to_string).collect();
        report_line(format!(
            "  {:<width$}  {:<9}  {:<12}  {:>11}   {}",
            rule.column,
            rule.rule.name(),
            action(rule.action),
            grouped(rule.values),
            examples.join(", ")
        ));
    }
}

fn action(action: Option<Action>) -> &'static str {
    match action {
        None => "text changed",
        Some(Action::Null) => "made null",
        Some(Action::Drop) => "row dropped",
        Some(Action::Fail) => "failed",
    }
}

/// A number of things, such as "1 row" or "1,000 rows".
fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_not_several() {
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(1_000, "row"), "1,000 rows");
        assert_eq!(counted(0, "file"), "0 files");
    }
}
