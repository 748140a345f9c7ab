//! One channel's half of a PCI IDE bus master ("Programming Interface for Bus Master IDE Controller", revision 1.0).

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use zerocopy::{FromZeros, IntoBytes};

use super::scatter::Table;
use crate::wire::Prd;

/// Command register: Start.
const START: u8 = 0x01;
/// Command register: the transfer is to memory.
const TO_MEMORY: u8 = 0x08;
/// Status register: Active, Error, Interrupt, and the two bits by which firmware marks drives as ready for DMA.
const ACTIVE: u8 = 0x01;
const ERROR: u8 = 0x02;
const INTERRUPT: u8 = 0x04;
const CAPABLE: u8 = 0x60;

/// The registers of one channel, eight bytes of I/O space, and the transfer that Start began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct BusMaster {
    /// Whether memory may be accessed.
    permitted: bool,
    command: u8,
    /// Error, Interrupt and the capability bits; Active is `cursor`.
    status: u8,
    table: u32,
    cursor: Option<Cursor>,
}

/// Request to the channel by a write to the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Start,
    /// Start was cleared in mid-transfer: what it was doing is lost, and cannot be resumed.
    Abort,
}

impl BusMaster {
    /// The registers after a reset. For the drives that are there the capability bits are set, as firmware leaves them:
    /// drivers that know no chipset ask these alone.
    pub(super) const fn new(drives: [bool; 2]) -> Self {
        let [drive_0, drive_1] = drives;
        let status = if drive_0 { 0x20 } else { 0 } | if drive_1 { 0x40 } else { 0 };
        Self { permitted: true, command: 0, status, table: 0, cursor: None }
    }

    /// Whether the bus master may access memory: without that, Start moves nothing.
    pub(super) const fn permit(&mut self, may: bool) {
        self.permitted = may;
    }

    /// A hardware reset. What the bus allows is not the registers'.
    pub(super) const fn reset(&mut self, drives: [bool; 2]) {
        *self = Self { permitted: self.permitted, ..Self::new(drives) };
    }

    /// Reads the byte at `offset`: command, reserved, status, reserved, table pointer.
    #[must_use]
    pub fn read(&self, offset: u8) -> u8 {
        let [t0, t1, t2, t3] = self.table.to_le_bytes();
        match offset {
            0 => self.command,
            2 => self.status | if self.cursor.is_some() { ACTIVE } else { 0 },
            4 => t0,
            5 => t1,
            6 => t2,
            7 => t3,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u8, value: u8) -> Asked {
        match offset {
            0 => return self.write_command(value),
            // Error and Interrupt are cleared by writing ones.
            2 => {
                let latched = self.status & !value & (ERROR | INTERRUPT);
                self.status = latched | (value & CAPABLE);
            }
            4..=7 => {
                let mut bytes = self.table.to_le_bytes();
                if let Some(byte) = bytes.get_mut(usize::from(offset & 3)) {
                    *byte = value;
                }
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        Asked::Nothing
    }

    fn write_command(&mut self, value: u8) -> Asked {
        let before = core::mem::replace(&mut self.command, value & (START | TO_MEMORY));
        match (before & START != 0, value & START != 0) {
            (false, true) => {
                self.cursor = Some(Cursor::new(self.table));
                Asked::Start
            }
            (true, false) if self.cursor.take().is_some() => Asked::Abort,
            _ => Asked::Nothing,
        }
    }

    /// Whether data goes to memory.
    pub(super) const fn goes_to_memory(&self) -> bool {
        self.command & TO_MEMORY != 0
    }

    /// Whether Start is set, be there anything left of the table or not, and memory may be accessed.
    pub(super) const fn runs(&self) -> bool {
        self.command & START != 0 && self.permitted
    }

    pub(super) const fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// The transfer has come as far as `cursor`.
    pub(super) const fn moved(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
    }

    /// The drive's command has ended well. Active stays set where the table describes more than it moved (status bit interpretation).
    pub(super) fn complete(&mut self) {
        self.cursor = self.cursor.filter(|cursor| !cursor.is_exhausted());
    }

    /// The transfer is over, whatever is left of the table.
    pub(super) const fn stop(&mut self) {
        self.cursor = None;
    }

    /// The transfer met memory that is none.
    pub(super) const fn fault(&mut self) {
        self.cursor = None;
        self.status |= ERROR;
    }

    /// The drive's interrupt line has gone up.
    pub(super) const fn interrupt(&mut self) {
        self.status |= INTERRUPT;
    }
}

/// A place in a PRD table: the entry that comes next and what is left of the region before it.
///
/// A table ends with the entry that says so, or at the 64 KiB boundary that it may not cross: 8,192 entries bound
/// every walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Cursor {
    entry: u32,
    last: bool,
    region: u32,
    left: u32,
}

impl Cursor {
    /// The start of the table at `table`.
    #[must_use]
    pub const fn new(table: u32) -> Self {
        Self { entry: table, last: false, region: 0, left: 0 }
    }

    /// Reads the next entry, once. Returns false at the end of the table.
    fn fetch<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, MemoryError> {
        if self.last {
            return Ok(false);
        }
        let mut prd = Prd::new_zeroed();
        memory.read(GuestAddr(u64::from(self.entry)), prd.as_mut_bytes())?;
        self.entry = self.entry.wrapping_add(8);
        self.last = prd.flags.get() & Prd::END_OF_TABLE != 0 || self.entry & 0xffff == 0;
        self.region = prd.base.get() & !1;
        self.left = match u32::from(prd.bytes.get() & !1) {
            0 => 0x1_0000,
            bytes => bytes,
        };
        // Addresses have 32 bits; a region that reaches past them is no memory. Its end may be 2^32 itself.
        let last_byte = self.region.checked_add(self.left.wrapping_sub(1));
        last_byte.map(|_| true).ok_or(MemoryError)
    }
}

impl Table for Cursor {
    fn is_exhausted(&self) -> bool {
        self.last && self.left == 0
    }

    fn region<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<Option<(GuestAddr, u32)>, MemoryError> {
        if self.left == 0 && !self.fetch(memory)? {
            return Ok(None);
        }
        Ok(Some((GuestAddr(u64::from(self.region)), self.left)))
    }

    fn pass(&mut self, bytes: u32) {
        self.region = self.region.wrapping_add(bytes);
        self.left = self.left.saturating_sub(bytes);
    }
}
