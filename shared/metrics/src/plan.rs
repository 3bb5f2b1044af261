//! Metric definitions planned once with DataFusion and evaluated on batches of readings by both layers.
//!
//! An expression sees the columns of a reading and `ingest_time`; any other name in it is an *attribute*: the tag of
//! that name, else the registry's attribute of the reading's device. Expressions must be immutable (no `now()`, no
//! `random()`), so that both layers get the same answer at any time.
//!
//! Must not know where batches come from or go to.

mod attributes;
mod evaluate;
pub(crate) mod expectations;
mod grouping;
mod isolate;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::definition::{Definition, DefinitionError, fingerprint};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident, visit_expressions};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use wye_domain::reading;
use wye_domain::registry::{Device, Registry};
use wye_domain::sketches::Needs;
use wye_domain::wire::Acceptance;

pub use expectations::Expectations;
pub(crate) use isolate::isolate as isolated;

/// One planned definition.
#[derive(Debug)]
pub struct MetricPlan {
    definition: Definition,
    filter: Option<Arc<dyn PhysicalExpr>>,
    value: Arc<dyn PhysicalExpr>,
    dimensions: Vec<Arc<dyn PhysicalExpr>>,
    needs: Needs,
}

impl MetricPlan {
    /// The sketches and counts that its summaries have.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Whether completeness must be counted device by device: a group may span devices, and the registry says how many
    /// readings to expect of each.
    fn counts_devices(&self, registry: &Registry) -> bool {
        !self.is_by_device()
            && self.attributes_of_series().is_some()
            && registry.devices().iter().any(|(_, device)| has_expectation(device))
    }

    /// Whether each of its series has the readings of one device only.
    pub fn is_by_device(&self) -> bool {
        self.dimensions.iter().any(is_device)
    }

    /// What was planned.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }
}

/// Whether a dimension is the device itself.
fn is_device(dimension: &Arc<dyn PhysicalExpr>) -> bool {
    dimension.downcast_ref::<Column>().is_some_and(|column| column.name() == "device_id")
}

/// Whether the registry says how many readings of which names a device sends.
fn has_expectation(device: &Device) -> bool {
    device.schedule.is_some() && !device.metrics.is_empty()
}

/// All planned definitions.
#[derive(Debug)]
pub struct MetricPlans {
    plans: Vec<MetricPlan>,
    attributes: Vec<String>,
    schema: SchemaRef,
    registry: Arc<Registry>,
    /// Of the definitions and the registry.
    fingerprint: u64,
    /// Of the rules by which readings are accepted, once they are set.
    acceptance: Option<u64>,
}

impl MetricPlans {
    /// Plans the definitions; none means the default family.
    ///
    /// # Errors
    /// [`DefinitionError`] naming the definition, the key, the problem and what to write instead.
    pub fn new(definitions: Vec<Definition>, registry: Arc<Registry>) -> Result<Self, DefinitionError> {
        let definitions = if definitions.is_empty() { vec![Definition::family()] } else { definitions };
        let attributes = attribute_names(&definitions)?;
        let schema = evaluation_schema(&attributes);
        let fingerprint = fingerprint(&definitions) ^ registry.fingerprint().rotate_left(1);
        let context = SessionContext::new();
        let mut plans = Vec::with_capacity(definitions.len());
        for definition in definitions {
            if plans.iter().any(|plan: &MetricPlan| plan.definition.name == definition.name) {
                return Err(DefinitionError {
                    metric: definition.name,
                    key: "name",
                    problem: "an earlier definition has the same name".to_owned(),
                    remedy: "give each definition its own name".to_owned(),
                });
            }
            let planner = Planner { context: &context, schema: &schema, metric: &definition.name };
            let filter = match &definition.filter {
                None => None,
                Some(sql) => Some(planner.plan("where", sql, Wanted::Condition)?),
            };
            let value = planner.plan("value", &definition.value, Wanted::Number)?;
            let dimensions = definition
                .dimensions
                .iter()
                .map(|dimension| planner.plan("by", &dimension.expression, Wanted::PlainValue))
                .collect::<Result<_, _>>()?;
            let needs = definition.needs();
            let mut plan = MetricPlan { definition, filter, value, dimensions, needs };
            plan.needs.devices = plan.counts_devices(&registry);
            plans.push(plan);
        }
        Ok(Self { plans, attributes, schema, registry, fingerprint, acceptance: None })
    }

    /// The same for readings that are accepted by these rules, on which the fingerprint depends too.
    #[must_use]
    pub fn accepting(mut self, acceptance: &Acceptance) -> Self {
        self.acceptance = Some(acceptance.fingerprint());
        self
    }

    /// The planned definitions in the order in which they were given.
    pub fn plans(&self) -> &[MetricPlan] {
        &self.plans
    }

    /// The planned definition of a name.
    pub fn find(&self, definition: &str) -> Option<&MetricPlan> {
        self.plans.iter().find(|plan| plan.definition.name == definition)
    }

    /// The registry that attributes, limits and expectations come from.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The fingerprint of what is computed: of the definitions ([`crate::definition::fingerprint`]), of the registry, whose
    /// attributes, limits and intervals they use, and of the rules of acceptance.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint ^ self.acceptance.map_or(0, |acceptance| acceptance.rotate_left(2))
    }

    /// The names of all dimensions of all definitions, each once, in the order in which they come first.
    pub fn dimension_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.plans.iter().flat_map(|plan| plan.definition.dimension_names()) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }
}

/// The columns that expressions see: those of a reading, the ingest time, and the attributes that are named.
fn evaluation_schema(attributes: &[String]) -> SchemaRef {
    let mut fields: Vec<Field> =
        reading::schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("ingest_time", reading::time_type(), false));
    fields.extend(attributes.iter().map(|name| Field::new(name, reading::text_type(), true)));
    Arc::new(Schema::new(fields))
}

/// The names in the expressions that are not columns of a reading.
fn attribute_names(definitions: &[Definition]) -> Result<Vec<String>, DefinitionError> {
    let known = evaluation_schema(&[]);
    let mut names = BTreeSet::new();
    for definition in definitions {
        let by = definition.dimensions.iter().map(|dimension| ("by", dimension.expression.as_str()));
        let filter = definition.filter.iter().map(|sql| ("where", sql.as_str()));
        for (key, sql) in by.chain(filter).chain([("value", definition.value.as_str())]) {
            let expression = Parser::new(&GenericDialect)
                .try_with_sql(sql)
                .and_then(|mut parser| parser.parse_expr())
                .map_err(|error| DefinitionError {
                    metric: definition.name.clone(),
                    key,
                    problem: format!("{sql:?} is not an SQL expression: {error}"),
                    remedy: CORRECT.to_owned(),
                })?;
            let _: ControlFlow<()> = visit_expressions(&expression, |part| {
                if let SqlExpr::Identifier(Ident { value, quote_style, .. }) = part {
                    let name = if quote_style.is_some() { value.clone() } else { value.to_lowercase() };
                    if known.field_with_name(&name).is_err() {
                        names.insert(name);
                    }
                }
                ControlFlow::Continue(())
            });
        }
    }
    Ok(names.into_iter().collect())
}

/// Plans an expression for the value of a reading, over the columns of a reading and `ingest_time`. `name` is what it belongs
/// to, for messages.
///
/// # Errors
/// [`DefinitionError`] when it is no such expression.
pub(crate) fn plan_value(name: &str, sql: &str) -> Result<Arc<dyn PhysicalExpr>, DefinitionError> {
    let (context, schema) = (SessionContext::new(), evaluation_schema(&[]));
    Planner { context: &context, schema: &schema, metric: name }.plan("value", sql, Wanted::Number)
}

/// The columns of readings that such an expression is evaluated on.
pub(crate) fn evaluation_columns(batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
    let schema = batch.schema();
    let columns = evaluation_schema(&[]);
    let columns = columns.fields().iter().map(|field| schema.index_of(field.name()));
    Ok(batch.project(&columns.collect::<Result<Vec<_>, _>>()?)?)
}

/// The remedy where the problem says it all.
const CORRECT: &str = "correct the expression; it may use a reading's columns, tags and attributes";

/// Which types the answers of an expression may have.
#[derive(Clone, Copy)]
enum Wanted {
    Condition,
    Number,
    PlainValue,
}

impl Wanted {
    fn allows(self, found: &DataType) -> bool {
        match self {
            Self::Condition => found == &DataType::Boolean,
            Self::Number => found.is_numeric() || found == &DataType::Boolean,
            Self::PlainValue => !found.is_nested(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Condition => "a condition",
            Self::Number => "a number",
            Self::PlainValue => "a plain value",
        }
    }
}

struct Planner<'a> {
    context: &'a SessionContext,
    schema: &'a SchemaRef,
    metric: &'a str,
}

impl Planner<'_> {
    fn plan(
        &self,
        key: &'static str,
        sql: &str,
        wanted: Wanted,
    ) -> Result<Arc<dyn PhysicalExpr>, DefinitionError> {
        let schema =
            DFSchema::try_from(self.schema.as_ref().clone()).map_err(|error| self.refused(key, &error))?;
        let expression =
            self.context.parse_sql_expr(sql, &schema).map_err(|error| self.refused(key, &error))?;
        if let Some(name) = changeable_function(&expression).map_err(|error| self.refused(key, &error))? {
            let problem = format!("{sql:?} uses {name}(), whose answer changes");
            let remedy = "use only the reading's own columns, tags and attributes";
            return Err(self.refuse(key, problem, remedy));
        }
        let planned = self
            .context
            .create_physical_expr(expression, &schema)
            .map_err(|error| self.refused(key, &error))?;
        let found = planned.data_type(self.schema).map_err(|error| self.refused(key, &error))?;
        if !wanted.allows(&found) {
            let remedy = format!("write an expression that gives {}", wanted.name());
            return Err(self.refuse(key, format!("{sql:?} gives {found}"), remedy));
        }
        Ok(planned)
    }

    fn refused(&self, key: &'static str, error: &DataFusionError) -> DefinitionError {
        self.refuse(key, error.strip_backtrace(), CORRECT)
    }

    fn refuse(&self, key: &'static str, problem: String, remedy: impl Into<String>) -> DefinitionError {
        DefinitionError { metric: self.metric.to_owned(), key, problem, remedy: remedy.into() }
    }
}

/// The name of a function in an expression that does not always give the same answer.
fn changeable_function(expression: &Expr) -> Result<Option<String>, DataFusionError> {
    let mut found = None;
    expression.apply(|part| {
        if let Expr::ScalarFunction(call) = part
            && call.func.signature().volatility != Volatility::Immutable
        {
            found = Some(call.func.name().to_owned());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}
