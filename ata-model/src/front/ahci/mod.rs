//! An AHCI 1.3.1 host bus adapter ("Serial ATA Advanced Host Controller Interface", revision 1.3.1; clauses in this module
//! are its).
//!
//! ```text
//! registers   the bits
//! lanes       accesses that are not of one register as a whole
//! port        a port's registers, its link and its bay
//!   -> engine     takes commands from the list; resets
//!   -> transfer   PRD tables, data, the ends of commands
//!   -> receive    FISes from the drive: memory, PxTFD, PxIS
//! ```
//!
//! Commands that are not queued end when PxCI clears; queued ones when their bit in PxSACT does. PxCMD.CR, GHC.HR and BSY
//! after a reset stay set until nothing that was submitted can land any more.

mod engine;
mod lanes;
mod port;
mod prdt;
mod receive;
mod registers;
mod transfer;

use blk_core::bus::{Access, Device, IrqChange, Progress, Quiet, Region, Width, WriteStatus};
use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;

use crate::drive::{DriveConfig, Reset};
use lanes::lanes;
use port::Port;
use registers::{CAP, GHC_AE, GHC_HR, GHC_IE, PORT_BYTES, PORTS_AT, VERSION, host};

/// An HBA with `P` ports, 1 to 32, each with a drive or without.
///
/// | range | what |
/// |---|---|
/// | `Bar(5)`, [`Self::ABAR_BYTES`] | generic host control, and 128 bytes for each port |
///
/// Interrupt line 0 is INTx. Line 1 is the one MSI message; or, after [`Self::set_message_per_port`], line `1 + n` is port n's: each
/// change of it, always to high, is a message to be sent. Who uses the pin ignores the others. Storage handle n is port n's,
/// with up to 32 operations in flight and a staging buffer of a logical block or more for each
/// ([`DriveConfig::check_storage`]); an empty port's is not used.
///
/// Registers are 32 bits wide. A read of another width returns the bytes that it names, a write changes those alone, as
/// byte enables have it. What is reserved reads as zero and ignores writes.
///
/// **Not there:** port multipliers, enclosure management, command completion coalescing, link power states, device sleep,
/// ATAPI, BIST, staggered spin-up.
///
/// ```
/// use ata_model::{DriveConfig, Hba};
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::{CellMemory, GuestMemory};
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::GuestAddr;
///
/// let (mut ram, mut image, mut staging) = ([0; 4096], [0; 1 << 16], [0; 32 * 512]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disks = [RamDisk::<32>::new(Ram::new(&mut image), &mut staging)];
/// let mut hba = Hba::new([Some(DriveConfig::new("RAM DISK", "0001"))]);
///
/// // FLUSH CACHE EXT in slot 0 of the list at 0: a header of 5 dwords with its table at 500h, where the FIS is.
/// for (address, bytes) in [(0, 5), (8, 0x500), (0x500, 0x40 << 56 | 0xea_8027_u64)] {
///     memory.write(GuestAddr(address), &bytes.to_le_bytes())?;
/// }
/// // PxFB, the port's errors, PxCMD.FRE, PxCMD.ST, PxCI.
/// for (register, value) in [(0x108, 0x400), (0x130, 0xffff_ffff), (0x118, 0x10), (0x118, 0x11), (0x138, 1)] {
///     hba.write(Region::Bar(5), register, Width::Dword, value, &memory, &mut disks[..]);
///     while hba.poll(&memory, &mut disks[..]).again {}
/// }
/// let [issued, task_file] =
///     [0x138, 0x120].map(|at| hba.read(Region::Bar(5), at, Width::Dword, &memory, &mut disks[..]).value);
/// assert_eq!((issued, task_file), (0, 0x50), "the command has ended, and well");
/// # Ok::<(), blk_core::memory::MemoryError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Hba<const P: usize> {
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    ports: [Port; P],
    /// GHC.IE.
    enabled: bool,
    /// IS.
    pending: u32,
    /// Each port has a message of its own.
    message_per_port: bool,
    /// GHC.HR, or the machine's reset.
    reset: Option<Reset>,
}

/// Commands that were issued and not fetched are in the guest's list.
impl<const P: usize> Quiet for Hba<P> {
    fn is_quiet(&self) -> bool {
        self.reset.is_none() && self.ports.iter().all(Port::is_quiet)
    }
}

#[cfg(feature = "snapshot")]
impl<const P: usize> blk_core::snapshot::Snapshot for Hba<P> {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"AHCI", 1).sized(P);
}

impl<const P: usize> Hba<P> {
    /// Bytes of the registers: what the BAR has to hold.
    pub const ABAR_BYTES: u64 = {
        assert!(P >= 1 && P <= 32, "an HBA has 1 to 32 ports");
        PORTS_AT + PORT_BYTES * P as u64
    };

    /// An HBA after power-on.
    #[must_use]
    pub const fn new(drives: [Option<DriveConfig>; P]) -> Self {
        let mut ports = [const { Port::new(None) }; P];
        let (mut places, mut configs) = (ports.as_mut_slice(), drives.as_slice());
        while let (Some((port, more)), Some((drive, rest))) =
            (places.split_first_mut(), configs.split_first())
        {
            *port = Port::new(*drive);
            (places, configs) = (more, rest);
        }
        Self { ports, enabled: false, pending: 0, message_per_port: false, reset: None }
    }

    /// Puts a drive into a port, whose storage handle is from now on its own; returns false, and does nothing, if there is one,
    /// or if the storage still has operations of the one that was. The change of the interrupt lines comes with the next poll.
    pub fn plug(&mut self, port: usize, drive: DriveConfig) -> bool {
        self.ports.get_mut(port).is_some_and(|port| port.plug(drive))
    }

    /// Pulls the drive out of a port. The change of the interrupt lines comes with the next poll.
    pub fn unplug(&mut self, port: usize) {
        if let Some(port) = self.ports.get_mut(port) {
            port.unplug();
        }
    }

    /// Whether the HBA may access memory, as it may from the start: the Bus Master Enable bit of the PCI command register.
    ///
    /// While it may not, no command is fetched, no FIS posted and no further data moved. What the storage has already
    /// ends there, resets and stops wait for it as ever, and commands go on when the HBA may again.
    pub const fn set_bus_master(&mut self, may: bool) {
        let mut rest = self.ports.as_mut_slice();
        while let Some((port, others)) = rest.split_first_mut() {
            port.bus_master = may;
            rest = others;
        }
    }

    /// Whether each port has a message of its own, of as many as there are lines for. Its driver need not look at IS then, nor clear
    /// it (10.7.2).
    pub fn set_message_per_port(&mut self, on: bool) {
        self.message_per_port = on;
        self.ports.iter_mut().for_each(|port| port.announced = 0);
    }

    /// Whether a port has no drive, and the storage nothing of one: its handle may be replaced.
    #[must_use]
    pub fn is_empty(&self, port: usize) -> bool {
        self.ports.get(port).is_none_or(|port| matches!(port.bay, port::Bay::Empty))
    }

    /// Completions that named no operation in flight: a defect of the storage.
    #[must_use]
    pub fn strays(&self) -> u32 {
        let units = self.ports.iter().filter_map(Port::unit);
        units.fold(0, |sum, unit| sum.saturating_add(unit.drive.strays()))
    }

    /// The level of the interrupt lines: messages have none.
    const fn lines(&self) -> u32 {
        (self.enabled && self.pending != 0) as u32
    }

    /// Runs `access` and returns what it did to the interrupt lines.
    fn watched<T>(&mut self, access: impl FnOnce(&mut Self) -> T) -> (T, IrqChange) {
        let before = (self.enabled, self.pending);
        let value = access(self);
        let kept = self.pending;
        let messages = (0..P).fold(0, |messages, index| messages | self.collect_interrupts(index));
        (value, self.irq_change(before, kept, messages))
    }

    /// Sets the bit of IS of a port with enabled interrupts. Returns the line of the port's own message, if that is to be sent: for
    /// the enabled bits of PxIS, when they change.
    #[inline]
    fn collect_interrupts(&mut self, index: usize) -> u32 {
        let Some(port) = self.ports.get_mut(index) else { return 0 };
        let interrupts = port.enabled_interrupts();
        if interrupts != 0 {
            self.pending |= 1_u32.wrapping_shl(index as u32);
        }
        if self.message_per_port && port.announce(if self.enabled { interrupts } else { 0 }) {
            2_u32.checked_shl(index as u32).unwrap_or(0)
        } else {
            0
        }
    }

    /// What has happened to the interrupt lines since GHC.IE and IS were as in `before`; IS was `kept` before the interrupts were
    /// collected.
    ///
    /// The one message is sent when a bit of IS is set, when bits are left after some were cleared, and when interrupts are
    /// enabled with bits set (10.7.2; the one vector is shared, as with MC = 0).
    #[inline]
    const fn irq_change(&self, before: (bool, u32), kept: u32, messages: u32) -> IrqChange {
        let (enabled, pending) = before;
        let messages = if self.message_per_port {
            messages
        } else {
            let set = self.pending & !pending != 0;
            let cleared = kept != pending && self.pending != 0;
            let one = self.enabled && (set || cleared || !enabled && self.pending != 0);
            (one as u32) << 1
        };
        let line = (enabled && pending != 0) as u32;
        let irq = IrqChange::between(line, self.lines());
        irq.then(IrqChange { changed: messages, level: messages })
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            host::CAP => CAP | u32::try_from(P.saturating_sub(1)).unwrap_or(0),
            host::GHC => {
                let reset = if self.reset.is_some() { GHC_HR } else { 0 };
                GHC_AE | reset | if self.enabled { GHC_IE } else { 0 }
            }
            host::IS => self.pending,
            host::PI => u32::MAX >> 32_usize.saturating_sub(P).min(31),
            host::VS => VERSION,
            // Below the ports: CCC, EM, CAP2 and BOHC, of all of which there is nothing; what is reserved, or the vendor's.
            _ => port_at(offset).and_then(|(index, at)| Some(self.ports.get(index)?.read(at))).unwrap_or(0),
        }
    }

    /// Writes the bits of `mask` of a register; returns what that did to the interrupt lines.
    #[inline(never)]
    fn write_register<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        (offset, value, mask): (u64, u32, u32),
        memory: &M,
        storage: &mut [H],
    ) -> IrqChange {
        // An HBA in reset takes no writes; what there is to see then is GHC.HR.
        let port = port_at(offset).filter(|_| self.reset.is_none());
        let Some((index, at)) = port else {
            return self.watched(|hba| hba.write_host((offset, value, mask), memory, storage)).1;
        };
        let Some(port) = self.ports.get_mut(index) else { return IrqChange::NONE };
        let before = (self.enabled, self.pending);
        port.write(at, value, mask, memory, storage.get_mut(index));
        // No other port has changed.
        let messages = self.collect_interrupts(index);
        self.irq_change(before, before.1, messages)
    }

    fn write_host<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        (offset, value, mask): (u64, u32, u32),
        memory: &M,
        storage: &mut [H],
    ) {
        if self.reset.is_some() {
            return;
        }
        match offset {
            host::GHC if value & mask & GHC_HR != 0 => {
                self.begin_reset(Reset::Comreset);
                self.advance_reset(memory, storage);
            }
            host::GHC if mask & GHC_IE != 0 => self.enabled = value & GHC_IE != 0,
            host::IS => self.pending &= !(value & mask),
            _ => {}
        }
    }

    /// A read of parts of registers, or of several.
    #[inline(never)]
    fn read_lanes(&self, offset: u64, width: Width) -> u64 {
        let (mut value, mut done) = (0_u64, 0_u32);
        for lane in lanes(offset, width) {
            let bits = self.read_register(lane.register).wrapping_shr(lane.shift) & lane.ones();
            value |= u64::from(bits).wrapping_shl(done);
            done = done.wrapping_add(lane.bits);
        }
        value
    }

    /// A write of parts of registers, or of several: one after the other.
    #[inline(never)]
    fn write_lanes<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> IrqChange {
        let mut left = value;
        let mut irq = IrqChange::NONE;
        for lane in lanes(offset, width) {
            let bits = left as u32 & lane.ones();
            left = left.wrapping_shr(lane.bits);
            let written = bits.wrapping_shl(lane.shift);
            let mask = lane.ones().wrapping_shl(lane.shift);
            let write = (lane.register, written, mask);
            irq = irq.then(self.write_register(write, memory, storage));
        }
        irq
    }

    fn begin_reset(&mut self, reset: Reset) {
        self.reset = self.reset.max(Some(reset));
        self.enabled = false;
        self.pending = 0;
        self.ports.iter_mut().for_each(|port| port.begin_host_reset(reset));
    }

    /// Ends a reset when nothing is with any storage any more.
    fn advance_reset<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) {
        self.advance_ports(memory, storage);
        if self.ports.iter().all(Port::is_reset) {
            self.reset = None;
        }
    }

    fn advance_ports<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
    ) -> bool {
        let mut again = false;
        for (index, port) in self.ports.iter_mut().enumerate() {
            again |= port.advance(memory, storage.get_mut(index));
        }
        again
    }

    fn progress<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
    ) -> Progress {
        let (again, irq) = self.watched(|hba| {
            if hba.reset.is_some() {
                hba.advance_reset(memory, storage);
            }
            let again = hba.advance_ports(memory, storage);
            // What has ended since may be the last that a reset waits for: the next poll ends it.
            again || hba.reset.is_some() && hba.ports.iter().all(Port::is_reset)
        });
        Progress { irq, again, pending_write: self.reset == Some(Reset::PowerOn) }
    }
}

impl<const P: usize, M: GuestMemory + ?Sized, H: Storage<M>> Device<M, [H]> for Hba<P> {
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        _memory: &M,
        _storage: &mut [H],
    ) -> Access<u64> {
        if region != Region::Bar(5) {
            return Access::quiet(width.ones());
        }
        if is_register(offset, width) {
            return Access::quiet(self.read_register(offset).into());
        }
        Access::quiet(self.read_lanes(offset, width))
    }

    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> Access<WriteStatus> {
        if region != Region::Bar(5) {
            return Access::quiet(WriteStatus::Done);
        }
        let irq = if is_register(offset, width) {
            let write = (offset, value as u32, u32::MAX);
            self.write_register(write, memory, storage)
        } else {
            self.write_lanes(offset, width, value, memory, storage)
        };
        Access { value: WriteStatus::Done, irq }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        self.progress(memory, storage)
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let irq = self.watched(|hba| hba.begin_reset(Reset::PowerOn)).1;
        let progress = self.progress(memory, storage);
        Progress { irq: irq.then(progress.irq), ..progress }
    }
}

/// Whether an access is of one register as a whole: nearly always.
const fn is_register(offset: u64, width: Width) -> bool {
    matches!(width, Width::Dword) && offset & 3 == 0
}

/// Which port's register an offset is, and where in that port.
fn port_at(offset: u64) -> Option<(usize, u64)> {
    let at = offset.checked_sub(PORTS_AT)?;
    let index = usize::try_from(at.checked_div(PORT_BYTES)?).ok()?;
    Some((index, at & (PORT_BYTES - 1)))
}

#[cfg(test)]
mod tests;
