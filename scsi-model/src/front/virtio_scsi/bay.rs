//! Where a logical unit is, if there is one: made with the controller, so that a unit comes and goes in place.

use blk_core::storage::Info;

use super::pending::PendingTable;
use crate::config::Config as Identity;
use crate::disk::{LogicalUnit, Unsupported};

/// A unit and the requests that it has: its tasks are named by their places in the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Attached<const N: usize> {
    pub(super) unit: LogicalUnit<N>,
    pub(super) requests: PendingTable<N>,
}

/// The place of a unit. It is used as an `Option` is, but nothing is moved into it or out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Bay<const N: usize> {
    occupied: bool,
    attached: Attached<N>,
}

impl<const N: usize> Bay<N> {
    pub(super) const VACANT: Self = {
        let unit = LogicalUnit::off(Identity::new("", "", "", ""));
        Self { occupied: false, attached: Attached { unit, requests: PendingTable::EMPTY } }
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
        self.attached.requests.clear();
    }

    pub(super) const fn is_vacant(&self) -> bool {
        !self.occupied
    }

    pub(super) const fn as_ref(&self) -> Option<&Attached<N>> {
        if self.occupied { Some(&self.attached) } else { None }
    }

    #[inline]
    pub(super) const fn as_mut(&mut self) -> Option<&mut Attached<N>> {
        if self.occupied { Some(&mut self.attached) } else { None }
    }
}
