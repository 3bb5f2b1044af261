//! The cells of a view: which stretches of time its files are made of, and what each of them says of itself. Must not know how
//! cells are chosen.
//!
//! A batch run computes cells, each a stretch of event time: all windows that start in it. A file has rows of one cell only.
//! So a run can replace the files of some cells and leave the others as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wye_domain::time::{Micros, Window};
use wye_metrics::failures::Failures;

use super::ViewSnapshot;
use crate::delta::DataFile;

/// The tag of a view file with the record of its cell. Stability contract: it is in the logs of all tables that have it.
pub(super) const CELL: &str = "wye.cell";
/// The tag of a view file with its place among the files of its cell. Stability contract as above.
pub(super) const PART: &str = "wye.part";

/// What is known of a cell that was computed.
///
/// Stability contract: it is stored as JSON in a tag of each file of the cell. Fields may be added but not removed, and a
/// missing field has its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CellRecord {
    /// Windows that start at this time or later are in the cell.
    pub start: Micros,
    /// Windows that start at this time or later are not.
    pub end: Micros,
    /// Readings, with duplicates and conflicts.
    pub readings: u64,
    /// Of these, later ones of an identity with the same value.
    pub duplicates: u64,
    /// Of these, later ones of an identity with another value.
    pub conflicts: u64,
    /// Readings that amendments leave out.
    pub dropped: u64,
    /// Readings that definitions could not compute.
    pub failures: Failures,
    /// Rows of the view: windows of all series.
    pub windows: u64,
}

impl CellRecord {
    /// The stretch of event time.
    #[must_use]
    pub fn window(&self) -> Window {
        Window { start: self.start, end: self.end }
    }
}

/// By start: the cells of a view. They do not overlap.
pub type Cells = BTreeMap<Micros, CellRecord>;

/// A plan over a view has at most so many plan partitions, where the cells are known.
const PLAN_PARTITIONS: u64 = 16;

/// The files of one plan partition, in the order in which they are read.
pub(super) type Group = Vec<DataFile>;

/// Groups files so that each cell is in one group, in the order of time, and the files of a cell in the order of writing.
/// Where the cells are not known, each file is a group.
pub(super) fn groups(files: &[DataFile]) -> Vec<Group> {
    let placed =
        files.iter().map(|file| Some((of_file(file)?.start, file.tag(PART)?.parse::<u64>().ok()?, file)));
    let Some(mut placed) = placed.collect::<Option<Vec<_>>>() else {
        return files.iter().map(|file| vec![file.clone()]).collect();
    };
    placed.sort_by_key(|(start, part, _)| (*start, *part));
    let most = files.iter().map(DataFile::bytes).sum::<u64>().div_ceil(PLAN_PARTITIONS);
    let mut groups: Vec<Group> = Vec::new();
    let (mut last, mut bytes) = (None, 0);
    for (start, _, file) in placed {
        if groups.is_empty() || (bytes >= most && last != Some(start)) {
            groups.push(Group::new());
            bytes = 0;
        }
        bytes += file.bytes();
        last = Some(start);
        if let Some(group) = groups.last_mut() {
            group.push(file.clone());
        }
    }
    groups
}

impl ViewSnapshot {
    /// The cells of which the view is made; `None` where a file does not say its cell, since another engine has written it,
    /// or a version that had no cells.
    #[must_use]
    pub fn cells(&self) -> Option<Cells> {
        let records = self.data_files().map(of_file);
        let cells: Cells =
            records.map(|record| record.map(|record| (record.start, record))).collect::<Option<_>>()?;
        let ends = cells.values().map(|cell| cell.end);
        let are_apart = ends.zip(cells.keys().skip(1)).all(|(end, next)| end <= *next);
        are_apart.then_some(cells)
    }
}

/// The cell of a file.
pub(super) fn of_file(file: &DataFile) -> Option<CellRecord> {
    let record: CellRecord = serde_json::from_str(file.tag(CELL)?).ok()?;
    (record.start < record.end).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as it is stored. A change breaks all existing tables.
    const STORED: &str = r#"{"start":-60,"end":60,"readings":5,"duplicates":2,"conflicts":1,"dropped":4,"failures":{},"windows":3}"#;

    #[test]
    fn the_stored_form_is_pinned() {
        let record = CellRecord {
            start: Micros(-60),
            end: Micros(60),
            readings: 5,
            duplicates: 2,
            conflicts: 1,
            dropped: 4,
            failures: Failures::default(),
            windows: 3,
        };
        assert_eq!(serde_json::to_string(&record).unwrap(), STORED);
        assert_eq!(serde_json::from_str::<CellRecord>(STORED).unwrap(), record);
        assert_eq!(serde_json::from_str::<CellRecord>("{}").unwrap(), CellRecord::default());
    }
}
