//! The conditions of a scan as DataFusion expressions. Must not know files.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use wye_domain::horizon::Horizon;

use crate::columns::{DEVICE_ID, KAFKA_OFFSET, KAFKA_PARTITION};
use crate::parquet_plan::text_literal;
use crate::scan::devices::DeviceRange;

/// Readings of a range of devices, below a horizon; `None` where there is no condition.
pub(super) fn readings(
    devices: Option<&DeviceRange>,
    horizon: Option<&Horizon>,
    schema: &SchemaRef,
) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let mut conditions = Vec::new();
    if let Some(from) = devices.and_then(|range| range.from.as_deref()) {
        conditions.push(col(DEVICE_ID).gt_eq(lit(text_literal(from)?)));
    }
    if let Some(until) = devices.and_then(|range| range.until.as_deref()) {
        conditions.push(col(DEVICE_ID).lt(lit(text_literal(until)?)));
    }
    conditions.extend(horizon.map(below));
    let Some(condition) = conjunction(conditions) else { return Ok(None) };
    let columns = DFSchema::try_from(Arc::clone(schema))?;
    create_physical_expr(&condition, &columns, &ExecutionProps::new(), &PhysicalPlanningContext::default())
        .map(Some)
}

/// The reading's offset is below the horizon of its Kafka partition.
fn below(horizon: &Horizon) -> Expr {
    let partitions = horizon.iter().map(|(kafka_partition, offset)| {
        col(KAFKA_PARTITION).eq(lit(kafka_partition.0)).and(col(KAFKA_OFFSET).lt(lit(offset.0)))
    });
    disjunction(partitions).unwrap_or_else(|| lit(false))
}
