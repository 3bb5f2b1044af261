//! The query of a job: it only reads the tables of the job. Must not know how the tables were cleaned.
//!
//! A query that only filters and computes columns is executed in one thread, so that its rows keep the order of the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::TableReference;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};
use wye_metrics::sql_messages::only_reads;

use super::FileJobError;
use super::messages;

/// Bytes that sorting reserves for merging, of each thread's memory.
const SORT_RESERVATION: usize = 4 << 20;

/// A statement that only reads.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    statement: Statement,
}

/// A table of a query.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// Parquet files, in order.
    pub(crate) files: Vec<PathBuf>,
}

/// The rows of a query, with the names that their columns get.
pub(crate) struct Rows {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: SendableRecordBatchStream,
}

impl Query {
    /// Parses a statement.
    ///
    /// # Errors
    /// When it is not one statement that only reads.
    pub(crate) fn parse(sql: &str) -> Result<Self, FileJobError> {
        let mut statements = DFParser::parse_sql(sql).map_err(|error| wrong(&error))?;
        let (Some(statement), None) = (statements.pop_front(), statements.pop_front()) else {
            return Err(FileJobError::Arguments("the SQL must be one statement".to_owned()));
        };
        if !only_reads(&statement) {
            let word: String = sql.trim_start().chars().take_while(|c| c.is_alphabetic()).collect();
            return Err(FileJobError::Arguments(format!(
                "{} is not supported: SQL here only reads the inputs. Supported are SELECT, WITH, EXPLAIN, SHOW and DESCRIBE",
                word.to_uppercase()
            )));
        }
        Ok(Self { statement })
    }

    /// Checks that the tables of the statement exist.
    ///
    /// # Errors
    /// When one does not.
    pub(crate) fn check_tables(&self, known: &[String]) -> Result<(), FileJobError> {
        let state = session(Arc::default(), 1).state();
        let tables = state.resolve_table_references(&self.statement).map_err(|error| wrong(&error))?;
        let unknown = tables.iter().find(|table| {
            !known.iter().any(|name| name == table.table())
                && table.schema().is_none_or(|schema| schema != "information_schema")
                && !state.table_functions().contains_key(table.table())
        });
        match unknown {
            None => Ok(()),
            Some(table) => Err(FileJobError::Arguments(format!(
                "there is no table {}; the tables are {}. Each file that is read is named with --input",
                table.table(),
                known.join(", ")
            ))),
        }
    }

    /// Checks that the columns of the statement exist, before hours of reading.
    ///
    /// # Errors
    /// When one does not.
    pub(crate) async fn check_columns(
        &self,
        tables: impl Iterator<Item = (String, SchemaRef)>,
    ) -> Result<(), FileJobError> {
        let session = session(Arc::default(), 1);
        let tables: Vec<(String, SchemaRef)> = tables.collect();
        if let [(_, schema)] = tables.as_slice() {
            register_empty(&session, super::input::ONLY, schema)?;
        }
        for (name, schema) in &tables {
            register_empty(&session, name, schema)?;
        }
        match session.state().statement_to_plan(self.statement.clone()).await {
            Err(error) if messages::is_unknown_column(&error) => Err(wrong(&error)),
            // Types may not be final yet.
            _ => Ok(()),
        }
    }

    /// Starts the query.
    ///
    /// # Errors
    /// When it cannot be planned.
    pub(crate) async fn execute(
        &self,
        runtime: Arc<RuntimeEnv>,
        threads: usize,
        tables: &[Table],
    ) -> Result<Rows, FileJobError> {
        let failed = FileJobError::step("prepare the query");
        let several = session(Arc::clone(&runtime), threads);
        for table in tables {
            register(&several, table).await.map_err(&failed)?;
        }
        let plan = several.state().statement_to_plan(self.statement.clone()).await;
        let plan = plan.map_err(|error| wrong(&error))?;
        let options =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        options.verify_plan(&plan).map_err(|error| wrong(&error))?;
        let schema = readable_names(plan.schema().as_arrow(), tables);
        check_names(&schema)?;
        let optimized = several.state().optimize(&plan).map_err(|error| wrong(&error))?;
        let session = if keeps_order(&optimized).map_err(&failed)? { session(runtime, 1) } else { several };
        let physical = session.state().create_physical_plan(&plan).await.map_err(|error| wrong(&error))?;
        let batches = execute_stream(physical, session.task_ctx()).map_err(|error| failed_query(&error))?;
        Ok(Rows { schema, batches })
    }
}

/// A query that failed while it was executed.
pub(crate) fn failed_query(error: &DataFusionError) -> FileJobError {
    FileJobError::Query(messages::of(error))
}

fn wrong(error: &DataFusionError) -> FileJobError {
    FileJobError::Arguments(format!("the SQL is wrong: {}", messages::of(error)))
}

/// A session without tables. Names are used as they are written, since files have names in upper case too.
fn session(runtime: Arc<RuntimeEnv>, threads: usize) -> SessionContext {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_target_partitions(threads)
        .with_sort_spill_reservation_bytes(SORT_RESERVATION);
    config.options_mut().sql_parser.enable_ident_normalization = false;
    // Views of texts share their memory, which is then counted several times when rows are sorted.
    config.options_mut().execution.parquet.schema_force_view_types = false;
    SessionContext::new_with_config_rt(config, runtime)
}

fn register_empty(session: &SessionContext, name: &str, schema: &SchemaRef) -> Result<(), FileJobError> {
    let failed = FileJobError::step("prepare the query");
    let table = MemTable::try_new(Arc::clone(schema), vec![Vec::new()]).map_err(&failed)?;
    session.register_table(TableReference::bare(name), Arc::new(table)).map_err(&failed)?;
    Ok(())
}

async fn register(session: &SessionContext, table: &Table) -> Result<(), DataFusionError> {
    let urls: Result<Vec<_>, _> =
        table.files.iter().map(|file| ListingTableUrl::parse(file_url(file))).collect();
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension("");
    let config = ListingTableConfig::new_with_multi_paths(urls?).with_listing_options(options);
    let config = config.infer_schema(&session.state()).await?;
    let table_of_files = ListingTable::try_new(config)?;
    session.register_table(TableReference::bare(table.name.as_str()), Arc::new(table_of_files))?;
    Ok(())
}

/// A path as a URL, in which no sign is a pattern.
pub(crate) fn file_url(path: &Path) -> String {
    let mut url = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' | b'~' => url.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => url.push(char::from(*byte)),
            byte => url += &format!("%{byte:02X}"),
        }
    }
    url
}

/// Whether the rows of a plan are those of one table, filtered and computed one by one.
fn keeps_order(plan: &LogicalPlan) -> Result<bool, DataFusionError> {
    let mut keeps_order = true;
    datafusion::common::tree_node::TreeNode::apply(plan, |node| {
        keeps_order &= matches!(
            node,
            LogicalPlan::Projection(_)
                | LogicalPlan::Filter(_)
                | LogicalPlan::Limit(_)
                | LogicalPlan::SubqueryAlias(_)
                | LogicalPlan::TableScan(_)
        );
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(keeps_order)
}

/// The columns of a result, without names of tables in the names of expressions: `avg(x)` for `avg(data.x)`. A name that two
/// columns would have is not changed.
fn readable_names(schema: &Schema, tables: &[Table]) -> SchemaRef {
    let short: Vec<String> =
        schema.fields().iter().map(|field| without_tables(field.name(), tables)).collect();
    let fields = schema.fields().iter().zip(&short).map(|(field, name)| {
        let is_unique = short.iter().filter(|other| *other == name).count() == 1;
        let name = if is_unique { name } else { field.name() };
        Field::new(name, field.data_type().clone(), true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Checks that no two columns of a result have one name: readers of the output would see one of them.
fn check_names(schema: &Schema) -> Result<(), FileJobError> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let twice = names.iter().enumerate().find(|(place, name)| names[..*place].contains(name));
    twice.map_or(Ok(()), |(_, name)| {
        Err(FileJobError::Arguments(format!(
            "the result has several columns named {name:?}; name them apart, as in SELECT a.{name} AS {name}_of_a"
        )))
    })
}

fn without_tables(name: &str, tables: &[Table]) -> String {
    let mut short = name.to_owned();
    if !name.contains('(') && !name.contains(' ') {
        return short;
    }
    for table in tables {
        let prefix = format!("{}.", table.name);
        let mut from = 0;
        while let Some(found) = short[from..].find(&prefix) {
            let at = from + found;
            let is_inside = short[..at].ends_with(|c: char| c.is_alphanumeric() || "_.\"'".contains(c));
            if is_inside {
                from = at + prefix.len();
            } else {
                short.replace_range(at..at + prefix.len(), "");
                from = at;
            }
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_statement_that_reads_is_accepted() {
        for sql in ["SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "EXPLAIN SELECT 1", "SHOW TABLES"] {
            Query::parse(sql).unwrap();
        }
        for (sql, word) in [
            ("COPY t TO 'x.csv'", "COPY is not supported"),
            ("CREATE TABLE t AS SELECT 1", "CREATE is not supported"),
            ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'x'", "CREATE is not supported"),
            ("INSERT INTO t VALUES (1)", "INSERT is not supported"),
            ("SET datafusion.execution.batch_size = 1", "SET is not supported"),
            ("EXPLAIN COPY t TO 'x.csv'", "EXPLAIN is not supported"),
            ("DROP TABLE t", "DROP is not supported"),
            ("SELECT 1; SELECT 2", "one statement"),
            ("", "one statement"),
            ("SELEC 1", "the SQL is wrong"),
        ] {
            let message = Query::parse(sql).expect_err(sql).to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn expressions_are_named_without_their_table() {
        let tables = [Table { name: "data".to_owned(), files: Vec::new() }];
        for (name, short) in [
            ("avg(data.x)", "avg(x)"),
            ("data.x + olddata.y", "x + olddata.y"),
            ("data.x", "data.x"),
            ("count(*)", "count(*)"),
        ] {
            assert_eq!(without_tables(name, &tables), short);
        }
    }

    #[test]
    fn no_sign_of_a_path_is_a_pattern() {
        assert_eq!(file_url(Path::new("/a b/[x]*.parquet")), "file:///a%20b/%5Bx%5D%2A.parquet");
    }
}
