//! Which Kafka partition a key belongs to. It is the rule of Kafka's own Java client, so that any other producer with
//! key = device identity writes to the same Kafka partition as Wye's producers.
//!
//! Source: `org.apache.kafka.common.utils.Utils.murmur2` and `BuiltInPartitioner.partitionForKey` (Kafka 4.1).
//! This file must not know what a key means.

use wye_domain::place::KafkaPartition;

/// The Kafka partition of `key` in a topic with `kafka_partitions` Kafka partitions (at least 1): positive murmur2, modulo.
pub fn partition_of(key: &[u8], kafka_partitions: i32) -> KafkaPartition {
    KafkaPartition((murmur2(key) & 0x7fff_ffff) % kafka_partitions.max(1))
}

/// 32-bit murmur2 with Kafka's seed; Java's `int` arithmetic, so the result is signed.
fn murmur2(data: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    hash as i32
}

#[cfg(test)]
mod tests {
    use super::{murmur2, partition_of};

    #[test]
    fn hashes_like_the_java_client() {
        // The vectors of Kafka's own UtilsTest.
        let vectors: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in vectors {
            assert_eq!(murmur2(key), hash, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn is_never_negative_and_always_in_range() {
        for key in ["", "a", "foobar", "device-17"] {
            for kafka_partitions in 1..20 {
                let kafka_partition = partition_of(key.as_bytes(), kafka_partitions);
                assert!((0..kafka_partitions).contains(&kafka_partition.0));
            }
        }
    }
}
