//! What an ordinary user sees during an attack: a thread requests `current` repeatedly, and checks the server's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::api::Api;

/// The pause between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest time that an answer may take during an attack.
const LONGEST: Duration = Duration::from_secs(10);

/// A user who sends requests while something else happens.
#[derive(Debug)]
pub struct Beside {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

/// The results of the user's requests.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How many requests were answered.
    pub answers: usize,
    /// 99 % of the answers came within this time.
    pub p99: Duration,
    /// The slowest answer.
    pub slowest: Duration,
    /// The largest resident memory of the server, in MiB.
    pub resident_mib: u64,
}

impl Beside {
    /// Starts to request `path`, which must be answered with 200, from the server at `address` with the process ID `process`.
    pub fn start(address: &str, path: &str, process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, address, path) = (Arc::clone(&stop), address.to_owned(), path.to_owned());
        let thread = std::thread::spawn(move || send_requests(&address, &path, process, &stopped));
        Self { stop, thread }
    }

    /// Stops, and returns the results.
    ///
    /// # Errors
    /// When a request was not answered with 200 in time.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the user's thread panicked"))?
    }
}

fn send_requests(address: &str, path: &str, process: u32, stop: &AtomicBool) -> Result<Seen> {
    let api = Api::new(address)?;
    let (mut times, mut resident_mib) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let since = Instant::now();
        let (status, text) = api.get(path).with_context(|| format!("after {} answers", times.len()))?;
        let took = since.elapsed();
        ensure!(status == 200, "{path}: {status}: {text}");
        ensure!(took < LONGEST, "{path} took {took:?}");
        times.push(took);
        resident_mib = resident_mib.max(resident(process)?);
        std::thread::sleep(PAUSE);
    }
    times.sort();
    let slowest = times.last().copied().context("no request was sent")?;
    Ok(Seen {
        answers: times.len(),
        p99: times[(times.len() * 99 / 100).min(times.len() - 1)],
        slowest,
        resident_mib,
    })
}

/// The resident memory of a process, in MiB.
///
/// # Errors
/// When it has ended.
pub fn resident(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).context("the process has ended")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse().context("a number")?;
    Ok(kib / 1024)
}
