//! The client's memory: what it shares, where the guest has it, and where the client itself has it.

use std::fs::File;
use std::sync::Arc;

use blk_core::units::GuestAddr;

use crate::memory::{BusErrors, MappedMemory, Window};
use crate::server::mapping::map;

/// Most regions. QEMU has fewer slots for a guest with hotplugged memory only if a backend says so.
pub(super) const SLOTS_MAX: usize = 128;

/// What a message says of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UncheckedRegion {
    pub(super) guest: u64,
    pub(super) bytes: u64,
    pub(super) user: u64,
    pub(super) offset: u64,
}

#[derive(Clone, Debug)]
struct Region {
    claim: UncheckedRegion,
    window: Window,
}

/// The regions that a client shares.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    regions: Vec<Region>,
}

impl Table {
    /// The regions of SET_MEM_TABLE.
    pub(super) fn new(
        regions: impl Iterator<Item = (UncheckedRegion, File)>,
        errors: &Arc<BusErrors>,
    ) -> Result<Self, String> {
        let mut table = Self::default();
        for (claim, file) in regions {
            table.add(claim, file, errors)?;
        }
        Ok(table)
    }

    /// ADD_MEM_REG.
    pub(super) fn add(
        &mut self,
        claim: UncheckedRegion,
        file: File,
        errors: &Arc<BusErrors>,
    ) -> Result<(), String> {
        if self.regions.len() >= SLOTS_MAX {
            return Err(format!("more than {SLOTS_MAX} memory regions"));
        }
        let (mapping, offset) = map(file, claim.offset, claim.bytes, errors)?;
        let window = Window { addr: GuestAddr(claim.guest), mapping, offset, len: claim.bytes as usize };
        self.regions.push(Region { claim, window });
        Ok(())
    }

    /// REM_MEM_REG: the guest's address, the client's and the size say which. Its offset does not.
    pub(super) fn remove(&mut self, claim: &UncheckedRegion) -> Result<(), String> {
        let same = |region: &Region| {
            let UncheckedRegion { guest, bytes, user, offset: _ } = region.claim;
            (guest, bytes, user) == (claim.guest, claim.bytes, claim.user)
        };
        match self.regions.iter().position(same) {
            Some(index) => {
                self.regions.swap_remove(index);
                Ok(())
            }
            None => Err(format!("there is no memory region of {} bytes at {:#x}", claim.bytes, claim.guest)),
        }
    }

    /// The guest's memory.
    pub(super) fn mapped(&self) -> Result<MappedMemory, String> {
        let windows = self.regions.iter().map(|region| region.window.clone()).collect();
        MappedMemory::windows(windows).map_err(|error| error.to_string())
    }

    /// Where the guest has what the client has at `user`.
    pub(super) fn guest_addr(&self, user: u64) -> Option<GuestAddr> {
        self.regions.iter().find_map(|Region { claim, .. }| {
            let offset = user.checked_sub(claim.user).filter(|offset| *offset < claim.bytes)?;
            claim.guest.checked_add(offset).map(GuestAddr)
        })
    }
}
