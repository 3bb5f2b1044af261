//! The part of DataFusion's [`ExecutionPlan`] that is the same for all of our operators. Each has one input, no
//! expressions, and relies on the plan partitions of its input as they are.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream::BoxStream;

/// What differs between operators.
pub(super) trait Operator: fmt::Debug + Send + Sync + Sized + 'static {
    /// The name in EXPLAIN.
    const NAME: &'static str;

    /// Schema, order and plan partitions of the output.
    fn properties(&self, input: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties>;

    /// Whether each plan partition of the output has the order of the input.
    fn maintains_input_order(&self) -> bool;

    /// The same operator without the state of an execution.
    fn fresh(&self) -> Self;

    /// Writes its details for EXPLAIN.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Starts to compute one plan partition.
    fn execute(&self, part: Part) -> Result<BoxStream<'static, Result<RecordBatch>>>;
}

/// One plan partition of an execution.
pub(super) struct Part {
    /// The rows of the input.
    pub(super) input: SendableRecordBatchStream,
    pub(super) plan_partition: usize,
    pub(super) plan_partitions: usize,
    pub(super) context: Arc<TaskContext>,
}

/// The plan node of an operator.
#[derive(Debug)]
pub(super) struct OperatorExec<O> {
    operator: O,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl<O: Operator> OperatorExec<O> {
    /// An operator over an input.
    pub(super) fn over(input: Arc<dyn ExecutionPlan>, operator: O) -> Arc<dyn ExecutionPlan> {
        let properties = operator.properties(&input);
        Arc::new(Self { operator, input, properties })
    }
}

impl<O: Operator> DisplayAs for OperatorExec<O> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", O::NAME)?;
        self.operator.describe(f)
    }
}

impl<O: Operator> ExecutionPlan for OperatorExec<O> {
    fn name(&self) -> &str {
        O::NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![self.operator.maintains_input_order()]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Self::over(input, self.operator.fresh())),
            Err(_) => Err(DataFusionError::Internal(format!("{} has one input", O::NAME))),
        }
    }

    fn execute(&self, plan_partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let part = Part {
            input: self.input.execute(plan_partition, Arc::clone(&context))?,
            plan_partition,
            plan_partitions: self.properties.partitioning.partition_count(),
            context,
        };
        let rows = self.operator.execute(part)?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
