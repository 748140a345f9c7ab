//! Why a configuration cannot be.

use std::fmt;

/// An option that cannot be. The text names where it was given, the option and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {what}; {remedy}")]
pub struct ConfigError {
    /// File and table, or option of the command line.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl ConfigError {
    pub(in crate::serve) fn new(
        place: impl fmt::Display,
        what: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self { place: place.to_string(), what: what.to_string(), remedy: remedy.to_string() }
    }
}
