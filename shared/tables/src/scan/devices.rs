//! Splits devices into ranges of about equal numbers of rows. Must not know plans.

use crate::readings::file_tags::FileTags;

/// Devices `[from, until)` in the order of their names; open where absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceRange {
    pub(super) from: Option<String>,
    pub(super) until: Option<String>,
}

impl DeviceRange {
    /// Whether a device within `bounds` (both included) may be in the range.
    pub(super) fn overlaps(&self, bounds: Option<(&str, &str)>) -> bool {
        let Some((min, max)) = bounds else { return true };
        self.from.as_deref().is_none_or(|from| from <= max)
            && self.until.as_deref().is_none_or(|until| min < until)
    }

    /// Whether all devices within `bounds` (both included) are in the range.
    pub(super) fn contains(&self, bounds: Option<(&str, &str)>) -> bool {
        let Some((min, max)) = bounds else { return self.from.is_none() && self.until.is_none() };
        self.from.as_deref().is_none_or(|from| from <= min)
            && self.until.as_deref().is_none_or(|until| max < until)
    }
}

/// At most `count` ranges that cover all devices, with about equal numbers of rows. The files' tags have samples of devices;
/// each file has so many rows. Each range comes with about how many rows it has.
pub(super) fn ranges<'a>(
    files: impl Iterator<Item = (&'a FileTags, u64)>,
    count: usize,
) -> Vec<(DeviceRange, u64)> {
    let mut samples: Vec<(&str, f64)> = Vec::new();
    for (tags, rows) in files {
        let share = rows as f64 / tags.devices.len().max(1) as f64;
        samples.extend(tags.devices.iter().map(|device| (device.as_str(), share)));
    }
    samples.sort_by(|a, b| a.0.cmp(b.0));
    let total: f64 = samples.iter().map(|(_, share)| share).sum();
    let mut cuts: Vec<&str> = Vec::new();
    let mut before = 0.0;
    for (index, (device, share)) in samples.iter().enumerate() {
        let wanted = total * (cuts.len() + 1) as f64 / count.max(1) as f64;
        // Half of the share rounds to the nearest sample.
        let due = cuts.len() + 1 < count && before + share / 2.0 >= wanted;
        if due && index > 0 && samples[0].0 < *device && cuts.last() != Some(device) {
            cuts.push(device);
        }
        before += share;
    }
    let mut ranges = Vec::with_capacity(cuts.len() + 1);
    let mut from = None;
    for cut in cuts {
        ranges.push(DeviceRange { from: from.replace(cut.to_owned()), until: Some(cut.to_owned()) });
    }
    ranges.push(DeviceRange { from, until: None });
    ranges.into_iter().map(|range| with_rows(range, &samples)).collect()
}

/// A range with about how many rows it has: those of its samples.
fn with_rows(range: DeviceRange, samples: &[(&str, f64)]) -> (DeviceRange, u64) {
    let inside = samples.iter().filter(|(device, _)| range.overlaps(Some((device, device))));
    let rows: f64 = inside.map(|(_, share)| share).sum();
    (range, rows as u64)
}
