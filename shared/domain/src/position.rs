//! A position in the log of readings: for some Kafka partitions, the offset after the last record of interest.
//!
//! The answer to a write has the position after the written records. A query may name a position; it is answered once the
//! answer covers that position. Stability contract: the text form, `0:1234,2:99` (Kafka partition, colon, offset), is part of the
//! HTTP API.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::DomainError;
use crate::place::{KafkaPartition, Offset};

/// For some Kafka partitions of `readings`, the offset after the last record to be covered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    next: BTreeMap<KafkaPartition, Offset>,
}

impl Position {
    /// Widens the position so that it includes the record at `offset`.
    pub fn include(&mut self, kafka_partition: KafkaPartition, offset: Offset) {
        let next = self.next.entry(kafka_partition).or_default();
        *next = (*next).max(offset.next());
    }

    /// Each Kafka partition with the offset after the last record, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (KafkaPartition, Offset)> + '_ {
        self.next.iter().map(|(kafka_partition, next)| (*kafka_partition, *next))
    }

    /// Whether it names no record.
    pub fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Whether readings below `reached(kafka_partition)` include all records of the position.
    pub fn is_covered_by(&self, reached: impl Fn(KafkaPartition) -> Offset) -> bool {
        self.iter().all(|(kafka_partition, next)| reached(kafka_partition) >= next)
    }
}

/// From the offset after the last record of each Kafka partition.
impl FromIterator<(KafkaPartition, Offset)> for Position {
    fn from_iter<T: IntoIterator<Item = (KafkaPartition, Offset)>>(offsets: T) -> Self {
        Self { next: offsets.into_iter().collect() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kafka_partition, next)) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(formatter, "{separator}{kafka_partition}:{next}")?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let mut position = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (kafka_partition, next) = part.split_once(':').ok_or_else(|| malformed(part))?;
            let kafka_partition: i32 = kafka_partition.trim().parse().map_err(|_| malformed(part))?;
            let next: i64 = next.trim().parse().map_err(|_| malformed(part))?;
            if kafka_partition < 0 || next < 0 {
                return Err(malformed(part));
            }
            let known = position.next.entry(KafkaPartition(kafka_partition)).or_default();
            *known = (*known).max(Offset(next));
        }
        Ok(position)
    }
}

fn malformed(part: &str) -> DomainError {
    DomainError::Decode {
        what: "position",
        reason: format!("{part:?} is not KAFKA_PARTITION:OFFSET; an example is 0:1234,1:99"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kafka partition 0 is covered up to `first`, partition 2 up to 99.
    fn reached(first: i64, kafka_partition: KafkaPartition) -> Offset {
        Offset([first, 0, 99][kafka_partition.0 as usize])
    }

    #[test]
    fn the_text_form_comes_back_and_is_covered_only_when_every_partition_is() {
        let mut position = Position::default();
        position.include(KafkaPartition(2), Offset(98));
        position.include(KafkaPartition(0), Offset(1233));
        position.include(KafkaPartition(0), Offset(7));
        assert_eq!(position.to_string(), "0:1234,2:99");
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        assert!(position.is_covered_by(|kafka_partition| reached(1234, kafka_partition)));
        assert!(!position.is_covered_by(|kafka_partition| reached(1233, kafka_partition)));
    }

    #[test]
    fn invalid_positions_are_refused_with_an_example() {
        for text in ["7", "a:1", "0:-1", "-1:0", "0:1;1:2", "0:99999999999999999999"] {
            let error = text.parse::<Position>().unwrap_err().to_string();
            assert!(error.contains("0:1234"), "{error}");
        }
        assert!("".parse::<Position>().unwrap().is_empty());
    }
}
