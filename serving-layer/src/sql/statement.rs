//! Checks of a statement before it is planned: its size, how much work planning it is, and that it only reads. Must not
//! know which tables there are.
//!
//! A parsed statement is a tree, and the planner walks trees by recursion. A chain of operators makes the tree as deep as the
//! chain is long. So everything that makes a tree deep is counted in the tokens, before parsing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Query, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};
use wye_metrics::sql_messages::only_reads;

use crate::ServingError;

/// Bytes of a statement.
const BYTES: usize = 1 << 20;
/// Words, numbers, texts and symbols of a statement.
const TOKENS: usize = 300_000;
/// Operators of a statement.
const OPERATORS: usize = 3_000;
/// Operators in a row. Each makes the tree one level deeper, and the time to plan grows with the square of the depth.
const CHAIN: usize = 1_000;
/// Queries that a statement combines by UNION; the time to plan grows with their square too.
const SETS: usize = 300;
/// A query that is combined by INTERSECT or EXCEPT counts as so many, since it becomes a join.
const SET_JOIN: usize = 10;
/// Columns of a SELECT, GROUP BY or ORDER BY; the time to plan grows with their square.
const COLUMNS: usize = 2_000;
/// Levels of parentheses and brackets.
const NESTING: usize = 40;
/// Bytes of a name.
const NAME: usize = 4 << 10;
/// Bytes of a text in quotes.
const TEXT: usize = 64 << 10;
/// Tables and queries that a statement reads from. A name of a WITH counts as everything that its query reads from.
const TABLES: usize = 64;
/// Names in a WITH.
const NAMES: usize = 200;

/// Words that are operators.
const OPERATOR_WORDS: [&str; 13] =
    ["AND", "OR", "XOR", "NOT", "IS", "IN", "LIKE", "ILIKE", "SIMILAR", "BETWEEN", "CASE", "AT", "COLLATE"];
/// Words after which a new expression begins.
const BREAKS: [&str; 13] = [
    "SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "JOIN", "ON", "WHEN", "THEN", "ELSE",
    "VALUES",
];
/// Words other than UNION that combine queries.
const SET_JOINS: [&str; 3] = ["INTERSECT", "EXCEPT", "MINUS"];

/// Rejects a statement that is too large or too deep to plan.
///
/// # Errors
/// [`ServingError::Query`] with the limit.
pub(super) fn check_size(sql: &str) -> Result<(), ServingError> {
    if sql.len() > BYTES {
        return refuse(format!("the statement has {} bytes; the limit is {BYTES}", sql.len()));
    }
    // Where there are no tokens, the parser says why and where.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize() else { return Ok(()) };
    let mut count = Count::default();
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        count.add(token)?;
    }
    match count.tokens {
        tokens if tokens > TOKENS => {
            refuse(format!("the statement has {tokens} words and symbols; the limit is {TOKENS}"))
        }
        _ => Ok(()),
    }
}

/// What a statement has so far.
#[derive(Default)]
struct Count {
    tokens: usize,
    operators: usize,
    sets: usize,
    /// What each of the open parentheses has around the current one.
    outer: Vec<Level>,
    level: Level,
    after_value: bool,
}

/// What there is on one level of parentheses so far.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Operators in a row.
    chain: usize,
    /// Columns in a row; `None` where the items of a list are not columns.
    columns: Option<usize>,
}

impl Count {
    fn add(&mut self, token: &Token) -> Result<(), ServingError> {
        self.tokens += 1;
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                self.outer.push(std::mem::take(&mut self.level));
                if self.outer.len() > NESTING {
                    return refuse(format!(
                        "parentheses are nested deeper than {NESTING} levels; use WITH for the inner parts"
                    ));
                }
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                self.level = self.outer.pop().unwrap_or_default();
            }
            Token::Comma | Token::SemiColon => {
                self.level.chain = 0;
                if let Some(columns) = &mut self.level.columns {
                    *columns += 1;
                    if *columns >= COLUMNS {
                        return refuse(format!(
                            "a SELECT, GROUP BY or ORDER BY has more than {COLUMNS} columns"
                        ));
                    }
                }
            }
            Token::Number(..) | Token::Period | Token::Placeholder(_) => {}
            Token::Word(word) => self.add_word(word)?,
            // The sign of a number in a list does not make the tree deeper.
            Token::Minus | Token::Plus if !self.after_value => {}
            other => match text(other) {
                Some(text) if text.len() > TEXT => {
                    return refuse(format!("a text in quotes has {} bytes; the limit is {TEXT}", text.len()));
                }
                Some(_) => {}
                None => self.add_operator()?,
            },
        }
        self.after_value = !matches!(token, Token::Comma | Token::LParen | Token::LBracket);
        Ok(())
    }

    fn add_word(&mut self, word: &Word) -> Result<(), ServingError> {
        if word.value.len() > NAME {
            return refuse(format!(
                "a name in the statement has {} bytes; the limit is {NAME}",
                word.value.len()
            ));
        }
        if is_one_of(word, &OPERATOR_WORDS) {
            return self.add_operator();
        }
        if is_one_of(word, &BREAKS) {
            let has_columns = is_one_of(word, &["SELECT", "GROUP", "ORDER"]);
            self.level = Level { chain: 0, columns: has_columns.then_some(0) };
        }
        if is_one_of(word, &["UNION"]) {
            self.sets += 1;
        } else if is_one_of(word, &SET_JOINS) {
            self.sets += SET_JOIN;
        }
        if self.sets > SETS {
            return refuse(format!(
                "the statement combines too many queries: the limit is {SETS} by UNION, {} by INTERSECT and EXCEPT",
                SETS / SET_JOIN
            ));
        }
        Ok(())
    }

    fn add_operator(&mut self) -> Result<(), ServingError> {
        self.operators += 1;
        self.level.chain += 1;
        let hint = "a long list of values can be written as IN (...), which counts once";
        if self.level.chain > CHAIN {
            return refuse(format!("the statement has more than {CHAIN} operators in a row; {hint}"));
        }
        if self.operators > OPERATORS {
            return refuse(format!("the statement has more than {OPERATORS} operators; {hint}"));
        }
        Ok(())
    }
}

/// Rejects a statement that does not only read, or that reads from too many tables to plan.
///
/// # Errors
/// [`ServingError::Query`] with what is supported, or with the limit.
pub(super) fn check_kind(statement: &Statement, sql: &str) -> Result<(), ServingError> {
    if !reads(statement) {
        let word = sql.split_whitespace().next().unwrap_or_default();
        let word: String = word.chars().take(20).filter(|c| c.is_alphanumeric()).collect();
        return refuse(format!(
            "{} is not supported: SQL here only reads. Supported are SELECT, WITH, EXPLAIN, SHOW and DESCRIBE",
            word.to_uppercase()
        ));
    }
    let mut counter = TableCounter::default();
    let counted = match inner(statement) {
        Some(statement) => statement.visit(&mut counter),
        None => ControlFlow::Continue(()),
    };
    match counted {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => refuse(format!(
            "the statement reads from more than {TABLES} tables and queries (a name of a WITH counts as all tables that its \
             query reads from), or has more than {NAMES} names in a WITH"
        )),
    }
}

fn refuse(message: String) -> Result<(), ServingError> {
    Err(ServingError::Query { message })
}

/// Whether a word without quotes is one of some keywords.
fn is_one_of(word: &Word, keywords: &[&str]) -> bool {
    word.quote_style.is_none() && keywords.iter().any(|known| word.value.eq_ignore_ascii_case(known))
}

/// What is in quotes.
fn text(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text)
        | Token::DoubleQuotedString(text)
        | Token::TripleSingleQuotedString(text)
        | Token::TripleDoubleQuotedString(text)
        | Token::SingleQuotedByteStringLiteral(text)
        | Token::DoubleQuotedByteStringLiteral(text)
        | Token::TripleSingleQuotedByteStringLiteral(text)
        | Token::TripleDoubleQuotedByteStringLiteral(text)
        | Token::SingleQuotedRawStringLiteral(text)
        | Token::DoubleQuotedRawStringLiteral(text)
        | Token::TripleSingleQuotedRawStringLiteral(text)
        | Token::TripleDoubleQuotedRawStringLiteral(text)
        | Token::NationalStringLiteral(text)
        | Token::EscapedStringLiteral(text)
        | Token::UnicodeStringLiteral(text)
        | Token::HexStringLiteral(text) => Some(text),
        Token::DollarQuotedString(text) => Some(&text.value),
        _ => None,
    }
}

/// The SQL within a statement.
fn inner(statement: &Statement) -> Option<&ast::Statement> {
    match statement {
        Statement::Statement(statement) => Some(statement),
        Statement::Explain(explain) => inner(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => None,
    }
}

/// Whether a statement only reads, tables or settings.
fn reads(statement: &Statement) -> bool {
    use ast::Statement as Sql;
    only_reads(statement)
        || matches!(inner(statement), Some(Sql::ShowVariable { .. } | Sql::ShowVariables { .. }))
}

/// Counts the tables that a statement reads from after every name of a WITH is replaced by its query, as the planner does.
/// Where each query of a WITH names the query before twice, the number doubles with each.
#[derive(Default)]
struct TableCounter {
    /// The tables of each query that is being visited.
    open: Vec<usize>,
    /// The names of a WITH by the address of their query.
    pending: HashMap<*const Query, String>,
    /// How many tables a name of a WITH counts as.
    known: HashMap<String, usize>,
    names: usize,
    all: usize,
}

impl Visitor for TableCounter {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.pending.insert(&raw const *cte.query, cte.alias.name.value.to_lowercase());
        }
        self.open.push(0);
        self.names += query.with.as_ref().map_or(0, |with| with.cte_tables.len());
        if self.names > NAMES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let tables = match factor {
            TableFactor::Table { name, .. } => {
                let name = name.to_string().to_lowercase();
                self.known.get(name.trim_matches('"')).copied().unwrap_or(1)
            }
            // A subquery counts in addition to its own tables.
            _ => 1,
        };
        match self.open.last_mut() {
            Some(open) => *open += tables,
            None => self.all += tables,
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let tables = self.open.pop().unwrap_or_default();
        if let Some(name) = self.pending.remove(&(&raw const *query)) {
            self.known.insert(name, tables + 1);
        } else if let Some(outer) = self.open.last_mut() {
            *outer += tables;
        } else {
            self.all += tables;
        }
        if tables > TABLES || self.all > TABLES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sql: &str) -> String {
        check_size(sql).expect_err(sql).to_string()
    }

    #[test]
    fn a_statement_that_is_too_large_is_rejected_with_the_limit() {
        assert!(refused(&format!("SELECT 1{}", "+1".repeat(5_000))).contains("operators"));
        assert!(refused(&vec!["SELECT 1"; 5_000].join(" UNION ALL ")).contains("UNION"));
        assert!(refused(&vec!["SELECT 1"; 40].join(" EXCEPT ")).contains("EXCEPT"));
        assert!(refused(&format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))).contains("nested"));
        assert!(refused(&format!("SELECT {}", "a".repeat(1_000_000))).contains("name"));
        assert!(refused(&format!("SELECT '{}'", "a".repeat(100_000))).contains("text"));
        assert!(refused(&format!("SELECT {}1", "1,".repeat(400_000))).contains("columns"));
        assert!(refused(&format!("SELECT 1 IN ({}1)", "1,".repeat(400_000))).contains("words and symbols"));
        assert!(refused(&" ".repeat(2 << 20)).contains("bytes"));
    }

    #[test]
    fn a_long_list_counts_once() {
        let list: Vec<String> = (0..50_000).map(|n| format!("-{n}")).collect();
        check_size(&format!("SELECT 1 WHERE 2 IN ({})", list.join(","))).unwrap();
    }

    fn parse(sql: &str) -> Statement {
        datafusion::sql::parser::DFParser::parse_sql(sql).unwrap().pop_front().unwrap()
    }

    #[test]
    fn tables_of_a_with_are_counted_as_often_as_they_are_read() {
        let mut doubling = "WITH t0 AS (SELECT 1 AS x)".to_owned();
        for n in 1..30 {
            doubling += &format!(", t{n} AS (SELECT a.x FROM t{} a, t{} b)", n - 1, n - 1);
        }
        let doubling = format!("{doubling} SELECT * FROM t29");
        assert!(check_kind(&parse(&doubling), &doubling).unwrap_err().to_string().contains("tables"));
        let few =
            "WITH a AS (SELECT * FROM t), b AS (SELECT * FROM a, a a2) SELECT * FROM b, (SELECT * FROM b) c";
        check_kind(&parse(few), few).unwrap();
        for refused in ["INSERT INTO t VALUES (1)", "COPY t TO 'x'", "SET a = 1", "DROP TABLE t"] {
            let message = check_kind(&parse(refused), refused).unwrap_err().to_string();
            assert!(message.contains("only reads"), "{message}");
        }
    }
}
