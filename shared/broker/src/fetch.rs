//! Fetches: records are sent at once; where there are none, the response waits for the next append.
//!
//! It must not know files; [`crate::partition_log`] reads them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};
use tokio::time::timeout_at;
use wye_domain::place::{KafkaPartition, Offset};

use crate::catalog::{Catalog, Topic};
use crate::clock;
use crate::limits::{self, Reservation};
use crate::partition_log::ReadError;
use crate::requests::read_error;
use crate::server::Server;

/// The most bytes of records in one response, whatever the client accepts (a single larger batch is still sent whole).
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// The most bytes of records in one response when the memory is used up.
const LEAST_BYTES: usize = 256 * 1024;
/// How many copies of the records are in memory: as they were read, and as they are sent.
const COPIES: usize = 2;
/// The longest wait, whatever the client accepts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Answers a fetch: with records, with an error of a Kafka partition, or, when there is neither in time, with nothing.
/// `reservation` gets the memory of the response; with little free memory, the response is smaller.
pub(crate) async fn fetch(
    server: &Server,
    request: FetchRequest,
    reservation: &mut Reservation,
) -> io::Result<FetchResponse> {
    let catalog = &server.catalog;
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(LONGEST_WAIT);
    let deadline = clock::monotonic() + wait;
    let enough = u64::try_from(request.min_bytes).unwrap_or(0);
    let request = Arc::new(request);
    let mut appends = catalog.watch_appends();
    loop {
        // Marked as seen before the read, so that an append between the read and the wait is not missed.
        appends.mark_unchanged();
        let last = clock::monotonic() >= deadline;
        if last || enough == 0 || is_ready(catalog, &request) {
            let wanted = usize::try_from(request.max_bytes).unwrap_or(0).min(MOST_BYTES);
            let reserved = server.responses.try_grow(reservation, wanted * COPIES);
            let most = if reserved { wanted } else { wanted.min(LEAST_BYTES) };
            let (catalog, request) = (Arc::clone(catalog), Arc::clone(&request));
            let gathered = tokio::task::spawn_blocking(move || gather(&catalog, &request, most)).await;
            let gathered = gathered.map_err(io::Error::other)?;
            limits::shrink(reservation, gathered.bytes * COPIES);
            if last || gathered.bytes as u64 >= enough || gathered.failed {
                return Ok(gathered.response);
            }
            *reservation = None;
        }
        // Ends with an append or at the deadline; the next round finds out which.
        let _ = timeout_at(deadline, appends.changed()).await;
    }
}

/// Whether some Kafka partition has records or an error to send.
fn is_ready(catalog: &Catalog, request: &FetchRequest) -> bool {
    request.topics.iter().any(|wanted| {
        let Some(topic) = catalog.topic(&wanted.topic) else { return true };
        wanted.partitions.iter().any(|asked| match topic.partition(KafkaPartition(asked.partition)) {
            Some(partition) => partition.range().high != Offset(asked.fetch_offset),
            None => true,
        })
    })
}

struct Gathered {
    response: FetchResponse,
    /// Bytes of its records.
    bytes: usize,
    failed: bool,
}

fn gather(catalog: &Catalog, request: &FetchRequest, most_bytes: usize) -> Gathered {
    let (mut budget, mut failed) = (Budget { most_bytes, used: 0 }, false);
    let mut responses = Vec::with_capacity(request.topics.len());
    for wanted in &request.topics {
        let topic = catalog.topic(&wanted.topic);
        let mut partitions = Vec::with_capacity(wanted.partitions.len());
        for asked in &wanted.partitions {
            let data = read(topic.as_deref(), asked, &budget);
            budget.used += data.records.as_ref().map_or(0, |records| records.len());
            failed |= data.error_code != 0;
            partitions.push(data);
        }
        responses.push(
            FetchableTopicResponse::default().with_topic(wanted.topic.clone()).with_partitions(partitions),
        );
    }
    Gathered { response: FetchResponse::default().with_responses(responses), bytes: budget.used, failed }
}

/// The bytes of records in one response.
struct Budget {
    most_bytes: usize,
    used: usize,
}

impl Budget {
    fn left(&self) -> usize {
        self.most_bytes.saturating_sub(self.used)
    }

    /// Whether these records may be sent. The first ones may be larger than the budget (KIP-74).
    fn permits(&self, records: &[u8]) -> bool {
        self.used == 0 || records.len() <= self.left()
    }
}

/// Reads one Kafka partition: as many batches as fit into the budget, but at least one if the response has none yet.
fn read(topic: Option<&Topic>, asked: &FetchPartition, budget: &Budget) -> PartitionData {
    let data = PartitionData::default()
        .with_partition_index(asked.partition)
        .with_preferred_read_replica(BrokerId(-1))
        .with_aborted_transactions(None)
        .with_records(Some(bytes::Bytes::new()));
    let Some(partition) = topic.and_then(|topic| topic.partition(KafkaPartition(asked.partition))) else {
        return data.with_high_watermark(-1).with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    let most = usize::try_from(asked.partition_max_bytes).unwrap_or(0).min(budget.left());
    let (range, records, error) = match partition.read(Offset(asked.fetch_offset), most) {
        Ok(fetched) if budget.permits(&fetched.records) => (fetched.range, Some(fetched.records), None),
        Ok(fetched) => (fetched.range, None, None),
        Err(error) => (partition.range(), None, Some(error)),
    };
    let data =
        data.with_high_watermark(range.high.0)
            .with_last_stable_offset(range.high.0)
            .with_log_start_offset(range.low.0)
            .with_error_code(error.map_or(0, |error: ReadError| {
                read_error(topic.map_or("", |topic| &topic.name), &error).code()
            }));
    match records {
        Some(records) => data.with_records(Some(records)),
        None => data,
    }
}
