//! What happened in one run, event by event: a counterexample, or an example.
//!
//! Sentences and pictures are made from the same events. Of each it is kept what a power cut just after it could leave, and what
//! the promises allow it to leave.

use core::fmt;
use std::format;
use std::string::String;
use std::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::op::Op;
use crate::sim::disk::TRACKED;
use crate::sim::guest::{Action, SectorRun};
use crate::sim::oracle::Violation;
use crate::sim::value::{Contents, step_name};

/// A run of one program, from the moment at which it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    /// In the order in which they happened. The last of a counterexample says what is broken.
    pub events: Vec<HistoryEvent>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEvent {
    /// Who did it.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// What it was.
    pub what: Happened,
    /// For each sector: what a power cut at this moment could leave.
    pub reachable: [Vec<Contents>; TRACKED],
    /// For each sector: what the promises allow a power cut at this moment to leave.
    pub allowed: [Vec<Contents>; TRACKED],
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// The program and its driver.
    Guest,
    /// The device model.
    Device,
    /// The host's file or block device, with its cache.
    Host,
    /// What keeps its contents without power.
    Medium,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// The guest issues the next step of its program.
    Issued {
        /// Its number.
        step: u8,
        /// What it is.
        action: Action,
    },
    /// The device hands an operation to the host.
    Submitted {
        /// The storage handle.
        handle: usize,
        /// The operation.
        op: Op,
    },
    /// The host completes an operation.
    Completed {
        /// The storage handle.
        handle: usize,
        /// The operation.
        op: Op,
        /// Whether it succeeded.
        ok: bool,
        /// The device has not seen it yet.
        late: bool,
    },
    /// The device hands an operation to the host, which does it at once.
    DoneAtOnce {
        /// The storage handle.
        handle: usize,
        /// The operation.
        op: Op,
        /// Whether it succeeded.
        ok: bool,
    },
    /// The device looks for completions.
    Polled,
    /// The guest sees a step end.
    Ended {
        /// Its number.
        step: u8,
        /// How.
        result: Ending,
        /// What a read found: sector and contents, `None` for a torn sector.
        read: Vec<(usize, Option<Contents>)>,
    },
    /// Power is cut, this is left, and the machine boots again.
    PowerCut {
        /// What each sector holds.
        left: [Contents; TRACKED],
    },
    /// A promise is broken: by what a power cut at this moment can leave, or by what was done just now.
    Broken {
        /// Which, and how.
        violation: Violation,
    },
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Success.
    Done,
    /// The device reported an error.
    Failed,
    /// A reset took it away.
    Aborted,
}

impl History {
    /// The history in words. That the device hands an operation on is left out: its completion says so.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let told = |event: &&HistoryEvent| !matches!(event.what, Happened::Submitted { .. });
        self.events.iter().filter(told).map(|event| format!("{}", event.what)).collect()
    }

    /// The promise that is broken at the end.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        match self.events.last()?.what {
            Happened::Broken { violation } => Some(violation),
            _ => None,
        }
    }
}

impl Happened {
    /// Who did it, and to whom.
    #[must_use]
    pub const fn parties(&self) -> (Party, Party) {
        match self {
            Self::Issued { .. } => (Party::Guest, Party::Device),
            Self::Submitted { .. } => (Party::Device, Party::Host),
            Self::Completed { .. } | Self::DoneAtOnce { .. } => (Party::Host, Party::Device),
            Self::Polled => (Party::Device, Party::Device),
            Self::Ended { .. } => (Party::Device, Party::Guest),
            // What can be wrong with the medium is seen there; all else the guest sees.
            Self::Broken { violation } if !violation.is_power_cut() => (Party::Guest, Party::Guest),
            Self::PowerCut { .. } | Self::Broken { .. } => (Party::Medium, Party::Medium),
        }
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issued { step, action } => write!(f, "guest: {} = {action}", step_name(*step)),
            Self::Submitted { handle, op } => write!(f, "device{}: submits the {}", of(*handle), OpName(*op)),
            Self::Completed { handle, op, ok, late } => {
                let verb = if *ok { "completes" } else { "fails" };
                let late = if *late { ", which the device has not seen yet" } else { "" };
                write!(f, "host{}: {verb} the {}{late}", of(*handle), OpName(*op))
            }
            Self::DoneAtOnce { handle, op, ok } => {
                let verb = if *ok { "does" } else { "fails" };
                write!(f, "host{}: {verb} the {} at once", of(*handle), OpName(*op))
            }
            Self::Polled => f.write_str("device: looks for completions"),
            Self::Ended { step, result, read } => {
                write!(f, "guest: {} {}", step_name(*step), result.words())?;
                for (index, (sector, value)) in read.iter().enumerate() {
                    let before = if index == 0 { ":" } else { "," };
                    match value {
                        Some(value) => write!(f, "{before} sector {sector} holds {value}")?,
                        None => write!(f, "{before} sector {sector} holds torn")?,
                    }
                }
                Ok(())
            }
            Self::PowerCut { left: [first, second] } => {
                write!(f, "power cut and boot: sector 0 holds {first}, sector 1 {second}")
            }
            Self::Broken { violation } => {
                let what = if violation.is_power_cut() { "power cut" } else { "broken" };
                write!(f, "{what}: {violation}")
            }
        }
    }
}

impl Ending {
    /// As a sentence about the step goes on.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Done => "is done",
            Self::Failed => "has failed",
            Self::Aborted => "was aborted",
        }
    }
}

/// The handle, where it is not the first.
fn of(handle: usize) -> String {
    if handle == 0 { String::new() } else { format!(", handle {handle}") }
}

/// An operation in words.
#[derive(Clone, Copy, Debug)]
pub struct OpName(pub Op);

impl fmt::Display for OpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Op::Read { .. } => "read of",
            Op::Write { fua: false, .. } => "write of",
            Op::Write { fua: true, .. } => "FUA write of",
            Op::WriteZeroes { .. } => "zeroing of",
            Op::Discard { .. } => "discard of",
            Op::Flush => "flush",
            Op::Hold { .. } => "hold of",
            Op::LoadState { .. } => "load of a record",
            Op::StoreState { .. } => "store of a record",
        })?;
        match self.0.extent() {
            Some(extent) => {
                write!(f, " {}", SectorRun { first: extent.start.0 as u8, count: extent.sectors as u8 })
            }
            None => Ok(()),
        }
    }
}
