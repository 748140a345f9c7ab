//! Violations of the promise, in words.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::sim::value::{Contents, named, step_name};

/// Why a mutation is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Force Unit Access.
    Fua,
    /// The write cache was off.
    CacheOff,
    /// This flush, or this cache-off, covers it.
    Flushed(u8),
}

/// A promise that does not hold. The invariants I1 to I8 are those of SEMANTICS.md of this crate. Steps go by their letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// I1: a power cut can bring back what a stable mutation had overwritten.
    Lost {
        /// Where.
        sector: usize,
        /// What it can hold.
        #[serde(with = "named")]
        value: u8,
        /// The stable mutation.
        newer: u8,
        /// Why it is stable.
        why: Why,
    },
    /// I1: a power cut can leave what nobody wrote there.
    Unwritten {
        /// Where.
        sector: usize,
        /// What it can hold.
        #[serde(with = "named")]
        value: u8,
    },
    /// I2, or I8 where the front made no such promise: a power cut can show a step without one that a barrier puts
    /// before it.
    Reordered {
        /// The step that can be seen.
        step: u8,
        /// Where.
        shows: usize,
        /// The step that can be missing.
        before: u8,
        /// Where.
        lacks: usize,
        /// What is there instead.
        #[serde(with = "named")]
        value: u8,
        /// The barrier.
        barrier: u8,
        /// Whether the front promised it.
        promised: bool,
    },
    /// I2: a step ended before an older one, and one of them is a barrier.
    Overtakes {
        /// The step that ended.
        step: u8,
        /// The older one.
        older: u8,
    },
    /// I4: a read returned what a completed mutation had superseded.
    StaleRead {
        /// The read.
        step: u8,
        /// Where.
        sector: usize,
        /// What it returned.
        #[serde(with = "named")]
        value: u8,
        /// The mutation.
        newer: u8,
    },
    /// I4: a read returned what nobody wrote there.
    AlienRead {
        /// The read.
        step: u8,
        /// Where.
        sector: usize,
        /// What it returned.
        #[serde(with = "named")]
        value: u8,
    },
    /// A read returned a torn sector.
    TornRead {
        /// The read.
        step: u8,
        /// Where.
        sector: usize,
    },
    /// I5: a flush or a mutation succeeded after a durable operation had failed.
    NotFailStop {
        /// The step that succeeded.
        step: u8,
    },
    /// I6: a reset ended while the host still had operations in flight.
    InFlightAfterReset {
        /// The reset.
        step: u8,
    },
    /// A step ended that was not outstanding.
    EndedTwice {
        /// The step.
        step: u8,
    },
    /// The cache was turned off, and is still advertised.
    CacheStillOn {
        /// The step that turned it off.
        step: u8,
    },
    /// A sector that the program does not use was written.
    Strayed,
    /// Steps are outstanding, and nothing is in flight behind the device.
    Hung,
}

impl Violation {
    /// Whether it shows in what a power cut leaves.
    #[must_use]
    pub const fn is_power_cut(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Unwritten { .. } | Self::Reordered { .. })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Lost { sector, value, newer, why } => {
                let (value, newer) = (Contents::from(value), step_name(newer));
                write!(f, "sector {sector} can hold {value}, although {newer} {why}")
            }
            Self::Unwritten { sector, value } => {
                write!(f, "sector {sector} can hold {}, which nobody wrote there", Contents::from(value))
            }
            Self::Reordered { step, shows, before, lacks, value, barrier, promised } => {
                let [step, before, barrier] = [step, before, barrier].map(step_name);
                let value = Contents::from(value);
                write!(
                    f,
                    "sector {shows} can hold {step} while sector {lacks} holds {value} and not {before}, "
                )?;
                if promised {
                    write!(f, "although {barrier} is a barrier")
                } else {
                    write!(f, "although the program needs {barrier} to be a barrier")
                }
            }
            Self::Overtakes { step, older } => {
                write!(f, "{} ended before {}, across a barrier", step_name(step), step_name(older))
            }
            Self::StaleRead { step, sector, value, newer } => {
                let [step, newer] = [step, newer].map(step_name);
                write!(
                    f,
                    "{step} read {} from sector {sector}, although {newer} was done",
                    Contents::from(value)
                )
            }
            Self::AlienRead { step, sector, value } => {
                let (step, value) = (step_name(step), Contents::from(value));
                write!(f, "{step} read {value} from sector {sector}, which nobody wrote there")
            }
            Self::TornRead { step, sector } => {
                write!(f, "{} read a torn sector {sector}", step_name(step))
            }
            Self::NotFailStop { step } => {
                write!(f, "{} was done although a durable operation had failed before", step_name(step))
            }
            Self::InFlightAfterReset { step } => {
                write!(f, "the reset {} was done while the host had operations in flight", step_name(step))
            }
            Self::EndedTwice { step } => {
                write!(f, "{} ended, but it was not outstanding", step_name(step))
            }
            Self::CacheStillOn { step } => {
                write!(f, "{} turned the write cache off, but it is advertised as on", step_name(step))
            }
            Self::Strayed => f.write_str("a sector that the program does not use was written"),
            Self::Hung => f.write_str("a request never ends: nothing is in flight on the host"),
        }
    }
}

impl core::error::Error for Violation {}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Fua => f.write_str("was done with FUA"),
            Self::CacheOff => f.write_str("was done with the write cache off"),
            Self::Flushed(step) => write!(f, "was done before {} made it stable", step_name(step)),
        }
    }
}
