//! Data transfer of a command: block by block through the Data register, or by the bus master.

use blk_core::bus::Width;
use blk_core::memory::GuestMemory;
use blk_core::mutant::{Mutant, active};
use blk_core::op::Segment;
use blk_core::storage::{Info, IoError, IoErrorKind, Storage};
use blk_core::units::Extent;

use super::bmdma::{Asked, Cursor};
use super::ide::{Channel, Phase};
use super::scatter::{Piece, Segments, Stop, Table, next_piece, to_usize};
use crate::command::{Direction, Row};
use crate::drive::{Failure, Reset, Step};

/// Guest memory that is none, as a failure of the command.
const NO_MEMORY: Failure = Failure::Io { error: IoError::new(IoErrorKind::Memory), reading: false };

/// What became of a piece of a DMA transfer.
enum Moved {
    /// It is with the storage, or done.
    Yes,
    /// Neither the storage nor, before Start, the bus master takes it now.
    NotNow,
    /// The table ended before the command's data did.
    Short,
    /// The command cannot go on.
    Failed(Failure),
}

impl From<Stop> for Moved {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Short => Self::Short,
            Stop::Memory => Self::Failed(NO_MEMORY),
            Stop::NoStaging => Self::Failed(Failure::Aborted),
        }
    }
}

impl Channel {
    /// The staging buffer of the selected drive, where the data block in transfer is.
    #[inline]
    fn block<'a, M: ?Sized, H: Storage<M>>(&self, storage: &'a mut [H]) -> Option<&'a mut [u8]> {
        let unit = self.selected_ref()?;
        Some(storage.get_mut(usize::from(self.device_1))?.staging(unit.drive.slot()))
    }

    /// What is left of the data block in transfer but for its last unit of `unit_bytes`: what a guest moves without an effect on
    /// anything but the place in the block. Empty if there is no such block.
    fn within_block<'a, M: ?Sized, H: Storage<M>>(
        &self,
        unit_bytes: u32,
        storage: &'a mut [H],
    ) -> &'a mut [u8] {
        let (Phase::In { at, bytes } | Phase::Out { at, bytes }) = self.phase else { return &mut [] };
        let units = bytes.saturating_sub(at).div_ceil(unit_bytes).saturating_sub(1);
        let end = at.saturating_add(units.saturating_mul(unit_bytes));
        self.block(storage).and_then(|block| block.get_mut(to_usize(at)..to_usize(end))).unwrap_or_default()
    }

    /// So many bytes of the data block have been moved.
    fn advance_block(&mut self, moved: u32) {
        if let Phase::In { at, .. } | Phase::Out { at, .. } = &mut self.phase {
            *at = at.saturating_add(moved);
        }
    }

    /// A read of the Data register, unless it ends the block.
    #[inline]
    pub(super) fn read_within_block<M: ?Sized, H: Storage<M>>(
        &mut self,
        width: Width,
        storage: &mut [H],
    ) -> Option<u64> {
        let Phase::In { at, bytes } = self.phase else { return None };
        let end = at.checked_add(data_bytes(width)?).filter(|end| *end < bytes)?;
        let value = match *self.block(storage)?.get(to_usize(at)..to_usize(end))? {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            [a, b] => u16::from_le_bytes([a, b]).into(),
            _ => return None,
        };
        self.phase = Phase::In { at: end, bytes };
        Some(value)
    }

    /// A write of the Data register, unless it ends the block. `None` if it was not done.
    #[inline]
    pub(super) fn write_within_block<M: ?Sized, H: Storage<M>>(
        &mut self,
        width: Width,
        value: u64,
        storage: &mut [H],
    ) -> Option<()> {
        let Phase::Out { at, bytes } = self.phase else { return None };
        let end = at.checked_add(data_bytes(width)?).filter(|end| *end < bytes)?;
        match self.block(storage)?.get_mut(to_usize(at)..to_usize(end))? {
            unit @ [_, _, _, _] => unit.copy_from_slice(&(value as u32).to_le_bytes()),
            unit @ [_, _] => unit.copy_from_slice(&(value as u16).to_le_bytes()),
            _ => return None,
        }
        self.phase = Phase::Out { at: end, bytes };
        Some(())
    }

    /// Reads units of `unit_bytes` of the Data register into the start of `into`, as far as none ends the block; returns the
    /// bytes.
    pub(super) fn read_units<M: ?Sized, H: Storage<M>>(
        &mut self,
        unit_bytes: u32,
        into: &mut [u8],
        storage: &mut [H],
    ) -> usize {
        let Phase::In { .. } = self.phase else { return 0 };
        let moved = copy_units(self.within_block(unit_bytes, storage), into, unit_bytes);
        self.advance_block(moved);
        to_usize(moved)
    }

    /// Writes units of `unit_bytes` from the start of `from` to the Data register, as far as none ends the block; returns the
    /// bytes.
    pub(super) fn write_units<M: ?Sized, H: Storage<M>>(
        &mut self,
        unit_bytes: u32,
        from: &[u8],
        storage: &mut [H],
    ) -> usize {
        let Phase::Out { .. } = self.phase else { return 0 };
        let moved = copy_units(from, self.within_block(unit_bytes, storage), unit_bytes);
        self.advance_block(moved);
        to_usize(moved)
    }

    /// The Data register. Beyond the end of a block there is nothing, and no byte outside it is ever touched (CVE-2015-5154).
    pub(super) fn read_data<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        width: Width,
        memory: &M,
        storage: &mut [H],
    ) -> u64 {
        let Phase::In { at, bytes } = self.phase else { return width.ones() };
        let Some(len) = data_bytes(width) else { return width.ones() };
        let index = usize::from(self.device_1);
        let (Some(unit), Some(storage_n)) = (self.selected(), storage.get_mut(index)) else {
            return width.ones();
        };
        let end = at.saturating_add(len).min(bytes);
        let slot = unit.drive.slot();
        let block = storage_n.staging(slot).get(to_usize(at)..to_usize(end)).unwrap_or(&[]);
        let value = block.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte));
        if end < bytes {
            self.phase = Phase::In { at: end, bytes };
            return value;
        }
        unit.drive.parameters_sent();
        if unit.drive.step() == Step::Ended(Ok(())) {
            // The last block has been announced; its end is not (ATA/ATAPI-7 volume 1, PIO data-in protocol).
            self.end(Ok(()), false, storage_n.info());
        } else {
            self.phase = Phase::Pio { interrupt: true };
            self.advance(memory, storage);
        }
        value
    }

    /// The Data register.
    pub(super) fn write_data<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) {
        let (Phase::Out { at, bytes }, Some(len)) = (self.phase, data_bytes(width)) else { return };
        let index = usize::from(self.device_1);
        let (Some(unit), Some(storage_n)) = (self.selected(), storage.get_mut(index)) else { return };
        let end = at.saturating_add(len).min(bytes);
        let slot = unit.drive.slot();
        if let Some(block) = storage_n.staging(slot).get_mut(to_usize(at)..to_usize(end)) {
            block.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        if end < bytes {
            self.phase = Phase::Out { at: end, bytes };
        } else {
            self.phase = Phase::Emptying { bytes };
            self.advance(memory, storage);
        }
    }

    /// Goes on with a PIO command; returns whether it can go on at once.
    pub(super) fn move_by_pio<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        step: Step,
        memory: &M,
        storage: &mut H,
    ) -> bool {
        match (self.phase, step) {
            (Phase::Emptying { bytes }, Step::Medium { .. }) => {
                self.submit_block(bytes, memory, storage, Phase::Pio { interrupt: true })
            }
            (Phase::Emptying { .. }, Step::FromHost { .. }) => {
                self.phase = Phase::Pio { interrupt: true };
                if let Some(unit) = self.selected() {
                    unit.drive.parameters_received(storage);
                }
                true
            }
            (Phase::Pio { .. }, Step::Medium { direction: Direction::Read, left }) => {
                let bytes = self.block_bytes(left, storage.info());
                self.submit_block(bytes, memory, storage, Phase::Filling { bytes })
            }
            (Phase::Pio { interrupt }, Step::Medium { direction: Direction::Write, left }) => {
                let bytes = self.block_bytes(left, storage.info());
                self.present(Phase::Out { at: 0, bytes }, interrupt)
            }
            (Phase::Pio { interrupt }, Step::ToHost { bytes }) => {
                self.present(Phase::In { at: 0, bytes }, interrupt)
            }
            (Phase::Pio { interrupt }, Step::FromHost { bytes }) => {
                self.present(Phase::Out { at: 0, bytes }, interrupt)
            }
            _ => false,
        }
    }

    /// Bytes of the next DRQ block: one logical block, or as many as SET MULTIPLE MODE says. Either fits the staging buffer.
    fn block_bytes(&mut self, left: Extent, info: &Info) -> u32 {
        let Some(unit) = self.selected() else { return 0 };
        let row = Row::of(unit.command());
        let blocks = match row {
            Some(row) if row.multiple => u64::from(unit.drive.settings().multiple),
            _ => 1,
        };
        let sectors = left.sectors.min(blocks.saturating_mul(info.sectors_per_block()));
        u32::try_from(sectors.saturating_mul(512)).unwrap_or(0)
    }

    fn submit_block<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        bytes: u32,
        memory: &M,
        storage: &mut H,
        next: Phase,
    ) -> bool {
        let Some(unit) = self.selected() else { return false };
        let segments = [Segment::Staging { offset: 0, len: bytes }];
        let taken = unit.drive.transfer(memory, storage, u64::from(bytes >> 9), &segments).is_ok();
        if taken {
            self.phase = next;
        }
        taken
    }

    /// A byte of the bus master's registers.
    pub(super) fn write_bus_master<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        offset: u8,
        value: u8,
        memory: &M,
        storage: &mut [H],
    ) {
        let Some(bus_master) = self.bus_master.as_mut() else { return };
        match (bus_master.write(offset, value), self.phase) {
            (Asked::Start, Phase::Dma { .. }) => {}
            (Asked::Abort, Phase::Dma { .. }) => {
                self.phase = Phase::Cancelled;
                if active(Mutant::ResetWithoutDrain) {
                    self.forget(memory, storage);
                }
            }
            _ => return,
        }
        self.advance(memory, storage);
    }

    /// The mutant whose drive gives up a command without waiting for what is in flight.
    fn forget<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) {
        let Some(storage) = storage.get_mut(usize::from(self.device_1)) else { return };
        if let Some(unit) = self.selected() {
            unit.drive.begin_reset();
            unit.drive.finish_reset(Reset::Stop, memory, storage);
        }
        self.end(Err(Failure::Aborted), true, storage.info());
    }

    /// Goes on with a DMA command; returns whether it can go on at once.
    pub(super) fn move_by_dma<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        step: Step,
        memory: &M,
        storage: &mut H,
    ) -> bool {
        let moved = match (self.phase, step) {
            // What was read through the staging buffer.
            (Phase::Dma { bounced: bytes @ 1.. }, _) | (_, Step::ToHost { bytes }) => {
                self.exchange(Direction::Read, bytes, memory, storage)
            }
            (_, Step::FromHost { bytes }) => self.exchange(Direction::Write, bytes, memory, storage),
            (_, Step::Medium { direction, left }) => self.move_medium(direction, left, memory, storage),
            (_, Step::Idle | Step::Wait | Step::Submitted | Step::Ended(_)) => Moved::NotNow,
        };
        match moved {
            Moved::Yes => true,
            Moved::NotNow => false,
            // Inactive and no interrupt tell the host of it (status bit interpretation); the command is over and did not succeed.
            Moved::Short => self.end(Err(Failure::Aborted), false, storage.info()),
            Moved::Failed(failure) => self.end(Err(failure), true, storage.info()),
        }
    }

    /// The place in the PRD table, if the bus master is started and goes `direction`'s way.
    fn started(&self, to_memory: bool) -> Result<Cursor, Moved> {
        let bus_master = self.bus_master.as_ref().ok_or(Moved::NotNow)?;
        if !bus_master.runs() {
            return Err(Moved::NotNow);
        }
        if bus_master.goes_to_memory() != to_memory {
            return Err(Moved::Failed(NO_MEMORY));
        }
        bus_master.cursor().ok_or(Moved::Short)
    }

    fn moved(&mut self, cursor: Cursor) {
        if let Some(bus_master) = self.bus_master.as_mut() {
            bus_master.moved(cursor);
        }
    }

    // The list of segments is on the stack of this function alone.
    #[inline(never)]
    fn move_medium<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        direction: Direction,
        left: Extent,
        memory: &M,
        storage: &mut H,
    ) -> Moved {
        let mut cursor = match self.started(direction == Direction::Read) {
            Ok(cursor) => cursor,
            Err(moved) => return moved,
        };
        let Some(unit) = self.selected() else { return Moved::NotNow };
        let slot = unit.drive.slot();
        let segments = &mut Segments::new();
        let what = (direction, left.sectors);
        let Piece { bytes, staged } = match next_piece(&mut cursor, what, segments, slot, memory, storage) {
            Ok(piece) => piece,
            Err(stop) => return stop.into(),
        };
        if unit.drive.transfer(memory, storage, u64::from(bytes >> 9), segments).is_err() {
            return Moved::NotNow;
        }
        if staged {
            self.phase = Phase::Dma { bounced: bytes };
        } else {
            self.moved(cursor);
        }
        Moved::Yes
    }

    /// Copies the start of the staging buffer to where the table says, or fills it from there.
    fn exchange<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        direction: Direction,
        bytes: u32,
        memory: &M,
        storage: &mut H,
    ) -> Moved {
        let mut cursor = match self.started(direction == Direction::Read) {
            Ok(cursor) => cursor,
            Err(moved) => return moved,
        };
        let Some(unit) = self.selected() else { return Moved::NotNow };
        let Some(buffer) = storage.staging(unit.drive.slot()).get_mut(..to_usize(bytes)) else {
            return Moved::Failed(Failure::Aborted);
        };
        if let Err(stop) = cursor.copy(memory, direction, buffer) {
            return stop.into();
        }
        match direction {
            Direction::Read => unit.drive.parameters_sent(),
            Direction::Write => unit.drive.parameters_received(storage),
        }
        self.phase = Phase::Dma { bounced: 0 };
        self.moved(cursor);
        Moved::Yes
    }
}

/// Copies as many whole units as both have; returns the bytes.
fn copy_units(from: &[u8], to: &mut [u8], unit_bytes: u32) -> u32 {
    let most = u32::try_from(from.len().min(to.len())).unwrap_or(u32::MAX);
    let bytes = most.saturating_sub(most.checked_rem(unit_bytes).unwrap_or(0));
    to.iter_mut().zip(from).take(to_usize(bytes)).for_each(|(to, from)| *to = *from);
    bytes
}

/// Bytes that an access to the Data register moves.
pub(super) const fn data_bytes(width: Width) -> Option<u32> {
    match width {
        Width::Word => Some(2),
        Width::Dword => Some(4),
        Width::Byte | Width::Qword => None,
    }
}
