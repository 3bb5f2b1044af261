//! Records of Wye's own topics, and the values in them, in tables and in requests.

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

use crate::{Outcome, same};

pub(crate) fn control(bytes: &[u8]) -> Outcome {
    let mut state = ControlView::default();
    for (offset, line) in (0..).map(Offset).zip(bytes.split(|byte| *byte == b'\n')) {
        let Ok(record) = ControlRecord::decode(line) else { continue };
        same(&record, ControlRecord::decode(&record.encode()))?;
        state.apply(offset, &record);
    }
    Ok(())
}

pub(crate) fn realtime(bytes: &[u8]) -> Outcome {
    let Ok(record) = realtime_row::decode(bytes) else { return Ok(()) };
    let Some(batch) = record.rows else { return Ok(()) };
    let Ok(rows) = Rows::of(&batch) else { return Ok(()) };
    for row in 0..batch.num_rows() {
        let _ = rows.series.text(row).map(SeriesKey::decode);
        if let Ok(mut summary) = rows.summaries.summary(row) {
            let copy = summary.clone();
            summary.merge(&copy);
            let _ = (summary.avg(), summary.stddev(), summary.quantile(0.5), summary.distinct_devices());
        }
    }
    Ok(())
}

pub(crate) fn dead_letter_context(bytes: &[u8]) -> Outcome {
    let Ok(context) = Context::decode(bytes) else { return Ok(()) };
    Context::decode(&context.encode())?;
    Ok(())
}

pub(crate) fn ledger(bytes: &[u8]) -> Outcome {
    let mut state = LedgerState::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(record) = ledger::Record::decode(line) else { continue };
        same(&record, ledger::Record::decode(&record.encode()))?;
        state.apply(record);
    }
    let _ = (state.key("file/3"), state.tables());
    state.forget(Micros::EPOCH + ledger::RETENTION);
    let records = state.records();
    assert_eq!(records.len(), state.record_count());
    let mut again = LedgerState::default();
    records.into_iter().for_each(|record| again.apply(record));
    assert_eq!(again.record_count(), state.record_count(), "compacted records have the same state");
    Ok(())
}

/// The first byte selects the kind of sketch in the others.
pub(crate) fn sketches(bytes: &[u8]) -> Outcome {
    let Some((which, bytes)) = bytes.split_first() else { return Ok(()) };
    let stored = match which % 2 {
        0 => Stored { quantiles: Some(bytes), ..Stored::default() },
        _ => Stored { distinct: Some(bytes), ..Stored::default() },
    };
    let Ok(Some(mut sketches)) = Sketches::decode(stored) else { return Ok(()) };
    let Stored { quantiles, distinct, .. } = sketches.encode();
    let again = Stored { quantiles: quantiles.as_deref(), distinct: distinct.as_deref(), devices: None };
    match Sketches::decode(again) {
        Ok(Some(again)) => sketches.merge(&again),
        // The library for distinct devices accepts some bytes that it never writes.
        again => assert!(quantiles.is_none(), "an encoded quantile sketch does not decode: {again:?}"),
    }
    let copy = sketches.clone();
    sketches.merge(&copy);
    for q in [0.0, 0.5, 0.999, 1.0] {
        let _ = sketches.quantile(q);
    }
    let _ = sketches.distinct();
    Ok(())
}

pub(crate) fn device_counts(bytes: &[u8]) -> Outcome {
    let Ok(mut counts) = DeviceCounts::decode(bytes) else { return Ok(()) };
    same(&counts, DeviceCounts::decode(&counts.encode()))?;
    let copy = counts.clone();
    counts.merge(&copy);
    Ok(())
}

pub(crate) fn series_key(bytes: &[u8]) -> Outcome {
    let Some(key) = text(bytes).and_then(|text| SeriesKey::decode(text).ok()) else { return Ok(()) };
    same(&key, SeriesKey::decode(&key.encode()))?;
    let _ = key.metric_key(&["a", "b", "c"]);
    Ok(())
}

pub(crate) fn position(bytes: &[u8]) -> Outcome {
    let Some(position) = text(bytes).and_then(|text| Position::from_str(text).ok()) else { return Ok(()) };
    same(&position, Position::from_str(&position.to_string()))
}

pub(crate) fn time(bytes: &[u8]) -> Outcome {
    let Some(time) = text(bytes).and_then(|text| parse_rfc3339(text).ok()) else { return Ok(()) };
    same(&time, parse_rfc3339(&format_rfc3339(time)))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
