//! Asks the log for its ends again and again, from a thread of its own, so that every answer can say what it lacks.
//! What that means is decided in [`crate::coverage`].

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::ends::Ends;
use wye_log::topics::READINGS;
use wye_runtime::clock::now_micros;

use crate::ServingError;
use crate::hub::Hub;
use crate::telemetry::Instruments;

/// How often the log is asked: what an answer says of the log's end is about so old at most.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long one question may take; what was known before is of no use any more then.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(crate) struct LogEnds {
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    pub(crate) instruments: Instruments,
    pub(crate) shutdown: CancellationToken,
}

impl LogEnds {
    /// Starts the thread. It ends after `shutdown`.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system gives no thread; [`ServingError::Log`] when the client cannot be set up.
    pub(crate) fn start(self) -> Result<JoinHandle<()>, ServingError> {
        let ends = Ends::new(&self.log, READINGS, self.hub.kafka_partitions())?;
        let handle = Handle::current();
        std::thread::Builder::new()
            .name("wye-serving-log-ends".to_owned())
            .spawn(move || self.run(&ends, &handle))
            .map_err(|source| ServingError::Thread { source })
    }

    fn run(self, ends: &Ends, handle: &Handle) {
        let mut failing = false;
        while !self.shutdown.is_cancelled() {
            match self.ask(ends) {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        warn!(%error, "cannot ask the log for its end; answers are marked incomplete until it answers");
                    }
                    failing = true;
                }
            }
            let coverage = self.hub.coverage(now_micros());
            self.instruments.covered(&coverage);
            let stopped = handle
                .block_on(async { tokio::time::timeout(INTERVAL, self.shutdown.cancelled()).await })
                .is_ok();
            if stopped {
                return;
            }
        }
    }

    fn ask(&self, ends: &Ends) -> Result<(), LogError> {
        let asked_at = now_micros();
        let ends = ends.ask(PATIENCE)?;
        self.hub.note_log_ends(&ends, asked_at);
        for kafka_partition in self.hub.without_start(now_micros()) {
            let low = self.log.offsets_blocking(READINGS, kafka_partition)?.low;
            self.hub.note_log_start(kafka_partition, low);
        }
        Ok(())
    }
}
