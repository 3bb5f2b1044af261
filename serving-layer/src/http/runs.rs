//! `POST /v1/batch-runs`: a batch run by hand, done by whoever runs beside this layer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use wye_domain::ErrorKind;

use super::error::ApiError;
use super::{Api, BatchRequest};

pub(super) async fn run(
    State(api): State<Arc<Api>>,
    body: Bytes,
) -> Result<Json<serde_json::Value>, ApiError> {
    let Some(trigger) = &api.batch_trigger else {
        return Err(ApiError::new(
            ErrorKind::NotFound,
            "no batch layer runs in this process; use wye batch run",
        ));
    };
    let request = if body.is_empty() {
        BatchRequest::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| {
            ApiError::invalid(format!("the body must be like {{\"force\": true}}, or empty: {error}"))
        })?
    };
    trigger(request).await.map(Json).map_err(|refusal| ApiError::new(refusal.kind, refusal.message))
}
