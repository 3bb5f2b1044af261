//! The conditions of a scan as DataFusion expressions. Must not know files.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, col, lit, not};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use wye_domain::horizon::Horizon;
use wye_domain::time::{Micros, Window};

use crate::columns::{DEVICE_ID, EVENT_TIME, KAFKA_OFFSET, KAFKA_PARTITION, time_literal};
use crate::parquet_plan::text_literal;
use crate::scan::devices::DeviceRange;

/// What a scan leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conditions<'a> {
    /// Only readings of these devices.
    pub(super) devices: Option<&'a DeviceRange>,
    /// Only readings of this stretch of event time.
    pub(super) window: Option<Window>,
    /// Only readings below this horizon.
    pub(super) below: Option<&'a Horizon>,
    /// Only readings that are not below this horizon.
    pub(super) since: Option<&'a Horizon>,
}

impl Conditions<'_> {
    /// As one expression over columns of the master dataset; `None` where there is no condition.
    pub(super) fn expression(self, schema: &SchemaRef) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let mut conditions = Vec::new();
        if let Some(from) = self.devices.and_then(|range| range.from.as_deref()) {
            conditions.push(col(DEVICE_ID).gt_eq(lit(text_literal(from)?)));
        }
        if let Some(until) = self.devices.and_then(|range| range.until.as_deref()) {
            conditions.push(col(DEVICE_ID).lt(lit(text_literal(until)?)));
        }
        if let Some(Window { start, end }) = self.window {
            conditions.push(col(EVENT_TIME).gt_eq(time_literal(start)));
            if end < Micros::MAX {
                conditions.push(col(EVENT_TIME).lt(time_literal(end)));
            }
        }
        conditions.extend(self.below.map(below));
        conditions.extend(self.since.filter(|since| !since.is_empty()).map(|since| not(below(since))));
        let Some(condition) = conjunction(conditions) else { return Ok(None) };
        let columns = DFSchema::try_from(Arc::clone(schema))?;
        let (properties, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
        create_physical_expr(&condition, &columns, &properties, &context).map(Some)
    }
}

/// The reading's offset is below the horizon of its Kafka partition.
fn below(horizon: &Horizon) -> Expr {
    let partitions = horizon.iter().map(|(kafka_partition, offset)| {
        col(KAFKA_PARTITION).eq(lit(kafka_partition.0)).and(col(KAFKA_OFFSET).lt(lit(offset.0)))
    });
    disjunction(partitions).unwrap_or_else(|| lit(false))
}
