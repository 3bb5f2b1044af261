//! The parts of a running Wye: how each is started, and how they are connected. Must not know their order.

use std::sync::Arc;

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use wye_batch::layer::BatchLayer;
use wye_batch::runner::RunOptions;
use wye_batch::schedule::BatchHandle;
use wye_broker::Broker;
use wye_serving::http::{BatchRefusal, BatchRequest, BatchTrigger, Probe};
use wye_speed::layer::{Ownership, Ownerships, SpeedLayer};
use wye_speed::telemetry::SpeedTelemetry;

use crate::site::check::Checked;
use crate::site::{Site, batch_parts};

/// The probe of `/readyz` for the embedded broker.
pub(super) fn log_probe(broker: &Broker) -> Probe {
    let health = broker.health();
    Arc::new(move || {
        let troubles: Vec<String> = health.troubles().iter().map(ToString::to_string).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    })
}

/// The probe of `/readyz` for Kafka partitions without an owner, whose realtime rows are not written.
pub(super) fn owner_probe(ownerships: Ownerships) -> Probe {
    Arc::new(move || {
        let vacant = ownerships.get().into_iter().filter(|(_, ownership)| *ownership == Ownership::Acquiring);
        let vacant: Vec<String> = vacant.map(|(kafka_partition, _)| kafka_partition.to_string()).collect();
        let list = vacant.join(", ");
        (!vacant.is_empty())
            .then(|| format!("Kafka partition {list} has no owner; the speed layer is taking it over"))
    })
}

pub(super) async fn start_speed(
    checked: &Checked,
    site: &Site,
    shutdown: &CancellationToken,
) -> Result<SpeedLayer> {
    let parts = wye_speed::layer::Parts {
        log: site.log.clone(),
        plans: Arc::clone(&checked.plans),
        acceptance: checked.acceptance,
        telemetry: SpeedTelemetry::register(&site.telemetry),
        clock: Arc::clone(&site.clock),
        name: site.name.clone(),
    };
    Ok(wye_speed::layer::start(checked.settings.speed.clone(), parts, shutdown.clone()).await?)
}

pub(super) async fn start_batch(
    checked: &Checked,
    site: &Site,
    shutdown: &CancellationToken,
) -> Result<BatchLayer> {
    let parts = batch_parts(checked, site)?;
    Ok(wye_batch::layer::start(checked.settings.batch_layer(), parts, shutdown.clone()).await?)
}

/// How the serving layer requests a batch run.
pub(super) fn batch_trigger(batch: BatchHandle) -> BatchTrigger {
    Arc::new(move |request: BatchRequest| {
        let batch = batch.clone();
        Box::pin(async move {
            let report = batch
                .run_now(RunOptions { force: request.force, again: request.again, progress: None })
                .await
                .map_err(|error| BatchRefusal { kind: error.kind(), message: error.to_string() })?;
            Ok(serde_json::to_value(report).unwrap_or_default())
        })
    })
}
