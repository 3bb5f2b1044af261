//! Writes the binary seeds: messages, records and requests.
//!
//! `cargo run -p wye-fuzz --example seeds`, at the root of the project.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use bytes::{BufMut, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, CreateTopicsRequest, DescribeConfigsRequest, FetchRequest, HeartbeatRequest,
    JoinGroupRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest,
    RequestHeader, RequestKind, SyncGroupRequest, TopicName,
    create_topics_request::CreatableTopic,
    fetch_request::{FetchPartition, FetchTopic},
    join_group_request::JoinGroupRequestProtocol,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use wye_domain::place::{Generation, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::realtime_row::{self, Header, RowsBuilder};
use wye_domain::registry::DeviceNumber;
use wye_domain::series::SeriesKey;
use wye_domain::sketches::{Needs, Sketches, Stored};
use wye_domain::summary::Summary;
use wye_domain::time::Micros;
use wye_domain::wire;

fn main() -> io::Result<()> {
    readings()?;
    realtime()?;
    sketches()?;
    batches()?;
    requests()
}

fn write(decoder: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new("tests/fuzz/seeds").join(decoder);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

fn readings() -> io::Result<()> {
    let mut builder = ReadingBatchBuilder::default();
    for row in 0..5 {
        builder.append(&Reading {
            device_id: "d",
            metric: "m",
            value: f64::from(row),
            event_time: Micros(1_700_000_000_000_000 + i64::from(row)),
            sequence: Some(i64::from(row)),
            unit: Some("Cel"),
            tags: None,
        });
    }
    write("readings_arrow", "five.arrow", &wire::encode_arrow(&[builder.finish()]))
}

fn summary() -> Summary {
    let needs = Needs { quantiles: true, distinct: true, devices: true };
    let mut summary = Summary { sketches: Sketches::new(needs), ..Summary::EMPTY };
    for number in 0..20_u8 {
        summary.add(f64::from(number), Micros(i64::from(number)));
        if let Some(sketches) = &mut summary.sketches {
            sketches.add(f64::from(number) - 3.0, "d", Some(DeviceNumber(u32::from(number) % 3)));
        }
    }
    summary
}

fn realtime() -> io::Result<()> {
    let (generation, epoch) = (Generation(Offset(3)), Offset(7));
    let begin = Header::Begin { generation, epoch, definitions: u64::MAX, reset: true };
    write("realtime_record", "begin.bin", &realtime_row::encode(&begin, None))?;
    let header = Header::Rows {
        generation,
        epoch,
        through: Offset(9),
        complete: true,
        newest_event_time: Some(Micros(-1)),
    };
    let mut rows = RowsBuilder::default();
    let key = SeriesKey { definition: "m".into(), metric: "m".into(), group: Box::new([None]) };
    rows.append(&key.encode(), Micros(-60), &summary());
    rows.append(&key.encode(), Micros::EPOCH, &Summary::EMPTY);
    write("realtime_record", "rows.bin", &realtime_row::encode(&header, Some(&rows.finish())))
}

fn sketches() -> io::Result<()> {
    let Stored { quantiles, distinct, .. } =
        summary().sketches.map(|sketches| sketches.encode()).unwrap_or_default();
    write("sketches", "quantiles.bin", &[&[0], &quantiles.unwrap_or_default()[..]].concat())?;
    write("sketches", "distinct.bin", &[&[1], &distinct.unwrap_or_default()[..]].concat())
}

/// Record batches in each codec.
fn batches() -> io::Result<()> {
    // Two records without keys: length, attributes, timestamp, offset, key (-1), value, headers; numbers are zigzag varints.
    let records: &[u8] = b"\x10\0\0\0\x01\x04{}\0\x12\0\x02\x02\x01\x06[1]\0";
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(records)?;
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(records)?;
    let snappy = snap::raw::Encoder::new().compress_vec(records)?;
    let bodies = [
        ("plain.bin", 0_u8, records.to_vec()),
        ("gzip.bin", 1, gzip.finish()?),
        ("snappy.bin", 2, snappy),
        ("lz4.bin", 3, lz4.finish().map_err(io::Error::other)?),
        ("zstd.bin", 4, zstd::bulk::compress(records, 3)?),
    ];
    for (name, codec, body) in bodies {
        let mut batch = BytesMut::new();
        batch.put_bytes(0, 21);
        batch.put_u16(u16::from(codec));
        batch.put_i32(1); // the last offset
        batch.put_i64(1_700_000_000_000);
        batch.put_i64(1_700_000_000_001);
        batch.put_bytes(0xFF, 14); // no producer
        batch.put_i32(2);
        batch.extend_from_slice(&body);
        write("broker_batch", name, &batch)?;
    }
    Ok(())
}

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn topic() -> TopicName {
    TopicName(text("t"))
}

/// Requests of several kinds, each with the first byte that makes it a frame.
fn requests() -> io::Result<()> {
    let requests = [
        (ApiKey::ApiVersions, 3, RequestKind::ApiVersions(ApiVersionsRequest::default())),
        (ApiKey::Metadata, 9, RequestKind::Metadata(MetadataRequest::default())),
        (
            ApiKey::CreateTopics,
            6,
            RequestKind::CreateTopics(CreateTopicsRequest::default().with_topics(vec![
                    CreatableTopic::default()
                        .with_name(topic())
                        .with_num_partitions(2)
                        .with_replication_factor(1),
                ])),
        ),
        (
            ApiKey::Fetch,
            12,
            RequestKind::Fetch(
                FetchRequest::default().with_max_wait_ms(10).with_max_bytes(1000).with_topics(vec![
                    FetchTopic::default()
                        .with_topic(topic())
                        .with_partitions(vec![FetchPartition::default().with_partition_max_bytes(1000)]),
                ]),
            ),
        ),
        (
            ApiKey::ListOffsets,
            6,
            RequestKind::ListOffsets(ListOffsetsRequest::default().with_topics(vec![
                ListOffsetsTopic::default()
                    .with_name(topic())
                    .with_partitions(vec![ListOffsetsPartition::default().with_timestamp(-1)]),
            ])),
        ),
        (
            ApiKey::OffsetCommit,
            8,
            RequestKind::OffsetCommit(
                OffsetCommitRequest::default().with_group_id(text("g").into()).with_topics(vec![
                    OffsetCommitRequestTopic::default().with_name(topic()).with_partitions(vec![
                        OffsetCommitRequestPartition::default().with_committed_offset(1),
                    ]),
                ]),
            ),
        ),
        (
            ApiKey::OffsetFetch,
            7,
            RequestKind::OffsetFetch(
                OffsetFetchRequest::default().with_group_id(text("g").into()).with_topics(None),
            ),
        ),
        (
            ApiKey::JoinGroup,
            7,
            RequestKind::JoinGroup(
                JoinGroupRequest::default()
                    .with_group_id(text("g").into())
                    .with_session_timeout_ms(6_000)
                    .with_rebalance_timeout_ms(1_000)
                    .with_protocol_type(text("consumer"))
                    .with_protocols(vec![JoinGroupRequestProtocol::default().with_name(text("range"))]),
            ),
        ),
        (
            ApiKey::SyncGroup,
            5,
            RequestKind::SyncGroup(SyncGroupRequest::default().with_group_id(text("g").into())),
        ),
        (
            ApiKey::Heartbeat,
            4,
            RequestKind::Heartbeat(HeartbeatRequest::default().with_group_id(text("g").into())),
        ),
        (ApiKey::DescribeConfigs, 4, RequestKind::DescribeConfigs(DescribeConfigsRequest::default())),
    ];
    for (key, version, request) in requests {
        let header =
            RequestHeader::default().with_request_api_key(key as i16).with_request_api_version(version);
        let mut bytes = BytesMut::from(&[1][..]);
        header.encode(&mut bytes, key.request_header_version(version)).map_err(io::Error::other)?;
        request.encode(&mut bytes, version).map_err(io::Error::other)?;
        write("broker_request", &format!("{key:?}.bin"), &bytes)?;
    }
    Ok(())
}
