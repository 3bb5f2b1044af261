//! `POST /v1/sql`: a query, answered as JSON, CSV or an Arrow stream while it runs.

use std::sync::Arc;

use arrow::array::RecordBatch;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use datafusion::error::DataFusionError;
use futures::stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tracing::warn;

use super::Api;
use super::answer::seconds;
use super::encode::{Encoder, Format};
use super::error::ApiError;
use super::wait::Patience;
use crate::ServingError;
use crate::coverage::Coverage;
use crate::sql::Rows;

/// Pieces of an answer that wait for the network.
const AHEAD: usize = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    sql: String,
    after: Option<String>,
    wait: Option<String>,
    /// So many rows are enough: the query ends with them.
    limit: Option<usize>,
}

pub(super) async fn sql(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept).ok_or_else(|| {
        ApiError::invalid(
            "Accept: choose from application/json, text/csv, application/vnd.apache.arrow.stream",
        )
    })?;
    let request: Request = serde_json::from_slice(&body).map_err(|error| {
        ApiError::invalid(format!("the body must be like {{\"sql\": \"SELECT 1\"}}: {error}"))
    })?;
    api.instruments.queries.inc();
    let patience =
        Patience::read((request.after.as_deref(), request.wait.as_deref()), &headers, api.max_wait)?;
    let rows = loop {
        patience.hold(&api).await?;
        let rows = api.engine.query(&request.sql).await?;
        if patience.is_met(&rows.coverage) {
            break rows;
        }
    };
    let covered = coverage_headers(&rows.coverage);
    let (sender, mut pieces) = mpsc::channel(AHEAD);
    api.engine.runtime().start(encode(format, rows, request.limit.unwrap_or(usize::MAX), sender));
    // A query that fails before its first row is an error of its own and no broken answer.
    let first = match pieces.recv().await {
        None => return Err(ServingError::Stopping.into()),
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(piece)) => piece,
    };
    let rest = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        if let Err(error) = &piece {
            warn!(error = error as &dyn std::error::Error, "a query failed after its first rows were sent");
        }
        Some((piece, pieces))
    });
    let all = futures::StreamExt::chain(stream::iter([Ok(first)]), rest);
    Ok(([(CONTENT_TYPE, format.media_type())], covered, Body::from_stream(all)).into_response())
}

/// What an answer covers of the log, where its body is rows alone.
fn coverage_headers(coverage: &Coverage) -> [(&'static str, String); 5] {
    [
        ("wye-complete", coverage.complete().to_string()),
        ("wye-horizon", coverage.horizon_position().to_string()),
        ("wye-covered", coverage.covered().to_string()),
        (
            "wye-lacking",
            coverage.lacking().map_or_else(|| "unknown".to_owned(), |lacking| lacking.to_string()),
        ),
        ("wye-lacking-seconds", seconds(coverage.lacking_for()).to_string()),
    ]
}

/// Writes rows until there are no more, or enough.
async fn encode(
    format: Format,
    mut rows: Rows,
    enough: usize,
    sender: mpsc::Sender<Result<Bytes, ServingError>>,
) {
    let mut left = enough;
    let failed = |source| ServingError::Run { source: Box::new(DataFusionError::from(source)) };
    let mut encoder = match Encoder::new(format, &rows.schema) {
        Ok(encoder) => encoder,
        Err(error) => {
            // Nobody is left to be told when this fails.
            let _ = sender.send(Err(failed(error))).await;
            return;
        }
    };
    while let Some(batch) = rows.batches.recv().await {
        let wanted = batch.map(|batch| batch.slice(0, batch.num_rows().min(left)));
        left -= wanted.as_ref().map_or(0, RecordBatch::num_rows);
        let piece = wanted.and_then(|batch| encoder.write(&batch).map_err(failed));
        let ended = piece.is_err();
        // What an encoder keeps back comes with the next batch.
        if matches!(&piece, Ok(bytes) if bytes.is_empty()) {
            continue;
        }
        if sender.send(piece).await.is_err() || ended {
            return;
        }
        if left == 0 {
            break;
        }
    }
    drop(rows);
    let _ = sender.send(encoder.finish().map_err(failed)).await;
}
