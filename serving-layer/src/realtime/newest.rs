//! The newest window of each series and which epochs have a part of it, so that a current value is found at once; and
//! the oldest window that was ever seen, so that an empty answer can say where there is data.
//!
//! A row with conflicts and no reading makes no window; it is remembered until a reading comes to its window, because
//! it lowers the validity of that window.

use hashbrown::{HashMap, HashSet};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::series::SeriesId;
use wye_domain::time::Micros;

/// An epoch of a Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    pub(super) kafka_partition: KafkaPartition,
    pub(super) epoch: Offset,
}

/// A row as this index sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) series: SeriesId,
    pub(super) window_start: Micros,
    pub(super) part: Part,
    /// Whether the row has readings.
    pub(super) filled: bool,
}

/// The index, by series number.
#[derive(Debug, Default)]
pub(super) struct Newest {
    windows: Vec<Option<Window>>,
    /// The oldest window with readings. It stays when its epoch goes, because the batch view has it then.
    oldest: Vec<Option<Micros>>,
    /// Parts with conflicts only, of windows that have no reading yet.
    ahead: HashMap<(SeriesId, Micros), Vec<Part>>,
}

#[derive(Debug)]
struct Window {
    start: Micros,
    parts: Vec<Part>,
}

impl Newest {
    /// Adds a row, new or changed.
    pub(super) fn offer(&mut self, offer: Offer) {
        let at = offer.series.0 as usize;
        if at >= self.windows.len() {
            self.windows.resize_with(at + 1, || None);
            self.oldest.resize(at + 1, None);
        }
        if offer.filled {
            let oldest = self.oldest[at].get_or_insert(offer.window_start);
            *oldest = offer.window_start.min(*oldest);
        }
        if let Some(window) = &mut self.windows[at] {
            if window.start == offer.window_start {
                return add(&mut window.parts, offer.part);
            }
            if window.start > offer.window_start {
                return;
            }
        }
        let key = (offer.series, offer.window_start);
        if !offer.filled {
            return add(self.ahead.entry(key).or_default(), offer.part);
        }
        let mut parts =
            if self.ahead.is_empty() { Vec::new() } else { self.ahead.remove(&key).unwrap_or_default() };
        add(&mut parts, offer.part);
        self.windows[at] = Some(Window { start: offer.window_start, parts });
    }

    /// The start of the newest window with readings.
    pub(super) fn window(&self, series: SeriesId) -> Option<Micros> {
        self.windows.get(series.0 as usize)?.as_ref().map(|window| window.start)
    }

    /// The start of the oldest window with readings.
    pub(super) fn oldest(&self, series: SeriesId) -> Option<Micros> {
        *self.oldest.get(series.0 as usize)?
    }

    /// The epochs that have a row of a window that is not older than the newest.
    pub(super) fn parts(&self, series: SeriesId, window_start: Micros) -> &[Part] {
        match self.windows.get(series.0 as usize).and_then(Option::as_ref) {
            Some(window) if window.start == window_start => &window.parts,
            _ if self.ahead.is_empty() => &[],
            _ => self.ahead.get(&(series, window_start)).map(Vec::as_slice).unwrap_or_default(),
        }
    }

    /// Removes epochs. Returns the series whose newest window is gone with them; all their rows must be offered again.
    pub(super) fn forget(&mut self, gone: &HashSet<Part>) -> HashSet<SeriesId> {
        let mut orphans = HashSet::new();
        for (number, slot) in (0..).zip(&mut self.windows) {
            let Some(window) = slot else { continue };
            if window.parts.iter().any(|part| gone.contains(part)) {
                // A part that is left may hold conflicts only, so all rows of the series are offered again.
                *slot = None;
                orphans.insert(SeriesId(number));
            }
        }
        self.ahead.retain(|_, parts| {
            parts.retain(|part| !gone.contains(part));
            !parts.is_empty()
        });
        orphans
    }
}

/// Adds a part once. Parts come in runs, so the last ones are looked at first.
fn add(parts: &mut Vec<Part>, part: Part) {
    if !parts.iter().rev().any(|known| *known == part) {
        parts.push(part);
    }
}
