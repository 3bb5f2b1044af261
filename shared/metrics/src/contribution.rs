//! What readings add to summaries: which value to which series and window, and how it is added to the summary.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, TimestampMicrosecondArray};
use wye_domain::DomainError;
use wye_domain::identity::Novelty;
use wye_domain::reading::TextColumn;
use wye_domain::registry::DeviceNumber;
use wye_domain::series::SeriesId;
use wye_domain::sketches::{Needs, Sketches};
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Window, WindowSize};

use crate::failures::FailedRow;

/// What one reading adds to one series.
#[derive(Clone, Copy, Debug)]
pub struct Contribution {
    /// The row of the batch.
    pub row: usize,
    /// The series.
    pub series: SeriesId,
    /// Window start.
    pub window_start: Micros,
    /// The metric's value: finite, and never −0.
    pub value: f64,
    /// Event time.
    pub event_time: Micros,
    /// Whether the reading fails a check: unit, range, clock.
    pub invalid: bool,
}

/// What the readings of a batch add to the series of one definition.
#[derive(Debug)]
pub struct Contributions {
    /// The sketches and counts that the definition's summaries have.
    pub needs: Needs,
    /// The readings that the definition selects but its expressions fail on, in row order.
    pub failed: Vec<FailedRow>,
    pub(crate) value: Float64Array,
    pub(crate) event_time: TimestampMicrosecondArray,
    pub(crate) series: Vec<SeriesId>,
    pub(crate) keep: Option<BooleanArray>,
    pub(crate) invalid: Arc<Option<Vec<bool>>>,
    pub(crate) window: WindowSize,
    pub(crate) device_id: ArrayRef,
    /// By word of `device_id`; empty where devices are not counted.
    pub(crate) numbers: Arc<Vec<Option<DeviceNumber>>>,
}

impl Contributions {
    /// Visits the contribution of each row, in row order; rows outside the definition's `where` add nothing.
    #[inline]
    pub fn for_each(&self, mut visit: impl FnMut(Contribution)) {
        let event_times = self.event_time.values();
        let values = self.value.values();
        let mut window = Window { start: Micros::EPOCH, end: Micros::EPOCH };
        for row in 0..values.len() {
            if self.keep.as_ref().is_some_and(|keep| keep.is_null(row) || !keep.value(row))
                || self.value.is_null(row)
            {
                continue;
            }
            let value = values[row];
            if !value.is_finite() {
                continue;
            }
            let event_time = Micros(event_times[row]);
            if event_time < window.start || event_time >= window.end {
                window = self.window.window_at(self.window.start_of(event_time));
            }
            let invalid = self.invalid.as_ref().as_ref().is_some_and(|invalid| invalid[row]);
            visit(Contribution {
                row,
                series: self.series[row],
                window_start: window.start,
                // −0 becomes 0, so that minimum and maximum do not depend on the order of readings.
                value: value + 0.0,
                event_time,
                invalid,
            });
        }
    }

    /// The step that adds these contributions to summaries.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when the batch has no usable column `device_id`.
    pub fn step(&self) -> Result<Step<'_>, DomainError> {
        let devices =
            TextColumn::of_array(&self.device_id).ok_or(DomainError::Shape { column: "device_id" })?;
        Ok(Step { needs: self.needs, devices, numbers: &self.numbers })
    }
}

/// Adds contributions to the summaries of their series and windows.
#[derive(Debug)]
pub struct Step<'a> {
    needs: Needs,
    devices: TextColumn<'a>,
    numbers: &'a [Option<DeviceNumber>],
}

impl Step<'_> {
    /// Adds one contribution, by what its reading is compared with those before it.
    #[inline]
    pub fn add(&self, c: &Contribution, novelty: Novelty, summary: &mut Summary) {
        match novelty {
            Novelty::Duplicate => {}
            Novelty::Conflict => summary.conflicts += 1,
            Novelty::First => {
                summary.add(c.value, c.event_time);
                summary.invalid += u64::from(c.invalid);
                if self.needs.any() {
                    self.add_sketched(c, summary);
                }
            }
        }
    }

    fn add_sketched(&self, c: &Contribution, summary: &mut Summary) {
        if summary.sketches.is_none() {
            summary.sketches = Sketches::new(self.needs);
        }
        let Some(sketches) = &mut summary.sketches else { return };
        let number = self.devices.code(c.row).and_then(|code| self.numbers.get(code).copied().flatten());
        sketches.add(c.value, self.devices.text(c.row).unwrap_or_default(), number);
    }
}
