//! `wye repair-log`: what is damaged in the log of a stopped Wye, and how to start without it.
//!
//! What damage is, and how it is given up, is for `wye-broker`.

use anyhow::{Result, bail};
use wye_broker::{Repair, repair};
use wye_domain::ErrorKind;

use crate::cli::RepairLog;
use crate::terminal::{program, say};

/// Runs the command.
///
/// # Errors
/// When a broker has the log open, when it cannot be read, and when there is damage that was not given up.
pub(crate) fn run(arguments: &RepairLog) -> Result<()> {
    let log = arguments.data_dir.join("log");
    if !log.is_dir() {
        bail!(
            "there is no log of an embedded broker in {}; name the data directory of `wye up` by --data-dir",
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
        say(format!("The log in {} is sound", log.display()))?;
    } else if arguments.accept_loss {
        say(format!("The log in {} is repaired; `wye up` starts without what is lost", log.display()))?;
    } else {
        bail!(
            "the log in {} is damaged; nothing was changed. Give up what is lost by: {} repair-log --accept-loss --data-dir {}",
            log.display(),
            program(),
            arguments.data_dir.display()
        );
    }
    Ok(())
}
