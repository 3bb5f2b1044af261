//! The error of this crate; the closed set of kinds that every crate of Wye sorts its errors into; and how an error is
//! written with its causes.

use std::error::Error;

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

impl ErrorKind {
    /// The name in telemetry and in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }
}

/// An error with its causes as one text, from the error itself to the first cause. A cause that the text before it
/// contains is not repeated.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The first cause of an error; the error itself where it has none.
pub fn first_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut first = error;
    while let Some(source) = first.source() {
        first = source;
    }
    first
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    fn layers(texts: &[&'static str]) -> Option<Box<Layer>> {
        let (text, causes) = texts.split_first()?;
        Some(Box::new(Layer { text, source: layers(causes) }))
    }

    #[test]
    fn each_cause_is_named_once() {
        let error = layers(&["cannot run the query", "IO error: disk on fire", "disk on fire"]).unwrap();
        assert_eq!(error_chain(&error), "cannot run the query: IO error: disk on fire");
        assert_eq!(first_cause(&error).to_string(), "disk on fire");
        let alone = layers(&["cannot run the query"]).unwrap();
        assert_eq!(error_chain(&alone), "cannot run the query");
        assert_eq!(first_cause(&alone).to_string(), "cannot run the query");
    }
}
