//! A machine of one device: what an embedder's glue comes down to.

use std::time::{Duration, Instant};

use blk_core::bus::{Device, Region, Width, WriteStatus};
use blk_core::pci::Command;

use super::{GuestError, TIMEOUT};
use crate::backend::FileStorage;
use crate::memory::MappedMemory;

/// Longest sleep between two polls.
const WAIT: Duration = Duration::from_millis(10);

/// A device, the memory that it shares with its guest, and the storage handles under it.
pub struct Machine<D> {
    device: D,
    memory: MappedMemory,
    storage: Vec<FileStorage>,
    /// Levels of the interrupt lines.
    lines: u32,
}

impl<D: Device<MappedMemory, [FileStorage]>> Machine<D> {
    /// Puts the parts together. `storage` holds one handle for each queue or drive of the device.
    pub fn new(device: D, memory: MappedMemory, storage: Vec<FileStorage>) -> Self {
        Self { device, memory, storage, lines: 0 }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &MappedMemory {
        &self.memory
    }

    /// Whether interrupt line `line` is asserted.
    pub fn line(&self, line: u8) -> bool {
        self.lines >> line & 1 != 0
    }

    /// A register read.
    pub fn read(&mut self, region: Region, offset: u64, width: Width) -> u64 {
        let access = self.device.read(region, offset, width, &self.memory, &mut self.storage);
        self.lines = self.lines & !access.irq.changed | access.irq.level;
        access.value
    }

    /// A register write; waits while the device says that it is pending, as a vCPU would.
    ///
    /// # Errors
    /// [`GuestError::Timeout`] if it stays pending.
    pub fn write(&mut self, region: Region, offset: u64, width: Width, value: u64) -> Result<(), GuestError> {
        let access = self.device.write(region, offset, width, value, &self.memory, &mut self.storage);
        self.lines = self.lines & !access.irq.changed | access.irq.level;
        match access.value {
            WriteStatus::Done => Ok(()),
            WriteStatus::Pending => self.run_until(|_, pending| (!pending).then_some(())),
        }
    }

    /// Lets a PCI function decode and access memory, as firmware does; what is none has no configuration space to write to.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn enable(&mut self) -> Result<(), GuestError> {
        let command = Command::IO | Command::MEMORY | Command::BUS_MASTER;
        self.write(Region::Config, 0x04, Width::Word, command.bits().into())
    }

    /// Polls the device until `done` returns something; `done` is told whether a register write is pending.
    ///
    /// # Errors
    /// [`GuestError::Timeout`] if it never does.
    pub fn run_until<T>(
        &mut self,
        mut done: impl FnMut(&mut Self, bool) -> Option<T>,
    ) -> Result<T, GuestError> {
        let start = Instant::now();
        loop {
            let progress = self.device.poll(&self.memory, &mut self.storage);
            self.lines = self.lines & !progress.irq.changed | progress.irq.level;
            if let Some(value) = done(self, progress.pending_write) {
                return Ok(value);
            }
            if progress.again {
                continue;
            }
            if start.elapsed() > TIMEOUT {
                return Err(GuestError::Timeout);
            }
            // One request is in flight at a time, so one handle has it.
            if let Some(handle) = self.storage.iter_mut().find(|handle| handle.in_use() > 0) {
                handle.wait(Some(WAIT));
            }
        }
    }
}
