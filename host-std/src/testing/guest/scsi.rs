//! A SCSI initiator in miniature: command blocks, one at a time, handed to a logical unit or to what carries them there.

use std::ops::Range;
use std::time::{Duration, Instant};

use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use scsi_model::{
    Attribute, Cdb, DataError, Direction, LogicalUnit, Outcome, Polled, SegmentList, Task, Transport,
};

use super::{GuestDisk, GuestError, TIMEOUT};
use crate::backend::FileStorage;
use crate::memory::MappedMemory;

/// Where the data of the one command in flight is.
pub const BUFFER: GuestAddr = GuestAddr(0x10_0000);

/// Lends the logical unit the one buffer that there is.
struct OneBuffer;

impl Transport for OneBuffer {
    fn segments(
        &mut self,
        _: u64,
        _: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let len = u32::try_from(range.end - range.start).map_err(|_| DataError)?;
        let addr = BUFFER.checked_add(range.start).ok_or(DataError)?;
        list.push(Segment::Guest { addr, len }).map_err(|_| DataError)
    }
}

/// Transport of command blocks to a disk.
pub trait Carrier {
    /// Guest memory.
    fn memory(&self) -> &MappedMemory;

    /// Runs one command to its end, with `out` bytes of data at [`BUFFER`], or `room` bytes of room there.
    ///
    /// # Errors
    /// [`GuestError`] if it does not end with GOOD.
    fn command(&mut self, cdb: &[u8], out: usize, room: usize) -> Result<(), GuestError>;
}

/// A logical unit by itself.
pub struct Unit<const N: usize> {
    unit: LogicalUnit<N>,
    memory: MappedMemory,
    storage: FileStorage,
    tag: u64,
}

impl<const N: usize> Unit<N> {
    /// Puts the parts together.
    pub const fn new(unit: LogicalUnit<N>, memory: MappedMemory, storage: FileStorage) -> Self {
        Self { unit, memory, storage, tag: 0 }
    }
}

impl<const N: usize> Carrier for Unit<N> {
    fn memory(&self) -> &MappedMemory {
        &self.memory
    }

    fn command(&mut self, cdb: &[u8], out: usize, room: usize) -> Result<(), GuestError> {
        self.tag += 1;
        let task = Task {
            tag: self.tag,
            nexus: scsi_model::Nexus::default(),
            attribute: Attribute::Simple,
            cdb: Cdb::new(cdb),
            data_out_bytes: out as u64,
            data_in_bytes: room as u64,
        };
        self.unit.enqueue(task).map_err(|_| GuestError::Failed("the task set is full".into()))?;
        let start = Instant::now();
        loop {
            match self.unit.poll(&self.memory, &mut self.storage, &mut OneBuffer) {
                Polled::Ended(ended) if ended.tag == self.tag => {
                    return match ended.outcome {
                        Outcome::Good => Ok(()),
                        other => Err(GuestError::Failed(format!("{other:?}"))),
                    };
                }
                Polled::Ended(_) | Polled::Again => {}
                Polled::Idle if start.elapsed() > TIMEOUT => return Err(GuestError::Timeout),
                Polled::Idle => {
                    self.storage.wait(Some(Duration::from_millis(10)));
                }
            }
        }
    }
}

/// A disk, and the initiator that uses it.
pub struct Scsi<C> {
    carrier: C,
    sectors: u64,
    sectors_per_block: u64,
}

impl<C: Carrier> Scsi<C> {
    /// Brings the disk up: clears the unit attention, reads the capacity.
    ///
    /// # Errors
    /// [`GuestError`] if the disk fails a command.
    pub fn new(carrier: C) -> Result<Self, GuestError> {
        let mut guest = Self { carrier, sectors: 0, sectors_per_block: 1 };
        // TEST UNIT READY takes the power-on unit attention.
        let _ = guest.carrier.command(&[0; 6], 0, 0);
        // READ CAPACITY(16): last block, block length (SBC-3 5.16.2).
        let mut capacity = [0; 32];
        let allocation = capacity.len() as u8;
        guest.data_in(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, allocation, 0, 0], &mut capacity)?;
        let (last, rest) = capacity.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let (block, _) = rest.split_first_chunk().unwrap_or((&[0; 4], &[]));
        guest.sectors_per_block = u64::from(u32::from_be_bytes(*block) / 512).max(1);
        guest.sectors = (u64::from_be_bytes(*last) + 1) * guest.sectors_per_block;
        Ok(guest)
    }

    fn data_in(&mut self, cdb: &[u8], into: &mut [u8]) -> Result<(), GuestError> {
        self.carrier.command(cdb, 0, into.len())?;
        self.carrier.memory().read(BUFFER, into).map_err(|_| no_memory())
    }

    /// READ(16) or WRITE(16).
    fn block_command(&self, opcode: u8, lba: u64, bytes: usize, fua: bool) -> [u8; 16] {
        let blocks = bytes as u64 / 512 / self.sectors_per_block;
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[1] = u8::from(fua) << 3;
        cdb[2..10].copy_from_slice(&(lba / self.sectors_per_block).to_be_bytes());
        cdb[10..14].copy_from_slice(&(blocks as u32).to_be_bytes());
        cdb
    }
}

fn no_memory() -> GuestError {
    GuestError::Unknown("no memory for the data".into())
}

impl<C: Carrier> GuestDisk for Scsi<C> {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    /// WCE of the caching page, by MODE SENSE(6) as Linux's sd asks for it.
    fn write_cache(&mut self) -> Result<bool, GuestError> {
        let mut page = [0; 24];
        let allocation = page.len() as u8;
        // DBD: the header is followed by the page.
        self.data_in(&[0x1a, 0x08, 0x08, 0, allocation, 0], &mut page)?;
        Ok(page[4 + 2] & 0x04 != 0)
    }

    fn has_fua(&self) -> bool {
        true
    }

    fn write(&mut self, lba: u64, data: &[u8], fua: bool) -> Result<(), GuestError> {
        self.carrier.memory().write(BUFFER, data).map_err(|_| no_memory())?;
        self.carrier.command(&self.block_command(0x8a, lba, data.len(), fua), data.len(), 0)
    }

    fn read(&mut self, lba: u64, into: &mut [u8]) -> Result<(), GuestError> {
        self.data_in(&self.block_command(0x88, lba, into.len(), false), into)
    }

    /// SYNCHRONIZE CACHE(16) of everything.
    fn flush(&mut self) -> Result<(), GuestError> {
        let mut cdb = [0; 16];
        cdb[0] = 0x91;
        self.carrier.command(&cdb, 0, 0)
    }
}
