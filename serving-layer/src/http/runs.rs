//! `POST /v1/batch-runs`: a batch run on request, done by the batch layer of the process; answered once its result is in
//! the answers, or after a wait.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;
use wye_domain::ErrorKind;
use wye_domain::time::Window;
use wye_tables::views::ViewVersion;

use super::error::ApiError;
use super::params::time;
use super::wait::bounded;
use super::{Api, BatchRequest};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Body {
    /// Whether to compute everything, even if nothing is new.
    force: bool,
    /// Computes what is from this time on too, even if nothing is new there; RFC 3339, with `to`.
    from: Option<String>,
    /// Where that ends.
    to: Option<String>,
    /// How long to wait until the result is in the answers, such as `10s`; by default as long as is allowed.
    wait: Option<String>,
}

pub(super) async fn run(State(api): State<Arc<Api>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let Some(trigger) = &api.batch_trigger else {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            "no batch layer runs in this process; use wye batch run",
        ));
    };
    let body = if body.is_empty() {
        Body::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| {
            ApiError::invalid(format!(
                "the body must be like {{\"force\": true, \"wait\": \"10s\"}}, or empty: {error}"
            ))
        })?
    };
    let wait = bounded(body.wait.as_deref(), api.max_wait, api.max_wait)?;
    let again = match (body.from.as_deref(), body.to.as_deref()) {
        (None, None) => None,
        (Some(from), Some(to)) => {
            let now = api.clock.now();
            let window = Window { start: time("from", from, now)?, end: time("to", to, now)? };
            if window.start >= window.end {
                return Err(ApiError::invalid("from must be before to"));
            }
            Some(window)
        }
        _ => return Err(ApiError::invalid("from and to are needed together")),
    };
    let mut report = trigger(BatchRequest { force: body.force, again })
        .await
        .map_err(|refusal| ApiError::new(refusal.kind, refusal.message))?;
    let version = report.get("version").and_then(Value::as_u64).map(ViewVersion);
    if let (Some(version), Some(fields)) = (version, report.as_object_mut()) {
        let served = api.hub.until_version(version, wait).await;
        fields.insert("served".to_owned(), Value::Bool(served));
    }
    Ok(Json(report))
}
