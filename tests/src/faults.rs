//! An HTTP server between the program under test and its S3 server, which makes faults: errors, closed connections, torn
//! uploads, answers that are lost, cut or late. It knows nothing of S3 but that a request has a `Content-Length`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// The share of requests that fail.
const FAILING: f64 = 0.1;
/// The share of requests that take [`SLOW`], and that take [`LATE`].
const SLOW_SHARE: f64 = 0.05;
const LATE_SHARE: f64 = 0.02;
const SLOW: Duration = Duration::from_millis(300);
/// Longer than a client waits.
pub const LATE: Duration = Duration::from_secs(3);
/// The largest head of a request, in bytes.
const LARGEST_HEAD: usize = 64 << 10;

const ERROR: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
/// An answer to a put and to a removal.
const ACCEPTED: &[u8] =
    b"HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 31\r\n\r\n<DeleteResult> </DeleteResult> ";

/// A running server; it stops when it is dropped.
#[derive(Debug)]
pub struct FaultyServer {
    address: SocketAddr,
    behaviour: Arc<Behaviour>,
    _runtime: Runtime,
}

#[derive(Debug)]
enum Behaviour {
    /// Passes requests to the server at this address, with faults.
    Faults { to: String, made: Box<Mutex<Made>> },
    /// Answers every request as if it had done it.
    AcceptAll,
}

#[derive(Debug)]
struct Made {
    random: StdRng,
    counts: Counts,
}

/// How many requests there were, and how many of them had each fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// Answered with an error of the server.
    pub errors: u64,
    /// Their connection was closed at once.
    pub closed: u64,
    /// Their connection was cut in the middle of the body.
    pub torn: u64,
    /// Carried out, and not answered.
    pub unanswered: u64,
    /// Carried out, and their answer was cut in the middle.
    pub cut: u64,
    /// Carried out later.
    pub slow: u64,
    /// Carried out when the client had given up.
    pub late: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pass,
    Error,
    Close,
    Tear,
    LoseAnswer,
    CutAnswer,
    Slow,
    Late,
}

impl FaultyServer {
    /// Starts one in front of the server at `address`. The faults come from `seed`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn before(address: &str, seed: u64) -> Result<Self> {
        let made = Mutex::new(Made { random: StdRng::seed_from_u64(seed), counts: Counts::default() });
        Self::start(Behaviour::Faults { to: address.to_owned(), made: Box::new(made) })
    }

    /// Starts a server that says yes to every request, and stores nothing.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn accepting_all() -> Result<Self> {
        Self::start(Behaviour::AcceptAll)
    }

    fn start(behaviour: Behaviour) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("listen")?;
        let (address, behaviour) = (listener.local_addr()?, Arc::new(behaviour));
        let served = Arc::clone(&behaviour);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let behaviour = Arc::clone(&served);
                // A connection that fails has ended for both sides.
                tokio::spawn(async move { serve(client, &behaviour).await.ok() });
            }
        });
        Ok(Self { address, behaviour, _runtime: runtime })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        match self.behaviour.as_ref() {
            Behaviour::Faults { made, .. } => made.lock().unwrap_or_else(PoisonError::into_inner).counts,
            Behaviour::AcceptAll => Counts::default(),
        }
    }
}

impl Made {
    /// What happens to the next request.
    fn next(&mut self) -> Fate {
        let failing = [Fate::Error, Fate::Close, Fate::Tear, Fate::LoseAnswer, Fate::CutAnswer];
        let chance: f64 = self.random.random();
        let fate = if chance < FAILING {
            failing[self.random.random_range(0..failing.len())]
        } else if chance < FAILING + SLOW_SHARE {
            Fate::Slow
        } else if chance < FAILING + SLOW_SHARE + LATE_SHARE {
            Fate::Late
        } else {
            Fate::Pass
        };
        let counts = &mut self.counts;
        counts.requests += 1;
        match fate {
            Fate::Pass => {}
            Fate::Error => counts.errors += 1,
            Fate::Close => counts.closed += 1,
            Fate::Tear => counts.torn += 1,
            Fate::LoseAnswer => counts.unanswered += 1,
            Fate::CutAnswer => counts.cut += 1,
            Fate::Slow => counts.slow += 1,
            Fate::Late => counts.late += 1,
        }
        fate
    }
}

/// A request as it came.
struct Request {
    /// From the method to the empty line.
    head: Vec<u8>,
    body: Vec<u8>,
}

/// Answers the requests of a connection until a fault or an answer ends it.
async fn serve(mut client: TcpStream, behaviour: &Behaviour) -> Result<()> {
    let mut unread = Vec::new();
    loop {
        let Some(request) = read_request(&mut client, &mut unread).await? else { return Ok(()) };
        let (to, fate) = match behaviour {
            Behaviour::AcceptAll => {
                client.write_all(ACCEPTED).await?;
                continue;
            }
            Behaviour::Faults { to, made } => {
                (to, made.lock().unwrap_or_else(PoisonError::into_inner).next())
            }
        };
        match fate {
            Fate::Error => {
                client.write_all(ERROR).await?;
                continue;
            }
            Fate::Close => {}
            Fate::Tear => tear(to, &request).await?,
            Fate::LoseAnswer => drop(pass(to, &request).await?),
            Fate::CutAnswer => {
                let answer = pass(to, &request).await?;
                client.write_all(&answer[..answer.len() / 2]).await?;
            }
            Fate::Pass | Fate::Slow | Fate::Late => {
                match fate {
                    Fate::Slow => tokio::time::sleep(SLOW).await,
                    Fate::Late => tokio::time::sleep(LATE).await,
                    _ => {}
                }
                let answer = pass(to, &request).await?;
                client.write_all(&answer).await?;
            }
        }
        return Ok(());
    }
}

/// Reads one request; `None` at the end of the connection. `unread` is what was read beyond it.
async fn read_request(client: &mut TcpStream, unread: &mut Vec<u8>) -> Result<Option<Request>> {
    let end = loop {
        if let Some(end) = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(unread.len() < LARGEST_HEAD, "the head of a request is too large");
        if client.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    };
    let length = content_length(&unread[..end])?;
    while unread.len() < end + length {
        if client.read_buf(unread).await? == 0 {
            bail!("a request is not complete");
        }
    }
    let rest = unread.split_off(end + length);
    let body = unread.split_off(end);
    Ok(Some(Request { head: std::mem::replace(unread, rest), body }))
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = String::from_utf8_lossy(head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.map_or(Ok(0), |length| length.trim().parse().context("read Content-Length"))
}

/// Passes a request on with a connection of its own, and returns the answer.
async fn pass(to: &str, request: &Request) -> Result<Vec<u8>> {
    let mut server = TcpStream::connect(to).await?;
    server.write_all(&closing(&request.head)).await?;
    server.write_all(&request.body).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Passes the first half of the body on, and closes the connection.
async fn tear(to: &str, request: &Request) -> Result<()> {
    let mut server = TcpStream::connect(to).await?;
    server.write_all(&closing(&request.head)).await?;
    server.write_all(&request.body[..request.body.len() / 2]).await?;
    server.shutdown().await?;
    Ok(())
}

/// The head with a header that ends the connection after the answer.
fn closing(head: &[u8]) -> Vec<u8> {
    [&head[..head.len() - 2], b"Connection: close\r\n\r\n"].concat()
}
