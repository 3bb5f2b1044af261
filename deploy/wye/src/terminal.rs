//! Output on the terminal: lines, numbers, progress bars.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use wye_batch::recompute::OnProgress;
use wye_runtime::clock::{Clock, SystemClock};

/// Where there is no terminal, progress is shown so often.
const LINES_EVERY: Duration = Duration::from_secs(5);

/// The program as it was called, for commands that users copy.
pub(crate) fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "wye".to_owned())
}

/// The reader of the output is closed, as in `wye sql ... | head`. The command then ends without an error.
#[derive(Debug, thiserror::Error)]
#[error("the reader of the output is closed")]
pub(crate) struct ReaderClosed;

/// Writes a line to standard output.
///
/// # Errors
/// [`ReaderClosed`], or when it cannot be written.
pub(crate) fn say(line: impl Display) -> Result<()> {
    write_all(format!("{line}\n").as_bytes())
}

/// Writes bytes to standard output.
///
/// # Errors
/// As [`say`].
pub(crate) fn write_all(bytes: &[u8]) -> Result<()> {
    written(std::io::stdout().lock().write_all(bytes))
}

/// Writes a line to standard output, and continues where it cannot be written, as a server must.
pub(crate) fn tell(line: impl Display) {
    // The failure cannot be reported either.
    let _ = say(line);
}

fn written(outcome: std::io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderClosed.into()),
        other => other.context("cannot write to standard output"),
    }
}

/// Groups the digits of a number by thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds, with two decimals below ten and one below a hundred.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// A progress bar over `bytes` of input, with a message; hidden where there is no terminal.
pub(crate) fn byte_bar(bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {percent:>3}%  {bytes}/{total_bytes}  {msg}  {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("█▉▊▋▌▍▎▏ ");
    ProgressBar::new(bytes).with_style(style)
}

/// A spinner with a message, hidden where there is no terminal.
pub(crate) fn spinner(message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style).with_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Writes a line about what the command does to standard error.
pub(crate) fn note(line: impl Display) {
    eprintln!("wye: {line}");
}

/// Writes a line of a report to standard error.
pub(crate) fn report_line(line: impl Display) {
    eprintln!("{line}");
}

/// The progress of long work on standard error: a bar on a terminal, elsewhere a line from time to time. It ends with the
/// work, or when this is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    callback: OnProgress,
}

impl Progress {
    /// Of work on things such as "readings". Nothing is shown before the first call.
    pub(crate) fn new(what: &'static str, things: &'static str) -> Self {
        let bar = ProgressBar::no_length();
        let style = "{msg}  {bar:30} {percent:>3}%  {human_pos} of {human_len}  {eta} left";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        bar.set_message(what);
        let callback: OnProgress = if std::io::stderr().is_terminal() {
            let bar = bar.clone();
            Arc::new(move |progress| {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                if progress.done >= progress.total {
                    bar.finish_and_clear();
                }
            })
        } else {
            let clock = SystemClock::default();
            let shown = Mutex::new(clock.monotonic());
            Arc::new(move |progress| {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                if clock.monotonic().saturating_sub(*shown) >= LINES_EVERY {
                    *shown = clock.monotonic();
                    note(format!(
                        "{what}: {} of {} {things}",
                        grouped(progress.done),
                        grouped(progress.total)
                    ));
                }
            })
        };
        Self { bar, callback }
    }

    /// What is called with the progress.
    pub(crate) fn callback(&self) -> OnProgress {
        Arc::clone(&self.callback)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_reader_differs_from_other_failures() {
        for (kind, is_gone) in [(ErrorKind::BrokenPipe, true), (ErrorKind::StorageFull, false)] {
            assert_eq!(written(Err(kind.into())).unwrap_err().is::<ReaderClosed>(), is_gone, "{kind:?}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(3_796_226), "3,796,226");
        assert_eq!(seconds(Duration::from_millis(1_234)), "1.23 s");
    }
}
