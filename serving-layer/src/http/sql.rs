//! `POST /v1/sql`: a query, answered as JSON, CSV or an Arrow stream while it runs. The query ends when its client
//! disconnects.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Deserialize;
use tracing::warn;
use url::form_urlencoded;
use wye_domain::error_chain;

use super::Api;
use super::answer::seconds;
use super::encode::{Encoder, Format};
use super::error::ApiError;
use super::wait::Wait;
use crate::ServingError;
use crate::coverage::Coverage;
use crate::sql::answer::{Answer, Items, Sink};

/// Bytes of rows that are encoded at a time.
const PIECE: usize = 4 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    sql: String,
    after: Option<String>,
    wait: Option<String>,
    /// So many rows are enough: the query ends with them.
    limit: Option<usize>,
}

impl Request {
    fn of(sql: String) -> Self {
        Self { sql, after: None, wait: None, limit: None }
    }
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
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let request = read(content_type, &body)?;
    api.instruments.queries.inc();
    let wait = Wait::read((request.after.as_deref(), request.wait.as_deref()), &headers, &api)?;
    let rows = loop {
        wait.until_covered(&api).await?;
        let rows = api.engine.query(&request.sql).await?;
        if wait.is_covered_by(&rows.coverage) {
            break rows;
        }
    };
    let covered = coverage_headers(&rows.coverage);
    let most = request.limit.unwrap_or(usize::MAX);
    let mut pieces = rows.map(move |schema, rows, sink| encode((format, most), schema, rows, sink));
    // A query that fails before its first row gets an error instead of an answer that is cut off.
    let first = match pieces.next().await {
        None => Bytes::new(),
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(piece)) => piece,
    };
    let rest = stream::unfold(Some(pieces), next);
    let all = stream::iter([Ok(first)]).chain(rest);
    Ok(([(CONTENT_TYPE, format.media_type())], covered, Body::from_stream(all)).into_response())
}

/// What an answer covers of the log, where its body has only rows.
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

/// The next piece of an answer; nothing after an error.
async fn next(pieces: Option<Answer<Bytes>>) -> Option<(Result<Bytes, ServingError>, Option<Answer<Bytes>>)> {
    let mut pieces = pieces?;
    match pieces.next().await? {
        Ok(piece) => Some((Ok(piece), Some(pieces))),
        Err(error) => {
            warn!(
                error = error_chain(&error),
                "a query failed after its first rows were sent; the answer is cut off"
            );
            Some((Err(error), None))
        }
    }
}

/// Reads a body: JSON, a form, or text that is the statement itself.
fn read(content_type: Option<&str>, body: &[u8]) -> Result<Request, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::invalid("the body must be UTF-8"))?;
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let looks_like_json = text.trim_start().starts_with('{');
    let request = match media_type.to_ascii_lowercase().as_str() {
        "application/json" => from_json(text)?,
        // What curl sends with every body that it is given by -d.
        "" | "application/x-www-form-urlencoded" if looks_like_json => from_json(text)?,
        "application/x-www-form-urlencoded" => from_form(text),
        "" | "text/plain" | "application/sql" => Request::of(text.to_owned()),
        other => {
            return Err(ApiError::invalid(format!(
                "Content-Type: {other} cannot be read; send application/json like {{\"sql\": \"SELECT 1\"}}, a form with \
                 query=, or the statement as text/plain"
            )));
        }
    };
    if request.sql.trim().is_empty() {
        return Err(ApiError::invalid("the query is empty; send for example SELECT 1"));
    }
    Ok(request)
}

fn from_json(text: &str) -> Result<Request, ApiError> {
    serde_json::from_str(text).map_err(|error| {
        ApiError::invalid(format!("the body must be like {{\"sql\": \"SELECT 1\"}}: {error}"))
    })
}

/// The fields `query` or `sql`, `after` and `wait` of a form; a body that has no statement is one itself.
fn from_form(text: &str) -> Request {
    let fields: Vec<_> = form_urlencoded::parse(text.as_bytes()).collect();
    match field(&fields, "query").or_else(|| field(&fields, "sql")) {
        Some(sql) => {
            Request { after: field(&fields, "after"), wait: field(&fields, "wait"), ..Request::of(sql) }
        }
        None => Request::of(text.to_owned()),
    }
}

/// The first field of a name.
fn field(fields: &[(Cow<'_, str>, Cow<'_, str>)], wanted: &str) -> Option<String> {
    fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone().into_owned())
}

/// Writes rows until there are no more, or enough.
async fn encode(
    (format, most): (Format, usize),
    schema: SchemaRef,
    mut rows: Items<RecordBatch>,
    sink: Sink<Bytes>,
) {
    let mut encoder = match Encoder::new(format, &schema) {
        Ok(encoder) => encoder,
        Err(error) => {
            // Where this fails, the client has disconnected.
            sink.send(Err(failed(error))).await;
            return;
        }
    };
    let mut left = most;
    while left > 0
        && let Some(batch) = rows.next().await
    {
        let batch = match batch {
            Ok(batch) => batch.slice(0, batch.num_rows().min(left)),
            Err(error) => {
                sink.send(Err(error)).await;
                return;
            }
        };
        left -= batch.num_rows();
        let each = batch.get_array_memory_size() / batch.num_rows().max(1) + 1;
        let length = (PIECE / each).max(1);
        for start in (0..batch.num_rows()).step_by(length) {
            let rows = batch.slice(start, length.min(batch.num_rows() - start));
            let piece = encoder.write(&rows).map_err(failed);
            // What an encoder keeps back comes with the next rows.
            if matches!(&piece, Ok(bytes) if bytes.is_empty()) {
                continue;
            }
            if !sink.send(piece).await {
                return;
            }
        }
    }
    if sink.send(encoder.finish().map_err(failed)).await {
        sink.finish();
    }
}

fn failed(error: ArrowError) -> ServingError {
    ServingError::run(error.into())
}
