//! A client of the HTTP API of a running Wye, which shares no code with it. It blocks, as the tests do.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::runtime::{Builder, Runtime};

const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// A client of one running Wye.
#[derive(Debug)]
pub struct Api {
    url: String,
    client: reqwest::Client,
    runtime: Runtime,
}

/// The rows of an SQL answer, every cell as text; null is the empty text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The column names.
    pub columns: Vec<String>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

impl Api {
    /// A client for `http://address`. Sends nothing yet.
    ///
    /// # Errors
    /// When the client cannot be created.
    pub fn new(address: &str) -> Result<Self> {
        Self::with_patience(address, ANSWER_WITHIN)
    }

    /// [`Self::new`] with another limit on how long an answer may take.
    ///
    /// # Errors
    /// When the client cannot be created.
    pub fn with_patience(address: &str, patience: Duration) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("create a runtime")?;
        // A server that was stopped for a while closes idle connections when it runs again.
        let client = reqwest::Client::builder().timeout(patience).pool_max_idle_per_host(0).build();
        let client = client.context("create an HTTP client")?;
        Ok(Self { url: format!("http://{address}"), client, runtime })
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The rows of the answer of `POST /v1/sql`.
    ///
    /// # Errors
    /// When there is no answer, or it is an error or not CSV.
    pub fn sql(&self, query: &str) -> Result<Answer> {
        let body = serde_json::json!({ "sql": query });
        let request = self.post_json("/v1/sql", &body).header("Accept", "text/csv");
        let (status, text) = self.exchange(request).with_context(|| format!("query {query}"))?;
        ensure!(status.is_success(), "{query}: {status}: {text}");
        Answer::parse(&text).with_context(|| format!("read the answer to {query}"))
    }

    /// The rows of the answer of `POST /v1/sql`, with what the answer covers.
    ///
    /// # Errors
    /// When there is no answer, it is an error or not CSV, or does not say what it covers.
    pub fn sql_with_coverage(&self, query: &str) -> Result<CoveredAnswer> {
        let body = serde_json::json!({ "sql": query });
        let request = self.post_json("/v1/sql", &body).header("Accept", "text/csv");
        self.runtime.block_on(async {
            let response = request.send().await?.error_for_status()?;
            let complete = header(&response, "wye-complete")? == "true";
            let covered = header(&response, "wye-covered")?;
            let covered = parse_covered(&covered).with_context(|| format!("read {covered:?}"))?;
            Ok(CoveredAnswer { complete, covered, rows: Answer::parse(&response.text().await?)?.rows })
        })
    }

    /// The status and body of `GET path`.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let (status, text) = self.exchange(self.client.get(format!("{}{path}", self.url)))?;
        Ok((status.as_u16(), text))
    }

    /// The status and body of `POST path` with a JSON body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn post(&self, path: &str, body: &serde_json::Value) -> Result<(u16, String)> {
        let (status, text) = self.exchange(self.post_json(path, body))?;
        Ok((status.as_u16(), text))
    }

    /// The status and body of `POST path` with these bytes, which may have a content encoding.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn post_bytes(
        &self,
        path: &str,
        content_type: &str,
        encoding: Option<&str>,
        body: &[u8],
    ) -> Result<(u16, String)> {
        let mut request =
            self.client.post(format!("{}{path}", self.url)).header("Content-Type", content_type);
        if let Some(encoding) = encoding {
            request = request.header("Content-Encoding", encoding);
        }
        let (status, text) = self.exchange(request.body(body.to_vec()))?;
        Ok((status.as_u16(), text))
    }

    /// The status and body of `POST path` with a JSON body and an idempotency key.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn post_once(&self, path: &str, key: &str, body: &serde_json::Value) -> Result<(u16, String)> {
        let (status, text) = self.exchange(self.post_json(path, body).header("Idempotency-Key", key))?;
        Ok((status.as_u16(), text))
    }

    fn post_json(&self, path: &str, body: &serde_json::Value) -> reqwest::RequestBuilder {
        let request = self.client.post(format!("{}{path}", self.url));
        request.header("Content-Type", "application/json").body(body.to_string())
    }

    fn exchange(&self, request: reqwest::RequestBuilder) -> Result<(reqwest::StatusCode, String)> {
        self.runtime.block_on(async {
            let response = request.send().await?;
            Ok((response.status(), response.text().await?))
        })
    }
}

/// The rows of an SQL answer and what it covers.
#[derive(Clone, Debug)]
pub struct CoveredAnswer {
    /// Whether the answer says that it is complete.
    pub complete: bool,
    /// By Kafka partition, the offset up to which readings are in the answer.
    pub covered: BTreeMap<i32, i64>,
    /// The rows, every cell as text.
    pub rows: Vec<Vec<String>>,
}

/// The text of a header.
fn header(response: &reqwest::Response, name: &str) -> Result<String> {
    let value = response.headers().get(name).with_context(|| format!("no header {name}"))?;
    Ok(value.to_str()?.to_owned())
}

/// Reads `0:1234,2:99`, without Wye's code.
fn parse_covered(text: &str) -> Result<BTreeMap<i32, i64>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (kafka_partition, next) = part.split_once(':').context("no colon")?;
            Ok((kafka_partition.parse()?, next.parse()?))
        })
        .collect()
}

impl Answer {
    fn parse(csv: &str) -> Result<Self> {
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let columns = reader.headers()?.iter().map(str::to_owned).collect();
        let rows = reader
            .records()
            .map(|record| Ok(record?.iter().map(str::to_owned).collect()))
            .collect::<Result<_>>()?;
        Ok(Self { columns, rows })
    }

    /// The value of an answer of one row and one column.
    ///
    /// # Errors
    /// When it has another shape, or the cell is not a `T`.
    pub fn value<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self) -> Result<T> {
        let [row] = self.rows.as_slice() else { anyhow::bail!("{} rows, not one", self.rows.len()) };
        let [cell] = row.as_slice() else { anyhow::bail!("{} columns, not one", row.len()) };
        cell.parse().with_context(|| format!("read {cell:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_one_cell_is_a_value() -> Result<()> {
        assert_eq!(Answer::parse("n\n42\n")?.value::<i64>()?, 42);
        assert!(Answer::parse("n\n42\n43\n")?.value::<i64>().is_err());
        assert!(Answer::parse("a,b\n1,2\n")?.value::<i64>().is_err());
        Ok(())
    }
}
