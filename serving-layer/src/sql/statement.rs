//! What a statement may be, before anything is planned: its size, how much there is in it to plan, and that it only
//! reads. It knows no tables.
//!
//! A parsed statement is a tree, and the planner walks trees by recursion: a long chain of operators is as deep as it is
//! long. So everything that makes a tree deep is counted, on the tokens and before parsing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Query, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};

use crate::ServingError;

/// Bytes of a statement.
pub(super) const BYTES: usize = 1 << 20;
/// Words, numbers, texts and signs of a statement.
const TOKENS: usize = 300_000;
/// Operators of a statement.
const OPERATORS: usize = 3_000;
/// Operators in a row: each makes the tree one deeper, and planning takes the square of that.
const CHAIN: usize = 1_000;
/// Queries that a statement puts together by UNION: the same.
const SETS: usize = 300;
/// By INTERSECT or EXCEPT each counts as so many, since it is a join.
const SET_JOIN: usize = 10;
/// Columns of a SELECT, GROUP BY or ORDER BY: planning takes the square of them.
const COLUMNS: usize = 2_000;
/// Parentheses and brackets within each other.
const NESTING: usize = 40;
/// Bytes of a name.
const NAME: usize = 4 << 10;
/// Bytes of a text between quotes.
const TEXT: usize = 64 << 10;
/// Tables and queries that a statement reads from, where a name of a WITH counts as all that it reads from.
const TABLES: usize = 64;
/// Names of a WITH.
const NAMES: usize = 200;

/// Words that are operators.
const OPERATOR_WORDS: [&str; 13] =
    ["AND", "OR", "XOR", "NOT", "IS", "IN", "LIKE", "ILIKE", "SIMILAR", "BETWEEN", "CASE", "AT", "COLLATE"];
/// Words after which another expression begins.
const BREAKS: [&str; 13] = [
    "SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "JOIN", "ON", "WHEN", "THEN", "ELSE",
    "VALUES",
];
/// Words other than UNION that put queries together.
const SET_JOINS: [&str; 3] = ["INTERSECT", "EXCEPT", "MINUS"];

/// Refuses a statement that is too large or too deep to plan.
///
/// # Errors
/// [`ServingError::Query`] naming the bound.
pub(super) fn check_size(sql: &str) -> Result<(), ServingError> {
    if sql.len() > BYTES {
        return refuse(format!("the statement has {} bytes; at most {BYTES} are read", sql.len()));
    }
    // What cannot be cut into tokens is refused by the parser, with its place.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize() else { return Ok(()) };
    let mut count = Count::default();
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        count.add(token)?;
    }
    match count.tokens {
        tokens if tokens > TOKENS => {
            refuse(format!("the statement has {tokens} words and signs; at most {TOKENS} are planned"))
        }
        _ => Ok(()),
    }
}

/// What there is in a statement so far.
#[derive(Default)]
struct Count {
    tokens: usize,
    operators: usize,
    sets: usize,
    /// What there is in each of the parentheses that are open, and now.
    outer: Vec<Level>,
    level: Level,
    after_value: bool,
}

/// What there is between two parentheses so far.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Operators in a row.
    chain: usize,
    /// Columns in a row; `None` where items are no columns.
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
            // The sign of a number in a list makes nothing deeper.
            Token::Minus | Token::Plus if !self.after_value => {}
            other => match text(other) {
                Some(text) if text.len() > TEXT => {
                    return refuse(format!(
                        "a text of the statement has {} bytes; at most {TEXT} are read",
                        text.len()
                    ));
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
                "a name of the statement has {} bytes; at most {NAME} are read",
                word.value.len()
            ));
        }
        let among = |words: &[&str]| {
            word.quote_style.is_none() && words.iter().any(|known| word.value.eq_ignore_ascii_case(known))
        };
        if among(&OPERATOR_WORDS) {
            return self.add_operator();
        }
        if among(&BREAKS) {
            self.level = Level { chain: 0, columns: among(&["SELECT", "GROUP", "ORDER"]).then_some(0) };
        }
        self.sets += usize::from(among(&["UNION"])) + SET_JOIN * usize::from(among(&SET_JOINS));
        match self.sets > SETS {
            true => refuse(format!(
                "the statement puts too many queries together: at most {SETS} by UNION, {} by INTERSECT and EXCEPT",
                SETS / SET_JOIN
            )),
            false => Ok(()),
        }
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

/// Refuses a statement that does something else than read, or that reads more tables than can be planned.
///
/// # Errors
/// [`ServingError::Query`] saying what is answered.
pub(super) fn check_kind(statement: &Statement, sql: &str) -> Result<(), ServingError> {
    if !reads(statement) {
        let word = sql.split_whitespace().next().unwrap_or_default();
        let word: String = word.chars().take(20).filter(|c| c.is_alphanumeric()).collect();
        return refuse(format!(
            "{} is refused: SQL here only reads. SELECT, WITH, EXPLAIN, SHOW and DESCRIBE are answered",
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
            "the statement reads from more than {TABLES} tables and queries, where a name of a WITH counts as all that it reads \
             from, or has more than {NAMES} names in a WITH"
        )),
    }
}

fn refuse(message: String) -> Result<(), ServingError> {
    Err(ServingError::Query { message })
}

/// What is between quotes.
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
pub(super) fn inner(statement: &Statement) -> Option<&ast::Statement> {
    match statement {
        Statement::Statement(statement) => Some(statement),
        Statement::Explain(explain) => inner(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => None,
    }
}

fn reads(statement: &Statement) -> bool {
    use ast::Statement as Sql;
    let Some(statement) = inner(statement) else { return false };
    matches!(
        statement,
        Sql::Query(_)
            | Sql::Explain { .. }
            | Sql::ExplainTable { .. }
            | Sql::ShowTables { .. }
            | Sql::ShowColumns { .. }
            | Sql::ShowFunctions { .. }
            | Sql::ShowVariable { .. }
            | Sql::ShowVariables { .. }
    )
}

/// Counts the tables that a statement reads once every name of a WITH is replaced by its query, as the planner does: a
/// WITH whose queries each name the last one twice doubles with each.
#[derive(Default)]
struct TableCounter {
    /// The tables of each query that is being visited.
    open: Vec<usize>,
    /// The names of a WITH by the address of their query.
    pending: HashMap<*const Query, String>,
    /// What a name of a WITH counts as.
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
            // A query within counts beside its own tables.
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
    fn what_is_too_large_is_refused_with_its_bound() {
        assert!(refused(&format!("SELECT 1{}", "+1".repeat(5_000))).contains("operators"));
        assert!(refused(&vec!["SELECT 1"; 5_000].join(" UNION ALL ")).contains("UNION"));
        assert!(refused(&vec!["SELECT 1"; 40].join(" EXCEPT ")).contains("EXCEPT"));
        assert!(refused(&format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))).contains("nested"));
        assert!(refused(&format!("SELECT {}", "a".repeat(1_000_000))).contains("name"));
        assert!(refused(&format!("SELECT '{}'", "a".repeat(100_000))).contains("text"));
        assert!(refused(&format!("SELECT {}1", "1,".repeat(400_000))).contains("columns"));
        assert!(refused(&format!("SELECT 1 IN ({}1)", "1,".repeat(400_000))).contains("words and signs"));
        assert!(refused(&" ".repeat(2 << 20)).contains("bytes"));
    }

    #[test]
    fn a_long_list_counts_once() {
        let list: Vec<String> = (0..50_000).map(|n| format!("-{n}")).collect();
        check_size(&format!("SELECT 1 WHERE 2 IN ({})", list.join(","))).unwrap();
    }

    #[test]
    fn tables_of_a_with_are_counted_as_often_as_they_are_read() {
        let parse =
            |sql: &str| datafusion::sql::parser::DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
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
