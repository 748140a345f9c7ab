//! An AHCI HBA, with a guest that touches the registers that Linux does (`ahci_qc_issue`, `ahci_single_level_irq_intr`).

use ata_model::sim::hba::{ABAR, FRE, ST, command_fis, prepare, queued_fis};
use ata_model::wire::ahci::{PORTS_AT, host, port, received};
use ata_model::{DriveConfig, Hba, PciAhci};
use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory as _;
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;

use crate::Operation;
use crate::front::{BYTES, DATA, Front, SECTORS, put};

/// The command list, the received FISes, and the command tables: 256 bytes each.
const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLES: u64 = 0x1000;
/// GHC.IE.
const ENABLED: u32 = 1 << 1;
/// Slots with a command in them.
const SLOTS: u8 = 32;
/// PxIS: a Register FIS; a Set Device Bits FIS.
const ENDED: u32 = 1 << 0 | 1 << 3;

/// An HBA of one port; behind a PCI function, without message signalled interrupts.
pub(crate) type PciHba = PciFunction<PciAhci<1>, 0>;

/// A driver of the HBA `D`.
struct Driver<D> {
    device: D,
    /// The interrupt line.
    level: bool,
}

impl<D> Driver<D> {
    /// Brings up port 0. `fis` is what command slot n has to do.
    fn new<S>(device: D, fis: impl Fn(u8) -> [u8; 20], memory: &MappedMemory, storage: &mut [S]) -> Self
    where
        D: Device<MappedMemory, [S]>,
    {
        let mut driver = Self { device, level: false };
        for slot in 0..SLOTS {
            let table = TABLES + 0x100 * u64::from(slot);
            let data = DATA + u64::from(BYTES) * u64::from(slot);
            for (at, bytes) in prepare(LIST, slot, table, &fis(slot), &[(data, BYTES)]) {
                put(memory, at, &bytes);
            }
        }
        driver.set(port::CLB, LIST as u32, memory, storage);
        driver.set(port::FB, RECEIVED as u32, memory, storage);
        driver.set(port::CMD, FRE, memory, storage);
        driver.poll(memory, storage);
        driver.set(port::SERR, u32::MAX, memory, storage);
        driver.set(port::IS, u32::MAX, memory, storage);
        driver.set(port::IE, u32::MAX, memory, storage);
        driver.set(port::CMD, FRE | ST, memory, storage);
        driver.write(host::GHC, ENABLED, memory, storage);
        driver.poll(memory, storage);
        driver
    }

    fn read<S>(&mut self, offset: u64, memory: &MappedMemory, storage: &mut [S]) -> u32
    where
        D: Device<MappedMemory, [S]>,
    {
        self.device.read(ABAR, offset, Width::Dword, memory, storage).value as u32
    }

    fn write<S>(&mut self, offset: u64, value: u32, memory: &MappedMemory, storage: &mut [S])
    where
        D: Device<MappedMemory, [S]>,
    {
        let irq = self.device.write(ABAR, offset, Width::Dword, value.into(), memory, storage).irq;
        self.level = irq.line(0).unwrap_or(self.level);
    }

    /// Writes a register of the port.
    fn set<S>(&mut self, register: u64, value: u32, memory: &MappedMemory, storage: &mut [S])
    where
        D: Device<MappedMemory, [S]>,
    {
        self.write(PORTS_AT + register, value, memory, storage);
    }

    fn poll<S>(&mut self, memory: &MappedMemory, storage: &mut [S])
    where
        D: Device<MappedMemory, [S]>,
    {
        loop {
            let progress = self.device.poll(memory, storage);
            self.level = progress.irq.line(0).unwrap_or(self.level);
            if !progress.again {
                return;
            }
        }
    }

    /// Handles the interrupt; `outstanding` is the register that tells which commands are.
    fn interrupt<S>(&mut self, outstanding: u64, memory: &MappedMemory, storage: &mut [S])
    where
        D: Device<MappedMemory, [S]>,
    {
        assert!(self.level, "there is an interrupt");
        let pending = self.read(host::IS, memory, storage);
        let cause = self.read(PORTS_AT + port::IS, memory, storage);
        self.set(port::IS, cause, memory, storage);
        let outstanding = self.read(PORTS_AT + outstanding, memory, storage);
        assert!(cause & !ENDED == 0 && cause & ENDED != 0 && outstanding == 0, "all has ended, and well");
        self.write(host::IS, pending, memory, storage);
        assert!(!self.level, "the interrupt is taken back");
    }
}

/// An HBA that there is a row for.
pub(crate) trait Target: Sized {
    fn new<S: Storage<MappedMemory>>(memory: &MappedMemory, storage: &mut [S]) -> Self
    where
        Self: Device<MappedMemory, [S]>;
}

fn drives() -> [Option<DriveConfig>; 1] {
    [Some(DriveConfig::new("BENCH DISK", "1"))]
}

impl Target for Hba<1> {
    fn new<S: Storage<MappedMemory>>(_memory: &MappedMemory, _storage: &mut [S]) -> Self {
        Self::new(drives())
    }
}

impl Target for PciHba {
    fn new<S: Storage<MappedMemory>>(memory: &MappedMemory, storage: &mut [S]) -> Self {
        /// Command: memory and bus mastering.
        const COMMAND: u64 = 4;
        let mut function = Self::new(PciAhci::new(drives()), MsixOwner::Function);
        let _ = function.write(Region::Config, COMMAND, Width::Word, 6, memory, storage);
        function
    }
}

/// READ and WRITE FPDMA QUEUED, `BATCH` of them before an interrupt, `TOGETHER` of them issued by one write.
pub(crate) struct Queued<D, const BATCH: u32, const TOGETHER: u32>(Driver<D>);

impl<D: Target, const BATCH: u32, const TOGETHER: u32> Queued<D, BATCH, TOGETHER> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self
    where
        D: Device<MappedMemory, [S]>,
    {
        let opcode = if operation == Operation::Write { 0x61 } else { 0x60 };
        let fis =
            |tag: u8| queued_fis(opcode, tag, u64::from(SECTORS) * u64::from(tag), SECTORS.into(), false);
        Self(Driver::new(D::new(memory, storage), fis, memory, storage))
    }
}

impl<S: Storage<MappedMemory>, D: Device<MappedMemory, [S]>, const BATCH: u32, const TOGETHER: u32> Front<S>
    for Queued<D, BATCH, TOGETHER>
{
    const REQUESTS: u32 = BATCH;

    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let Self(driver) = self;
        for first in (0..BATCH).step_by(TOGETHER as usize) {
            let tags = u32::MAX >> (32 - TOGETHER) << first;
            driver.set(port::SACT, tags, memory, storage);
            driver.set(port::CI, tags, memory, storage);
        }
        driver.poll(memory, storage);
        driver.interrupt(port::SACT, memory, storage);
    }

    fn check(&self, memory: &MappedMemory) {
        ended_well(memory, received::SET_DEVICE_BITS);
    }
}

/// READ DMA EXT, WRITE DMA EXT, FLUSH CACHE EXT, alone.
pub(crate) struct Dma<D>(Driver<D>);

impl<D: Target> Dma<D> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self
    where
        D: Device<MappedMemory, [S]>,
    {
        let (opcode, count) = match operation {
            Operation::Read => (0x25, SECTORS),
            Operation::Write => (0x35, SECTORS),
            Operation::Flush => (0xea, 0),
        };
        let fis = |slot: u8| command_fis(opcode, 0, u64::from(SECTORS) * u64::from(slot), count.into(), 0x40);
        Self(Driver::new(D::new(memory, storage), fis, memory, storage))
    }
}

impl<S: Storage<MappedMemory>, D: Device<MappedMemory, [S]>> Front<S> for Dma<D> {
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let Self(driver) = self;
        driver.set(port::CI, 1, memory, storage);
        driver.poll(memory, storage);
        driver.interrupt(port::CI, memory, storage);
    }

    fn check(&self, memory: &MappedMemory) {
        ended_well(memory, received::REGISTER);
    }
}

/// Panics unless the last FIS that says how a command ended has no error.
fn ended_well(memory: &MappedMemory, fis: u64) {
    let mut head = [0; 4];
    memory.read(GuestAddr(RECEIVED + fis), &mut head).expect("memory");
    let [kind, _, status, error] = head;
    assert!(kind != 0 && status & 0x21 == 0 && error == 0, "a FIS without an error: {head:x?}");
}
