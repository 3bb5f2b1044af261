//! What an ordinary user sees while something hostile happens: `current` is asked again and again on a thread of its own,
//! and the server's memory is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::api::Api;

/// How long the user rests between two questions.
const REST: Duration = Duration::from_millis(5);
/// Longer than any answer may take, however hostile the others are.
const LONGEST: Duration = Duration::from_secs(10);

/// A user who asks while something else happens; see the module.
#[derive(Debug)]
pub struct Beside {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

/// What the user saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How many questions were answered.
    pub answers: usize,
    /// 99 % of the answers came within this time.
    pub p99: Duration,
    /// The slowest answer.
    pub slowest: Duration,
    /// The most memory that the server held (resident), in MiB.
    pub resident_mib: u64,
}

impl Beside {
    /// Starts asking `path` (which must be answered with 200) of the server at `address` with the process number `process`.
    pub fn start(address: &str, path: &str, process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, address, path) = (Arc::clone(&stop), address.to_owned(), path.to_owned());
        let thread = std::thread::spawn(move || ask(&address, &path, process, &stopped));
        Self { stop, thread }
    }

    /// Stops asking; what was seen.
    ///
    /// # Errors
    /// If a question was not answered with 200 in time.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the user's thread panicked"))?
    }
}

fn ask(address: &str, path: &str, process: u32, stop: &AtomicBool) -> Result<Seen> {
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
        std::thread::sleep(REST);
    }
    times.sort();
    let slowest = times.last().copied().context("nothing was asked")?;
    Ok(Seen {
        answers: times.len(),
        p99: times[(times.len() * 99 / 100).min(times.len() - 1)],
        slowest,
        resident_mib,
    })
}

/// What a process holds in memory, in MiB.
///
/// # Errors
/// If it has ended.
pub fn resident(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).context("the process has ended")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse().context("a number")?;
    Ok(kib / 1024)
}
