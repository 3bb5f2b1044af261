//! Horizons as the plain maps of `wye-tables`.

use std::collections::BTreeMap;

use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};

pub(crate) fn horizon(offsets: &BTreeMap<i32, i64>) -> Horizon {
    offsets
        .iter()
        .map(|(kafka_partition, offset)| (KafkaPartition(*kafka_partition), Offset(*offset)))
        .collect()
}

pub(crate) fn plain(horizon: &Horizon) -> BTreeMap<i32, i64> {
    horizon.iter().map(|(kafka_partition, offset)| (kafka_partition.0, offset.0)).collect()
}
