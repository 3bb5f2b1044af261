//! `wye repair-log`: reports damage in the log of a stopped Wye, and removes damaged records.
//!
//! `wye-broker` decides what is damaged, and what is removed.

use anyhow::{Result, bail};
use wye_broker::{Repair, repair};
use wye_domain::ErrorKind;

use crate::cli::RepairLog;
use crate::terminal::{program, say};

/// Runs the command.
///
/// # Errors
/// When a broker has the log open, when it cannot be read, and when there is damage that may not be removed.
pub(crate) fn run(arguments: &RepairLog) -> Result<()> {
    let log = arguments.data_dir.join("log");
    if !log.is_dir() {
        bail!(
            "there is no log of an embedded broker in {}; give the data directory of `wye up` with --data-dir",
            arguments.data_dir.display()
        );
    }
    let how = if arguments.accept_loss { Repair::AcceptLoss } else { Repair::Report };
    let losses = match repair(&log, how) {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            bail!("`wye up` is running on {}; stop it first", arguments.data_dir.display());
        }
        repaired => repaired?,
    };
    for loss in &losses {
        say(loss)?;
    }
    if losses.is_empty() {
        say(format!("The log in {} has no damage", log.display()))?;
    } else if arguments.accept_loss {
        say(format!(
            "The log in {} is repaired; `wye up` can start, without the lost records",
            log.display()
        ))?;
    } else {
        bail!(
            "the log in {} is damaged; nothing was changed. To remove the lost records, run: {} repair-log --accept-loss --data-dir {}",
            log.display(),
            program(),
            arguments.data_dir.display()
        );
    }
    Ok(())
}
