//! The error of this crate, and the closed set of kinds that every crate of Wye sorts its errors into.

/// What a caller can do about an error. Only [`ErrorKind::Conflict`] and [`ErrorKind::Unavailable`] are worth a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or the input is wrong, and stays wrong when repeated.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Another writer was first; read again and decide again.
    Conflict,
    /// A part that is needed does not answer now; a later attempt may succeed.
    Unavailable,
    /// Stored bytes do not decode.
    Corrupt,
    /// The program has a bug.
    Internal,
}

/// The errors of this crate, by operation.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// A duration, time or window text cannot be read.
    #[error("cannot read {text:?} as {expected}")]
    Parse {
        /// The text.
        text: String,
        /// What is expected.
        expected: &'static str,
    },
    /// Stored or received bytes do not decode.
    #[error("cannot decode {what}: {reason}")]
    Decode {
        /// The kind of thing.
        what: &'static str,
        /// Why it does not decode.
        reason: String,
    },
    /// A record batch does not have the columns that it must have.
    #[error("record batch has no usable column {column:?}")]
    Shape {
        /// The name of the missing or mistyped column.
        column: &'static str,
    },
}

impl DomainError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Parse { .. } => ErrorKind::Invalid,
            Self::Decode { .. } | Self::Shape { .. } => ErrorKind::Corrupt,
        }
    }
}
