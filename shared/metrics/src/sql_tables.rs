//! The list of SQL tables; each metric has its own views besides these. Must not know what the tables contain.

/// Names that are reserved for planned tables: a metric with such a name would lose its view later.
const PLANNED: [&str; 3] = ["late_readings", "devices", "alerts"];

/// A table that SQL always has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SqlTable {
    /// The master dataset.
    Readings,
    /// Every series and window, from the realtime views alone.
    RealtimeMetrics,
    /// Every series and window, from the batch view alone.
    BatchMetrics,
    /// Every series and window, merged.
    UnifiedSeries,
    /// The newest window of each series, merged.
    UnifiedMetrics,
    /// The same by the textbook rule for Lambda architectures, which joins the layers on event time.
    UnifiedMetricsClassic,
    /// What was not accepted.
    DeadLetters,
    /// The records of batch runs.
    BatchRuns,
    /// Changes to how readings are computed.
    Amendments,
    /// Settled numbers that a later batch run has changed.
    Restatements,
    /// How far answers cover the log.
    Coverage,
}

impl SqlTable {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 11] = [
        Self::Readings,
        Self::RealtimeMetrics,
        Self::BatchMetrics,
        Self::UnifiedSeries,
        Self::UnifiedMetrics,
        Self::UnifiedMetricsClassic,
        Self::DeadLetters,
        Self::BatchRuns,
        Self::Amendments,
        Self::Restatements,
        Self::Coverage,
    ];

    /// The name in SQL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::RealtimeMetrics => "realtime_metrics",
            Self::BatchMetrics => "batch_metrics",
            Self::UnifiedSeries => "unified_series",
            Self::UnifiedMetrics => "unified_metrics",
            Self::UnifiedMetricsClassic => "unified_metrics_classic",
            Self::DeadLetters => "dead_letters",
            Self::BatchRuns => "batch_runs",
            Self::Amendments => "amendments",
            Self::Restatements => "restatements",
            Self::Coverage => "coverage",
        }
    }

    /// Finds a table by its exact name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// The names that a metric may not have: those of existing and of planned tables.
pub fn reserved_names() -> impl Iterator<Item = &'static str> {
    SqlTable::ALL.into_iter().map(SqlTable::name).chain(PLANNED)
}
