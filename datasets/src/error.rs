//! What can go wrong in this crate as a whole. A bad row is not an error: it is data, see
//! [`Rejected`](crate::csv_source::Rejected).

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use wye_domain::ErrorKind;

/// A mapping or a file that cannot be used.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// The mapping file says something that cannot be meant.
    #[error("{}: {key}: {problem}", path.display())]
    Mapping {
        /// The mapping file.
        path: PathBuf,
        /// The key, such as `metric[2].scale`; `syntax` where the text is not TOML.
        key: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// The file does not have the form that the mapping says.
    #[error("{}: {problem}", path.display())]
    Form {
        /// The data file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The compressed data stop early or are damaged.
    #[error("{}: the gzip data are cut off or damaged after {csv_rows} rows; fetch the file again", path.display())]
    Damaged {
        /// The data file.
        path: PathBuf,
        /// Rows handed out before the damage.
        csv_rows: u64,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// The operating system refused to read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
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
