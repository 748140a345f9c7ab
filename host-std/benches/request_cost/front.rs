//! A front under measurement, with a guest that repeats one operation.

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;

/// Bytes of the read and the write.
pub(crate) const BYTES: u32 = 4096;
pub(crate) const SECTORS: u8 = 8;
/// Where the data is; all below belongs to the fronts.
pub(crate) const DATA: u64 = 0x4_0000;

/// A front with a guest.
pub(crate) trait Front<S> {
    /// Requests that [`Self::serve`] serves.
    const REQUESTS: u32 = 1;

    /// What the guest does that is no access to the device: it is not counted.
    fn prepare(&mut self, _memory: &MappedMemory) {}

    /// The guest's accesses to the device, and the device's work.
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]);

    /// Panics unless everything was done, and well.
    fn check(&self, memory: &MappedMemory);
}

/// The guest writes to its memory.
pub(crate) fn put(memory: &MappedMemory, at: u64, bytes: &[u8]) {
    memory.write(GuestAddr(at), bytes).expect("memory");
}
