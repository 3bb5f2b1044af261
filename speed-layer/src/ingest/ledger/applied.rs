//! Which records of the ledger's topic a server has applied. Must not know what a record says.

use std::collections::BTreeSet;

use wye_domain::place::Offset;

/// All records below an offset, and some at or above it, which the server has written itself.
#[derive(Clone, Debug)]
pub(super) struct AppliedRecords {
    next: Offset,
    beyond: BTreeSet<Offset>,
}

impl AppliedRecords {
    /// All records below an offset.
    pub(super) fn below(next: Offset) -> Self {
        Self { next, beyond: BTreeSet::new() }
    }

    /// The first offset that is not applied.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Whether a record is applied.
    pub(super) fn contains(&self, offset: Offset) -> bool {
        offset < self.next || self.beyond.contains(&offset)
    }

    /// One more record is applied.
    pub(super) fn add(&mut self, offset: Offset) {
        if offset >= self.next {
            self.beyond.insert(offset);
        }
        self.advance();
    }

    /// All records below an offset are applied.
    pub(super) fn all_below(&mut self, end: Offset) {
        self.next = self.next.max(end);
        self.beyond = self.beyond.split_off(&self.next);
        self.advance();
    }

    fn advance(&mut self) {
        while self.beyond.remove(&self.next) {
            self.next = self.next.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_record_is_next() {
        let mut applied = AppliedRecords::below(Offset(3));
        applied.add(Offset(5));
        applied.add(Offset(1));
        assert_eq!(applied.next(), Offset(3));
        assert_eq!([2, 3, 4, 5].map(|offset| applied.contains(Offset(offset))), [true, false, false, true]);
        applied.add(Offset(3));
        assert_eq!(applied.next(), Offset(4));
        applied.all_below(Offset(5));
        assert_eq!(applied.next(), Offset(6));
    }
}
