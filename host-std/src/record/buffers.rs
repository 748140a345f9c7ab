//! Memory for the data of writes in flight: what is recorded is what the host is given, whatever the guest does meanwhile.

use std::collections::BTreeMap;

use blk_core::memory::GuestMemory as _;
use blk_core::op::Segment;
use blk_core::units::GuestAddr;

use crate::backend::Charge;
use crate::memory::{MappedMemory, MappingError};

/// Bytes of buffers not in use that are kept.
const KEPT_BYTES: usize = 4 << 20;
/// Smallest buffer: a page.
const SMALLEST: usize = 4096;

/// Memory that is mapped for one write, page-aligned so that direct I/O takes it as it is.
pub(super) struct Buffer {
    memory: MappedMemory,
    size: usize,
    len: u32,
    _charge: Charge,
}

impl Buffer {
    pub(super) const fn memory(&self) -> &MappedMemory {
        &self.memory
    }

    pub(super) const fn segment(&self) -> Segment {
        Segment::Guest { addr: GuestAddr(0), len: self.len }
    }
}

/// The buffers of a handle that are not in use, by size.
#[derive(Default)]
pub(super) struct Buffers {
    free: BTreeMap<usize, Vec<MappedMemory>>,
    free_bytes: usize,
}

impl Buffers {
    /// A buffer that holds `data`, which is not empty, and for which `charge` was taken.
    pub(super) fn holding(&mut self, data: &[u8], charge: Charge) -> Result<Buffer, MappingError> {
        let size = data.len().next_power_of_two().max(SMALLEST);
        let memory = match self.free.get_mut(&size).and_then(Vec::pop) {
            Some(memory) => {
                self.free_bytes -= size;
                memory
            }
            None => MappedMemory::anonymous(&[(GuestAddr(0), size)])?,
        };
        // It is as large as the data at least.
        let _ = memory.write(GuestAddr(0), data);
        Ok(Buffer { memory, size, len: data.len() as u32, _charge: charge })
    }

    /// To be called once nothing reads the buffer any more: its operation has completed.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        if self.free_bytes + buffer.size <= KEPT_BYTES {
            self.free_bytes += buffer.size;
            self.free.entry(buffer.size).or_default().push(buffer.memory);
        }
    }
}
