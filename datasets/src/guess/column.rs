//! What the cells of one column look like. It must not know what the column is used for.

use std::collections::BTreeSet;

use crate::number::parse_number;

/// Numbers that are written where there is no measurement.
const STAND_INS: [f64; 8] = [-9999.0, -999.0, -999.9, -200.0, -99.9, -99.0, 9999.0, 99999.0];
/// A column of numbers holds at most so many distinct words.
const MOST_WORDS: usize = 3;
/// A column with at most so many distinct texts labels its rows.
const MOST_LABELS: usize = 100;

/// What most cells are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Numbers,
    Texts,
    Empty,
}

/// One column of a file's head.
pub(super) struct Column {
    pub(super) name: String,
    /// Trimmed.
    pub(super) cells: Vec<String>,
    pub(super) kind: Kind,
    /// Of a column of numbers: the few cells that are none.
    pub(super) words: BTreeSet<String>,
    numbers: Vec<f64>,
}

impl Column {
    pub(super) fn new(name: String, cells: Vec<String>, decimal_mark: u8) -> Self {
        let (mut numbers, mut words) = (Vec::new(), BTreeSet::new());
        for cell in cells.iter().filter(|cell| !cell.is_empty()) {
            match parse_number(cell.as_bytes(), decimal_mark).filter(|number| number.is_finite()) {
                Some(number) => numbers.push(number),
                None if words.len() <= MOST_WORDS => {
                    words.insert(cell.clone());
                }
                None => {}
            }
        }
        let kind = match (numbers.is_empty(), words.len()) {
            (true, 0) => Kind::Empty,
            (false, 0..=MOST_WORDS) => Kind::Numbers,
            _ => Kind::Texts,
        };
        Self { name, cells, kind, words, numbers }
    }

    /// The name without case and punctuation.
    pub(super) fn plain_name(&self) -> String {
        self.name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    }

    /// The cells that hold something.
    pub(super) fn filled(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().map(String::as_str).filter(|cell| !cell.is_empty())
    }

    /// Whether the cells are 1, 2, 3 and so on: the number of the row, and no measurement.
    pub(super) fn counts_rows(&self) -> bool {
        self.kind == Kind::Numbers
            && self.numbers.len() == self.cells.len()
            && self.numbers.len() > 2
            && self.numbers.windows(2).all(|pair| pair[1] - pair[0] == 1.0)
    }

    /// Whether few texts come again and again.
    pub(super) fn is_label(&self) -> bool {
        let texts: BTreeSet<&str> = self.filled().collect();
        texts.len() <= MOST_LABELS && texts.len() * 2 <= self.cells.len().max(2)
    }

    /// The number that stands for missing, if there is one: far away from all others.
    pub(super) fn stand_in(&self) -> Option<f64> {
        STAND_INS.into_iter().find(|stand_in| {
            let others = || self.numbers.iter().copied().filter(|number| number != stand_in);
            let (low, high) = (others().fold(f64::MAX, f64::min), others().fold(f64::MIN, f64::max));
            let away = if *stand_in < low { low - stand_in } else { stand_in - high };
            self.numbers.contains(stand_in) && low <= high && away > (high - low).max(50.0) / 2.0
        })
    }

    /// Least and greatest number.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        let low = self.numbers.iter().copied().reduce(f64::min)?;
        Some((low, self.numbers.iter().copied().fold(low, f64::max)))
    }
}

/// The mark of decimals that more cells of a file can be read with.
pub(super) fn decimal_mark<'a>(cells: impl Iterator<Item = &'a String>) -> u8 {
    let (mut points, mut commas) = (0, 0);
    for cell in cells {
        points += usize::from(cell.contains('.') && parse_number(cell.as_bytes(), b'.').is_some());
        commas += usize::from(cell.contains(',') && parse_number(cell.as_bytes(), b',').is_some());
    }
    if commas > points { b',' } else { b'.' }
}
