//! Where a logical unit is, if there is one: made with the controller, so that a unit comes and goes in place.

use blk_core::storage::Info;

use super::requests::Pending;
use super::wire::Response;
use crate::config::Config as Identity;
use crate::disk::{LogicalUnit, Unsupported};

/// A unit and the requests that it has: its tasks are named by their places in the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Attached<const N: usize> {
    pub(super) unit: LogicalUnit<N>,
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub(super) requests: [Option<Pending>; N],
}

impl<const N: usize> Attached<N> {
    /// What comes back aborted from now on, of what there is, is answered with `response`.
    pub(super) fn cancel(&mut self, response: Response) {
        for pending in self.requests.iter_mut().flatten() {
            pending.cancelled = response;
        }
    }
}

/// The place of a unit. It is used as an `Option` is, but nothing is moved into it or out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Bay<const N: usize> {
    occupied: bool,
    attached: Attached<N>,
}

impl<const N: usize> Bay<N> {
    pub(super) const VACANT: Self = {
        let unit = LogicalUnit::off(Identity::new("", "", "", ""));
        Self { occupied: false, attached: Attached { unit, requests: [None; N] } }
    };

    /// Puts a unit in, as after power-on.
    pub(super) fn insert(&mut self, identity: Identity, info: &Info) -> Result<(), Unsupported> {
        self.attached.unit.replace(identity, info)?;
        self.occupied = true;
        Ok(())
    }

    /// Takes a unit out that has nothing in flight.
    pub(super) fn vacate(&mut self) {
        self.occupied = false;
        self.attached.requests = [None; N];
    }

    pub(super) const fn is_vacant(&self) -> bool {
        !self.occupied
    }

    pub(super) fn as_ref(&self) -> Option<&Attached<N>> {
        self.occupied.then_some(&self.attached)
    }

    pub(super) fn as_mut(&mut self) -> Option<&mut Attached<N>> {
        self.occupied.then_some(&mut self.attached)
    }
}
