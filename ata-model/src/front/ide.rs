//! An IDE channel: the command block and control block registers of two drives, and their interrupt line
//! (ATA/ATAPI-7 volume 2; for where they are, T13/1510D, ATA/ATAPI Host Adapters Standard).

use blk_core::bus::{IrqChange, Quiet};
use blk_core::memory::GuestMemory;
use blk_core::storage::{Info, Storage};

use super::bmdma::BusMaster;
use crate::command::{Addressing, Interface, Operation, Protocol, Reject, Row, decode};
use crate::drive::{Drive, DriveConfig, Failure, Reset, Step, report_address};
use crate::wire::{Control, DeviceBits, Status, TaskFile};

/// Steps that one access or poll makes at most; each submits one storage operation at most.
const STEPS_MAX: u32 = 64;

/// What a channel without drives drives: the pull-down on DD7 makes BSY read as 0 (ATA/ATAPI-7 volume 2, signal descriptions).
const FLOATING: u8 = 0x7f;

/// Diagnostic code in Error after a reset: device 0 passed (ATA/ATAPI-7 volume 1, EXECUTE DEVICE DIAGNOSTIC).
const DIAGNOSED: u8 = 0x01;

/// Two drives, one of which may be in execution, behind one set of registers.
///
/// | range | what |
/// |---|---|
/// | `Bar(0)`, 8 bytes | Data (16 and 32 bits wide), Error/Features, Count, LBA Low, Mid, High, Device, Status/Command |
/// | `Bar(1)`, 4 bytes | at offset 2 Alternate Status/Device Control |
/// | `Bar(4)`, 8 bytes | the bus master, if there is one |
///
/// Interrupt line 0 is INTRQ. An 8-bit access to Data moves nothing and reads as ones. Storage
/// handle n is device n's, with a staging buffer of a logical block or more
/// ([`DriveConfig::check_storage`]).
///
/// ```
/// use ata_model::{Channel, DriveConfig};
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::CellMemory;
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::GuestAddr;
///
/// let (mut ram, mut image, mut staging) = ([0; 512], [0; 1 << 16], [0; 4096]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disks = [RamDisk::<1>::new(Ram::new(&mut image), &mut staging)];
/// let mut channel = Channel::new([Some(DriveConfig::new("RAM DISK", "0001")), None]);
///
/// // WRITE SECTOR(S), one at LBA 7: Device, Count, LBA Low, Command; then 256 words through the Data register.
/// for (offset, value) in [(6, 0xe0), (2, 1), (3, 7), (7, 0x30)] {
///     channel.write(Region::Bar(0), offset, Width::Byte, value, &memory, &mut disks[..]);
/// }
/// for _ in 0..256 {
///     channel.write(Region::Bar(0), 0, Width::Word, 0x5a5a, &memory, &mut disks[..]);
/// }
/// while channel.poll(&memory, &mut disks[..]).again {}
/// let status = channel.read(Region::Bar(0), 7, Width::Byte, &memory, &mut disks[..]);
/// assert_eq!(status.value, 0x50, "ready, without an error");
/// assert_eq!(status.irq.line(0), Some(false), "reading Status clears the interrupt");
/// assert_eq!(disks[0].medium().bytes()[7 * 512..8 * 512], [0x5a; 512]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Channel {
    pub(super) units: [Option<Unit>; 2],
    /// The DEV bit: device 1 is selected.
    pub(super) device_1: bool,
    control: Control,
    pub(super) phase: Phase,
    pub(super) bus_master: Option<BusMaster>,
}

/// A data block between the host and a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Staged {
    /// Whose: 0 or 1.
    pub device: u8,
    /// Bytes from the start of the staging buffer on.
    pub bytes: u32,
}

/// A drive with its registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Unit {
    pub(super) drive: Drive<1>,
    task: TaskFile,
    error: u8,
    /// ERR and DF; the other bits of Status follow from the phase.
    failed: Status,
    /// An interrupt is pending.
    pub(super) interrupt: bool,
}

/// Phase of the selected drive's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Phase {
    /// There is none.
    Idle,
    /// BSY: the drive works by itself, or the next data block is due; with `interrupt` it will be announced by one.
    Pio { interrupt: bool },
    /// BSY: a block is on its way from the disk to the staging buffer.
    Filling { bytes: u32 },
    /// DRQ: the host reads the block.
    In { at: u32, bytes: u32 },
    /// DRQ: the host writes a block.
    Out { at: u32, bytes: u32 },
    /// BSY: the block is due to go from the staging buffer to the drive.
    Emptying { bytes: u32 },
    /// BSY: a DMA command. Of what is being read, `bounced` bytes come through the staging buffer.
    Dma { bounced: u32 },
    /// BSY: a DMA command whose bus master was stopped; what is with the storage is awaited.
    Cancelled,
    /// BSY: a reset; what is with the storage is awaited, and the end of SRST.
    Reset { hardware: bool },
}

/// A data block that the host is moving is in the staging buffer: see [`Channel::staged`].
impl Quiet for Channel {
    fn is_quiet(&self) -> bool {
        let waits = matches!(self.phase, Phase::Idle | Phase::In { .. } | Phase::Out { .. });
        waits && self.units.iter().flatten().all(|unit| unit.drive.has_nothing_in_flight())
    }
}

#[cfg(feature = "snapshot")]
impl blk_core::snapshot::Snapshot for Channel {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"IDEC", 1);
}

impl Channel {
    /// A channel without a bus master, such as a legacy ISA one: its drives do PIO only and say so.
    #[must_use]
    pub const fn new(drives: [Option<DriveConfig>; 2]) -> Self {
        Self::build(drives, None)
    }

    /// A channel with a bus master.
    #[must_use]
    pub const fn with_bus_master(drives: [Option<DriveConfig>; 2]) -> Self {
        let [drive_0, drive_1] = &drives;
        let present = [drive_0.is_some(), drive_1.is_some()];
        Self::build(drives, Some(BusMaster::new(present)))
    }

    const fn build(drives: [Option<DriveConfig>; 2], bus_master: Option<BusMaster>) -> Self {
        let interface = if bus_master.is_some() { Interface::BusMaster } else { Interface::Pio };
        let [drive_0, drive_1] = drives;
        let units = [Unit::of(drive_0, interface), Unit::of(drive_1, interface)];
        Self { units, device_1: false, control: Control::empty(), phase: Phase::Idle, bus_master }
    }

    /// Completions that named no operation in flight: a defect of the storage.
    #[must_use]
    pub fn strays(&self) -> u32 {
        self.units.iter().flatten().fold(0, |sum, unit| sum.saturating_add(unit.drive.strays()))
    }

    /// Whether the bus master may access memory, as it may from the start: the Bus Master Enable bit of the PCI command
    /// register. While it may not, a DMA command waits once the storage has done what it has; PIO goes on.
    pub const fn set_bus_master(&mut self, may: bool) {
        if let Some(bus_master) = self.bus_master.as_mut() {
            bus_master.permit(may);
        }
    }

    /// Whether a command or a reset is in execution: BSY or DRQ is set. While BSY is, the storage may have operations that
    /// no saved state brings back.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// The data block that the host is moving through the Data register, if there is one: it lies in the staging buffer
    /// of slot 0 of this device's storage handle. Whoever saves a channel in that state saves these bytes too, and
    /// puts them back.
    #[must_use]
    pub fn staged(&self) -> Option<Staged> {
        match self.phase {
            Phase::In { bytes, .. } | Phase::Out { bytes, .. } => {
                Some(Staged { device: u8::from(self.device_1), bytes })
            }
            _ => None,
        }
    }

    pub(super) fn selected(&mut self) -> Option<&mut Unit> {
        self.units.get_mut(usize::from(self.device_1))?.as_mut()
    }

    pub(super) fn selected_ref(&self) -> Option<&Unit> {
        self.units.get(usize::from(self.device_1))?.as_ref()
    }

    /// INTRQ: driven by the selected device, unless nIEN is set.
    pub(super) fn intrq(&self) -> bool {
        let pending = self.selected_ref().is_some_and(|unit| unit.interrupt);
        pending && !self.control.contains(Control::NIEN) && !matches!(self.phase, Phase::Reset { .. })
    }

    /// Runs `access` and returns what it did to the interrupt line.
    pub(super) fn watched<T>(&mut self, access: impl FnOnce(&mut Self) -> T) -> (T, IrqChange) {
        let before = self.intrq();
        let value = access(self);
        let after = self.intrq();
        if let (false, true, Some(bus_master)) = (before, after, self.bus_master.as_mut()) {
            bus_master.interrupt();
        }
        (value, IrqChange::between(u32::from(before), u32::from(after)))
    }

    pub(super) fn status(&self) -> u8 {
        let Some(unit) = self.selected_ref() else {
            // Device 0 answers for an absent device 1 with 00h; nobody answers for an absent device 0.
            return if self.answered_by_0() { 0 } else { FLOATING };
        };
        let ready = Status::DRDY | Status::DSC;
        let status = match self.phase {
            Phase::Idle => ready | unit.failed,
            Phase::In { .. } | Phase::Out { .. } => ready | Status::DRQ,
            Phase::Reset { .. } => Status::BSY,
            _ => Status::BSY | ready,
        };
        status.bits()
    }

    /// Whether device 1 is selected, absent, and device 0 there to answer for it.
    fn answered_by_0(&self) -> bool {
        self.device_1 && matches!(self.units, [Some(_), None])
    }

    pub(super) fn read_register(&mut self, offset: u64) -> u8 {
        if offset == 7 {
            if let Some(unit) = self.selected() {
                unit.interrupt = false;
            }
            return self.status();
        }
        let index = usize::from(self.device_1 && !self.answered_by_0());
        let Some(unit) = self.units.get_mut(index).and_then(Option::as_mut) else { return FLOATING };
        let hob = self.control.contains(Control::HOB);
        match offset {
            1 => unit.error,
            // Bits 7 and 5 are obsolete and read as ones (ATA/ATAPI-5, Device/Head register).
            6 => (unit.task.device & !DeviceBits::DEV.bits()) | 0xa0 | if self.device_1 { 0x10 } else { 0 },
            _ => {
                unit.task.register(offset).map_or(0xff, |pair| if hob { pair.previous } else { pair.current })
            }
        }
    }

    /// Features to LBA High, of which no interrupt comes or goes. Both devices latch every write. While one is busy or moves data,
    /// none does: nothing that a command in execution was decoded from can change, nor the selection.
    pub(super) fn latch(&mut self, offset: u64, value: u8) {
        if self.phase != Phase::Idle {
            return;
        }
        self.control.remove(Control::HOB);
        for unit in self.units.iter_mut().flatten() {
            if let Some(register) = unit.task.register(offset) {
                register.push(value);
            }
        }
    }

    /// Device and Command, likewise.
    pub(super) fn write_register<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        offset: u64,
        value: u8,
        memory: &M,
        storage: &mut [H],
    ) {
        if self.phase != Phase::Idle {
            return;
        }
        self.control.remove(Control::HOB);
        if offset == 7 {
            return self.command(value, memory, storage);
        }
        self.units.iter_mut().flatten().for_each(|unit| unit.task.device = value);
        self.device_1 = value & DeviceBits::DEV.bits() != 0;
    }

    /// A command takes back an interrupt that nobody has acknowledged, before it can raise its own.
    pub(super) fn withdraw_interrupt(&mut self) {
        if self.phase == Phase::Idle
            && let Some(unit) = self.selected()
        {
            unit.interrupt = false;
        }
    }

    #[inline(never)]
    fn command<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, opcode: u8, memory: &M, storage: &mut [H]) {
        // Both devices run the diagnostics, whichever is selected (ATA/ATAPI-7 volume 1, EXECUTE DEVICE DIAGNOSTIC).
        if Row::of(opcode).is_some_and(|row| row.operation == Operation::Diagnostic) {
            return self.diagnose();
        }
        let index = usize::from(self.device_1);
        let (Some(Some(unit)), Some(storage_n)) = (self.units.get_mut(index), storage.get_mut(index)) else {
            return;
        };
        unit.failed = Status::empty();
        unit.error = 0;
        unit.task.command = opcode;
        match decode(&unit.task, unit.drive.settings().geometry) {
            Ok((row, command)) => {
                // Behind a parallel cable nothing is queued.
                let _ = unit.drive.execute(row, command, &mut unit.task, storage_n);
                self.phase = match row.protocol {
                    Protocol::DmaIn | Protocol::DmaOut | Protocol::Queued => Phase::Dma { bounced: 0 },
                    // The first block that the host is to write is not announced by an interrupt.
                    Protocol::PioOut => Phase::Pio { interrupt: false },
                    Protocol::PioIn | Protocol::NonData => Phase::Pio { interrupt: true },
                };
                self.advance(memory, storage);
            }
            Err(Reject::Unknown) => unit.end(Err(Failure::Aborted), true, storage_n.info()),
            Err(Reject::NoSuchAddress) => unit.end(Err(Failure::NoSuchAddress), true, storage_n.info()),
        }
    }

    fn diagnose(&mut self) {
        for unit in self.units.iter_mut().flatten() {
            unit.sign();
        }
        self.device_1 = false;
        if let Some(unit) = self.units.iter_mut().flatten().next() {
            unit.interrupt = true;
        }
    }

    pub(super) fn write_control<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        value: u8,
        memory: &M,
        storage: &mut [H],
    ) {
        let before = core::mem::replace(&mut self.control, Control::from_bits_truncate(value));
        if self.control.contains(Control::SRST) && !before.contains(Control::SRST) {
            self.begin_reset(false);
        }
        self.advance(memory, storage);
    }

    /// Stops everything. A hardware reset stays one though SRST follows it.
    pub(super) fn begin_reset(&mut self, hardware: bool) {
        let hardware = hardware || self.phase == Phase::Reset { hardware: true };
        self.phase = Phase::Reset { hardware };
        for unit in self.units.iter_mut().flatten() {
            unit.drive.begin_reset();
        }
        let present = self.units.each_ref().map(Option::is_some);
        if let Some(bus_master) = self.bus_master.as_mut() {
            if hardware {
                bus_master.reset(present);
            } else {
                // The registers are the controller's and stay; but the transfer has lost its drive.
                bus_master.stop();
            }
        }
    }

    /// Ends a reset when nothing is with any storage and SRST is clear again. BSY is set until then, by no timer.
    fn advance_reset<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        hardware: bool,
        memory: &M,
        storage: &mut [H],
    ) {
        if hardware {
            self.control = Control::empty();
        }
        if self.control.contains(Control::SRST) {
            return;
        }
        let reset = if hardware { Reset::PowerOn } else { Reset::Software };
        let drained = self.units.iter_mut().zip(storage.iter_mut()).all(|(unit, storage)| {
            unit.as_mut().is_none_or(|unit| unit.drive.finish_reset(reset, memory, storage))
        });
        if drained {
            self.units.iter_mut().flatten().for_each(Unit::sign);
            self.device_1 = false;
            self.phase = Phase::Idle;
        }
    }

    /// Lets the command or the reset go on until it waits for the host or the storage; returns whether it could go on.
    pub(super) fn advance<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
    ) -> bool {
        (0..STEPS_MAX).all(|_| self.advance_once(memory, storage))
    }

    fn advance_once<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
    ) -> bool {
        if let Phase::Reset { hardware } = self.phase {
            self.advance_reset(hardware, memory, storage);
            return false;
        }
        if matches!(self.phase, Phase::Idle | Phase::In { .. } | Phase::Out { .. }) {
            return false;
        }
        let index = usize::from(self.device_1);
        let (Some(Some(unit)), Some(storage)) = (self.units.get_mut(index), storage.get_mut(index)) else {
            return false;
        };
        match (self.phase, unit.drive.poll(memory, storage)) {
            (_, Step::Wait | Step::Idle) => false,
            (_, Step::Submitted) => true,
            (_, Step::Ended(Err(failure))) => self.end(Err(failure), true, storage.info()),
            (Phase::Filling { bytes }, _) => self.present(Phase::In { at: 0, bytes }, true),
            (Phase::Dma { bounced: 0 }, Step::Ended(Ok(()))) => self.end(Ok(()), true, storage.info()),
            (Phase::Dma { .. }, step) => self.move_by_dma(step, memory, storage),
            (_, Step::Ended(Ok(()))) => self.end(Ok(()), true, storage.info()),
            (Phase::Cancelled, _) => self.end(Err(Failure::Aborted), true, storage.info()),
            (_, step) => self.move_by_pio(step, memory, storage),
        }
    }

    /// Shows the host a data block.
    pub(super) fn present(&mut self, phase: Phase, interrupt: bool) -> bool {
        self.phase = phase;
        if let Some(unit) = self.selected() {
            unit.interrupt |= interrupt;
        }
        false
    }

    /// Ends the command in execution.
    pub(super) fn end(&mut self, result: Result<(), Failure>, interrupt: bool, info: &Info) -> bool {
        if let (Phase::Dma { .. } | Phase::Cancelled, Some(bus_master)) =
            (self.phase, self.bus_master.as_mut())
        {
            match result {
                Ok(()) => bus_master.complete(),
                Err(failure) if failure.is_memory() => bus_master.fault(),
                Err(_) => bus_master.stop(),
            }
        }
        self.phase = Phase::Idle;
        if let Some(unit) = self.selected() {
            unit.end(result, interrupt, info);
        }
        false
    }
}

impl Unit {
    /// A drive after power-on, with its signature, if there is one.
    const fn of(config: Option<DriveConfig>, interface: Interface) -> Option<Self> {
        let Some(config) = config else { return None };
        let (drive, task) = (Drive::new(config, interface), TaskFile::signature());
        Some(Self { drive, task, error: DIAGNOSED, failed: Status::empty(), interrupt: false })
    }

    /// The opcode of the command in execution.
    pub(super) const fn command(&self) -> u8 {
        self.task.command
    }

    /// The registers after a reset or the diagnostics: the signature, and code 01h, "passed" (ATA/ATAPI-7 volume 1, diagnostic codes).
    fn sign(&mut self) {
        self.task = TaskFile::signature();
        self.error = DIAGNOSED;
        self.failed = Status::empty();
        self.interrupt = false;
    }

    fn end(&mut self, result: Result<(), Failure>, interrupt: bool, info: &Info) {
        self.drive.finish();
        self.interrupt |= interrupt;
        let Err(failure) = result else { return };
        failure.log();
        let report = failure.report();
        self.error = report.error.bits();
        self.failed = report.status();
        if let Some(sector) = report.sector {
            let addressing = Row::of(self.task.command).map_or(Addressing::None, |row| row.addressing);
            report_address(&mut self.task, addressing, sector, info);
        }
    }
}
