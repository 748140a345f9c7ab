//! Errors that keep a process from being confined as its operator wants.

use std::fmt;

/// The text names the option or file, what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{object}: cannot {action}: {cause}; {remedy}")]
pub struct Error {
    object: String,
    action: String,
    cause: String,
    remedy: String,
}

impl Error {
    pub(super) fn new(
        object: impl fmt::Display,
        action: impl fmt::Display,
        cause: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self {
            object: object.to_string(),
            action: action.to_string(),
            cause: cause.to_string(),
            remedy: remedy.to_string(),
        }
    }
}
