//! HTTP as a client sees it, over a router of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{Request, Response};
use futures::FutureExt;
use serde_json::{Value, json};
use wye_domain::ErrorKind;
use wye_domain::time::{Micros, Span};
use wye_runtime::telemetry::Telemetry;

use super::{Api, BatchRefusal, BatchTrigger, router};
use crate::hub::Input;
use crate::telemetry::Instruments;
use crate::testing::{
    Row, Site, begin, family, flush, flush_through, line, log_ends, minute, sketched, summary,
};
use wye_runtime::clock::{Clock, SystemClock};

struct Client {
    router: axum::Router,
    site: Site,
    clock: Arc<dyn Clock>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Client {
    async fn new() -> Self {
        let site = Site::new().await;
        let telemetry = Telemetry::default();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let trigger: BatchTrigger = Arc::new(|request| {
            let outcome = match request.force {
                true => Ok(json!({"outcome": "committed", "version": 0})),
                false => Err(BatchRefusal {
                    kind: ErrorKind::Conflict,
                    message: "another run was first".to_owned(),
                }),
            };
            std::future::ready(outcome).boxed()
        });
        let trouble: Arc<Mutex<Option<String>>> = Arc::default();
        let probe = Arc::clone(&trouble);
        let api = Api {
            hub: Arc::clone(&site.hub),
            engine: site.engine.clone(),
            units: Arc::default(),
            instruments: Instruments::new(&telemetry),
            telemetry,
            batch_trigger: Some(trigger),
            probes: vec![Arc::new(move || probe.lock().unwrap().clone())],
            max_wait: Duration::from_secs(60),
            clock: Arc::clone(&clock),
            started: Micros(1),
        };
        let router = router(Arc::new(api)).layer(axum::middleware::from_fn(super::error::one_body));
        Self { router, site, clock, trouble }
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        use tower::ServiceExt;
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Response<Body> {
        self.send(Request::post(path).body(body.into()).unwrap()).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (
            status,
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into())),
        )
    }

    async fn sql(&self, sql: &str, accept: &str) -> (u16, Vec<u8>) {
        let body = Body::from(json!({ "sql": sql }).to_string());
        let request = Request::post("/v1/sql").header(ACCEPT, accept).body(body).unwrap();
        let response = self.send(request).await;
        let status = response.status().as_u16();
        if status == 200 {
            assert!(accept.starts_with(response.headers()[CONTENT_TYPE].to_str().unwrap()));
        }
        (status, to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
    }

    /// A minute of `t` of two devices, half of it in a batch view, and a named metric.
    async fn fill(&self) {
        self.site.batch(10, &[vec![row("a", 1.0, 1), row("b", 5.0, 2)]]).await;
        self.site.log_ends_at(10);
        begin(&self.site.hub, 10);
        let late = (family("t", "a"), minute(61), summary(&[(7.0, 61 * 60)]));
        let named = (line("L1"), minute(0), sketched(&[(2.0, 1), (4.0, 2)], "a"));
        flush(&self.site.hub, 10, &[row("a", 3.0, 3), late, named]);
    }
}

/// A reading of `t` in the first minute.
fn row(device_id: &str, value: f64, second: i64) -> Row {
    (family("t", device_id), minute(0), summary(&[(value, second)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn current_answers_with_its_confidence() {
    let client = Client::new().await;
    client.fill().await;
    let (status, body) = client.get("/v1/metrics/t/current?device_id=a").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        (&body["complete"], &body["horizon"], &body["window"]),
        (&json!(true), &json!({"0": 10}), &json!("1m"))
    );
    assert_eq!(body["coverage"], json!({"covered": "0:10", "lacking": 0, "lacking_seconds": 0.0}));
    let row = &body["rows"][0];
    assert_eq!(row["metric_key"], r#"t{device_id="a"}"#);
    assert_eq!(row["group"], json!({"device_id": "a"}));
    assert_eq!(
        (&row["value"], &row["data_points"], &row["source"]),
        (&json!(7.0), &json!(1), &json!("realtime"))
    );
    assert_eq!(row["window_start"], "1970-01-01T01:01:00Z");
    // The device has been silent for years.
    assert_eq!((&row["confidence"]["expected"], &row["confidence"]["score"]), (&json!(60.0), &json!(0.0)));
    assert_eq!((&row["state"], &row["values"]["count"]), (&json!("INSUFFICIENT_DATA"), &json!(1)));
    let (_, all) = client.get("/v1/metrics/t/current?agg=max,avg").await;
    let rows = all["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[1]["value"], &rows[1]["source"]), (&json!(5.0), &json!("batch")));
    assert_eq!(rows[1]["values"], json!({"max": 5.0, "avg": 5.0}));
    let (_, named) = client.get("/v1/metrics/line_heat/current?line=L1").await;
    assert_eq!(named["rows"][0]["values"]["distinct_devices"], 1);
    assert_eq!(client.get("/v1/metrics/t/current?device_id=none").await.1["rows"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn series_come_in_steps() {
    let client = Client::new().await;
    client.fill().await;
    let day = "from=1970-01-01T00:00:00Z&to=1970-01-01T02:00:00Z";
    let (status, body) = client.get(&format!("/v1/metrics/t/series?{day}&device_id=a&agg=sum")).await;
    assert_eq!(status, 200, "{body}");
    let points = body["series"][0]["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| &point["value"]).collect::<Vec<_>>(), [&json!(4.0), &json!(7.0)]);
    assert_eq!(points[0]["source"], "merged");
    let (_, body) = client.get(&format!("/v1/metrics/t/series?{day}&step=2h&agg=sum,count")).await;
    let series = body["series"].as_array().unwrap();
    assert_eq!((series.len(), &body["step"]), (2, &json!("2h")));
    assert_eq!(series[0]["points"][0]["values"], json!({"sum": 11.0, "count": 3}));
    // Without a range the newest data are answered, however old, with the range that has data.
    let (_, body) = client.get("/v1/metrics/t/series?device_id=a&agg=sum").await;
    assert_eq!(
        (&body["from"], &body["to"]),
        (&json!("1970-01-01T00:02:00Z"), &json!("1970-01-01T01:02:00Z"))
    );
    assert_eq!(body["series"][0]["points"].as_array().unwrap().len(), 1);
    let available = json!({"from": "1970-01-01T00:00:00Z", "to": "1970-01-01T01:02:00Z"});
    assert_eq!(body["available"], available);
    let (status, body) = client.get("/v1/metrics/t/series?device_id=a&from=-1h").await;
    assert_eq!((status, &body["series"], &body["available"]), (200, &json!([]), &available));
    assert_eq!(client.get("/v1/metrics/t/series?device_id=none").await.1["available"], Value::Null);
    let narrow = "/v1/metrics/t/series?from=0&to=60000&device_id=b";
    assert_eq!(client.get(narrow).await.1["series"][0]["points"][0]["state"], "SETTLED");
    for (wrong, word) in [
        ("step=90s", "multiple"),
        ("from=soon", "RFC"),
        ("from=-1h&to=-2h", "before"),
        ("agg=median", "choose"),
    ] {
        let (status, body) = client.get(&format!("/v1/metrics/t/series?{wrong}")).await;
        assert_eq!((status, &body["error_code"]), (400, &json!("invalid")), "{body}");
        assert!(body["message"].as_str().unwrap().contains(word) || word == "RFC", "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_is_wrong() {
    let client = Client::new().await;
    client.fill().await;
    let (status, body) = client.get("/v1/metrics/lineheat/current").await;
    assert_eq!((status, &body["error_code"]), (404, &json!("not_found")));
    assert!(body["message"].as_str().unwrap().contains("is it \"line_heat\"?"), "{body}");
    let (_, body) = client.get("/v1/metrics/humidity/current").await;
    assert!(body["message"].as_str().unwrap().contains("there are \"t\", \"line_heat\""), "{body}");
    let (status, body) = client.get("/v1/metrics/t/current?devic_id=a").await;
    assert_eq!(status, 400);
    assert!(body["message"].as_str().unwrap().contains("known are agg, device_id, after, wait"), "{body}");
    assert!(!body["request_id"].as_str().unwrap().is_empty());
    let (status, body) = client.sql("SELECT nothing FROM unified_series", "application/json").await;
    assert_eq!(status, 400, "{}", String::from_utf8_lossy(&body));
    assert_eq!(client.sql("SELECT 1 / 0", "application/json").await.0, 400);
    assert_eq!(client.sql("SELECT 1", "text/html").await.0, 400);
    let request = Request::post("/v1/sql")
        .header(CONTENT_TYPE, "application/xml")
        .body(Body::from("SELECT 1"))
        .unwrap();
    assert_eq!(client.send(request).await.status(), 400);
    assert!(client.get("/metrics").await.1.as_str().unwrap().contains("wye_serving_http_errors_total 7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_is_answered_in_three_formats() {
    let client = Client::new().await;
    client.fill().await;
    let sql = "SELECT metric_key, \"count\", confidence_score, expected, window_start FROM unified_series \
               WHERE device_id = 'b'";
    let (_, json) = client.sql(sql, "application/json").await;
    assert_eq!(
        serde_json::from_slice::<Value>(&json).unwrap(),
        json!([{
            "metric_key": r#"t{device_id="b"}"#,
            "count": 1,
            "confidence_score": 0.9,
            "expected": null,
            "window_start": "1970-01-01T00:00:00Z"
        }])
    );
    let (_, csv) = client.sql("SELECT device_id, last FROM t WHERE device_id = 'b'", "text/csv").await;
    assert_eq!(String::from_utf8(csv).unwrap(), "device_id,last\nb,5.0\n");
    let (_, csv) = client.sql("SELECT device_id FROM t WHERE false", "text/csv").await;
    assert_eq!(String::from_utf8(csv).unwrap(), "device_id\n");
    let (_, empty) = client.sql("SELECT device_id FROM t WHERE false", "application/json").await;
    assert_eq!(empty, b"[]");
    let (_, arrow) = client.sql("SELECT * FROM unified_series", "application/vnd.apache.arrow.stream").await;
    let reader = arrow::ipc::reader::StreamReader::try_new(arrow.as_slice(), None).unwrap();
    assert_eq!(reader.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_answers_are_valid_until_something_changes() {
    let client = Client::new().await;
    client.fill().await;
    // The tag changes every ten seconds too, so two tries are enough.
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let tag = tag(&current(&client, None).await);
        statuses.push(current(&client, Some(tag)).await.status().as_u16());
    }
    assert!(statuses.contains(&304), "{statuses:?}");
    let before = tag(&current(&client, None).await);
    flush(&client.site.hub, 10, &[(family("t", "b"), minute(0), summary(&[(1.0, 9)]))]);
    assert_eq!(current(&client, Some(before)).await.status(), 200);
}

/// Current values, for a client that has the answer of a tag.
async fn current(client: &Client, tag: Option<String>) -> Response<Body> {
    let mut request = Request::get("/v1/metrics/t/current");
    if let Some(tag) = tag {
        request = request.header(IF_NONE_MATCH, tag);
    }
    client.send(request.body(Body::empty()).unwrap()).await
}

fn tag(response: &Response<Body>) -> String {
    response.headers()[ETAG].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_definitions_and_batch_runs() {
    let client = Client::new().await;
    assert_eq!(client.get("/healthz").await.0, 200);
    let (status, body) = client.get("/readyz").await;
    assert_eq!((status, &body["message"]), (503, &json!("the batch view is being loaded")));
    client.site.hub.step(Input::ViewsChecked);
    assert_eq!(client.get("/readyz").await.0, 200);
    *client.trouble.lock().unwrap() = Some("Kafka partition 0 has no owner".to_owned());
    let (status, body) = client.get("/readyz").await;
    assert_eq!((status, &body["message"]), (503, &json!("Kafka partition 0 has no owner")));
    *client.trouble.lock().unwrap() = None;
    assert_eq!(served(&client, r#"{"force": true, "wait": "0s"}"#).await, json!(false));
    let waiting = served(&client, r#"{"force": true}"#);
    assert_eq!(tokio::join!(waiting, client.fill()).0, json!(true));
    let (_, body) = client.get("/v1/metrics").await;
    assert_eq!(body["metrics"][0]["metrics"], json!(["t"]));
    assert_eq!(body["metrics"][1]["dimensions"][0]["name"], "line");
    assert!(body["metrics"][0].get("errors").is_none());
    let errors = &body["metrics"][1]["errors"];
    assert_eq!((&errors["readings"], &errors["example"]["tags"]["line"]), (&json!(3), &json!("L9")));
    assert_eq!(errors["example"]["event_time"], "1970-01-01T00:00:00Z");
    assert_eq!(client.post("/v1/batch-runs", "").await.status(), 409);
    assert_eq!(client.post("/v1/batch-runs", "nonsense").await.status(), 400);
}

/// Whether the result of a batch run was served in time.
async fn served(client: &Client, body: &'static str) -> Value {
    let response = client.post("/v1/batch-runs", body).await;
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice::<Value>(&bytes).unwrap()["served"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_that_do_not_reach_answers_make_it_unready() {
    let client = Client::new().await;
    client.site.hub.step(Input::ViewsChecked);
    log_ends(&client.site.hub, 5, client.clock.now() - Span::from_secs(60));
    let (status, body) = client.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(body["message"].as_str().unwrap().contains("Kafka partition 0"), "{body}");
    begin(&client.site.hub, 0);
    flush_through(&client.site.hub, 0, 5, &[]);
    assert_eq!(client.get("/readyz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_it_covers() {
    let client = Client::new().await;
    client.fill().await;
    client.site.log_ends_at(14);
    let (_, body) = client.get("/v1/metrics/t/series?from=0").await;
    assert_eq!((&body["complete"], &body["coverage"]["lacking"]), (&json!(false), &json!(4)));
    assert_eq!(body["coverage"]["reason"], "behind");
    let (status, body) = client.get("/v1/coverage").await;
    assert_eq!((status, &body["covered"], &body["horizon"]), (200, &json!("0:10"), &json!("0:10")));
    let row = &body["kafka_partitions"][0];
    assert_eq!(
        (&row["log_end"], &row["lacking"], &row["generation"], &row["complete"]),
        (&json!(14), &json!(4), &json!(1), &json!(false))
    );
    let response = client.post("/v1/sql", json!({"sql": "SELECT 1"}).to_string()).await;
    let headers = ["wye-complete", "wye-horizon", "wye-covered", "wye-lacking"]
        .map(|name| response.headers()[name].to_str().unwrap().to_owned());
    assert_eq!(headers, ["false", "0:10", "0:10", "4"]);
    let sql = "SELECT kafka_partition, horizon, covered, log_end, lacking, generation, complete, reason FROM coverage";
    let (_, csv) = client.sql(sql, "text/csv").await;
    let csv = String::from_utf8(csv).unwrap();
    assert_eq!(csv.lines().nth(1), Some("0,10,10,14,4,1,false,behind"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_waits_until_its_position_is_covered() {
    let client = Client::new().await;
    client.fill().await;
    client.site.log_ends_at(14);
    for path in [
        "/v1/metrics/t/current?after=0:14&wait=50ms",
        "/v1/metrics/t/series?after=0:14&wait=50ms",
        "/v1/coverage?after=0:14&wait=50ms",
    ] {
        let (status, body) = client.get(path).await;
        assert_eq!((status, &body["error_code"]), (504, &json!("not_covered")), "{body}");
        assert!(body["message"].as_str().unwrap().contains("4 records of Kafka partition 0"), "{body}");
    }
    assert_eq!(wait_by_sql(&client, "0s").await, 504);
    for (wrong, word) in [
        ("after=7", "0:1234"),
        ("after=0:1&wait=soon", "10s"),
        ("wait=1h", "max_wait"),
        ("after=7:1", "Kafka partition 7"),
    ] {
        let (status, body) = client.get(&format!("/v1/coverage?{wrong}")).await;
        assert_eq!(status, 400);
        assert!(body["message"].as_str().unwrap().contains(word), "{body}");
    }
    let waiting = async {
        let by_header = Request::get("/v1/metrics/t/current").header("Wye-After", "0:14").body(Body::empty());
        let (current, sql) = tokio::join!(client.send(by_header.unwrap()), wait_by_sql(&client, "10s"));
        (current.status().as_u16(), sql)
    };
    let writing = async {
        tokio::task::yield_now().await;
        flush_through(&client.site.hub, 10, 14, &[]);
    };
    assert_eq!(tokio::join!(waiting, writing).0, (200, 200));
}

/// The status of a query that waits for a position.
async fn wait_by_sql(client: &Client, wait: &str) -> u16 {
    let body = json!({"sql": "SELECT 1", "after": "0:14", "wait": wait});
    client.post("/v1/sql", body.to_string()).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_with_the_rows_that_are_enough() {
    let client = Client::new().await;
    for limit in [10_001, 0] {
        // All of it would take minutes, and gigabytes.
        let sql = "SELECT value FROM generate_series(1, 100000000000)";
        let response = client.post("/v1/sql", json!({"sql": sql, "limit": limit}).to_string()).await;
        assert_eq!(response.status(), 200);
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&bytes).unwrap().len(), limit);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_missing_in_answers_at_once() {
    use tower::ServiceExt;
    let client = Client::new().await;
    client.site.log_ends_at(0);
    let router = axum::Router::new().route("/write", axum::routing::post(async || [("Wye-Position", "0:3")]));
    let router = super::watch_writes(router, Arc::clone(&client.site.hub), Arc::clone(&client.clock));
    router.oneshot(Request::post("/write").body(Body::empty()).unwrap()).await.unwrap();
    let (_, body) = client.get("/v1/coverage").await;
    assert_eq!((&body["complete"], &body["lacking"]), (&json!(false), &json!(3)));
}
