//! The error of this crate, and what a caller can do about it.

use std::io;
use std::path::PathBuf;

use wye_domain::ErrorKind;

/// Why the broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A file, a directory or the address cannot be used.
    #[error("embedded broker: cannot {what} {path}: {source}", path = path.display())]
    Storage {
        /// The operation.
        what: &'static str,
        /// The file, directory or address.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The start was interrupted because the runtime shuts down.
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
