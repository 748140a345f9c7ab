//! Walk through the buffers of a chain, bounded, each descriptor copied once.

use super::ring::{Buffer, QueueError, SIZE_MAX};
use super::table::{Descriptor, Table};
use crate::memory::GuestMemory;

/// Place in a chain. The readable buffers come first, then the writable ones; empty buffers are left out.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    table: Table,
    /// Descriptors that the chain may still have: no loop is longer.
    left: u32,
    /// The next descriptor, if there is one.
    next: Option<u16>,
    writable_seen: bool,
}

impl Walk {
    /// The beginning of the chain at `head`.
    #[inline]
    pub(super) const fn new(table: Table, head: u16) -> Self {
        Self { table, left: table.entries(), next: Some(head), writable_seen: false }
    }

    /// The next buffer, or `None` at the end.
    ///
    /// # Errors
    /// [`QueueError`], which breaks the queue.
    #[inline]
    pub fn next<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<Option<Buffer>, QueueError> {
        while let Some(index) = self.next {
            let descriptor = self.table.descriptor(memory, index)?;
            self.left = self.left.checked_sub(1).ok_or(QueueError::TooLong)?;
            let Descriptor { addr, len, flags, next } = descriptor;
            if flags & Descriptor::INDIRECT != 0 {
                self.table = self.table.indirect(descriptor)?;
                self.left = self.table.entries().min(u32::from(SIZE_MAX));
                self.next = Some(0);
                continue;
            }
            self.next = if flags & Descriptor::NEXT != 0 { Some(next) } else { None };
            if len == 0 {
                continue;
            }
            if !descriptor.fits() {
                return Err(QueueError::Wraps);
            }
            let writable = flags & Descriptor::WRITE != 0;
            if self.writable_seen && !writable {
                return Err(QueueError::Order);
            }
            self.writable_seen = writable;
            return Ok(Some(Buffer { addr, len, writable }));
        }
        Ok(None)
    }
}
