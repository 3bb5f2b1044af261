//! Taking a Kafka partition over: claim it, read what stands in the control and realtime-views topics, and decide
//! where to go on.
//!
//! The claim is written to both topics first. Its place there fences older owners: whatever they write after it is
//! void for everybody, so the state below is read once and is final.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use tokio::runtime::Handle;
use tracing::info;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::{Fence, Found, Recovery, resolve};
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::summary::Summary;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, REALTIME_VIEWS};

use crate::SpeedError;

/// A row of the open epoch.
#[derive(Clone, Debug)]
pub struct StoredRow {
    /// The stored form of its series.
    pub series: String,
    /// Window start in µs.
    pub window_start: i64,
    /// Its summary.
    pub summary: Summary,
    /// All readings of the epoch below this offset are in it.
    pub through: i64,
}

/// A Kafka partition that was taken over.
#[derive(Debug)]
pub struct TakenOver {
    /// The number of this ownership.
    pub generation: i64,
    /// Where to go on.
    pub recovery: Recovery,
    /// What the control topic says, with the epoch starts that stand in the realtime views.
    pub control: ControlView,
    /// The rows of the open epoch; none for a rebuild.
    pub rows: Vec<StoredRow>,
    /// The first record of each epoch in the realtime-views topic.
    pub first_record: BTreeMap<i64, i64>,
}

/// What the records of one Kafka partition of the realtime-views topic add up to.
#[derive(Debug, Default)]
pub struct ViewsState {
    fence: Fence,
    epoch: Option<i64>,
    rows: HashMap<(String, i64), (Summary, i64)>,
    checkpoint: Option<i64>,
    definitions: Option<u64>,
    first_record: BTreeMap<i64, i64>,
}

impl ViewsState {
    /// Takes in the record at an offset, in order.
    ///
    /// # Errors
    /// When the record does not decode.
    pub fn apply(&mut self, offset: i64, payload: &[u8]) -> Result<(), wye_domain::DomainError> {
        let record = realtime_row::decode(payload)?;
        if !self.fence.admit(record.header.generation()) {
            return Ok(());
        }
        match record.header {
            Header::Claim { .. } => {}
            Header::Begin { epoch, definitions, reset, .. } => {
                self.definitions = Some(definitions);
                if reset {
                    self.first_record.split_off(&epoch);
                    self.rows.clear();
                    self.epoch = Some(epoch);
                    self.checkpoint = Some(epoch);
                } else if self.epoch.is_none_or(|open| epoch > open) {
                    self.rows.clear();
                    self.epoch = Some(epoch);
                }
                self.first_record.entry(epoch).or_insert(offset);
            }
            Header::Rows { epoch, through, complete, .. } => {
                if self.epoch.is_none_or(|open| epoch > open) {
                    self.rows.clear();
                    self.epoch = Some(epoch);
                }
                if self.epoch == Some(epoch)
                    && let Some(batch) = &record.rows
                {
                    let rows = Rows::of(batch)?;
                    for row in 0..batch.num_rows() {
                        let key =
                            (rows.series.text(row).unwrap_or_default().to_owned(), rows.window_start[row]);
                        self.rows.insert(key, (rows.summaries.summary(row)?, through));
                    }
                }
                if complete {
                    self.checkpoint = Some(through);
                }
            }
        }
        Ok(())
    }
}

/// Takes the Kafka partition over. Blocks; `handle` runs the writes.
///
/// # Errors
/// When the log cannot be read or written, or stored records do not decode.
pub fn take_over(
    log: &Log,
    producer: &Producer,
    handle: &Handle,
    kafka_partition: i32,
    definitions: u64,
) -> Result<TakenOver, SpeedError> {
    let write = |topic: &str, payload: &[u8]| {
        handle.block_on(producer.send(Outgoing { topic, kafka_partition, key: None, payload, headers: &[] }))
    };
    let claim = ControlRecord::Claim { owner: format!("pid {}", std::process::id()) };
    let generation = write(CONTROL, &claim.encode())?;
    let marker = write(REALTIME_VIEWS, &realtime_row::encode(&Header::Claim { generation }, None))?;

    let mut control = ControlView::default();
    read_through(log, (CONTROL, kafka_partition), generation, |offset, payload| {
        // A record of a later version is passed over.
        if let Ok(record) = ControlRecord::decode(payload)
            && offset <= generation
        {
            control.apply(offset, &record);
        }
        Ok(())
    })?;
    let mut state = ViewsState::default();
    read_through(log, (REALTIME_VIEWS, kafka_partition), marker, |offset, payload| {
        if offset > marker {
            return Ok(());
        }
        state.apply(offset, payload).map_err(|source| SpeedError::Stored {
            topic: REALTIME_VIEWS,
            kafka_partition,
            source,
        })
    })?;

    for epoch in state.first_record.keys() {
        let here = wye_domain::control::Announcement { announced_at: 0, control_offset: generation };
        control.starts.entry(*epoch).or_insert(here);
    }
    let found = Found {
        checkpoint: state.checkpoint,
        same_definitions: state.definitions == Some(definitions),
        log_start: log.offsets_blocking(wye_log::topics::READINGS, kafka_partition)?.low,
    };
    let recovery = resolve(&control, found);
    let rows = match recovery {
        Recovery::Resume { epoch, .. } if state.epoch == Some(epoch) => state
            .rows
            .into_iter()
            .map(|((series, window_start), (summary, through))| StoredRow {
                series,
                window_start,
                summary,
                through,
            })
            .collect(),
        _ => Vec::new(),
    };
    info!(kafka_partition, generation, ?recovery, rows = rows.len(), "kafka partition taken over");
    Ok(TakenOver { generation, recovery, control, rows, first_record: state.first_record })
}

/// Reads a topic from its start until the record at `last`, which this process has just written, was seen.
fn read_through(
    log: &Log,
    place: (&'static str, i32),
    last: i64,
    mut on: impl FnMut(i64, &[u8]) -> Result<(), SpeedError>,
) -> Result<(), SpeedError> {
    let mut from = None;
    loop {
        let mut failed = None;
        let end = read_all(log, place, from, |message| {
            if failed.is_none() {
                failed = on(message.offset, message.payload).err();
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if end > last {
            return Ok(());
        }
        // The broker has acknowledged the record and will show it in a moment.
        from = Some(end);
    }
}
