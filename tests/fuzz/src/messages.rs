//! Messages of the readings topic.

use arrow::array::RecordBatch;
use wye_domain::reading::ReadingColumns;
use wye_domain::time::Micros;
use wye_domain::wire::{self, ARROW_PREFIX, Acceptance, Collected, Decoded};

const NOW: Micros = Micros::from_secs(1_800_000_000);

pub(crate) fn json(bytes: &[u8]) {
    decode(bytes);
}

pub(crate) fn arrow(bytes: &[u8]) {
    decode(&[ARROW_PREFIX.as_slice(), bytes].concat());
}

fn decode(message: &[u8]) {
    let mut collected = Collected::default();
    let batches = match wire::decode(message, NOW, &Acceptance::default(), &mut collected) {
        Decoded::Collected(_) => vec![collected.readings.finish()],
        Decoded::Batches(batches) => batches.into_iter().map(|accepted| accepted.batch).collect(),
    };
    let refused: u64 = collected.rejected.iter().map(|rejected| u64::from(rejected.readings)).sum();
    assert_eq!(refused, collected.refused, "what is refused is counted");
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    // An array and an Arrow stream may be empty.
    let may_be_empty = message.starts_with(ARROW_PREFIX) || message.trim_ascii_start().starts_with(b"[");
    assert!(rows > 0 || refused > 0 || may_be_empty, "a message left nothing behind");
    for batch in &batches {
        look_at(batch);
    }
    let made: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let kept: usize =
        collected.rejected.iter().map(|rejected| rejected.payload.len() + rejected.detail.len()).sum();
    assert!(made + kept < 64 * message.len() + (1 << 20), "{} bytes became {made} and {kept}", message.len());
}

/// Takes every reading in its hand: what was accepted keeps the rules of acceptance.
fn look_at(batch: &RecordBatch) {
    let columns = ReadingColumns::of(batch).expect("accepted readings have the columns of readings");
    for row in 0..batch.num_rows() {
        let reading = columns.reading(row);
        assert!(reading.value.is_finite() && !reading.device_id.is_empty());
        Acceptance::default().event_time(reading.event_time, NOW).expect("accepted times are plausible");
    }
}
