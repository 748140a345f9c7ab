//! Whether to confine.

use std::fmt;
use std::str::FromStr;

use super::error::Error;

/// Whether the process is confined: `--sandbox`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// Not at all: for a debugger.
    Off,
    /// As far as the host can.
    #[default]
    Auto,
    /// In full, or the start fails.
    Require,
}

impl FromStr for Sandbox {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "require" => Ok(Self::Require),
            _ => Err(Error::new(
                format!("--sandbox={text}"),
                "choose it",
                "there is no such mode",
                "give off, auto or require",
            )),
        }
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Require => "require",
        })
    }
}
