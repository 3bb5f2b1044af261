//! The layers as the simulation drives them: the only files that know their types. Everything else of the simulation has
//! bytes, offsets and times as plain numbers. This one has what all layers have in common; the others are for one each.

mod owner;
mod recompute;
mod run;
mod serving;

use std::sync::Arc;

use anyhow::Result;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::{DeviceConfig, LimitsConfig, Registry, RegistryConfig};
use wye_domain::time::Micros;
use wye_domain::wire::{self, Acceptance};
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::{Expectations, MetricPlans};

pub(crate) use owner::{
    Effect, Ended, Owner, OwnerInput, OwnerRules, Recovered, Takeover, claim, claim_marker,
};
pub(crate) use recompute::{Archive, BatchView, recompute};
pub(crate) use run::{BatchRun, Control, Patience, RunEffect, RunInput, RunStart};
pub(crate) use serving::{Answered, Serving};

use super::log::ControlAbout;
use super::readings::Sent;
use super::versions::{DAY, SECOND, Version, device_name};

/// The earliest event time that is accepted where readings before 1990 are.
const EARLY: Micros = Micros(-400 * DAY);

/// A planned configuration.
#[derive(Clone)]
pub(crate) struct Plans {
    plans: Arc<MetricPlans>,
    expectations: Arc<Expectations>,
}

impl Plans {
    pub(crate) fn new(version: &Version) -> Result<Self> {
        let definitions = version.metrics.iter().map(|metric| {
            let text = |text: &str| text.to_owned();
            Ok(Definition::check(&MetricConfig {
                name: text(metric.name),
                help: String::new(),
                unit: String::new(),
                filter: metric.filter.map(text),
                value: metric.expression.map(text),
                by: Some(vec![text(metric.by)]),
                window: Some(text(metric.window)),
                rollups: Vec::new(),
                aggregates: Some(metric.aggregates.iter().map(|name| text(name)).collect()),
            })?)
        });
        let devices = version.devices.iter().map(|device| DeviceConfig {
            device_id: device_name(device.number),
            reporting_interval: device.interval.map(|interval| format!("{}s", interval / SECOND)),
            metrics: device.metrics.iter().map(|metric| format!("m{metric}")).collect(),
            attributes: device.line.map(|line| ("line".to_owned(), line.to_owned())).into_iter().collect(),
            ..DeviceConfig::default()
        });
        let limits = version.limits.iter().map(|limits| LimitsConfig {
            metric: format!("m{}", limits.metric),
            unit: limits.unit.map(str::to_owned),
            min: limits.min,
            max: limits.max,
        });
        let registry =
            Registry::check(RegistryConfig { device: devices.collect(), metric_limits: limits.collect() })?;
        let plans = MetricPlans::new(definitions.collect::<Result<_>>()?, Arc::new(registry))?;
        let expectations = Arc::new(Expectations::new(&plans)?);
        Ok(Self { plans: Arc::new(plans), expectations })
    }
}

fn acceptance(accepts_early: bool) -> Acceptance {
    let acceptance = Acceptance::default();
    if accepts_early { Acceptance { earliest: EARLY, ..acceptance } } else { acceptance }
}

/// The earliest event time (µs) that is accepted.
pub(crate) fn earliest(accepts_early: bool) -> i64 {
    acceptance(accepts_early).earliest.0
}

/// Readings as an Arrow message.
pub(crate) fn arrow_message(readings: &[Sent]) -> Vec<u8> {
    let mut builder = ReadingBatchBuilder::default();
    for sent in readings {
        builder.append(&Reading {
            device_id: &device_name(sent.device),
            metric: &sent.metric_name(),
            value: sent.value,
            event_time: Micros(sent.event_time),
            sequence: sent.sequence,
            unit: sent.unit,
            tags: sent.tags().as_deref(),
        });
    }
    wire::encode(&[builder.finish()])
}

/// A record of a later version is skipped.
fn apply_control(view: &mut ControlView, offset: i64, payload: &[u8]) {
    if let Ok(record) = ControlRecord::decode(payload) {
        view.apply(Offset(offset), &record);
    }
}

fn control_about(record: &ControlRecord) -> ControlAbout {
    match *record {
        ControlRecord::Claim { .. } => ControlAbout::Claim,
        ControlRecord::Epoch { generation, start, answers, .. } => {
            let generation = generation.map(|generation| generation.claim().0);
            ControlAbout::Epoch { generation, start: start.0, answers: answers.is_some() }
        }
        ControlRecord::CutRequest { .. } => ControlAbout::CutRequest,
        ControlRecord::Horizon { offset, .. } => ControlAbout::Horizon { offset: offset.0 },
    }
}

/// By Kafka partition.
fn horizon(offsets: &[i64]) -> Horizon {
    (0..).map(KafkaPartition).zip(offsets.iter().map(|offset| Offset(*offset))).collect()
}
