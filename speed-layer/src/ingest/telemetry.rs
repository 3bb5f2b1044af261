//! The instruments of ingest.

use wye_runtime::telemetry::{PlainCounter, ReasonCounter, Telemetry};

/// The instruments; the help texts say what they count.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the help texts say it")]
pub struct IngestTelemetry {
    pub accepted: PlainCounter,
    pub rejected: ReasonCounter,
}

impl IngestTelemetry {
    /// Registers all of them.
    pub fn register(telemetry: &Telemetry) -> Self {
        let own = Self::default();
        telemetry.register(
            "wye_ingest_accepted_readings",
            "Readings acknowledged by the log",
            own.accepted.clone(),
        );
        telemetry.register(
            "wye_ingest_rejected_readings",
            "Readings that were rejected",
            own.rejected.clone(),
        );
        own
    }
}
