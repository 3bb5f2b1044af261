//! Records of Wye's own topics, and the values that they, tables and requests hold.

use std::str::FromStr;

use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::dead_letter::Context;
use wye_domain::device_counts::DeviceCounts;
use wye_domain::ledger::{self, LedgerState};
use wye_domain::place::Offset;
use wye_domain::position::Position;
use wye_domain::realtime_row::{self, Rows};
use wye_domain::series::SeriesKey;
use wye_domain::sketches::{Sketches, Stored};
use wye_domain::time::{Micros, format_rfc3339, parse_rfc3339};

pub(crate) fn control(bytes: &[u8]) {
    let mut state = ControlView::default();
    for (offset, line) in (0..).map(Offset).zip(bytes.split(|byte| *byte == b'\n')) {
        let Ok(record) = ControlRecord::decode(line) else { continue };
        assert_eq!(ControlRecord::decode(&record.encode()).expect("own records decode"), record);
        state.apply(offset, &record);
    }
}

pub(crate) fn realtime(bytes: &[u8]) {
    let Ok(record) = realtime_row::decode(bytes) else { return };
    let Some(batch) = record.rows else { return };
    let Ok(rows) = Rows::of(&batch) else { return };
    for row in 0..batch.num_rows() {
        let _ = rows.series.text(row).map(SeriesKey::decode);
        if let Ok(mut summary) = rows.summaries.summary(row) {
            let copy = summary.clone();
            summary.merge(&copy);
            let _ = (summary.avg(), summary.stddev(), summary.quantile(0.5), summary.distinct_devices());
        }
    }
}

pub(crate) fn dead_letter_context(bytes: &[u8]) {
    let Ok(context) = Context::decode(bytes) else { return };
    Context::decode(&context.encode()).expect("own contexts decode");
}

pub(crate) fn ledger(bytes: &[u8]) {
    let mut state = LedgerState::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(record) = ledger::Record::decode(line) else { continue };
        assert_eq!(ledger::Record::decode(&record.encode()).expect("own records decode"), record);
        state.apply(record);
    }
    let _ = (state.key("file/3"), state.tables());
    state.forget(Micros::EPOCH + ledger::RETENTION);
    let records = state.records();
    assert_eq!(records.len(), state.record_count());
    let mut again = LedgerState::default();
    records.into_iter().for_each(|record| again.apply(record));
    assert_eq!(again.record_count(), state.record_count(), "the fewest records say the same");
}

/// The first byte says which sketch the others are.
pub(crate) fn sketches(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let stored = match which % 2 {
        0 => Stored { quantiles: Some(bytes), ..Stored::default() },
        _ => Stored { distinct: Some(bytes), ..Stored::default() },
    };
    let Ok(Some(mut sketches)) = Sketches::decode(stored) else { return };
    let Stored { quantiles, distinct, .. } = sketches.encode();
    let again = Stored { quantiles: quantiles.as_deref(), distinct: distinct.as_deref(), devices: None };
    match Sketches::decode(again) {
        Ok(Some(again)) => sketches.merge(&again),
        // The library for distinct devices reads some bytes that it would not write.
        again => assert!(quantiles.is_none(), "own quantile sketches decode: {again:?}"),
    }
    let copy = sketches.clone();
    sketches.merge(&copy);
    for q in [0.0, 0.5, 0.999, 1.0] {
        let _ = sketches.quantile(q);
    }
    let _ = sketches.distinct();
}

pub(crate) fn device_counts(bytes: &[u8]) {
    let Ok(mut counts) = DeviceCounts::decode(bytes) else { return };
    assert_eq!(DeviceCounts::decode(&counts.encode()).expect("own counts decode"), counts);
    let copy = counts.clone();
    counts.merge(&copy);
}

pub(crate) fn series_key(bytes: &[u8]) {
    let Some(key) = text(bytes).and_then(|text| SeriesKey::decode(text).ok()) else { return };
    assert_eq!(SeriesKey::decode(&key.encode()).expect("own keys decode"), key);
    let _ = key.metric_key(&["a", "b", "c"]);
}

pub(crate) fn position(bytes: &[u8]) {
    let Some(position) = text(bytes).and_then(|text| Position::from_str(text).ok()) else { return };
    assert_eq!(Position::from_str(&position.to_string()).expect("own positions are read"), position);
}

pub(crate) fn time(bytes: &[u8]) {
    let Some(time) = text(bytes).and_then(|text| parse_rfc3339(text).ok()) else { return };
    assert_eq!(parse_rfc3339(&format_rfc3339(time)).expect("own times are read"), time);
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
