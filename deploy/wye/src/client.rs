//! Finds a running Wye, and sends requests to it over HTTP.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::{Response, StatusCode};
use wye_domain::first_cause;
use wye_domain::time::{Micros, parse_rfc3339};
use wye_runtime::http_error::ErrorBody;

use crate::cli::Target;

/// The file in the data directory with the address of the API.
pub(crate) const ADDRESS_FILE: &str = "http.addr";

/// A failure that a retry may not have. It is one of the causes of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TryAgain(pub String);

/// Arguments that cannot work. It is one of the causes of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misused(pub String);

/// A running Wye.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    /// Finds the Wye that the command line names.
    ///
    /// # Errors
    /// When there is none; the message says how to start one, or how to name one.
    pub(crate) fn find(target: &Target) -> Result<Self> {
        match &target.url {
            Some(url) => Self::at_url(url),
            None => Self::in_data_dir(&target.data_dir),
        }
    }

    /// The Wye that is running on a data directory.
    ///
    /// # Errors
    /// As [`Client::find`].
    pub(crate) fn in_data_dir(data_dir: &Path) -> Result<Self> {
        Self::at_url(&address_in(data_dir)?)
    }

    /// The Wye at a URL.
    ///
    /// # Errors
    /// [`Misused`] when it is not a URL of HTTP.
    pub(crate) fn at_url(url: &str) -> Result<Self> {
        let base = url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            bail!(Misused(format!(
                "{base:?} is not the URL of a Wye; write for example --url http://127.0.0.1:8080"
            )));
        }
        let http = reqwest::Client::builder().no_proxy().build().context("cannot set up the HTTP client")?;
        Ok(Self { base, http })
    }

    /// A client of the Wye at an address.
    pub(crate) fn at(address: std::net::SocketAddr) -> Result<Self> {
        Self::at_url(&format!("http://{address}"))
    }

    /// Sends a request with a body, and returns the answer, whatever its status is.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Response> {
        let mut request = self.http.post(format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    /// Requests a path with parameters, and returns the answer, whatever its status is.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Response> {
        let mut url =
            reqwest::Url::parse(&format!("{}{path}", self.base)).context("the URL of Wye is invalid")?;
        url.query_pairs_mut().extend_pairs(parameters);
        self.http.get(url).send().await.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let cause = first_cause(error);
        anyhow!(TryAgain(format!("cannot reach Wye at {}: {cause}; start it with `wye up`", self.base)))
    }
}

fn address_in(data_dir: &Path) -> Result<String> {
    let path = data_dir.join(ADDRESS_FILE);
    match std::fs::read_to_string(&path) {
        Ok(address) => Ok(format!("http://{}", address.trim())),
        Err(_) => Err(anyhow!(TryAgain(format!(
            "no Wye is running on the data directory {}; start it with `wye up --data-dir {}`, or select another with \
             --data-dir or --url",
            data_dir.display(),
            data_dir.display()
        )))),
    }
}

/// The body of a successful answer.
///
/// # Errors
/// For other answers, with the message of the server; [`TryAgain`] for conflicts, and where a part does not answer.
pub(crate) async fn body_of(response: Response) -> Result<Vec<u8>> {
    let status = response.status();
    let body = response.bytes().await.context("the connection was lost during the answer")?;
    if status.is_success() {
        return Ok(body.into());
    }
    let message = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(error) => error.message,
        Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body)),
    };
    match status {
        StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Err(anyhow!(TryAgain(message)))
        }
        _ => Err(anyhow!(message)),
    }
}

/// The time of an option.
///
/// # Errors
/// When it is none.
pub(crate) fn time(option: &str, text: &str) -> Result<Micros, Misused> {
    parse_rfc3339(text).map_err(|_| {
        Misused(format!("{option} {text:?} is not a time; write for example 2026-01-31T12:00:00Z"))
    })
}
