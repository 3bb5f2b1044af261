//! The memory of a job, shared by the steps of its plans. Steps that can spill to disk get equal shares of one half; the
//! other half is left to steps that cannot, such as the merge of what was spilled. In DataFusion's
//! [`FairSpillPool`](datafusion::execution::memory_pool::FairSpillPool), of which this is a variant, steps that spill can
//! fill all memory, and a merge then fails.
//!
//! Two requests are granted in any case. DataFusion counts the memory that parts of a batch share once for each part, so both
//! ask for more than they use: a step that can spill and has nothing yet, since it cannot work without one batch; and the merge
//! of sorted streams, which has one batch of each.

use std::fmt::{Display, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};

use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// How DataFusion names the merge of sorted streams.
const MERGE: &str = "SortPreservingMergeExec";

/// The memory of a job.
#[derive(Debug)]
pub(crate) struct JobMemory {
    /// Bytes.
    size: usize,
    used: Mutex<Used>,
}

/// What is in use.
#[derive(Debug, Default)]
struct Used {
    /// How many steps can spill.
    spillers: usize,
    /// Bytes of steps that can spill.
    spillable: usize,
    /// Bytes of other steps.
    other: usize,
}

impl JobMemory {
    /// Memory of a size in bytes.
    pub(crate) fn new(size: usize) -> Self {
        Self { size, used: Mutex::default() }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    /// How many bytes one step may have, with what it has.
    fn limit(&self, size: usize, reservation: &MemoryReservation) -> usize {
        if reservation.consumer().can_spill() {
            (size - self.other.max(size / 2).min(size)) / self.spillers.max(1)
        } else {
            size.saturating_sub(self.spillable + self.other) + reservation.size()
        }
    }
}

impl MemoryPool for JobMemory {
    fn name(&self) -> &str {
        "job"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.used().spillers += usize::from(consumer.can_spill());
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.used().spillers -= usize::from(consumer.can_spill());
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let mut used = self.used();
        if reservation.consumer().can_spill() {
            used.spillable += additional;
        } else {
            used.other += additional;
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut used = self.used();
        if reservation.consumer().can_spill() {
            used.spillable -= shrink;
        } else {
            used.other -= shrink;
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<(), DataFusionError> {
        let limit = self.used().limit(self.size, reservation);
        if reservation.size() + additional > limit && !is_granted(reservation) {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} has {} bytes and needs {additional} more; it can have {limit}",
                reservation.consumer().name(),
                reservation.size()
            )));
        }
        self.grow(reservation, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        let used = self.used();
        used.spillable + used.other
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.size)
    }
}

/// Whether a request is granted in any case.
fn is_granted(reservation: &MemoryReservation) -> bool {
    let consumer = reservation.consumer();
    (consumer.can_spill() && reservation.size() == 0) || consumer.name().starts_with(MERGE)
}

impl Display for JobMemory {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "memory of a job ({} bytes)", self.size)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_cannot_spill_always_has_a_half() {
        let memory: Arc<dyn MemoryPool> = Arc::new(JobMemory::new(100));
        let spillers =
            ["a", "b"].map(|name| MemoryConsumer::new(name).with_can_spill(true).register(&memory));
        for spiller in &spillers {
            spiller.try_grow(20).unwrap();
            spiller.try_grow(5).unwrap();
        }
        assert!(spillers[0].try_grow(1).is_err());
        let other = MemoryConsumer::new("c").register(&memory);
        other.try_grow(50).unwrap();
        assert!(other.try_grow(1).is_err());
        // The more it has, the less is left to the others.
        spillers[0].shrink(20);
        other.try_grow(20).unwrap();
        spillers[0].try_grow(10).unwrap();
        assert!(spillers[0].try_grow(1).is_err());
        assert_eq!(memory.reserved(), 15 + 25 + 70);
        drop(other);
        assert_eq!(memory.reserved(), 15 + 25);
    }

    #[test]
    fn one_batch_and_a_merge_are_always_granted() {
        let memory: Arc<dyn MemoryPool> = Arc::new(JobMemory::new(100));
        let spiller = MemoryConsumer::new("a").with_can_spill(true).register(&memory);
        spiller.try_grow(60).unwrap();
        assert!(spiller.try_grow(1).is_err());
        let merge = MemoryConsumer::new(format!("{MERGE}[0]")).register(&memory);
        merge.try_grow(60).unwrap();
        merge.try_grow(60).unwrap();
    }
}
