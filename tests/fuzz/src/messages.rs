//! Messages of the readings topic.

use arrow::array::RecordBatch;
use wye_domain::reading::ReadingColumns;
use wye_domain::time::Micros;
use wye_domain::wire::{self, ARROW_PREFIX, Acceptance, Collected, Decoded};

use crate::Outcome;

const NOW: Micros = Micros::from_secs(1_800_000_000);

pub(crate) fn json(bytes: &[u8]) -> Outcome {
    decode(bytes)
}

pub(crate) fn arrow(bytes: &[u8]) -> Outcome {
    decode(&[ARROW_PREFIX.as_slice(), bytes].concat())
}

fn decode(message: &[u8]) -> Outcome {
    let mut collected = Collected::default();
    let batches = match wire::decode(message, NOW, &Acceptance::default(), &mut collected) {
        Decoded::Collected(_) => vec![collected.readings.finish()],
        Decoded::Batches(batches) => batches.into_iter().map(|accepted| accepted.batch).collect(),
    };
    let rejected: u64 = collected.rejected.iter().map(|rejected| u64::from(rejected.readings)).sum();
    assert_eq!(rejected, collected.refused, "every rejected reading is counted");
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    // An array and an Arrow stream may be empty.
    let may_be_empty = message.starts_with(ARROW_PREFIX) || message.trim_ascii_start().starts_with(b"[");
    assert!(rows > 0 || rejected > 0 || may_be_empty, "a message has no readings, accepted or rejected");
    for batch in &batches {
        check(batch)?;
    }
    let decoded: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let kept: usize =
        collected.rejected.iter().map(|rejected| rejected.payload.len() + rejected.detail.len()).sum();
    let length = message.len();
    assert!(decoded + kept < 64 * length + (1 << 20), "{length} bytes became {decoded} and {kept} bytes");
    Ok(())
}

/// Checks that every accepted reading follows the rules of acceptance.
fn check(batch: &RecordBatch) -> Outcome {
    let columns = ReadingColumns::of(batch)?;
    for row in 0..batch.num_rows() {
        let reading = columns.reading(row);
        assert!(reading.value.is_finite() && !reading.device_id.is_empty());
        let accepted = Acceptance::default().event_time(reading.event_time, NOW);
        assert!(accepted.is_ok(), "the event time {:?} was accepted", reading.event_time);
    }
    Ok(())
}
