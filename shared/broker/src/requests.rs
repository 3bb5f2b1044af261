//! The requests of the Kafka protocol that are supported, and the module that answers each.
//!
//! Source: the message definitions of the Kafka protocol documentation. Versions are supported up to the last one that
//! identifies topics by name rather than by id.

use std::io;
use std::net::SocketAddr;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsResponse, BrokerId, RequestKind, ResponseKind};
use kafka_protocol::protocol::StrBytes;

use crate::fetch;
use crate::limits::Reservation;
use crate::server::Server;

mod configs;
mod groups;
pub(crate) mod produce;
mod topics;

pub(crate) use topics::read_error;

/// The id of the only node.
const NODE: BrokerId = BrokerId(1);

/// One kind of request and its supported versions.
pub(crate) struct Api {
    pub(crate) key: ApiKey,
    pub(crate) min: i16,
    pub(crate) max: i16,
}

const fn api(key: ApiKey, min: i16, max: i16) -> Api {
    Api { key, min, max }
}

/// All supported requests.
pub(crate) const SUPPORTED: [Api; 24] = [
    api(ApiKey::Produce, 0, 9),
    api(ApiKey::Fetch, 4, 12),
    api(ApiKey::ListOffsets, 1, 6),
    api(ApiKey::Metadata, 0, 9),
    api(ApiKey::OffsetCommit, 2, 8),
    api(ApiKey::OffsetFetch, 1, 7),
    api(ApiKey::FindCoordinator, 0, 3),
    api(ApiKey::JoinGroup, 0, 8),
    api(ApiKey::Heartbeat, 0, 4),
    api(ApiKey::LeaveGroup, 0, 5),
    api(ApiKey::SyncGroup, 0, 5),
    api(ApiKey::DescribeGroups, 0, 5),
    api(ApiKey::ListGroups, 0, 5),
    api(ApiKey::ApiVersions, 0, 3),
    api(ApiKey::CreateTopics, 2, 6),
    api(ApiKey::DeleteTopics, 1, 5),
    api(ApiKey::DeleteRecords, 0, 2),
    api(ApiKey::InitProducerId, 0, 4),
    api(ApiKey::DescribeConfigs, 1, 4),
    api(ApiKey::AlterConfigs, 0, 2),
    api(ApiKey::DeleteGroups, 0, 2),
    api(ApiKey::IncrementalAlterConfigs, 0, 1),
    api(ApiKey::OffsetDelete, 0, 0),
    api(ApiKey::DescribeCluster, 0, 1),
];

/// The client that sent a request.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Its `client.id`; may be empty.
    pub(crate) id: String,
    pub(crate) peer: SocketAddr,
}

/// Answers one request; [`produce`] answers those that write. `reservation` gets the memory of a large response. An error
/// closes the connection.
pub(crate) async fn answer(
    server: &Server,
    request: RequestKind,
    version: i16,
    client: &Client,
    reservation: &mut Reservation,
) -> io::Result<ResponseKind> {
    let response = match request {
        RequestKind::Fetch(request) => ResponseKind::Fetch(fetch::fetch(server, request, reservation).await?),
        RequestKind::ApiVersions(_) => ResponseKind::ApiVersions(api_versions()),
        RequestKind::InitProducerId(request) => ResponseKind::InitProducerId(
            blocking(server, move |server| produce::init_producer(server, &request)).await?,
        ),
        RequestKind::DescribeCluster(_) => ResponseKind::DescribeCluster(topics::describe_cluster(server)),
        RequestKind::Metadata(request) => ResponseKind::Metadata(topics::metadata(server, &request)),
        RequestKind::ListOffsets(request) => ResponseKind::ListOffsets(
            blocking(server, move |server| topics::list_offsets(server, &request, version)).await?,
        ),
        RequestKind::CreateTopics(request) => ResponseKind::CreateTopics(
            blocking(server, move |server| topics::create_topics(server, &request)).await?,
        ),
        RequestKind::DeleteTopics(request) => ResponseKind::DeleteTopics(
            blocking(server, move |server| topics::delete_topics(server, &request)).await?,
        ),
        RequestKind::DeleteRecords(request) => ResponseKind::DeleteRecords(
            blocking(server, move |server| topics::delete_records(server, &request)).await?,
        ),
        RequestKind::DescribeConfigs(request) => {
            ResponseKind::DescribeConfigs(configs::describe(server, &request))
        }
        RequestKind::AlterConfigs(request) => ResponseKind::AlterConfigs(
            blocking(server, move |server| configs::alter(server, &request)).await?,
        ),
        RequestKind::IncrementalAlterConfigs(request) => ResponseKind::IncrementalAlterConfigs(
            blocking(server, move |server| configs::alter_incrementally(server, &request)).await?,
        ),
        RequestKind::FindCoordinator(request) => {
            ResponseKind::FindCoordinator(groups::find_coordinator(server, &request))
        }
        RequestKind::JoinGroup(request) => {
            ResponseKind::JoinGroup(groups::join(server, request, version, client).await)
        }
        RequestKind::SyncGroup(request) => ResponseKind::SyncGroup(groups::sync(server, request).await),
        RequestKind::Heartbeat(request) => ResponseKind::Heartbeat(groups::heartbeat(server, request).await),
        RequestKind::LeaveGroup(request) => {
            ResponseKind::LeaveGroup(groups::leave(server, request, version).await)
        }
        RequestKind::OffsetCommit(request) => {
            ResponseKind::OffsetCommit(groups::commit(server, request).await?)
        }
        RequestKind::OffsetFetch(request) => {
            ResponseKind::OffsetFetch(groups::fetch_offsets(server, &request))
        }
        RequestKind::DescribeGroups(request) => {
            ResponseKind::DescribeGroups(groups::describe(server, &request))
        }
        RequestKind::ListGroups(request) => ResponseKind::ListGroups(groups::list(server, &request, version)),
        RequestKind::DeleteGroups(request) => ResponseKind::DeleteGroups(
            blocking(server, move |server| groups::delete(server, &request)).await?,
        ),
        RequestKind::OffsetDelete(request) => ResponseKind::OffsetDelete(
            blocking(server, move |server| groups::delete_offsets(server, &request)).await?,
        ),
        _ => return Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    Ok(response)
}

/// The supported requests and versions, for clients.
pub(crate) fn api_versions() -> ApiVersionsResponse {
    // librdkafka waits without a message for a broker with KIP-848. If the request is advertised, it sends one and gets an
    // error.
    let refused = api(ApiKey::ConsumerGroupHeartbeat, 0, 1);
    let apis = SUPPORTED.iter().chain([&refused]).map(|api| {
        ApiVersion::default().with_api_key(api.key as i16).with_min_version(api.min).with_max_version(api.max)
    });
    ApiVersionsResponse::default().with_api_keys(apis.collect())
}

/// Why a request about a topic is refused: the error of the protocol, and a message.
type Refused = (ResponseError, String);

/// Runs work that uses the disk outside of the async threads.
async fn blocking<T: Send + 'static>(
    server: &Server,
    work: impl FnOnce(&Server) -> T + Send + 'static,
) -> io::Result<T> {
    let server = server.clone();
    tokio::task::spawn_blocking(move || work(&server)).await.map_err(io::Error::other)
}

fn string(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
