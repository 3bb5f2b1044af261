//! Functions whose results are longer than their arguments, limited by the size of their results. A batch that is too
//! large for one step is computed in slices, and rejected when the slices together are too large.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ExprSchema};
use datafusion::error::Result;
use datafusion::logical_expr::binary::BinaryTypeCoercer;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawDictionaryExpr};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Documentation, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::{AnalyzerRule, OptimizerConfig, OptimizerRule};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, binary};

use super::growth::Growth;
use super::{STEP_BYTES, check_type, too_large};

/// The most bytes of a slice, by the estimate.
const SLICE_BYTES: u64 = 8 << 20;

/// A function with a limit; as it is where its results are not longer than its arguments.
pub(super) fn bounded(function: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    match Growth::of(function.name()) {
        Some(growth) if function.inner().downcast_ref::<Bounded>().is_none() => {
            Arc::new(ScalarUDF::new_from_impl(Bounded { inner: function, growth }))
        }
        _ => function,
    }
}

/// Replaces all functions by limited ones, also those that come from operators and from the optimizer.
#[derive(Debug)]
pub(super) struct BoundFunctions;

impl AnalyzerRule for BoundFunctions {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        Ok(rewrite(plan)?.data)
    }

    fn name(&self) -> &str {
        "bound_functions"
    }
}

impl OptimizerRule for BoundFunctions {
    fn name(&self) -> &str {
        "bound_functions"
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        rewrite(plan)
    }
}

fn rewrite(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        let node = node.map_expressions(|expression| {
            let name = names.save(&expression);
            Ok(expression.transform_up(bound)?.update_data(|expression| name.restore(expression)))
        })?;
        if node.transformed { node.map_data(LogicalPlan::recompute_schema) } else { Ok(node) }
    })
}

fn bound(expression: Expr) -> Result<Transformed<Expr>> {
    Ok(match expression {
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            let bounded = bounded(Arc::clone(&func));
            let changed = !Arc::ptr_eq(&bounded, &func);
            Transformed::new_transformed(
                Expr::ScalarFunction(ScalarFunction { func: bounded, args }),
                changed,
            )
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
            let concatenation = bounded(Arc::new(ScalarUDF::new_from_impl(Concatenation::default())));
            Transformed::yes(Expr::ScalarFunction(ScalarFunction {
                func: concatenation,
                args: vec![*left, *right],
            }))
        }
        other => Transformed::no(other),
    })
}

/// Limits `{...}` and `STRUCT(...)`, whose types are computed before any rule is applied.
#[derive(Debug)]
pub(super) struct BoundLiterals;

impl ExprPlanner for BoundLiterals {
    fn plan_struct_literal(&self, args: Vec<Expr>, is_named: bool) -> Result<PlannerResult<Vec<Expr>>> {
        let function = match is_named {
            true => datafusion::functions::core::named_struct(),
            false => datafusion::functions::core::r#struct(),
        };
        let call = ScalarFunction { func: bounded(function), args };
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }

    fn plan_dictionary_literal(
        &self,
        literal: RawDictionaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawDictionaryExpr>> {
        for value in &literal.values {
            check_type(&value.get_type(schema)?)?;
        }
        Ok(PlannerResult::Original(literal))
    }
}

/// A function with a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

impl Bounded {
    fn invoke(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = self.name();
        let rows = match args.args.iter().any(|arg| matches!(arg, ColumnarValue::Array(_))) {
            true => args.number_rows,
            // The result is one value for all rows.
            false => 1,
        };
        let bytes = self.growth.bytes(&args.args, rows)?;
        if let Some(longest) = bytes.iter().find(|bytes| **bytes > STEP_BYTES as u64) {
            return Err(too_large(format!("{name} would make a value of {} MiB", longest >> 20)));
        }
        let all: u64 = bytes.iter().sum();
        let repeated = args.number_rows;
        if rows == 1 || all <= STEP_BYTES as u64 {
            let made = self.inner.invoke_with_args(args)?;
            if let ColumnarValue::Scalar(value) = &made
                && value.size().saturating_mul(repeated) > STEP_BYTES
            {
                return Err(too_large(format!(
                    "{name} makes a value of {} KiB in each of {repeated} rows",
                    value.size() >> 10
                )));
            }
            return Ok(made);
        }
        self.in_slices(&args, &bytes)
    }

    /// Computes some rows at a time, by the estimated bytes of each row.
    fn in_slices(&self, args: &ScalarFunctionArgs, bytes: &[u64]) -> Result<ColumnarValue> {
        let mut parts: Vec<ArrayRef> = Vec::new();
        let (mut start, mut made) = (0, 0);
        while start < bytes.len() {
            let (mut end, mut expected) = (start, 0);
            while end < bytes.len() && (end == start || expected + bytes[end] <= SLICE_BYTES) {
                expected += bytes[end];
                end += 1;
            }
            let part = ScalarFunctionArgs {
                args: args.args.iter().map(|arg| slice(arg, start..end)).collect(),
                number_rows: end - start,
                ..args.clone()
            };
            let part = self.inner.invoke_with_args(part)?.into_array(end - start)?;
            made += part.get_array_memory_size();
            if made > STEP_BYTES {
                return Err(too_large(format!(
                    "{} makes more than {} MiB from one batch of rows",
                    self.name(),
                    STEP_BYTES >> 20
                )));
            }
            parts.push(part);
            start = end;
        }
        let parts: Vec<&dyn arrow::array::Array> = parts.iter().map(AsRef::as_ref).collect();
        Ok(ColumnarValue::Array(arrow::compute::concat(&parts)?))
    }
}

fn slice(arg: &ColumnarValue, rows: Range<usize>) -> ColumnarValue {
    match arg {
        ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(rows.start, rows.len())),
        scalar @ ColumnarValue::Scalar(_) => scalar.clone(),
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let field = self.inner.return_field_from_args(args)?;
        check_type(field.data_type())?;
        Ok(field)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(config)?);
        Some(ScalarUDF::new_from_impl(Self { inner, growth: self.growth }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.invoke(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(input)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// The operator `||` as a function, so that it can be limited like one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Concatenation {
    signature: Signature,
}

impl Default for Concatenation {
    fn default() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Concatenation {
    fn name(&self) -> &str {
        "||"
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        self.schema_name(args)
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(|arg| arg.schema_name().to_string()).collect::<Vec<_>>().join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [left, right] => BinaryTypeCoercer::new(left, &Operator::StringConcat, right).get_result_type(),
            _ => Err(too_large("|| takes two values".to_owned())),
        }
    }

    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        args.iter().any(|arg| arg.nullable(schema).unwrap_or(true))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let schema = Arc::new(Schema::new(args.arg_fields.clone()));
        let arrays =
            args.args.iter().map(|arg| arg.to_array(args.number_rows)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(args.number_rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), arrays, &options)?;
        let [left, right] = [0, 1]
            .map(|index| Arc::new(Column::new(schema.field(index).name(), index)) as Arc<dyn PhysicalExpr>);
        binary(left, Operator::StringConcat, right, &schema)?.evaluate(&batch)
    }
}
