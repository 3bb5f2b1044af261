//! The errors of this crate. An invalid row is not an error but data, see [`Rejected`](crate::csv_source::Rejected).

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use wye_domain::ErrorKind;

/// A mapping or a file that cannot be used.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// The mapping file is invalid, or does not fit the data file.
    #[error("{}: {key}: {problem}", path.display())]
    Mapping {
        /// The mapping file.
        path: PathBuf,
        /// The key, such as `metric[2].scale`; `syntax` where the text is not TOML.
        key: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// The data file does not have the expected form.
    #[error("{}: {problem}", path.display())]
    Form {
        /// The data file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The compressed data end too early or are damaged.
    #[error("{}: the gzip data are cut off or damaged after {csv_rows} rows; download the file again", path.display())]
    Damaged {
        /// The data file.
        path: PathBuf,
        /// Rows before the damage.
        csv_rows: u64,
        /// The error of the decoder.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
}

impl DatasetError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Mapping { .. } | Self::Form { .. } => ErrorKind::Invalid,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Read { .. } => ErrorKind::Unavailable,
        }
    }
}
