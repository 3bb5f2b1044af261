//! Hostile and slow clients on real sockets.

#![expect(clippy::disallowed_methods, reason = "tests wait in real time")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::Value;

use super::*;
use wye_runtime::clock::SystemClock;

const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: ServerLimits = ServerLimits {
    max_connections: 64,
    idle_timeout: Duration::from_secs(60),
    stall_timeout: Duration::from_secs(60),
    max_body: 100_000,
    max_bodies: 250 * 1024,
};

/// Keeps `/wait` from answering.
struct Door {
    waiting: AtomicUsize,
    open: Semaphore,
}

struct Running {
    address: SocketAddr,
    door: Arc<Door>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

async fn server(limits: ServerLimits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let door = Arc::new(Door { waiting: AtomicUsize::new(0), open: Semaphore::new(0) });
    let router = Router::new()
        .route("/ok", get(|| async { "ok" }))
        .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/wait", get(wait).post(wait_with_body))
        .route("/large", get(|| async { vec![7_u8; 64 << 20] }))
        .route("/panic", get(panics))
        .fallback(error::not_found)
        .with_state(Arc::clone(&door));
    let mut tasks = JoinSet::new();
    let server = Server { listener, router, limits, clock: Arc::new(SystemClock::default()) };
    tasks.spawn(serve(server, shutdown.clone()));
    Running { address, door, tasks, shutdown }
}

async fn wait(State(door): State<Arc<Door>>) -> &'static str {
    door.pass().await;
    "opened"
}

async fn wait_with_body(State(door): State<Arc<Door>>, body: Bytes) -> String {
    door.pass().await;
    body.len().to_string()
}

impl Door {
    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
    }

    /// Waits until so many requests wait at the door.
    async fn has(&self, requests: usize) {
        let begin = Instant::now();
        while self.waiting.load(Ordering::SeqCst) < requests {
            assert!(begin.elapsed() < PATIENCE);
            tokio::task::yield_now().await;
        }
    }
}

async fn panics() -> &'static str {
    panic!("on purpose")
}

impl Running {
    async fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Sends bytes on a connection of their own; status, head and body of the answer.
    async fn ask(&self, bytes: &[u8]) -> (u16, String, String) {
        answer(self.connect(bytes).await).await
    }

    async fn post(&self, headers: &str, body: &[u8]) -> (u16, String, String) {
        let head = format!(
            "POST /length HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        self.ask(&[head.as_bytes(), body].concat()).await
    }

    async fn is_fine(&self) {
        let (status, _, body) = self.ask(&get_of("/ok")).await;
        assert_eq!((status, body.as_str()), (200, "ok"));
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.tasks.join_next()).await.unwrap();
    }
}

fn get_of(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes()
}

/// Reads until the server closes the connection.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset after the last byte counts as the end.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("not closed");
    bytes
}

async fn answer(stream: TcpStream) -> (u16, String, String) {
    let bytes = rest(stream).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, head.to_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_block_the_others() {
    let server = server(LIMITS).await;
    let mut idle = Vec::new();
    for number in 0..1_030 {
        // Some send nothing, some send half a head.
        idle.push(server.connect(if number % 2 == 0 { b"" } else { b"GET /ok HTTP/1.1\r\nx-slow: " }).await);
        if number % 100 == 0 {
            server.is_fine().await;
        }
    }
    server.is_fine().await;
    assert_eq!(rest(idle.swap_remove(0)).await, b"", "the first of them was closed");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_new_connections_and_loses_no_request() {
    let server = server(ServerLimits { max_connections: 8, ..LIMITS }).await;
    let mut busy = Vec::new();
    for _ in 0..8 {
        busy.push(server.connect(&get_of("/wait")).await);
    }
    server.door.has(8).await;
    let (status, head, body) = server.ask(&get_of("/ok")).await;
    assert!(status == 503 && head.contains("retry-after: 1"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["error_code"], "unavailable");
    server.door.open.add_permits(8);
    for stream in busy {
        let (status, _, body) = answer(stream).await;
        assert_eq!((status, body.as_str()), (200, "opened"));
    }
    server.is_fine().await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_disconnected() {
    let short = Duration::from_millis(300);
    let server = server(ServerLimits { idle_timeout: short, stall_timeout: short, ..LIMITS }).await;
    // A head that never ends, and a connection that was used once.
    let head = server.connect(b"GET /ok HTTP/1.1\r\nx-slow: a").await;
    assert_eq!(rest(head).await, b"");
    let used = server.connect(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(String::from_utf8_lossy(&rest(used).await).ends_with("ok"));
    // A body that stops, and one that arrives byte by byte.
    let stopped = server.connect(b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc").await;
    let (status, _, body) = answer(stopped).await;
    assert_eq!(status, 408, "{body}");
    let mut slow = server.connect(b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n").await;
    let begin = Instant::now();
    while slow.write_all(b"x").await.is_ok() {
        assert!(begin.elapsed() < PATIENCE, "a body is read however slow it is");
        tokio::time::sleep(short / 10).await;
    }
    // An answer that is not read.
    let not_read = server.connect(&get_of("/large")).await;
    tokio::time::sleep(short * 4).await;
    assert!(rest(not_read).await.len() < 64 << 20);
    server.is_fine().await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_one_by_one_and_together() {
    let server = server(LIMITS).await;
    assert_eq!(server.post("", &[b'x'; 100_000]).await.2, "100000");
    let (status, _, body) = server.post("", &[b'x'; 100_001]).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["error_code"]), (413, &Value::from("payload_too_large")), "{body}");
    let chunked = [
        b"POST /length HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            .as_slice(),
        b"186a1\r\n",
        &[b'x'; 100_001],
        b"\r\n0\r\n\r\n",
    ];
    assert_eq!(server.ask(&chunked.concat()).await.0, 413);
    // Two of these fit together, a third does not until one of them is answered.
    let head = "POST /wait HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n";
    let request = [head.as_bytes(), &[b'x'; 100_000]].concat();
    let waiting = [server.connect(&request).await, server.connect(&request).await];
    server.door.has(2).await;
    let (status, head, _) = server.post("", &[b'x'; 100_000]).await;
    assert!(status == 503 && head.contains("retry-after"), "{head}");
    server.is_fine().await;
    server.door.open.add_permits(2);
    for stream in waiting {
        assert_eq!(answer(stream).await.2, "100000");
    }
    assert_eq!(server.post("", &[b'x'; 100_000]).await.2, "100000");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_read_and_bombs_are_refused() {
    let server = server(LIMITS).await;
    let text = b"readings ".repeat(1_000);
    for (encoding, bomb, packed) in
        [("gzip", gzip(&[0; 50_000_000]), gzip(&text)), ("zstd", zstd(&[0; 50_000_000]), zstd(&text))]
    {
        let header = format!("content-encoding: {encoding}\r\n");
        assert!(bomb.len() < LIMITS.max_body, "{}", bomb.len());
        assert_eq!(server.post(&header, &packed).await.2, "9000");
        assert_eq!(server.post(&header, &bomb).await.0, 413);
        assert_eq!(server.post(&header, &text).await.0, 400);
        assert_eq!(server.post(&header, &packed[..packed.len() - 3]).await.0, 400);
    }
    let (status, _, body) = server.post("content-encoding: br\r\n", b"x").await;
    assert_eq!(status, 415);
    assert!(body.contains("gzip") && body.contains("zstd"), "{body}");
    server.end().await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_has_the_one_body_and_an_id_of_its_own() {
    let server = server(LIMITS).await;
    let mut ids = std::collections::BTreeSet::new();
    for (request, status, code) in [
        (get_of("/nowhere"), 404, "not_found"),
        (get_of("/length"), 405, "method_not_allowed"),
        (get_of("/panic"), 500, "internal"),
        (get_of("/nowhere"), 404, "not_found"),
    ] {
        let (answered, head, body) = server.ask(&request).await;
        assert_eq!(answered, status, "{body}");
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error_code"], code);
        assert!(!body["message"].as_str().unwrap().is_empty());
        ids.insert(body["request_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 4);
    server.end().await;
}
