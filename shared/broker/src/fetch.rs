//! Fetches: what is there goes out at once; where there is nothing, the answer waits for the next append.
//!
//! This file knows nothing of files; what a Kafka partition can give is for [`crate::partition_log`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};
use tokio::time::{Instant, timeout_at};

use crate::catalog::{Catalog, Topic};
use crate::limits::{self, Room};
use crate::partition_log::ReadError;
use crate::requests::read_error;
use crate::server::Server;

/// The most bytes in one answer, whatever the client would take (a single larger batch still goes out whole).
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// The most bytes in one answer while memory is short.
const LEAST_BYTES: usize = 256 * 1024;
/// How often an answer is in memory: as it was read, and as it is sent.
const COPIES: usize = 2;
/// The longest wait, whatever the client would bear.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Answers a fetch: with data, with an error of a Kafka partition, or, when neither comes in time, with nothing. `room`
/// gets the memory that the answer takes; where that is short, the answer is.
pub(crate) async fn fetch(
    server: &Server,
    request: FetchRequest,
    room: &mut Room,
) -> io::Result<FetchResponse> {
    let catalog = &server.catalog;
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(LONGEST_WAIT);
    let deadline = Instant::now() + wait;
    let enough = u64::try_from(request.min_bytes).unwrap_or(0);
    let request = Arc::new(request);
    let mut appends = catalog.watch_appends();
    loop {
        // Marked as seen before looking, so that an append between looking and waiting is not missed.
        appends.mark_unchanged();
        let last = Instant::now() >= deadline;
        if last || enough == 0 || has_something(catalog, &request) {
            let wanted = usize::try_from(request.max_bytes).unwrap_or(0).min(MOST_BYTES);
            let most =
                if server.answers.try_grow(room, wanted * COPIES) { wanted } else { wanted.min(LEAST_BYTES) };
            let (catalog, request) = (Arc::clone(catalog), Arc::clone(&request));
            let gathered = tokio::task::spawn_blocking(move || gather(&catalog, &request, most)).await;
            let gathered = gathered.map_err(io::Error::other)?;
            limits::shrink(room, gathered.bytes as usize * COPIES);
            if last || gathered.bytes >= enough || gathered.failed {
                return Ok(gathered.response);
            }
            *room = None;
        }
        // Whether it was an append or the deadline, the next look tells.
        let _ = timeout_at(deadline, appends.changed()).await;
    }
}

/// Whether some Kafka partition has something to say: records, or an error.
fn has_something(catalog: &Catalog, request: &FetchRequest) -> bool {
    request.topics.iter().any(|wanted| {
        let Some(topic) = catalog.topic(&wanted.topic) else { return true };
        wanted.partitions.iter().any(|asked| match topic.partition(asked.partition) {
            Some(partition) => partition.range().high != asked.fetch_offset,
            None => true,
        })
    })
}

struct Gathered {
    response: FetchResponse,
    bytes: u64,
    failed: bool,
}

fn gather(catalog: &Catalog, request: &FetchRequest, most_bytes: usize) -> Gathered {
    let mut budget = most_bytes;
    let (mut bytes, mut failed) = (0, false);
    let mut responses = Vec::with_capacity(request.topics.len());
    for wanted in &request.topics {
        let topic = catalog.topic(&wanted.topic);
        let mut partitions = Vec::with_capacity(wanted.partitions.len());
        for asked in &wanted.partitions {
            let data = read(topic.as_deref(), asked, budget, bytes == 0);
            let size = data.records.as_ref().map_or(0, |records| records.len());
            budget = budget.saturating_sub(size);
            bytes += size as u64;
            failed |= data.error_code != 0;
            partitions.push(data);
        }
        responses.push(
            FetchableTopicResponse::default().with_topic(wanted.topic.clone()).with_partitions(partitions),
        );
    }
    Gathered { response: FetchResponse::default().with_responses(responses), bytes, failed }
}

/// Reads one Kafka partition. The first that has anything gives at least one batch, however large (KIP-74); the
/// others give what still fits.
fn read(topic: Option<&Topic>, asked: &FetchPartition, budget: usize, first: bool) -> PartitionData {
    let data = PartitionData::default()
        .with_partition_index(asked.partition)
        .with_preferred_read_replica(BrokerId(-1))
        .with_aborted_transactions(None)
        .with_records(Some(bytes::Bytes::new()));
    let Some(partition) = topic.and_then(|topic| topic.partition(asked.partition)) else {
        return data.with_high_watermark(-1).with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    let most = usize::try_from(asked.partition_max_bytes).unwrap_or(0).min(budget);
    let (range, records, error) = match partition.read(asked.fetch_offset, most) {
        Ok(fetched) if first || fetched.records.len() <= budget => {
            (fetched.range, Some(fetched.records), None)
        }
        Ok(fetched) => (fetched.range, None, None),
        Err(error) => (partition.range(), None, Some(error)),
    };
    let data =
        data.with_high_watermark(range.high)
            .with_last_stable_offset(range.high)
            .with_log_start_offset(range.low)
            .with_error_code(error.map_or(0, |error: ReadError| {
                read_error(topic.map_or("", |topic| &topic.name), &error).code()
            }));
    match records {
        Some(records) => data.with_records(Some(records)),
        None => data,
    }
}
