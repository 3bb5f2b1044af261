//! The cells of one column: numbers or texts. It must not know how the column is used.

use std::collections::BTreeSet;

use crate::number::parse_number;

/// Numbers that often mean that there is no measurement.
const MISSING_NUMBERS: [f64; 8] = [-9999.0, -999.0, -999.9, -200.0, -99.9, -99.0, 9999.0, 99999.0];
/// The most distinct words in a column of numbers.
const MOST_WORDS: usize = 3;
/// The most distinct texts in a column of labels.
const MOST_LABELS: usize = 100;

/// The kind of most cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Numbers,
    Texts,
    Empty,
}

/// One column of the first rows of a file.
pub(super) struct Column {
    pub(super) name: String,
    /// Trimmed.
    pub(super) cells: Vec<String>,
    pub(super) kind: Kind,
    /// Some of the cells that are not numbers; in a column of numbers, all of them.
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

    /// The name in lower case, without punctuation.
    pub(super) fn plain_name(&self) -> String {
        self.name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    }

    /// The cells that are not empty.
    pub(super) fn filled(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().map(String::as_str).filter(|cell| !cell.is_empty())
    }

    /// Whether the cells are row numbers (1, 2, 3 and so on), not measurements.
    pub(super) fn counts_rows(&self) -> bool {
        self.kind == Kind::Numbers
            && self.numbers.len() == self.cells.len()
            && self.numbers.len() > 2
            && self.numbers.windows(2).all(|pair| pair[1] - pair[0] == 1.0)
    }

    /// Whether the cells are a few texts that are often repeated.
    pub(super) fn is_label(&self) -> bool {
        let texts: BTreeSet<&str> = self.filled().collect();
        texts.len() <= MOST_LABELS && texts.len() * 2 <= self.cells.len().max(2)
    }

    /// The number that may mean missing, if there is one: it is far from all others.
    pub(super) fn missing_number(&self) -> Option<f64> {
        MISSING_NUMBERS.into_iter().filter(|candidate| self.numbers.contains(candidate)).find(|candidate| {
            let others = self.numbers.iter().copied().filter(|number| number != candidate);
            range(others).is_some_and(|(low, high)| {
                let distance = if *candidate < low { low - candidate } else { candidate - high };
                distance > (high - low).max(50.0) / 2.0
            })
        })
    }

    /// The least and greatest number.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        range(self.numbers.iter().copied())
    }
}

fn range(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    numbers.fold(None, |range, number| match range {
        None => Some((number, number)),
        Some((low, high)) => Some((number.min(low), number.max(high))),
    })
}

/// The decimal mark with which more cells of a file can be read.
pub(super) fn decimal_mark<'a>(cells: impl Iterator<Item = &'a String>) -> u8 {
    let (mut points, mut commas) = (0, 0);
    for cell in cells {
        points += usize::from(cell.contains('.') && parse_number(cell.as_bytes(), b'.').is_some());
        commas += usize::from(cell.contains(',') && parse_number(cell.as_bytes(), b',').is_some());
    }
    if commas > points { b',' } else { b'.' }
}
