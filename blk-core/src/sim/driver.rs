//! What every driver needs: memory and storage at hand, bytes in and out, and the values that a read brought.

use crate::memory::GuestMemory;
use crate::sim::guest::{SectorRun, layout};
use crate::sim::memory::uniform;
use crate::units::{GuestAddr, SECTOR_BYTES};

/// Guest memory and storage, as they come in with each call.
#[derive(Debug)]
pub struct World<'a, M: ?Sized, S: ?Sized> {
    /// Memory.
    pub memory: &'a M,
    /// What the device works on.
    pub storage: &'a mut S,
}

/// Writes `bytes` at `at`.
///
/// # Panics
/// If there is no memory.
pub fn put<M: GuestMemory + ?Sized>(memory: &M, at: u64, bytes: &[u8]) {
    memory.write(GuestAddr(at), bytes).expect("it is RAM");
}

/// Reads `N` bytes from `at` on.
///
/// # Panics
/// If there is no memory.
pub fn get<const N: usize, M: GuestMemory + ?Sized>(memory: &M, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(GuestAddr(at), &mut bytes).expect("it is RAM");
    bytes
}

/// What the read of `run` by program step `id` brought: the value of each sector, `None` for one that was torn.
///
/// # Panics
/// If there is no memory.
pub fn read_back<M: GuestMemory + ?Sized>(memory: &M, id: u8, run: SectorRun) -> [Option<u8>; 2] {
    let mut read = [None; 2];
    for (sector, value) in (0..u64::from(run.count)).zip(&mut read) {
        let at = layout::sink(id).0 + u64::from(SECTOR_BYTES) * sector;
        *value = uniform(&get::<{ SECTOR_BYTES as usize }, M>(memory, at));
    }
    read
}
