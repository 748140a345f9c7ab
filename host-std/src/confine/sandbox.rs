//! Whether to confine.

use std::fmt;
use std::str::FromStr;

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
    /// What to do.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "require" => Ok(Self::Require),
            _ => Err("give off, auto or require"),
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
