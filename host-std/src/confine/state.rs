//! Whether a part of the confinement is on.

use std::io;

/// Whether a part of the confinement is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// In full.
    On,
    /// But for what this kernel does not know, which no other part relies on.
    OnBut(String),
    /// Not.
    Off {
        /// Why.
        cause: String,
        /// What the operator can do.
        remedy: &'static str,
    },
}

impl From<io::Result<()>> for State {
    fn from(result: io::Result<()>) -> Self {
        let remedy = "run a kernel that has it (Linux 6.2 or later) where no other sandbox refuses it";
        result.map_or_else(|error| Self::Off { cause: error.to_string(), remedy }, |()| Self::On)
    }
}
