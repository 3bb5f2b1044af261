//! Makes a history that fails short, and says what happens in it.

use std::sync::Arc;

use anyhow::{Error, Result, anyhow};

use super::events::Events;
use super::layers::Plans;
use super::notes::Notes;
use super::steps::{Setup, Step, history};
use super::world::World;

/// Carries out the history of a seed.
///
/// # Errors
/// What does not hold, with the seed and a short history in which something does not hold either.
pub(crate) fn carry_out(seed: u64, plans: &Arc<Vec<Plans>>) -> Result<Events> {
    let (setup, steps) = history(seed);
    run(&setup, &steps, plans, Notes::default()).map_err(|error| report(seed, &setup, steps, plans, &error))
}

fn run(setup: &Setup, steps: &[Step], plans: &Arc<Vec<Plans>>, notes: Notes) -> Result<Events> {
    let mut world = World::new(setup, plans, notes)?;
    world.live(steps)?;
    Ok(world.notes.events())
}

fn report(seed: u64, setup: &Setup, mut steps: Vec<Step>, plans: &Arc<Vec<Plans>>, error: &Error) -> Error {
    let whole = steps.len();
    // Leaves out steps, in ever smaller pieces, as long as something still fails.
    let mut piece = whole;
    let mut last = format!("{error:#}");
    while piece > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + piece).min(steps.len()));
            match run(setup, &fewer, plans, Notes::default()) {
                Ok(_) => at += piece,
                Err(error) => {
                    last = format!("{error:#}");
                    steps = fewer;
                }
            }
        }
        piece /= 2;
    }
    let notes = Notes::with_lines();
    // It fails as before.
    let _ = run(setup, &steps, plans, notes.clone());
    anyhow!(
        "WYE_TEST_SEED={seed} WYE_TEST_HISTORIES=1 fails: {error:#}\n\n{setup:?}\nOf its {whole} steps, {} fail by \
         themselves:\n{}\nThe short history fails: {last}",
        steps.len(),
        notes.text()
    )
}
