//! From the body of a request to batches of readings.

use arrow::array::RecordBatch;
use wye_domain::time::Micros;
use wye_domain::wire::{Acceptance, Collected, Rejected, decode_arrow, decode_json};

/// The format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object, an array, or several of these one a line.
    Json,
    /// One JSON object a line.
    JsonLines,
    /// An Arrow IPC stream.
    Arrow,
}

/// A parsed body.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The accepted readings, in the order of the body.
    pub(super) batches: Vec<RecordBatch>,
    /// What was rejected; indices count the readings of the body from 0.
    pub(super) rejected: Vec<Rejected>,
}

impl Parsed {
    /// How many readings were accepted.
    pub(super) fn accepted(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// Parses a body. Readings are checked against the time at which it was received.
pub(super) fn parse(body: &[u8], format: Format, received: Micros, acceptance: &Acceptance) -> Parsed {
    let mut collected = Collected::default();
    let mut batches = Vec::new();
    match format {
        Format::Arrow => {
            let decoded = decode_arrow(body, received, acceptance, &mut collected);
            batches.extend(
                decoded.into_iter().map(|accepted| accepted.batch).filter(|batch| batch.num_rows() > 0),
            );
        }
        Format::Json if !looks_like_lines(body) => {
            decode_json(body, received, acceptance, &mut collected);
        }
        Format::Json | Format::JsonLines => {
            for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
                let rejected = collected.refused;
                let taken = decode_json(line, received, acceptance, &mut collected);
                let items = taken as u64 + (collected.refused - rejected);
                let items = u32::try_from(items).unwrap_or(u32::MAX);
                collected.first_index = collected.first_index.saturating_add(items);
            }
            if collected.first_index == 0 {
                decode_json(b"", received, acceptance, &mut collected);
            }
        }
    }
    if !collected.readings.is_empty() {
        batches.push(collected.readings.finish());
    }
    Parsed { batches, rejected: collected.rejected }
}

/// Whether a body of JSON has a whole object on its first line and more after it.
fn looks_like_lines(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    let Some(end) = body.iter().position(|byte| *byte == b'\n') else { return false };
    body.starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(&body[..end]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"device_id":"d","metric":"m","value":1,"event_time":1700000000000}"#;

    fn check(body: &str, format: Format) -> (usize, Vec<u32>) {
        let parsed = parse(body.as_bytes(), format, Micros(1_800_000_000_000_000), &Acceptance::default());
        let rows = parsed.batches.iter().map(RecordBatch::num_rows).sum();
        (rows, parsed.rejected.iter().map(|rejected| rejected.item_index).collect())
    }

    #[test]
    fn every_form_of_json_is_accepted() {
        assert_eq!(check(GOOD, Format::Json), (1, vec![]));
        assert_eq!(check(&format!("[{GOOD},{GOOD}]"), Format::Json), (2, vec![]));
        assert_eq!(check(&format!("{GOOD}\n{GOOD}\n"), Format::Json), (2, vec![]));
        assert_eq!(check(&format!("{GOOD}\r\n\n{GOOD}"), Format::JsonLines), (2, vec![]));
        assert_eq!(check(&format!("{{\n{}", &GOOD[1..]), Format::Json), (1, vec![]));
    }

    #[test]
    fn indices_of_rejected_readings_count_through_the_body() {
        assert_eq!(
            check(&format!("{GOOD}\nx\n{GOOD}\n[{GOOD},5]\n7"), Format::JsonLines),
            (3, vec![1, 4, 5])
        );
        assert_eq!(check("", Format::Json), (0, vec![0]));
        assert_eq!(check("WYE\u{1}", Format::Json), (0, vec![0]));
    }
}
