//! The shape of each request, which is checked before the request is decoded: no count and no length in it may exceed the
//! bytes that follow.
//!
//! The decoder allocates memory for as many elements as an array announces, before it reads them: a request of twenty
//! bytes could allocate gigabytes, and one of many tiny elements needs far more memory than it has bytes. So each request
//! is read by its shape first, without any allocation.
//!
//! Source: the message definitions of the Kafka protocol documentation, for the supported versions. A test compares each
//! shape with the encoder.

use kafka_protocol::messages::ApiKey;

/// The most array elements and tagged fields in one request.
const MOST_ELEMENTS: usize = 100_000;

/// The fields of a message, and its first flexible version (with compact lengths and tagged fields).
struct Shape {
    flexible: i16,
    fields: &'static [Field],
}

/// A field and the versions that have it.
enum Field {
    All(Kind),
    Since(i16, Kind),
    Until(i16, Kind),
}

enum Kind {
    /// This many bytes.
    Fixed(usize),
    Text,
    Bytes,
    /// An array of structs with these fields.
    Structs(&'static [Field]),
    /// An array of texts.
    Texts,
    /// An array of numbers of four bytes.
    Numbers,
}

use Field::{All, Since, Until};
use Kind::{Bytes, Fixed, Numbers, Structs, Text, Texts};

/// No version is flexible.
const NEVER: i16 = i16::MAX;
const BOOL: Kind = Fixed(1);
const INT8: Kind = Fixed(1);
const INT16: Kind = Fixed(2);
const INT32: Kind = Fixed(4);
const INT64: Kind = Fixed(8);

fn shape_of(key: ApiKey) -> Option<Shape> {
    let (flexible, fields): (i16, &'static [Field]) = match key {
        ApiKey::Produce => (
            9,
            &[
                Since(3, Text),
                All(INT16),
                All(INT32),
                All(Structs(&[All(Text), All(Structs(&[All(INT32), All(Bytes)]))])),
            ],
        ),
        ApiKey::Fetch => (
            12,
            &[
                All(Fixed(4 + 4 + 4 + 4 + 1)),
                Since(7, Fixed(4 + 4)),
                All(Structs(&[
                    All(Text),
                    All(Structs(&[
                        All(INT32),
                        Since(9, INT32),
                        All(INT64),
                        Since(12, INT32),
                        Since(5, INT64),
                        All(INT32),
                    ])),
                ])),
                Since(7, Structs(&[All(Text), All(Numbers)])),
                Since(11, Text),
            ],
        ),
        ApiKey::ListOffsets => (
            6,
            &[
                All(INT32),
                Since(2, INT8),
                All(Structs(&[All(Text), All(Structs(&[All(INT32), Since(4, INT32), All(INT64)]))])),
            ],
        ),
        ApiKey::Metadata => {
            (9, &[All(Structs(&[All(Text)])), Since(4, BOOL), Since(8, BOOL), Since(8, BOOL)])
        }
        ApiKey::OffsetCommit => (
            8,
            &[
                All(Text),
                All(INT32),
                All(Text),
                Since(7, Text),
                Until(4, INT64),
                All(Structs(&[
                    All(Text),
                    All(Structs(&[All(INT32), All(INT64), Since(6, INT32), All(Text)])),
                ])),
            ],
        ),
        ApiKey::OffsetFetch => (6, &[All(Text), All(Structs(&[All(Text), All(Numbers)])), Since(7, BOOL)]),
        ApiKey::FindCoordinator => (3, &[All(Text), Since(1, INT8)]),
        ApiKey::JoinGroup => (
            6,
            &[
                All(Text),
                All(INT32),
                Since(1, INT32),
                All(Text),
                Since(5, Text),
                All(Text),
                All(Structs(&[All(Text), All(Bytes)])),
                Since(8, Text),
            ],
        ),
        ApiKey::Heartbeat => (4, &[All(Text), All(INT32), All(Text), Since(3, Text)]),
        ApiKey::LeaveGroup => {
            (4, &[All(Text), Until(2, Text), Since(3, Structs(&[All(Text), All(Text), Since(5, Text)]))])
        }
        ApiKey::SyncGroup => (
            4,
            &[
                All(Text),
                All(INT32),
                All(Text),
                Since(3, Text),
                Since(5, Text),
                Since(5, Text),
                All(Structs(&[All(Text), All(Bytes)])),
            ],
        ),
        ApiKey::DescribeGroups => (5, &[All(Texts), Since(3, BOOL)]),
        ApiKey::ListGroups => (3, &[Since(4, Texts), Since(5, Texts)]),
        ApiKey::ApiVersions => (3, &[Since(3, Text), Since(3, Text)]),
        ApiKey::CreateTopics => (
            5,
            &[
                All(Structs(&[
                    All(Text),
                    All(INT32),
                    All(INT16),
                    All(Structs(&[All(INT32), All(Numbers)])),
                    All(Structs(&[All(Text), All(Text)])),
                ])),
                All(INT32),
                All(BOOL),
            ],
        ),
        ApiKey::DeleteTopics => (4, &[All(Texts), All(INT32)]),
        ApiKey::DeleteRecords => {
            (2, &[All(Structs(&[All(Text), All(Structs(&[All(INT32), All(INT64)]))])), All(INT32)])
        }
        ApiKey::InitProducerId => (2, &[All(Text), All(INT32), Since(3, INT64), Since(3, INT16)]),
        ApiKey::DescribeConfigs => {
            (4, &[All(Structs(&[All(INT8), All(Text), All(Texts)])), All(BOOL), Since(3, BOOL)])
        }
        ApiKey::AlterConfigs => {
            (2, &[All(Structs(&[All(INT8), All(Text), All(Structs(&[All(Text), All(Text)]))])), All(BOOL)])
        }
        ApiKey::IncrementalAlterConfigs => (
            1,
            &[
                All(Structs(&[All(INT8), All(Text), All(Structs(&[All(Text), All(INT8), All(Text)]))])),
                All(BOOL),
            ],
        ),
        ApiKey::DeleteGroups => (2, &[All(Texts)]),
        ApiKey::OffsetDelete => {
            (NEVER, &[All(Text), All(Structs(&[All(Text), All(Structs(&[All(INT32)]))]))])
        }
        ApiKey::DescribeCluster => (0, &[All(BOOL), Since(1, INT8)]),
        _ => return None,
    };
    Some(Shape { flexible, fields })
}

/// Whether a request (its header included) has the shape of its kind and version, and not too many elements. Bytes may
/// follow it.
pub(crate) fn fits(key: ApiKey, version: i16, request: &[u8]) -> bool {
    rest_after(key, version, request).is_some()
}

/// The bytes after a request that has the shape of its kind and version.
fn rest_after(key: ApiKey, version: i16, request: &[u8]) -> Option<&[u8]> {
    let shape = shape_of(key)?;
    let mut walk = Walk { rest: request, version, compact: false, elements: 0 };
    // The header: kind, version, correlation id. The client id is never compact.
    walk.skip(8)?;
    walk.field(&Text)?;
    walk.compact = version >= shape.flexible;
    walk.tags()?;
    walk.fields(shape.fields)?;
    Some(walk.rest)
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    compact: bool,
    /// Array elements and tagged fields so far.
    elements: usize,
}

impl Walk<'_> {
    fn fields(&mut self, fields: &[Field]) -> Option<()> {
        for field in fields {
            match field {
                All(kind) => self.field(kind)?,
                Since(first, kind) if self.version >= *first => self.field(kind)?,
                Until(last, kind) if self.version <= *last => self.field(kind)?,
                Since(..) | Until(..) => {}
            }
        }
        self.tags()
    }

    fn field(&mut self, kind: &Kind) -> Option<()> {
        match kind {
            Fixed(size) => self.skip(*size),
            Text => {
                let length = if self.compact { self.compact_length()? } else { self.int16()? };
                self.skip(length)
            }
            Bytes => {
                let length = self.length()?;
                self.skip(length)
            }
            Structs(fields) => {
                for _ in 0..self.count()? {
                    self.fields(fields)?;
                }
                Some(())
            }
            Texts => {
                for _ in 0..self.count()? {
                    self.field(&Text)?;
                }
                Some(())
            }
            Numbers => {
                let count = self.count()?;
                self.skip(count.checked_mul(4)?)
            }
        }
    }

    fn tags(&mut self) -> Option<()> {
        if !self.compact {
            return Some(());
        }
        let count = self.varint()?;
        self.add_elements(count)?;
        for _ in 0..count {
            self.varint()?;
            let size = self.varint()?;
            self.skip(size)?;
        }
        Some(())
    }

    /// The number of elements of an array.
    fn count(&mut self) -> Option<usize> {
        let count = self.length()?;
        self.add_elements(count)?;
        Some(count)
    }

    /// Counts elements, of which each has at least one byte.
    fn add_elements(&mut self, count: usize) -> Option<()> {
        self.elements = self.elements.checked_add(count)?;
        (count <= self.rest.len() && self.elements <= MOST_ELEMENTS).then_some(())
    }

    fn length(&mut self) -> Option<usize> {
        if self.compact { self.compact_length() } else { self.int32() }
    }

    /// A compact length counts from 1; 0 is null.
    fn compact_length(&mut self) -> Option<usize> {
        self.varint().map(|length| length.saturating_sub(1))
    }

    fn int16(&mut self) -> Option<usize> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        from_signed(i32::from(i16::from_be_bytes(*bytes)))
    }

    fn int32(&mut self) -> Option<usize> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        from_signed(i32::from_be_bytes(*bytes))
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0_u64;
        for at in 0..5 {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7F) << (7 * at);
            if *byte < 0x80 {
                return u32::try_from(value).ok().map(|value| value as usize);
            }
        }
        None
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }
}

/// The bytes of a field by its signed length; -1 is null and has none.
fn from_signed(length: i32) -> Option<usize> {
    if length == -1 { Some(0) } else { usize::try_from(length).ok() }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::ApiKey;
    use kafka_protocol::protocol::Decodable;

    use super::{fits, rest_after};
    use crate::requests::SUPPORTED;
    use crate::testing::encoded_sample;

    #[test]
    fn shapes_match_the_encoder() {
        for api in &SUPPORTED {
            for version in api.min..=api.max {
                let request = encoded_sample(api.key, version);
                assert_eq!(rest_after(api.key, version, &request), Some(&[][..]), "{:?} {version}", api.key);
                for length in 0..request.len() {
                    assert!(
                        !fits(api.key, version, &request[..length]),
                        "{:?} {version} cut at {length}",
                        api.key
                    );
                }
            }
        }
    }

    #[test]
    fn a_stated_count_allocates_nothing() {
        for (key, version) in [(ApiKey::Metadata, 4), (ApiKey::Metadata, 9), (ApiKey::Fetch, 12)] {
            let request = encoded_sample(key, version);
            for at in 14..request.len() - 4 {
                let mut broken = request.clone();
                // The largest count, both as four bytes and as a compact one.
                broken[at..at + 4].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF]);
                let _ = fits(key, version, &broken);
                broken.splice(at..=at, [0xFF, 0xFF, 0xFF, 0xFF, 0x07]);
                if fits(key, version, &broken) {
                    let mut bytes = broken.into();
                    kafka_protocol::messages::RequestHeader::decode(
                        &mut bytes,
                        key.request_header_version(version),
                    )
                    .unwrap();
                    let _ = kafka_protocol::messages::RequestKind::decode(key, &mut bytes, version);
                }
            }
        }
        // A hundred thousand topics without their bytes, and a million with their bytes.
        let mut request = encoded_sample(ApiKey::Metadata, 4);
        request.truncate(14);
        request.extend(100_000_i32.to_be_bytes());
        assert!(!fits(ApiKey::Metadata, 4, &request));
        request.truncate(14);
        request.extend(1_000_000_i32.to_be_bytes());
        request.resize(request.len() + 2_000_001, 0);
        assert!(!fits(ApiKey::Metadata, 4, &request));
    }
}
