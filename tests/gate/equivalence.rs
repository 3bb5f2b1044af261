//! EQ-1: what the batch layer computes from a prefix, merged with what the speed layer computed from the rest, is what a
//! naive computation finds in all of it. HOR-1, HOR-2 and HOR-3 are checked on the way.
//!
//! Random histories are simulated (`simulation.rs`): readings of any order and lateness, duplicates, conflicts and invalid
//! readings; several Kafka partitions; processes of the speed layer that crash after any effect, that claim a Kafka
//! partition at the same time, and that write although they are replaced; batch runs at the same time, answered by owners
//! or not; records that do not decode; topics that are trimmed; definitions and registries that change; serving processes
//! that lag behind. An answer that says that it is complete is compared at any time, and every other one with what it says
//! that it covers: numbers, sketches, validity, confidence and state.
//!
//! `WYE_TEST_HISTORIES` says how many histories (10,000 without it), `WYE_TEST_SEED` the first seed. A failure names its
//! seed, and the steps of a short history that fails. A long run shows its progress:
//!
//! ```text
//! WYE_TEST_HISTORIES=1000000 WYE_TEST_SEED=1000000 cargo test --locked --release --workspace --test gate -- \
//!     equivalence --nocapture
//! ```
//!
//! Everything that must happen in some history is counted (`simulation/events.rs`); the test fails if something never does.
//! `tests/mutations/run.sh` breaks the protocol in many ways, and expects this test to fail each time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use wye_tests::datasets::say;
use wye_tests::setting;

use crate::simulation::events::{Event, Events};
use crate::simulation::layers::Plans;
use crate::simulation::shrink;
use crate::simulation::versions::VERSIONS;

const HISTORIES: u64 = 10_000;
/// How often the progress of a long run is shown.
const PROGRESS: Duration = Duration::from_secs(30);

/// Histories that are carried out on all processors.
struct Campaign {
    plans: Arc<Vec<Plans>>,
    next: AtomicU64,
    end: u64,
    has_failed: AtomicBool,
    state: Mutex<State>,
}

struct State {
    done: u64,
    total: Events,
    /// The failure of the lowest seed so far.
    failure: Option<(u64, Error)>,
    shown: Instant,
}

#[test]
fn both_layers_together_equal_the_naive_computation() -> Result<()> {
    let first = setting::number("WYE_TEST_SEED")?.unwrap_or(1);
    let count = setting::number("WYE_TEST_HISTORIES")?.unwrap_or(HISTORIES);
    let started = Instant::now();
    let campaign = Campaign {
        plans: Arc::new(VERSIONS.iter().map(Plans::new).collect::<Result<_>>()?),
        next: AtomicU64::new(first),
        end: first + count,
        has_failed: AtomicBool::new(false),
        state: Mutex::new(State { done: 0, total: Events::default(), failure: None, shown: started }),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| campaign.run());
        }
    });
    let State { done, total, failure, .. } =
        campaign.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = failure {
        return Err(error);
    }
    say(&format!(
        "{done} histories in {:.1} s, with these events:\n{total}",
        started.elapsed().as_secs_f64()
    ));
    if count >= HISTORIES {
        let missing = total.missing();
        ensure!(missing.is_empty(), "these events have never happened: {missing:?}");
        // The generator is worth nothing if most answers are not comparable.
        let complete = total.of(Event::CompleteAnswer);
        ensure!(complete > count, "only {complete} complete answers were compared");
    }
    Ok(())
}

impl Campaign {
    fn run(&self) {
        while !self.has_failed.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            let ended = shrink::carry_out(seed, &self.plans);
            self.take_note(seed, ended);
        }
    }

    fn take_note(&self, seed: u64, ended: Result<Events>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += 1;
        match ended {
            Ok(events) => state.total.add(&events),
            Err(error) => {
                self.has_failed.store(true, Ordering::Relaxed);
                if state.failure.as_ref().is_none_or(|(known, _)| seed < *known) {
                    state.failure = Some((seed, error));
                }
            }
        }
        if state.shown.elapsed() >= PROGRESS {
            state.shown = Instant::now();
            say(&format!("{} histories", state.done));
        }
    }
}
