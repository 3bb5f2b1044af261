//! The error of this crate, and what a caller can do about it.

use std::io;
use std::path::PathBuf;

use wye_domain::ErrorKind;

/// Why the broker cannot start, or its log cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A file, a directory or the address cannot be used.
    #[error("embedded broker: cannot {what} {path}: {source}", path = path.display())]
    Storage {
        /// The operation.
        what: &'static str,
        /// The file, directory or address.
        path: PathBuf,
        /// The error of the operating system, or the damage.
        source: io::Error,
    },
    /// The runtime was shut down during the start.
    #[error("embedded broker: the start was interrupted")]
    Cancelled,
}

impl BrokerError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage { source, .. } => match source.kind() {
                io::ErrorKind::InvalidData => ErrorKind::Corrupt,
                io::ErrorKind::AddrInUse | io::ErrorKind::WouldBlock => ErrorKind::Conflict,
                _ => ErrorKind::Unavailable,
            },
            Self::Cancelled => ErrorKind::Unavailable,
        }
    }
}
