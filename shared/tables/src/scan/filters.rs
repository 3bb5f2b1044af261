//! The conditions of a scan as DataFusion expressions. Must not know files.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use wye_domain::horizon::Horizon;

use crate::parquet_plan::word;
use crate::scan::devices::DeviceRange;

type Condition = Arc<dyn PhysicalExpr>;

/// `device_id` is in the range; `None` when every device is.
pub(super) fn devices_in(range: &DeviceRange, schema: &Schema) -> Result<Option<Condition>> {
    let bound = |operator, device: &Option<String>| {
        device.as_deref().map(|device| compare(schema, "device_id", operator, word(device))).transpose()
    };
    Ok(conjunction([bound(Operator::GtEq, &range.from)?, bound(Operator::Lt, &range.until)?]))
}

/// The reading's offset is below its Kafka partition's horizon.
pub(super) fn below(horizon: &Horizon, schema: &Schema) -> Result<Condition> {
    let mut any: Option<Condition> = None;
    for (kafka_partition, offset) in horizon.iter() {
        let here =
            compare(schema, "kafka_partition", Operator::Eq, ScalarValue::Int32(Some(kafka_partition.0)))?;
        let before = compare(schema, "kafka_offset", Operator::Lt, ScalarValue::Int64(Some(offset.0)))?;
        let both = binary(here, Operator::And, before);
        any = Some(match any {
            Some(others) => binary(others, Operator::Or, both),
            None => both,
        });
    }
    Ok(any.unwrap_or_else(|| Arc::new(Literal::new(ScalarValue::Boolean(Some(false))))))
}

/// All of the conditions that there are.
pub(super) fn conjunction<const N: usize>(conditions: [Option<Condition>; N]) -> Option<Condition> {
    conditions.into_iter().flatten().reduce(|all, next| binary(all, Operator::And, next))
}

fn compare(schema: &Schema, column: &str, operator: Operator, value: ScalarValue) -> Result<Condition> {
    let column = Arc::new(Column::new_with_schema(column, schema)?);
    Ok(binary(column, operator, Arc::new(Literal::new(value))))
}

fn binary(left: Condition, operator: Operator, right: Condition) -> Condition {
    Arc::new(BinaryExpr::new(left, operator, right))
}
