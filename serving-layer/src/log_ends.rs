//! Asks the log for its ends again and again, from a thread of its own, so that every answer can say what it lacks.
//! What that means is decided in [`crate::coverage`].

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wye_domain::place::{KafkaPartition, Offset};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::ends::Ends;
use wye_log::topics::READINGS;

use crate::ServingError;
use crate::error::chain;
use crate::hub::{Hub, Input};
use crate::telemetry::Instruments;
use wye_runtime::clock::Clock;

/// How often the log is asked, which is about how old the log's end in an answer is at most.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long one question may take; the answer before it may not be used for longer either.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(crate) struct LogEnds {
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) instruments: Instruments,
    pub(crate) shutdown: CancellationToken,
}

impl LogEnds {
    /// Starts the thread. It ends after `shutdown`.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system gives no thread; [`ServingError::Log`] when the client cannot be set up.
    pub(crate) fn start(self) -> Result<JoinHandle<()>, ServingError> {
        let ends = Ends::new(&self.log, READINGS, self.hub.read().kafka_partitions())?;
        let handle = Handle::current();
        std::thread::Builder::new()
            .name("wye-serving-log-ends".to_owned())
            .spawn(move || self.run(&ends, &handle))
            .map_err(|source| ServingError::Thread { source })
    }

    fn run(self, ends: &Ends, handle: &Handle) {
        let mut failing = false;
        while !self.shutdown.is_cancelled() {
            let asked = self.ask(ends);
            if let Err(error) = &asked
                && !failing
            {
                warn!(
                    error = chain(error),
                    "cannot ask the log for its end; answers are marked incomplete until it answers"
                );
            }
            failing = asked.is_err();
            let coverage = self.hub.read().coverage(self.clock.now());
            self.instruments.covered(&coverage);
            let shutdown =
                handle.block_on(async { tokio::time::timeout(INTERVAL, self.shutdown.cancelled()).await });
            if shutdown.is_ok() {
                return;
            }
        }
    }

    fn ask(&self, ends: &Ends) -> Result<(), LogError> {
        let asked_at = self.clock.now();
        let ends = ends.ask(TIMEOUT)?;
        let ends =
            ends.into_iter().map(|(partition, end)| (KafkaPartition(partition), Offset(end))).collect();
        self.hub.step(Input::LogEnds { ends: &ends, asked_at });
        let without_start = self.hub.read().without_start(self.clock.now());
        for kafka_partition in without_start {
            let oldest = Offset(self.log.offsets_blocking(READINGS, kafka_partition.0)?.low);
            self.hub.step(Input::LogStart { kafka_partition, oldest });
        }
        Ok(())
    }
}
