//! What happens in histories, counted: a simulation in which something never happens proves nothing about it.

use std::fmt;

/// Something that must happen in some histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    // Takeovers.
    /// A process claims while another one is between its claim and its first step as an owner.
    ConcurrentClaim,
    CrashBetweenClaimAndMarker,
    CrashAfterMarker,
    /// It has read what is stored, and has not said that it owns the Kafka partition.
    CrashAfterReading,
    /// It has said so, and has not read the past to detect duplicates.
    CrashBeforeRemembering,
    Resumed,
    ResumedInsideIncompleteFlush,
    Rebuilt,
    ResumedFromOtherRegistry,
    ResumedFromOtherDefinitions,
    // Owners: crashes and pauses after each kind of effect, with others left.
    CrashAfterIncompleteRows,
    CrashAfterCheckpoint,
    CrashAfterBegin,
    CrashAfterAnnouncement,
    CrashAfterTrim,
    Fenced,
    Overtaken,
    // Records of an owner that was replaced.
    ZombieRecordBeforeMarker,
    ZombieRecordAfterMarker,
    ZombieAnnouncement,
    // Deletions.
    ReadingsTrimmed,
    RealtimeViewsTrimmed,
    ControlTrimmed,
    // Batch runs.
    CutRequested,
    CutAnswered,
    /// The owner has not read so far.
    CutAnsweredAhead,
    /// The rows of an incomplete flush, which the owner has taken over, reach further than it has read.
    CutAnsweredInsideIncompleteFlush,
    Pinned,
    BatchCommitted,
    BatchViewKept,
    /// Another run has committed first.
    BatchCommitLost,
    BatchCrashBeforeCommit,
    BatchCrashAfterPin,
    BatchCrashAfterCommit,
    // Serving.
    ViewSwitched,
    /// A batch view waits for the epochs that it would lose.
    ViewWaited,
    /// Realtime views were deleted before it has read them.
    ServingOvertakenByTrim,
    /// Before the end of the history.
    CompleteAnswer,
    CompleteAnswerInTheEnd,
    /// An incomplete answer, compared with what it covers.
    CoveredAnswer,
    /// An incomplete answer that lacks rows, which is not compared.
    LackingAnswer,
    AnswerWithOpenFlush,
    ReasonBehind,
    ReasonRebuilding,
    ReasonGap,
    ReasonDamaged,
    ReasonOtherDefinitions,
    ReasonLogEndUnknown,
    // What was compared in windows.
    WindowWithQuantiles,
    WindowWithDistinct,
    WindowWithInvalid,
    WindowWithConflict,
    WindowLive,
    WindowPreliminary,
    WindowSettled,
    WindowMerged,
    /// A window without readings that should have some.
    WindowMissing,
    /// The current value of a series that has fallen silent.
    CurrentSilent,
    // Duplicates above a horizon whose first copy is below it.
    DuplicateRemembered,
    DuplicateRememberedInFiniteWindow,
    DuplicateForgotten,
    DuplicateInSeveralKafkaPartitions,
    // The log.
    EmptyOffset,
    UnreadableOffset,
    DamagedRecord,
    LaterControlRecord,
}

const COUNT: usize = Event::LaterControlRecord as usize + 1;

impl Event {
    /// All of them, in order.
    const ALL: [Self; COUNT] = [
        Self::ConcurrentClaim,
        Self::CrashBetweenClaimAndMarker,
        Self::CrashAfterMarker,
        Self::CrashAfterReading,
        Self::CrashBeforeRemembering,
        Self::Resumed,
        Self::ResumedInsideIncompleteFlush,
        Self::Rebuilt,
        Self::ResumedFromOtherRegistry,
        Self::ResumedFromOtherDefinitions,
        Self::CrashAfterIncompleteRows,
        Self::CrashAfterCheckpoint,
        Self::CrashAfterBegin,
        Self::CrashAfterAnnouncement,
        Self::CrashAfterTrim,
        Self::Fenced,
        Self::Overtaken,
        Self::ZombieRecordBeforeMarker,
        Self::ZombieRecordAfterMarker,
        Self::ZombieAnnouncement,
        Self::ReadingsTrimmed,
        Self::RealtimeViewsTrimmed,
        Self::ControlTrimmed,
        Self::CutRequested,
        Self::CutAnswered,
        Self::CutAnsweredAhead,
        Self::CutAnsweredInsideIncompleteFlush,
        Self::Pinned,
        Self::BatchCommitted,
        Self::BatchViewKept,
        Self::BatchCommitLost,
        Self::BatchCrashBeforeCommit,
        Self::BatchCrashAfterPin,
        Self::BatchCrashAfterCommit,
        Self::ViewSwitched,
        Self::ViewWaited,
        Self::ServingOvertakenByTrim,
        Self::CompleteAnswer,
        Self::CompleteAnswerInTheEnd,
        Self::CoveredAnswer,
        Self::LackingAnswer,
        Self::AnswerWithOpenFlush,
        Self::ReasonBehind,
        Self::ReasonRebuilding,
        Self::ReasonGap,
        Self::ReasonDamaged,
        Self::ReasonOtherDefinitions,
        Self::ReasonLogEndUnknown,
        Self::WindowWithQuantiles,
        Self::WindowWithDistinct,
        Self::WindowWithInvalid,
        Self::WindowWithConflict,
        Self::WindowLive,
        Self::WindowPreliminary,
        Self::WindowSettled,
        Self::WindowMerged,
        Self::WindowMissing,
        Self::CurrentSilent,
        Self::DuplicateRemembered,
        Self::DuplicateRememberedInFiniteWindow,
        Self::DuplicateForgotten,
        Self::DuplicateInSeveralKafkaPartitions,
        Self::EmptyOffset,
        Self::UnreadableOffset,
        Self::DamagedRecord,
        Self::LaterControlRecord,
    ];
}

/// How often each event has happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events([u64; COUNT]);

impl Default for Events {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

impl Events {
    pub(crate) fn count(&mut self, event: Event) {
        self.0[event as usize] += 1;
    }

    pub(crate) fn of(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    pub(crate) fn add(&mut self, others: &Self) {
        self.0.iter_mut().zip(others.0).for_each(|(own, other)| *own += other);
    }

    /// What has never happened.
    pub(crate) fn missing(&self) -> Vec<Event> {
        Event::ALL.into_iter().filter(|event| self.of(*event) == 0).collect()
    }
}

/// A line each.
impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in Event::ALL {
            writeln!(f, "{:>12} {event:?}", self.of(event))?;
        }
        Ok(())
    }
}
